"""Serves signing in and out, and setting a password by a one-time link.

POST /api/session  sign in      DELETE /api/session  sign out      POST /api/welcome  set a password
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, HTTPException, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from misfire_fleet.accounts.limits import SignInLimits
from misfire_fleet.accounts.links import OneTimeLinks
from misfire_fleet.accounts.passwords import MAX_CHARS
from misfire_fleet.accounts.records import Account
from misfire_fleet.accounts.roles import Role
from misfire_fleet.accounts.sessions import Sessions
from misfire_fleet.console.access import Caller, requires
from misfire_fleet.console.access.cookies import drop_session, session_in, set_session
from misfire_fleet.console.shared import Shared

Password = Annotated[str, Field(min_length=1, max_length=MAX_CHARS)]
InPerson = Annotated[Caller, Depends(requires("viewer", in_person=True))]
UNKEPT = {"Cache-Control": "no-store"}
"""Neither browsers nor the answers to repeated requests keep a secret."""


class SignIn(BaseModel):
    """Name and password of an account."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(min_length=1, max_length=64)]
    password: Password


class Welcome(BaseModel):
    """A one-time link's secret with the password to set; `name` is for the first admin only."""

    model_config = ConfigDict(extra="forbid")

    link: Annotated[str, Field(min_length=1, max_length=100)]
    name: Annotated[str, Field(max_length=64)] = ""
    password: Password


class SignedIn(BaseModel):
    """Says who signed in."""

    name: str
    role: Role


def signing_in_api(shared: Shared) -> APIRouter:
    """Returns the routes /api/session and /api/welcome."""
    router, accounts = APIRouter(tags=["signing in"]), shared.accounts
    sessions = Sessions(shared.store, limits=shared.access.sessions)
    links, limits = OneTimeLinks(shared.store, accounts), SignInLimits()

    def start(request: Request, response: Response, account: Account, via: str) -> SignedIn:
        scheme = request.url.scheme
        # Always a new secret: one that somebody else put into this browser is worth nothing.
        secret = sessions.start(
            account,
            address=address_of(request),
            agent=request.headers.get("user-agent", ""),
            replaces=session_in(request.headers.get("cookie", ""), scheme),
            via=via,
        )
        set_session(response, secret, scheme=scheme, max_age_s=shared.access.sessions.absolute_s)
        response.headers.update(UNKEPT)
        return SignedIn(name=account.name, role=account.role)

    @router.post("/api/session", status_code=201)
    def sign_in(request: Request, response: Response, body: SignIn) -> SignedIn:
        """Signs in: sets the cookie of a new session. The one that the browser had ends."""
        refuse_open(shared)
        limits.take(body.name.strip().lower(), address_of(request))
        account = accounts.check_password(body.name, body.password)
        if account is None:
            raise HTTPException(401, "name or password is wrong, or the account is disabled")
        limits.give_back(body.name.strip().lower(), address_of(request))
        return start(request, response, account, "password")

    @router.delete("/api/session", status_code=204)
    def sign_out(request: Request, response: Response, caller: InPerson) -> None:
        """Ends the session that asks."""
        if caller.key:
            sessions.end(caller.name, only=caller.key, actor=caller.name, via=caller.via)
        drop_session(response, scheme=request.url.scheme)

    @router.post("/api/welcome", status_code=201)
    def welcome(request: Request, response: Response, body: Welcome) -> SignedIn:
        """Sets the password that a one-time link is for, and signs in."""
        refuse_open(shared)
        limits.take("", address_of(request))
        account = links.use(body.link, name=body.name, password=body.password)
        limits.give_back("", address_of(request))
        return start(request, response, account, "link")

    return router


def address_of(request: Request) -> str:
    """Returns the browser's address; with a trusted proxy, what it says of it."""
    return request.client.host if request.client is not None else ""


def refuse_open(shared: Shared) -> None:
    """Answers 409 if there are no accounts."""
    if shared.access.open_to_all:
        raise HTTPException(409, "this console runs with --open: it has no accounts")
