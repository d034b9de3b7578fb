"""Serves what everybody does with their own account: password, sessions, tokens.

GET    /api/me        who asks                      PUT    /api/me/password     change the own password
GET    /api/me/sessions, /api/me/tokens             DELETE /api/me/sessions     sign out everywhere
POST   /api/me/tokens a new token, shown once       DELETE /api/me/tokens/ID    revoke it
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Depends, HTTPException, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from misfire_fleet.accounts.limits import SignInLimits
from misfire_fleet.accounts.passwords import MAX_CHARS
from misfire_fleet.accounts.records import AREAS, Session, Token
from misfire_fleet.accounts.roles import Role
from misfire_fleet.accounts.sessions import Sessions
from misfire_fleet.accounts.tokens import MAX_DAYS, Tokens
from misfire_fleet.console.access import Caller, requires
from misfire_fleet.console.access.cookies import drop_session
from misfire_fleet.console.api.signing_in import UNKEPT, Password, address_of, refuse_open
from misfire_fleet.console.shared import Shared
from misfire_runtime.clock import wall_time

Viewer = Annotated[Caller, Depends(requires("viewer"))]
InPerson = Annotated[Caller, Depends(requires("viewer", in_person=True))]


class NewPassword(BaseModel):
    """The password that holds, and the one that shall."""

    model_config = ConfigDict(extra="forbid")

    current: Annotated[str, Field(max_length=MAX_CHARS)] = ""
    new: Password


class NewToken(BaseModel):
    """A token to make; `areas` are parts of the console that it is for, none is all."""

    model_config = ConfigDict(extra="forbid")

    title: Annotated[str, Field(min_length=1, max_length=100)]
    role: Role = "viewer"
    areas: Annotated[list[str], Field(max_length=len(AREAS))] = []
    days: Annotated[float, Field(gt=0, le=MAX_DAYS, allow_inf_nan=False)] = 90.0


class MeJson(BaseModel):
    """Says who asks: name of the account, role, and how (session, token, or open: no accounts)."""

    name: str
    role: Role
    how: str
    areas: list[str]


class SessionJson(BaseModel):
    """Describes a browser that is signed in. Times are seconds since 1970."""

    id: str
    created_at: float
    seen_at: float
    expires_at: float
    address: str
    agent: str
    this: bool
    """True for the session that asks."""


class TokenJson(BaseModel):
    """Describes a token. Times are seconds since 1970."""

    id: str
    account: str
    title: str
    role: Role
    areas: list[str]
    created_at: float
    expires_at: float
    revoked_at: float | None
    used_at: float | None
    ended: bool


class MadeToken(BaseModel):
    """Holds a new token with its secret, which is shown this once."""

    token: TokenJson
    secret: str


class Ended(BaseModel):
    """Counts the sessions that ended."""

    ended: int


def me_api(shared: Shared) -> APIRouter:
    """Returns the routes under /api/me."""
    router, accounts = APIRouter(tags=["own account"]), shared.accounts
    sessions = Sessions(shared.store, limits=shared.access.sessions)
    tokens, limits = Tokens(shared.store), SignInLimits()

    @router.get("/api/me")
    def me(caller: Viewer) -> MeJson:
        """Says who asks, and what they may do."""
        return MeJson(name=caller.name, role=caller.role, how=caller.how, areas=list(caller.areas))

    @router.put("/api/me/password", status_code=204)
    def change_password(request: Request, caller: InPerson, body: NewPassword) -> None:
        """Changes the own password, and ends all other sessions."""
        refuse_open(shared)
        if accounts.get(caller.name).has_password:
            limits.take(caller.name, address_of(request))
            if accounts.check_password(caller.name, body.current) is None:
                raise HTTPException(403, "current: this is not the password")
            limits.give_back(caller.name, address_of(request))
        accounts.set_password(
            caller.name, body.new, actor=caller.name, via=caller.via, keep_session=caller.key
        )

    @router.get("/api/me/sessions")
    def own_sessions(caller: Viewer) -> list[SessionJson]:
        """Lists the browsers that are signed in, the newest first."""
        return [session_json(each, caller) for each in sessions.of(caller.name)]

    @router.delete("/api/me/sessions")
    def sign_out_everywhere(request: Request, response: Response, caller: InPerson) -> Ended:
        """Ends all own sessions, this one too."""
        drop_session(response, scheme=request.url.scheme)
        return Ended(ended=sessions.end(caller.name, actor=caller.name, via=caller.via))

    @router.delete("/api/me/sessions/{session}")
    def end_session(session: str, caller: InPerson) -> Ended:
        """Ends one of the own sessions."""
        return Ended(ended=sessions.end(caller.name, only=session[:32], actor=caller.name, via=caller.via))

    @router.get("/api/me/tokens")
    def own_tokens(caller: Viewer) -> list[TokenJson]:
        """Lists the own tokens, the newest first; their secrets are not kept."""
        return [token_json(each) for each in tokens.of(caller.name)]

    @router.post("/api/me/tokens", status_code=201)
    def make_token(response: Response, caller: InPerson, body: NewToken) -> MadeToken:
        """Makes a token for a program; its secret is shown once."""
        refuse_open(shared)
        values = body.model_dump()
        token, secret = tokens.add(caller.name, **values, actor=caller.name, via=caller.via)
        response.headers.update(UNKEPT)
        return MadeToken(token=token_json(token), secret=secret)

    @router.delete("/api/me/tokens/{token}")
    def revoke_token(token: str, caller: InPerson) -> TokenJson:
        """Revokes one of the own tokens."""
        return token_json(tokens.revoke(token, account=caller.name, actor=caller.name, via=caller.via))

    return router


def session_json(session: Session, caller: Caller) -> SessionJson:
    """Returns a session as the API has it."""
    values = {name: value for name, value in asdict(session).items() if name in SessionJson.model_fields}
    return SessionJson(**values, this=session.id == caller.key)


def token_json(token: Token) -> TokenJson:
    """Returns a token as the API has it."""
    return TokenJson(**asdict(token) | {"areas": list(token.areas)}, ended=token.ended(wall_time()))
