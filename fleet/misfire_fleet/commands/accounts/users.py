"""Implements `misfire fleet users add|list|role|disable|enable|password`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from misfire_fleet.actor import current_actor
from misfire_fleet.commands.options import AsJson, StoreOptions, show, with_options
from misfire_runtime.errors import ConfigError

if TYPE_CHECKING:
    from misfire_fleet.accounts.records import Account
    from misfire_fleet.store import Store

users = typer.Typer(
    name="users",
    help="Add and change the console's accounts.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
Name = Annotated[str, typer.Argument(help="Name of the account.")]
# Written out: importing the roles would load the store at every --help.
Role = Literal["viewer", "labeller", "operator", "admin"]
RoleOption = Annotated[Role, typer.Option("--role", help="Let it do what this role may.")]
PasswordFile = Annotated[
    Path | None,
    typer.Option("--password-file", help="Read the password from this file. Default: print a one-time link."),
]
NoPassword = Annotated[
    bool, typer.Option("--no-password", help="Give it no password: it is for tokens, or for OIDC.")
]
VIA = "command"


@users.command("add")
@with_options(place=StoreOptions)
def add(
    name: Name,
    *,
    place: StoreOptions,
    role: RoleOption = "viewer",
    password_file: PasswordFile = None,
    no_password: NoPassword = False,
    as_json: AsJson = False,
) -> None:
    """Add an account, and print a one-time link by which its owner sets a password."""
    from misfire_fleet.accounts.accounts import Accounts

    password = None if password_file is None else _password_in(password_file)
    with place.open() as store:
        made = Accounts(store).add(name, role, password=password, actor=current_actor(), via=VIA)
        link = "" if password or no_password else _link(store, made.name)
    text = f"account {made.name!r} is {made.role}" + (
        f"; open once, within a day:\nCONSOLE{link}" if link else ""
    )
    show(_shown(made) | {"link": link}, as_json=as_json, text=text)


@users.command("list")
@with_options(place=StoreOptions)
def list_(*, place: StoreOptions, as_json: AsJson = False) -> None:
    """List all accounts by name."""
    from misfire_fleet.accounts.accounts import Accounts
    from misfire_fleet.console.format import utc

    with place.open() as store:
        found = Accounts(store).all()
    lines = [
        f"{each.name}: {each.role}{', disabled' if each.disabled else ''}, "
        f"{'signed in ' + utc(each.seen_at) if each.seen_at else 'never signed in'}"
        for each in found
    ]
    listed = [_shown(each) for each in found]
    show({"users": listed}, as_json=as_json, text="\n".join(lines) or "no accounts")


@users.command("role")
@with_options(place=StoreOptions)
def role(
    name: Name, role: Annotated[Role, typer.Argument(help="The new role.")], *, place: StoreOptions
) -> None:
    """Change what an account may do; it has to sign in again."""
    from misfire_fleet.accounts.accounts import Accounts

    with place.open() as store:
        made = Accounts(store).set_role(name, role, actor=current_actor(), via=VIA)
    typer.echo(f"account {made.name!r} is {made.role}")


@users.command("disable")
@with_options(place=StoreOptions)
def disable(name: Name, *, place: StoreOptions) -> None:
    """Disable an account: its sessions end, and its tokens are refused."""
    _set_disabled(name, place, True)


@users.command("enable")
@with_options(place=StoreOptions)
def enable(name: Name, *, place: StoreOptions) -> None:
    """Enable a disabled account."""
    _set_disabled(name, place, False)


@users.command("password")
@with_options(place=StoreOptions)
def password(name: Name, *, place: StoreOptions, password_file: PasswordFile = None) -> None:
    """Set an account's password, or print a one-time link by which its owner does."""
    from misfire_fleet.accounts.accounts import Accounts

    new = None if password_file is None else _password_in(password_file)
    with place.open() as store:
        if new is None:
            typer.echo(f"open once, within a day:\nCONSOLE{_link(store, name)}")
        else:
            Accounts(store).set_password(name, new, actor=current_actor(), via=VIA)
            typer.echo(f"the password of {name!r} is set; it is signed out everywhere")


def _set_disabled(name: str, place: StoreOptions, disabled: bool) -> None:
    from misfire_fleet.accounts.accounts import Accounts

    with place.open() as store:
        made = Accounts(store).set_disabled(name, disabled, actor=current_actor(), via=VIA)
    typer.echo(f"account {made.name!r} is {'disabled' if made.disabled else 'enabled'}")


def _link(store: Store, name: str) -> str:
    """Returns the path of a one-time link; the console's address comes before it."""
    from misfire_fleet.accounts.accounts import Accounts
    from misfire_fleet.accounts.links import OneTimeLinks

    links = OneTimeLinks(store, Accounts(store))
    return f"/welcome#{links.for_account(name, actor=current_actor(), via=VIA)}"


def _password_in(path: Path) -> str:
    """Returns the first line of a file. Raises ConfigError."""
    try:
        return path.read_text(encoding="utf-8").split("\n", 1)[0].rstrip("\r")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--password-file {path}: cannot be read ({error})") from error


def _shown(account: Account) -> dict[str, object]:
    return asdict(account)
