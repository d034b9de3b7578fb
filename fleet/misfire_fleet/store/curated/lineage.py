"""Keeps which run came of which snapshot, and which bundle of which run: rows, and entries of the ledger.

Samples, labels and snapshots know each other already, and a vehicle's state names the bundle that it runs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, select

from misfire_fleet.store.database import Database
from misfire_fleet.store.deletion import Deletions
from misfire_fleet.store.schema import lineage
from misfire_runtime.clock import wall_time

Made = Literal["run", "bundle"]
Origin = Literal["snapshot", "run"]
_LONGEST = 130


@dataclass(frozen=True)
class Link:
    """Says that `child` was made from `parent`. `at`: seconds since 1970."""

    child_kind: Made
    child: str
    parent_kind: Origin
    parent: str
    at: float = 0.0
    detail: Mapping[str, Any] | None = None


def record(deletions: Deletions, links: Sequence[Link], *, actor: str) -> None:
    """Records links durably, in one transaction; a link that is there already stays as it is.

    Raises:
        StoreUnavailableError: nothing was recorded.
    """
    now = wall_time()
    with deletions.groups.alone() as connection:
        for link in links:
            detail: dict[str, object] = {
                "child_kind": link.child_kind,
                "child": link.child[:_LONGEST],
                "parent_kind": link.parent_kind,
                "parent": link.parent[:_LONGEST],
                "detail": dict(link.detail or {}),
            }
            if _insert(deletions.database, connection, detail, at=now):
                deletions.log(connection, actor, "lineage", detail, at=now)


def restore(database: Database, connection: Connection, entry: Mapping[str, Any]) -> None:
    """Inserts the row of a link from its entry in the ledger."""
    _insert(database, connection, entry["detail"], at=entry["at"])


def links(database: Database, *, child: str | None = None, parent: str | None = None) -> list[Link]:
    """Returns the links with this child, or with this parent, oldest first."""
    query = select(lineage).order_by(lineage.c.at, lineage.c.child)
    for column, name in ((lineage.c.child, child), (lineage.c.parent, parent)):
        if name is not None:
            query = query.where(column == name.replace("\0", ""))
    with database.read() as connection:
        rows = connection.execute(query).mappings()
        return [Link(**{**row, "detail": json.loads(row["detail"])}) for row in rows]


def _insert(database: Database, connection: Connection, detail: Mapping[str, Any], *, at: float) -> bool:
    row = dict(detail) | {"detail": json.dumps(detail["detail"], sort_keys=True), "at": at}
    statement = database.insert_statement(lineage).values(row).on_conflict_do_nothing()
    # Not by rowcount, which psycopg leaves at -1.
    return connection.scalar(statement.returning(lineage.c.child)) is not None
