"""Says who asks, and what each role may do."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal

from fastapi import HTTPException, Request

from misfire_fleet.accounts.roles import Role, suffices

How = Literal["open", "session", "token", "link"]
_caller: ContextVar[Caller | None] = ContextVar("misfire_caller", default=None)


@dataclass(frozen=True)
class Caller:
    """Names who asks, for the audit log and for records that say who made them.

    Attributes:
        name: of the account; of the process's user if there are no accounts.
        role: what it may do.
        how: it came by a session, by a token, by a signed link of one picture, or there are no accounts.
        key: id of the session or the token.
        areas: of a token: parts of the console that it is for; () is all.
    """

    name: str
    role: Role
    how: How = "open"
    key: str = ""
    areas: tuple[str, ...] = ()

    def may(self, role: Role) -> bool:
        """Returns True if this caller may do what `role` may."""
        return suffices(self.role, role)

    @property
    def via(self) -> str:
        """Returns how the caller came, for the audit log."""
        return f"{self.how}:{self.key}" if self.key else self.how


class Requires:
    """Gives a route its caller. Answers 403 if the caller's role does not suffice."""

    def __init__(self, role: Role, *, in_person: bool = False) -> None:
        self.role, self.in_person = role, in_person

    def __call__(self, request: Request) -> Caller:
        caller: Caller | None = getattr(request.state, "caller", None)
        if caller is None:
            raise HTTPException(401, "sign in first")
        if not caller.may(self.role):
            raise HTTPException(403, f"this needs the role {self.role!r}; yours is {caller.role!r}")
        if self.in_person and caller.how not in ("session", "open"):
            raise HTTPException(403, "this is for people who signed in, not for tokens")
        return caller


def requires(role: Role, *, in_person: bool = False) -> Requires:
    """Returns a dependency that gives the caller.

    Args:
        role: what the caller's role has to suffice for.
        in_person: refuses tokens: one that leaked must not make others, or change a password.
    """
    return Requires(role, in_person=in_person)


def current_caller() -> Caller | None:
    """Returns the caller of the request that is being answered; None on pages that are for everybody."""
    return _caller.get()


def set_caller(caller: Caller | None) -> None:
    """Sets what `current_caller` returns while this request is answered."""
    _caller.set(caller)
