"""Accounts for tests, and clients that are signed in as them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import httpx

from misfire_fleet.accounts.accounts import Accounts
from misfire_fleet.accounts.records import Account
from misfire_fleet.accounts.roles import ROLES, Role
from misfire_fleet.accounts.sessions import Sessions
from misfire_fleet.accounts.tokens import Tokens
from misfire_fleet.console.access.cookies import cookie_name
from misfire_fleet.errors import NoSuchAccountError
from misfire_fleet.store import Store

PASSWORD = "correct horse battery staple"


class _Ask:
    """One request without a client's cookies; plain http needs no certificates, which take long to load."""

    def __getattr__(self, method: str) -> Callable[..., httpx.Response]:
        return partial(httpx.request, method.upper(), verify=False, timeout=30)


ask = _Ask()


def person(store: Store, role: Role, *, name: str = "", password: str | None = None) -> Account:
    """The account `ROLE-1`, or one of the name; added at the first time."""
    accounts, name = Accounts(store), name or f"{role}-1"
    try:
        return accounts.get(name)
    except NoSuchAccountError:
        return accounts.add(name, role, password=password, actor="test")


def cookie(store: Store, account: Account) -> dict[str, str]:
    """The cookie of a new session."""
    secret = Sessions(store).start(account, address="127.0.0.1", agent="test")
    return {cookie_name("http"): secret}


def browser(console: str, store: Store, role: Role, *, name: str = "") -> httpx.Client:
    """What a page of the console sends, signed in with the role."""
    return httpx.Client(
        base_url=console,
        cookies=cookie(store, person(store, role, name=name)),
        headers={"Origin": console, "Sec-Fetch-Site": "same-origin"},
        timeout=30,
        verify=False,
    )


def program(console: str, store: Store, role: Role, *areas: str, days: float = 1.0) -> httpx.Client:
    """A program with a token of an admin."""
    owner = person(store, "admin")
    _, secret = Tokens(store).add(owner.name, title="test", role=role, areas=areas, days=days, actor="test")
    return httpx.Client(
        base_url=console, headers={"Authorization": f"Bearer {secret}"}, timeout=30, verify=False
    )


def below(role: Role) -> tuple[Role, ...]:
    """The roles that may do less."""
    return ROLES[: ROLES.index(role)]
