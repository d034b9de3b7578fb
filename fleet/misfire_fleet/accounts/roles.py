"""Defines the roles. Each may do what those before it may: viewer, labeller, operator, admin."""

from __future__ import annotations

from typing import Literal, get_args

from misfire_runtime.errors import ConfigError

Role = Literal["viewer", "labeller", "operator", "admin"]
ROLES: tuple[Role, ...] = get_args(Role)
"""From the least to the most."""


def suffices(role: Role, wanted: Role) -> bool:
    """Returns True if who has `role` may do what `wanted` may."""
    return ROLES.index(role) >= ROLES.index(wanted)


def lesser(one: Role, other: Role) -> Role:
    """Returns the role of the two that may do less."""
    return min(one, other, key=ROLES.index)


def role_of(text: str) -> Role:
    """Returns the role of this name. Raises ConfigError if there is none."""
    for role in ROLES:
        if role == text:
            return role
    raise ConfigError(f"role {text[:40]!r}: expected one of {', '.join(ROLES)}")
