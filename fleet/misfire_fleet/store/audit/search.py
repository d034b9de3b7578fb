"""Reads the audit log: newest first, by who, what, on what and when."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, Select, select

from misfire_fleet.store.database import Database
from misfire_fleet.store.schema import audit

_PAGE = 500


@dataclass(frozen=True)
class AuditFilter:
    """Selects lines of the audit log; None and "" select all. Times are seconds since 1970."""

    actor: str = ""
    action: str = ""
    subject: str = ""
    since: float | None = None
    until: float | None = None


@dataclass(frozen=True)
class AuditLine:
    """Describes a line of the audit log. `before`, `after`: the state of `subject`."""

    seq: int
    at: float
    actor: str
    via: str
    action: str
    subject: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    detail: dict[str, Any]


def lines(
    database: Database, wanted: AuditFilter, *, before_seq: int | None = None, limit: int = 100
) -> list[AuditLine]:
    """Returns lines, newest first. Raises StoreUnavailableError."""
    query = _query(wanted).order_by(audit.c.seq.desc()).limit(limit)
    if before_seq is not None:
        query = query.where(audit.c.seq < before_seq)
    with database.read() as connection:
        return [_line(row) for row in connection.execute(query)]


def all_lines(database: Database, wanted: AuditFilter) -> Iterator[AuditLine]:
    """Yields all lines, oldest first, in groups: an export neither holds them all nor blocks writers."""
    after = -1
    while True:
        query = _query(wanted).where(audit.c.seq > after).order_by(audit.c.seq).limit(_PAGE)
        with database.read() as connection:
            found = [_line(row) for row in connection.execute(query)]
        yield from found
        if len(found) < _PAGE:
            return
        after = found[-1].seq


def actions(database: Database) -> list[str]:
    """Returns the actions in the log."""
    with database.read() as connection:
        return list(connection.scalars(select(audit.c.action).distinct().order_by(audit.c.action)))


def _query(wanted: AuditFilter) -> Select[Any]:
    query = select(audit)
    for name in ("actor", "action", "subject"):
        if value := getattr(wanted, name):
            query = query.where(audit.c[name] == value)
    if wanted.since is not None:
        query = query.where(audit.c.at >= wanted.since)
    if wanted.until is not None:
        query = query.where(audit.c.at < wanted.until)
    return query


def _line(row: Row[Any]) -> AuditLine:
    return AuditLine(
        seq=row.seq,
        at=row.at,
        actor=row.actor,
        via=row.via,
        action=row.action,
        subject=row.subject,
        before=_read(row.before),
        after=_read(row.after),
        detail=_read(row.detail) or {},
    )


def _read(text: str | None) -> dict[str, Any] | None:
    """Returns what was kept; a damaged value is shown as it is, so that the page stays up."""
    if text is None:
        return None
    try:
        found = json.loads(text)
    except ValueError:
        return {"unreadable": text[:200]}
    return found if isinstance(found, dict) else {"value": found}
