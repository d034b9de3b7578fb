"""Implements `misfire fleet tokens create|list|revoke`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from misfire_fleet.actor import current_actor
from misfire_fleet.commands.accounts.users import VIA, Role
from misfire_fleet.commands.options import AsJson, StoreOptions, show, with_options

tokens = typer.Typer(
    name="tokens",
    help="Make and revoke tokens of programs.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@tokens.command("create")
@with_options(place=StoreOptions)
def create(
    title: Annotated[str, typer.Argument(help="Say what the token is for.")],
    *,
    place: StoreOptions,
    user: Annotated[str, typer.Option(help="Make it for this account: it acts in its name.")],
    role: Annotated[
        Role, typer.Option(help="Let it do what this role may, at most what the account may.")
    ] = ("viewer"),
    area: Annotated[
        list[str] | None,
        typer.Option(
            help="Limit it to this part of the console, such as samples, verdicts, vehicles or metrics "
            "(repeat). Default: all."
        ),
    ] = None,
    days: Annotated[float, typer.Option(help="End it after so many days.", min=0.001, max=730)] = 90.0,
    as_json: AsJson = False,
) -> None:
    """Make a token, and print it: it is not kept, and not shown again."""
    from misfire_fleet.accounts.tokens import Tokens

    with place.open() as store:
        made, secret = Tokens(store).add(
            user, title=title, role=role, areas=area or (), days=days, actor=current_actor(), via=VIA
        )
    show(asdict(made) | {"secret": secret}, as_json=as_json, text=secret)


@tokens.command("list")
@with_options(place=StoreOptions)
def list_(
    *,
    place: StoreOptions,
    user: Annotated[str | None, typer.Option(help="List only this account's.")] = None,
    as_json: AsJson = False,
) -> None:
    """List tokens, the newest first, without their secrets."""
    from misfire_fleet.accounts.tokens import Tokens
    from misfire_fleet.console.format import utc
    from misfire_runtime.clock import wall_time

    with place.open() as store:
        found = Tokens(store).of(user)
    lines = []
    for each in found:
        state = "revoked" if each.revoked_at else "expired" if each.ended(wall_time()) else "valid"
        used = f"used {utc(each.used_at)}" if each.used_at else "never used"
        areas = ", ".join(each.areas) or "all areas"
        lines.append(
            f"{each.id} {each.title!r} of {each.account}: {each.role}, {areas}, {state}, "
            f"ends {utc(each.expires_at)}, {used}"
        )
    listed = [asdict(each) for each in found]
    show({"tokens": listed}, as_json=as_json, text="\n".join(lines) or "no tokens")


@tokens.command("revoke")
@with_options(place=StoreOptions)
def revoke(token: Annotated[str, typer.Argument(help="Id of the token.")], *, place: StoreOptions) -> None:
    """End a token at once."""
    from misfire_fleet.accounts.tokens import Tokens

    with place.open() as store:
        ended = Tokens(store).revoke(token, actor=current_actor(), via=VIA)
    typer.echo(f"token {ended.id} of {ended.account} is revoked")
