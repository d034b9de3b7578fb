"""Describes accounts, sessions and tokens as the console shows them: nothing here is secret."""

from __future__ import annotations

import re
from dataclasses import dataclass

from misfire_fleet.accounts.roles import Role
from misfire_fleet.errors import AccountError

NAME = r"[a-z0-9][a-z0-9._@+-]{0,63}"
_NAME = re.compile(NAME)
AREAS = (
    *("samples", "verdicts", "labels", "vehicles", "campaigns", "datasets", "rollouts", "alerts", "audit"),
    *("accounts", "metrics", "events", "totals"),
)
"""Parts of the console that a token can be limited to."""


@dataclass(frozen=True)
class Account:
    """Describes an account. Times are seconds since 1970.

    Attributes:
        has_password: it can sign in with a password.
        external: it signs in at the identity provider.
    """

    name: str
    role: Role
    has_password: bool
    external: bool
    disabled: bool
    created_at: float
    changed_at: float
    seen_at: float | None


@dataclass(frozen=True)
class Session:
    """Describes a browser that is signed in."""

    id: str
    account: str
    role: Role
    created_at: float
    seen_at: float
    expires_at: float
    address: str
    agent: str


@dataclass(frozen=True)
class Token:
    """Describes a token of a program.

    Attributes:
        role: what it may do at most; never more than its account may.
        areas: parts of the console that it is for; () is all.
        ended: it is revoked or has expired.
    """

    id: str
    account: str
    title: str
    role: Role
    areas: tuple[str, ...]
    created_at: float
    expires_at: float
    revoked_at: float | None
    used_at: float | None

    def ended(self, now: float) -> bool:
        """Returns True if it is revoked or has expired."""
        return self.revoked_at is not None or self.expires_at <= now


def account_name(text: str) -> str:
    """Returns the name as it is kept, in lower case. Raises AccountError if it is none."""
    name = text.strip().lower()
    if _NAME.fullmatch(name) is None:
        raise AccountError(
            f"account {text[:70]!r}: a name has 1 to 64 of a-z, 0-9 and . _ @ + -, and starts with a-z or 0-9"
        )
    return name
