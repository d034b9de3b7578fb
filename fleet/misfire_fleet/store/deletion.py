"""Taking samples out again, for good: by vehicle and time, by age, by size, unless a legal hold keeps them.

A deletion is one transaction: the row goes, a tombstone stays (a vehicle that still has the sample is told
`declined`), the blob is marked as doomed, the file with its offer as stale, and an audit line is written.
After the commit blobs are removed, and stale files are written anew without what was deleted; `purge` repeats
that for those which a crash left behind. The ledger beside the blobs keeps tombstones, holds and audit lines
for a fleet whose database is lost.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, delete, exists, func, or_, select

from misfire_fleet.errors import StoreError
from misfire_fleet.store.blobs import Blobs
from misfire_fleet.store.database import Database
from misfire_fleet.store.groups import OfferGroups
from misfire_fleet.store.ledger import Ledger
from misfire_fleet.store.records import Deletion, Hold
from misfire_fleet.store.schema import audit, doomed_blobs, holds, samples, tombstones
from misfire_runtime.clock import wall_time

_GROUP = 500
_DAY_S = 86_400.0


class Deletions:
    """Deletes, holds and forgets. Every change is in the audit log under the name of `actor`."""

    def __init__(self, database: Database, blobs: Blobs) -> None:
        self._database = database
        self._blobs = blobs
        self.groups = OfferGroups(database, blobs)
        self.ledger = Ledger(blobs)

    def delete(
        self,
        *,
        vehicle: str | None = None,
        captured_from: float | None = None,
        captured_to: float | None = None,
        sample: str | None = None,
        reason: str,
        actor: str = "",
        dry_run: bool = False,
    ) -> Deletion:
        """Deletes what matches all that is given; at least one condition is needed.

        Raises StoreError without a condition. What a hold covers is kept and counted.
        """
        scope = Hold("", reason, sample, vehicle, captured_from, captured_to)
        conditions = _covered_by(scope)
        if not conditions:
            raise StoreError(
                "deletion: name a sample, a vehicle or a time; everything at once is not deleted"
            )
        return self._delete(and_(*conditions), reason=reason, actor=actor, action="delete", dry_run=dry_run)

    def apply_retention(
        self,
        *,
        max_age_days: float | None = None,
        max_bytes: int | None = None,
        actor: str = "retention",
        dry_run: bool = False,
    ) -> Deletion:
        """Deletes what was stored longer ago than `max_age_days`, then the oldest above `max_bytes`."""
        done = Deletion(0, 0, 0, dry_run=dry_run)
        if max_age_days is not None:
            old = samples.c.stored_at < wall_time() - max_age_days * _DAY_S
            reason = f"retention of {max_age_days:g} days"
            done = self._delete(old, reason=reason, actor=actor, action="retention", dry_run=dry_run)
        if max_bytes is not None:
            newest_kept = self._seq_within(max_bytes)
            over = samples.c.seq <= newest_kept
            reason = f"retention of {max_bytes} bytes"
            more = self._delete(over, reason=reason, actor=actor, action="retention", dry_run=dry_run)
            done = replace(
                more,
                deleted=done.deleted + more.deleted,
                bytes=done.bytes + more.bytes,
                held=max(done.held, more.held),
                blobs_removed=done.blobs_removed + more.blobs_removed,
            )
        return done

    def hold(self, hold: Hold, *, actor: str = "") -> None:
        """Keeps what the hold covers from any deletion. Raises StoreError where the name is taken."""
        now = wall_time()
        row = asdict(hold) | {"created_at": now, "released_at": None}
        with self._database.write() as connection:
            if connection.scalar(select(func.count()).where(holds.c.name == hold.name)):
                raise StoreError(f"hold {hold.name!r} exists already; choose another name")
            connection.execute(holds.insert(), row)
            self._log(connection, actor, "hold", row, at=now)

    def release(self, name: str, *, actor: str = "") -> None:
        """Ends a hold; it stays in the list with its end. Raises StoreError where no such hold is open."""
        now = wall_time()
        with self._database.write() as connection:
            ended = connection.execute(
                holds.update()
                .where(holds.c.name == name, holds.c.released_at.is_(None))
                .values(released_at=now)
            ).rowcount
            if not ended:
                raise StoreError(f"hold {name!r}: there is no open hold of that name")
            self._log(connection, actor, "release", {"name": name}, at=now)

    def holds(self) -> list[Hold]:
        """All holds, open and released, oldest first."""
        with self._database.read() as connection:
            rows = connection.execute(select(holds).order_by(holds.c.created_at, holds.c.name))
            return [Hold(**row) for row in rows.mappings()]

    def audit(self, *, limit: int = 200) -> list[tuple[float, str, str, dict[str, object]]]:
        """(time, actor, action, detail), newest first."""
        with self._database.read() as connection:
            rows = connection.execute(select(audit).order_by(audit.c.seq.desc()).limit(limit))
            return [(row.at, row.actor, row.action, json.loads(row.detail)) for row in rows]

    def purge(self) -> int:
        """Removes the blobs and offers of deleted samples; returns how many blobs were there."""
        removed = 0
        while True:
            with self._database.read() as connection:
                group = list(connection.scalars(select(doomed_blobs.c.id).limit(_GROUP)))
                graves = connection.execute(select(tombstones).where(tombstones.c.id.in_(group))).mappings()
                buried = [dict(row) for row in graves]
            if not group:
                break
            self.ledger.note(action="tombstones", tombstones=buried)
            removed += self._blobs.delete_many(group)
            with self._database.write() as connection:
                connection.execute(delete(doomed_blobs).where(doomed_blobs.c.id.in_(group)))
        self.groups.tidy()
        self.groups.tidy_unowned()
        return removed

    def doom(self, ids: Sequence[str]) -> None:
        """Marks blobs for the next `purge`."""
        now = wall_time()
        with self._database.write() as connection:
            rows = [{"id": key, "doomed_at": now} for key in ids]
            self._database.insert_new(connection, doomed_blobs, rows)

    def _log(
        self, connection: Connection, actor: str, action: str, detail: dict[str, object], *, at: float
    ) -> None:
        """An audit line, in the database and, before the commit, in the ledger."""
        entry = {"at": at, "actor": actor, "action": action, "detail": detail}
        connection.execute(audit.insert(), audit_row(entry))
        self.ledger.note(**entry)

    def _delete(
        self, matches: ColumnElement[bool], *, reason: str, actor: str, action: str, dry_run: bool
    ) -> Deletion:
        held = _is_held()
        deleted = size = 0
        with self._database.read() as connection:
            kept = connection.scalar(select(func.count()).select_from(samples).where(matches, held)) or 0
            if dry_run:
                count, total = connection.execute(
                    select(func.count(), func.sum(samples.c.size)).where(matches, ~held)
                ).one()
                return Deletion(int(count), int(total or 0), int(kept), dry_run=True)
        while True:
            with self.groups.alone() as connection:
                count, total = self._delete_group(connection, and_(matches, ~held), reason=reason)
                if count:
                    detail: dict[str, object] = {"reason": reason, "deleted": count, "bytes": total}
                    self._log(connection, actor, action, detail, at=wall_time())
            if not count:
                break
            deleted, size = deleted + count, size + total
        return Deletion(deleted, size, int(kept), self.purge())

    def _delete_group(
        self, connection: Connection, matches: ColumnElement[bool], *, reason: str
    ) -> tuple[int, int]:
        now = wall_time()
        query = (
            select(samples.c.id, samples.c.vehicle, samples.c.size, samples.c.offers)
            .where(matches)
            .limit(_GROUP)
        )
        rows = list(connection.execute(query))
        ids = [row.id for row in rows]
        if rows:
            graves = [
                {"id": row.id, "vehicle": row.vehicle, "deleted_at": now, "reason": reason[:256]}
                for row in rows
            ]
            self._database.insert_new(connection, tombstones, graves)
            self._database.insert_new(
                connection, doomed_blobs, [{"id": key, "doomed_at": now} for key in ids]
            )
            self.groups.mark_stale(connection, [row.offers for row in rows if row.offers is not None])
            connection.execute(delete(samples).where(samples.c.id.in_(ids)))
        return len(rows), sum(row.size for row in rows)

    def _seq_within(self, max_bytes: int) -> int:
        """The newest row that must go so that all newer rows together are at most `max_bytes`."""
        over = func.sum(samples.c.size).over(order_by=samples.c.seq.desc()).label("newer_bytes")
        running = select(samples.c.seq, over).subquery()
        query = select(func.max(running.c.seq)).where(running.c.newer_bytes > max_bytes)
        with self._database.read() as connection:
            newest: int | None = connection.scalar(query)
        return -1 if newest is None else newest


def _covered_by(hold: Hold) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if hold.sample is not None:
        conditions.append(samples.c.id == hold.sample)
    if hold.vehicle is not None:
        conditions.append(samples.c.vehicle == hold.vehicle)
    if hold.captured_from is not None:
        conditions.append(samples.c.captured_at >= hold.captured_from)
    if hold.captured_to is not None:
        conditions.append(samples.c.captured_at < hold.captured_to)
    return conditions


def _is_held() -> ColumnElement[bool]:
    return exists().where(
        holds.c.released_at.is_(None),
        or_(holds.c.sample.is_(None), holds.c.sample == samples.c.id),
        or_(holds.c.vehicle.is_(None), holds.c.vehicle == samples.c.vehicle),
        or_(holds.c.captured_from.is_(None), samples.c.captured_at >= holds.c.captured_from),
        or_(holds.c.captured_to.is_(None), samples.c.captured_at < holds.c.captured_to),
    )


def audit_row(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the row of the audit log for an entry of the ledger."""
    return {
        "at": entry["at"],
        "actor": entry.get("actor", ""),
        "action": entry["action"],
        "detail": json.dumps(entry["detail"], sort_keys=True),
    }
