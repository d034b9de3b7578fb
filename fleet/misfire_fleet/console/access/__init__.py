"""Says who asks, and what they may: `console/entry` finds the caller, a route names the role it needs.

A route that writes names the role it needs, and records `caller.name` as the one who did it:

    caller: Annotated[Caller, Depends(requires("operator"))]
"""

from __future__ import annotations

from misfire_fleet.accounts.roles import ROLES, Role
from misfire_fleet.console.access.callers import Caller, current_caller, requires

__all__ = ["ROLES", "Caller", "Role", "current_caller", "requires"]
