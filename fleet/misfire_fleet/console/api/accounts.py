"""Serves accounts to admins: list, add, change, one-time links, and everybody's tokens and sessions."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from misfire_fleet.accounts.links import LINK_S, OneTimeLinks
from misfire_fleet.accounts.records import Account
from misfire_fleet.accounts.roles import Role
from misfire_fleet.accounts.sessions import Sessions
from misfire_fleet.accounts.tokens import Tokens
from misfire_fleet.console.access import Caller, requires
from misfire_fleet.console.api.me import Ended, SessionJson, TokenJson, session_json, token_json
from misfire_fleet.console.rules.etags import refuse_if_changed, tag_of
from misfire_fleet.console.shared import Shared

Admin = Annotated[Caller, Depends(requires("admin"))]
AdminInPerson = Annotated[Caller, Depends(requires("admin", in_person=True))]


class UserJson(BaseModel):
    """Describes an account. Times are seconds since 1970."""

    name: str
    role: Role
    has_password: bool
    external: bool
    """It signs in at the identity provider."""
    disabled: bool
    created_at: float
    changed_at: float
    seen_at: float | None


class NewUser(BaseModel):
    """An account to add. It gets its password by a one-time link."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(min_length=1, max_length=64)]
    role: Role


class UserChange(BaseModel):
    """What to change of an account."""

    model_config = ConfigDict(extra="forbid")

    role: Role | None = None
    disabled: bool | None = None


class LinkJson(BaseModel):
    """Holds a one-time link: `path` after the console's address. It works once, for `lasts_s` seconds."""

    path: str
    lasts_s: float = LINK_S


class AddedUser(BaseModel):
    """Holds a new account, and the link by which its owner sets a password."""

    user: UserJson
    link: LinkJson


def accounts_api(shared: Shared) -> APIRouter:
    """Returns the routes under /api/users and /api/tokens."""
    router, accounts = APIRouter(tags=["accounts"]), shared.accounts
    sessions, tokens = Sessions(shared.store, limits=shared.access.sessions), Tokens(shared.store)
    links = OneTimeLinks(shared.store, accounts)

    def link(name: str, response: Response, caller: Caller) -> LinkJson:
        response.headers["Cache-Control"] = "no-store"
        secret = links.for_account(name, actor=caller.name, via=caller.via)
        return LinkJson(path=f"/welcome#{secret}")

    @router.get("/api/users")
    def users(_caller: Admin) -> list[UserJson]:
        """Lists all accounts by name."""
        return [user_json(each) for each in accounts.all()]

    @router.post("/api/users", status_code=201)
    def add(response: Response, caller: AdminInPerson, body: NewUser) -> AddedUser:
        """Adds an account."""
        made = accounts.add(body.name, body.role, actor=caller.name, via=caller.via)
        return AddedUser(user=user_json(made), link=link(made.name, response, caller))

    @router.get("/api/users/{name}")
    def user(name: str, response: Response, _caller: Admin) -> UserJson:
        """Shows an account; send its ETag as If-Match with a change."""
        found = user_json(accounts.get(name))
        response.headers["ETag"] = tag_of(found)
        return found

    @router.patch("/api/users/{name}")
    def change(
        request: Request, response: Response, name: str, caller: AdminInPerson, body: UserChange
    ) -> UserJson:
        """Changes role or state of an account, which signs it out everywhere."""
        account = accounts.get(name)
        refuse_if_changed(request, tag_of(user_json(account)))
        if body.role is not None and body.role != account.role:
            account = accounts.set_role(name, body.role, actor=caller.name, via=caller.via)
        if body.disabled is not None and body.disabled != account.disabled:
            account = accounts.set_disabled(name, body.disabled, actor=caller.name, via=caller.via)
        response.headers["ETag"] = tag_of(user_json(account))
        return user_json(account)

    @router.post("/api/users/{name}/link", status_code=201)
    def new_link(name: str, response: Response, caller: AdminInPerson) -> LinkJson:
        """Makes a one-time link by which the account's owner sets a new password."""
        return link(name, response, caller)

    @router.get("/api/users/{name}/sessions")
    def their_sessions(name: str, caller: Admin) -> list[SessionJson]:
        """Lists an account's sessions."""
        return [session_json(each, caller) for each in sessions.of(accounts.get(name).name)]

    @router.delete("/api/users/{name}/sessions")
    def end_sessions(name: str, caller: AdminInPerson) -> Ended:
        """Signs an account out everywhere."""
        account = accounts.get(name).name
        return Ended(ended=sessions.end(account, actor=caller.name, via=caller.via))

    @router.get("/api/tokens")
    def all_tokens(_caller: Admin) -> list[TokenJson]:
        """Lists everybody's tokens, the newest first."""
        return [token_json(each) for each in tokens.of()]

    @router.delete("/api/tokens/{token}")
    def revoke(token: str, caller: AdminInPerson) -> TokenJson:
        """Revokes anybody's token."""
        return token_json(tokens.revoke(token, actor=caller.name, via=caller.via))

    return router


def user_json(account: Account) -> UserJson:
    """Returns an account as the API has it."""
    return UserJson(**asdict(account))
