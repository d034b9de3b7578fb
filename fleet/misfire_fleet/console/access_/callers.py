"""Says who asks, and what each role may do.

A route that writes names the role it needs:

    caller: Annotated[Caller, Depends(requires("operator"))]

and records `caller.name` as the one who did it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from fastapi import HTTPException, Request

from misfire_fleet.actor import current_actor

Role = Literal["viewer", "labeller", "operator", "admin"]
ROLES: tuple[Role, ...] = ("viewer", "labeller", "operator", "admin")
"""Each role may do what those before it may."""


@dataclass(frozen=True)
class Caller:
    """Names who asks, for the audit log and for records that say who made them."""

    name: str
    role: Role

    def may(self, role: Role) -> bool:
        """Returns True if this caller may do what `role` may."""
        return ROLES.index(self.role) >= ROLES.index(role)


def requires(role: Role) -> Callable[[Request], Caller]:
    """Returns a dependency that gives the caller. It answers 403 if the caller's role does not suffice."""

    def caller_of(request: Request) -> Caller:
        caller = getattr(request.state, "caller", None) or Caller(current_actor(), "admin")
        if not caller.may(role):
            raise HTTPException(403, f"this needs the role {role!r}; yours is {caller.role!r}")
        return caller

    return caller_of
