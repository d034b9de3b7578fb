"""Writes lines of the audit log: `record`, in the transaction of the change itself.

A line that a rebuild must know is also an entry of the ledger beside the blobs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection

from misfire_fleet.store.ledger import Ledger
from misfire_fleet.store.schema import audit
from misfire_runtime.clock import wall_time


@dataclass(frozen=True)
class Change:
    """Describes what somebody did. No field may hold a password, a token, or a hash of one.

    Attributes:
        actor: name of the account, or of the process's user.
        action: what was done, such as `delete` or `account-role`.
        subject: what was changed, such as `account:ann` or `sample:ID`; "" if it is no single thing.
        before, after: its state, in values that JSON has; None if it did not exist, or does not any more.
        detail: anything else.
        via: how the actor came: `session`, `token:ID`, `open`, `command`; "" if that is not known.
    """

    actor: str
    action: str
    subject: str = ""
    before: Mapping[str, Any] | None = None
    after: Mapping[str, Any] | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)
    via: str = ""


def record(
    connection: Connection, change: Change, *, ledger: Ledger | None = None, at: float | None = None
) -> None:
    """Writes a line of the audit log in the connection's transaction.

    Args:
        connection: a transaction that writes.
        change: what was done.
        ledger: writes an entry there, too, before the commit; for what a rebuild has to restore.
        at: when it was done. Default: now.

    Raises:
        StoreUnavailableError: the ledger cannot be written; the transaction is to be rolled back.
    """
    values = {name: value for name, value in vars(change).items() if value not in (None, "")}
    entry = {"at": wall_time() if at is None else at, "actor": "", "detail": {}} | values
    connection.execute(audit.insert(), audit_row(entry))
    if ledger is not None:
        ledger.note(**entry)


def audit_row(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the row of the audit log for an entry of the ledger."""
    return {
        "at": entry["at"],
        "actor": str(entry.get("actor", ""))[:64],
        "action": entry["action"],
        "detail": _json(entry["detail"]),
        "subject": str(entry.get("subject", ""))[:200],
        "via": str(entry.get("via", ""))[:64],
        "before": _json(entry.get("before")),
        "after": _json(entry.get("after")),
    }


def _json(value: Any) -> str | None:
    return None if value is None else json.dumps(value, sort_keys=True)
