"""Deletes samples for good: by vehicle and time, by age, or by size, unless a legal hold covers them.

A deletion is one transaction. It removes the row, leaves a tombstone (a vehicle that still has the sample
gets `declined`), marks the blob as doomed and the document with its offer as stale, removes its labels and
verdicts, and writes an audit line. After the commit, blobs are removed, and stale documents are rewritten
without the deleted records; `purge` repeats this for those that a crash left behind. The ledger next to the
blobs keeps tombstones, holds and audit lines in case the database is lost.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, and_, delete, exists, func, or_, select

from misfire_fleet.errors import StoreError
from misfire_fleet.store.audit.record import Change, record
from misfire_fleet.store.blobs import Blobs
from misfire_fleet.store.collected.conditions import uncollect
from misfire_fleet.store.database import Database
from misfire_fleet.store.groups import OfferGroups
from misfire_fleet.store.labels import LabelRows
from misfire_fleet.store.ledger import Ledger
from misfire_fleet.store.records import Deletion, Hold
from misfire_fleet.store.schema import audit, doomed_blobs, holds, samples, tombstones
from misfire_fleet.store.verdicts import VerdictRows
from misfire_runtime.clock import wall_time

_GROUP = 500
"""Samples per transaction: a large deletion must not keep collectors from committing for long."""
_DAY_S = 86_400.0


class Deletions:
    """Deletes samples and manages holds. The audit log records every change with its `actor`."""

    def __init__(self, database: Database, blobs: Blobs) -> None:
        self.database = database
        self._blobs = blobs
        self.groups = OfferGroups(database, blobs)
        self.labels = LabelRows(database, blobs, self.groups)
        self.verdicts = VerdictRows(database, blobs, self.groups)
        self.ledger = Ledger(blobs)

    def delete(
        self,
        *,
        vehicle: str | None = None,
        captured_from: float | None = None,
        captured_to: float | None = None,
        sample: str | None = None,
        ids: Sequence[str] | None = None,
        reason: str,
        actor: str = "",
        dry_run: bool = False,
    ) -> Deletion:
        """Deletes the samples that match all conditions. Samples under a hold are kept and counted.

        Args:
            vehicle: name of the vehicle.
            captured_from: capture time from, seconds since 1970.
            captured_to: capture time before, seconds since 1970.
            sample: id of the sample.
            ids: ids of samples, at most some thousand.
            reason: stored in tombstones and the audit log.
            actor: who deletes, for the audit log.
            dry_run: only counts.

        Raises:
            StoreError: there is no condition.
        """
        scope = Hold("", reason, sample, vehicle, captured_from, captured_to)
        conditions = _covered_by(scope)
        if ids is not None:
            conditions.append(samples.c.id.in_(list(ids)))
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
        """Deletes samples stored more than `max_age_days` ago, then the oldest ones above `max_bytes`."""
        done = Deletion(0, 0, 0, dry_run=dry_run)
        # By age first: what that deletes already counts towards the limit in bytes.
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
        """Protects the samples that the hold covers. Raises StoreError if its name is in use."""
        now = wall_time()
        row = asdict(hold) | {"created_at": now, "released_at": None}
        with self.database.write() as connection:
            if connection.scalar(select(func.count()).where(holds.c.name == hold.name)):
                raise StoreError(f"hold {hold.name!r} exists already; choose another name")
            connection.execute(holds.insert(), row)
            self.log(connection, actor, "hold", row, at=now)

    def release(self, name: str, *, actor: str = "") -> None:
        """Ends a hold, which stays in the list. Raises StoreError if there is no open hold of that name."""
        now = wall_time()
        with self.database.write() as connection:
            ended = connection.execute(
                holds.update()
                .where(holds.c.name == name, holds.c.released_at.is_(None))
                .values(released_at=now)
            ).rowcount
            if not ended:
                raise StoreError(f"hold {name!r}: there is no open hold of that name")
            self.log(connection, actor, "release", {"name": name}, at=now)

    def holds(self) -> list[Hold]:
        """Returns all holds, open and released, oldest first."""
        with self.database.read() as connection:
            rows = connection.execute(select(holds).order_by(holds.c.created_at, holds.c.name))
            return [Hold(**row) for row in rows.mappings()]

    def audit(self, *, limit: int = 200) -> list[tuple[float, str, str, dict[str, object]]]:
        """Returns the audit log as (seconds since 1970, actor, action, detail), newest first.

        The detail has the states before and after, where the line has them.
        """
        with self.database.read() as connection:
            rows = connection.execute(select(audit).order_by(audit.c.seq.desc()).limit(limit))
            return [(row.at, row.actor, row.action, _detail(row)) for row in rows]

    def purge(self) -> int:
        """Removes the blobs and offers of deleted samples; returns the number of removed blobs."""
        removed = 0
        while True:
            with self.database.read() as connection:
                group = list(connection.scalars(select(doomed_blobs.c.id).limit(_GROUP)))
                graves = connection.execute(select(tombstones).where(tombstones.c.id.in_(group))).mappings()
                tombstoned = [dict(row) for row in graves]
            if not group:
                break
            # The tombstones first: after a crash here, a rebuild must not bring deleted samples back.
            self.ledger.note(action="tombstones", tombstones=tombstoned)
            # The marks go last: after a crash before that, the removal is repeated, which changes nothing.
            removed += self._blobs.delete_many(group)
            with self.database.write() as connection:
                connection.execute(delete(doomed_blobs).where(doomed_blobs.c.id.in_(group)))
        self.groups.tidy()
        self.groups.tidy_unowned()
        self.labels.tidy()
        self.labels.tidy_unowned()
        self.verdicts.tidy()
        self.verdicts.tidy_unowned()
        return removed

    def doom(self, ids: Sequence[str]) -> None:
        """Marks blobs for the next `purge`."""
        now = wall_time()
        with self.database.write() as connection:
            rows = [{"id": key, "doomed_at": now} for key in ids]
            self.database.insert_new(connection, doomed_blobs, rows)

    def log(
        self, connection: Connection, actor: str, action: str, detail: dict[str, object], *, at: float
    ) -> None:
        """Writes an audit line without a state before and after; see `record`."""
        record(connection, Change(actor, action, detail=detail), ledger=self.ledger, at=at)

    def _delete(
        self, matches: ColumnElement[bool], *, reason: str, actor: str, action: str, dry_run: bool
    ) -> Deletion:
        held = _is_held()
        deleted = size = 0
        with self.database.read() as connection:
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
                    self.log(connection, actor, action, detail, at=wall_time())
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
            self.database.insert_new(connection, tombstones, graves)
            self.database.insert_new(connection, doomed_blobs, [{"id": key, "doomed_at": now} for key in ids])
            self.groups.mark_stale(connection, [row.offers for row in rows if row.offers is not None])
            self.labels.remove(connection, ids)
            self.verdicts.remove(connection, ids)
            uncollect(connection, ids)
            connection.execute(delete(samples).where(samples.c.id.in_(ids)))
        return len(rows), sum(row.size for row in rows)

    def _seq_within(self, max_bytes: int) -> int:
        """Returns the `seq` of the newest row to delete, so that the newer rows have at most `max_bytes`."""
        over = func.sum(samples.c.size).over(order_by=samples.c.seq.desc()).label("newer_bytes")
        running = select(samples.c.seq, over).subquery()
        query = select(func.max(running.c.seq)).where(running.c.newer_bytes > max_bytes)
        with self.database.read() as connection:
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


def _detail(row: Row[Any]) -> dict[str, object]:
    detail: dict[str, object] = json.loads(row.detail)
    if row.before is not None or row.after is not None:
        for name, text in (("before", row.before), ("after", row.after)):
            detail[name] = None if text is None else json.loads(text)
    return detail
