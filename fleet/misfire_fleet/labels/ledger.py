"""Records labels and answers what they are: records are added, and none is changed or replaced.

    NewLabel (from a file, a tool, a person) --add: checked in full, one transaction--> records
    records --current--> the label of each sample      --history, conflicts--> who said what

**The label of a sample** is the newest record by `at` that a person made; records of machines (source `vote`)
count only for a sample that no person labelled. If two records have the same time, the last recorded counts.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import IO, Any

from sqlalchemy import Connection, RowMapping, Select, func, select

from misfire_fleet.errors import StoreError
from misfire_fleet.labels.checking import (
    GROUP,
    GROUP_BYTES,
    MAX_NAME,
    Added,
    Checker,
    NewLabel,
    groups,
    storable,
    write_spool,
)
from misfire_fleet.labels.content import LabelRecord, parse
from misfire_fleet.store import Store
from misfire_fleet.store.audit.record import Change, record
from misfire_fleet.store.database import one_of
from misfire_fleet.store.labels import (
    is_labelled,
    is_withdrawn,
    known_classes,
    labelled_pages,
    last_moment,
    newest_label,
    next_moment,
)
from misfire_fleet.store.records import ANY, SampleFilter
from misfire_fleet.store.schema import classes, labels, samples
from misfire_fleet.store.store import conditions_of
from misfire_runtime.errors import ConfigError

__all__ = ["Added", "Conflict", "FleetClass", "LabelLedger", "NewLabel"]
_RECORD = ("sample", "source", "annotator", "version", "kind", "content_hash", "at", "recorded_at")


@dataclass(frozen=True)
class FleetClass:
    """A class of the fleet: its name, who added it, and when (seconds since 1970)."""

    name: str
    added_by: str
    added_at: float


@dataclass(frozen=True)
class Conflict:
    """A sample about which annotators differ: the newest record of each, newest first."""

    sample: str
    records: tuple[LabelRecord, ...]


class _NotWrittenError(Exception):
    """Rolls a transaction back."""


class LabelLedger:
    """Adds and reads the label records of a store. Thread-safe, as the store is."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._rows = store.deletion.labels

    def add(
        self,
        new: Iterable[NewLabel],
        *,
        add_classes: bool = False,
        actor: str = "",
        skip_wrong: bool = False,
        dry_run: bool = False,
    ) -> Added:
        """Records labels in one transaction. By default nothing is recorded if anything is wrong.

        What the same source and annotator said before is not recorded again; something else is the next
        version. Memory does not grow with the number of labels, only with the number of problems.

        Args:
            new: the labels; they are read once, before the database is locked.
            add_classes: adds classes that the fleet does not have, instead of reporting them.
            actor: who adds classes, for the audit log.
            skip_wrong: records the labels that are right although others are wrong.
            dry_run: only checks.

        Returns:
            What was recorded, and in full what is wrong.

        Raises:
            StoreUnavailableError: nothing was recorded; the call may be repeated.
        """
        checker = Checker(add_classes=add_classes)
        with tempfile.TemporaryFile("w+b") as spool:
            write_spool(spool, new, checker)
            if dry_run or (checker.invalid and not skip_wrong):
                self._check(spool, checker)
                return checker.result(written=False)
            return self._write(spool, checker, actor=actor, skip_wrong=skip_wrong)

    def add_within(
        self,
        connection: Connection,
        new: Iterable[NewLabel],
        *,
        prefix: str,
        moment: float,
        add_classes: bool,
        actor: str,
    ) -> Added:
        """Records labels in the transaction of `connection`, which has the lock, or finds what is wrong.

        Args:
            connection: the caller rolls it back if the result is not `ok`.
            new: the labels.
            prefix: of the documents, marked by `LabelRows.begin`.
            moment: time of the record, seconds since 1970: that of `next_moment`.
            add_classes: adds classes that the fleet does not have.
            actor: who adds classes, for the audit log.
        """
        checker = Checker(add_classes=add_classes)
        with tempfile.SpooledTemporaryFile(GROUP_BYTES, "w+b") as spool:
            write_spool(spool, new, checker)
            if not checker.invalid:
                self._insert(connection, spool, checker, prefix=prefix, skip_wrong=False, moment=moment)
        if checker.result(written=False).ok:
            self._add_classes(connection, sorted(checker.new_classes), actor=actor)
        return checker.result(written=checker.result(written=False).ok)

    def _check(self, spool: IO[bytes], checker: Checker) -> None:
        try:
            with self._store.deletion.groups.alone() as connection:
                self._insert(connection, spool, checker, prefix=None, skip_wrong=False)
                raise _NotWrittenError
        except _NotWrittenError:
            pass

    def _write(self, spool: IO[bytes], checker: Checker, *, actor: str, skip_wrong: bool) -> Added:
        prefix, written = self._rows.begin(), False
        try:
            with self._store.deletion.groups.alone() as connection:
                self._insert(connection, spool, checker, prefix=prefix, skip_wrong=skip_wrong)
                if not (skip_wrong or checker.result(written=False).ok):
                    raise _NotWrittenError
                self._note(connection, checker.result(written=True), actor)
                self._add_classes(connection, sorted(checker.new_classes), actor=actor)
                self._rows.commit(connection, prefix)
            written = True
        except _NotWrittenError:
            pass
        finally:
            # Also after an error: documents of an import that was not committed must not come back.
            if not written:
                self._rows.abandon(prefix)
        return checker.result(written=written)

    def _note(self, connection: Connection, added: Added, actor: str) -> None:
        """Writes the line of the audit log; the records themselves say who labelled what."""
        if added.recorded:
            detail = {"recorded": added.recorded, "unchanged": added.unchanged}
            change = Change(actor, "labels", detail=detail)
            record(connection, change, ledger=self._store.deletion.ledger)

    def _insert(
        self,
        connection: Connection,
        spool: IO[bytes],
        checker: Checker,
        *,
        prefix: str | None,
        skip_wrong: bool,
        moment: float | None = None,
    ) -> None:
        """Checks and inserts the spooled labels group by group; `prefix`: of the documents, None: none."""
        checker.moment = next_moment(connection) if moment is None else moment
        checker.known_classes = known_classes(connection)
        database = self._store.database
        for number, group in enumerate(groups(spool)):
            ids = sorted({line["sample"] for line in group})
            known = set(connection.scalars(database.among(samples), database.ids(ids)))
            said = _said(connection, ids)
            rows = [checker.check(line, known=known, said=said) for line in group]
            fresh = [row for row in rows if row is not None]
            document = ""
            # No document for a transaction that will be rolled back; its rows find clashes across groups.
            if fresh and prefix is not None and (skip_wrong or checker.result(written=False).ok):
                document = self._rows.keep(prefix, number, fresh)
            self._rows.insert(connection, fresh, document=document)

    def current(
        self, filters: SampleFilter = ANY, *, up_to: float | None = None, page: int = GROUP
    ) -> Iterator[LabelRecord]:
        """Yields the label of each labelled sample that matches, by sample id; memory is one page.

        Args:
            filters: select samples.
            up_to: ignores labels that were recorded later, seconds since 1970.
            page: samples per query. Pages are read one after the other, so labels that are recorded
                meanwhile may appear unless `up_to` excludes them.

        Raises:
            StoreError: a record in the database is damaged.
        """
        query = (
            select(labels.c.seq, labels.c.sample, func.length(labels.c.content).label("size"))
            .join(samples, labels.c.sample == samples.c.id)
            .where(labels.c.seq == newest_label(up_to=up_to), *conditions_of(filters, up_to=up_to))
            .order_by(samples.c.id)
        )
        for ids in labelled_pages(self._store.database, page=page):
            with self._store.database.read() as connection:
                rows = connection.execute(query.where(one_of(samples.c.id, ids, on=connection))).all()
            # A page of masks may be gigabytes; one of class names is read at once.
            for seqs in _within((row.seq, row.size) for row in rows):
                yield from self._records(seqs)

    def label_of(self, sample: str) -> LabelRecord | None:
        """Returns the label of a sample, or None if it has none."""
        query = select(labels).join(samples, labels.c.sample == samples.c.id)
        query = query.where(samples.c.id == sample, labels.c.seq == newest_label())
        rows = self._read(query, sample)
        return record_of(rows[0]) if rows else None

    def history(self, sample: str, *, limit: int = 1000) -> list[LabelRecord]:
        """Returns the newest `limit` records of a sample, oldest first, also those that were taken back."""
        query = select(labels).where(labels.c.sample == sample)
        query = query.order_by(labels.c.recorded_at.desc(), labels.c.seq.desc()).limit(limit)
        return [record_of(row) for row in reversed(self._read(query, sample))]

    def conflicts(self, filters: SampleFilter = ANY, *, page: int = GROUP) -> Iterator[Conflict]:
        """Yields the samples whose annotators' newest contents differ, by sample id; memory is one page."""
        # Only a sample with two contents can be in conflict; the database finds those.
        differing = (
            select(labels.c.sample)
            .join(samples, labels.c.sample == samples.c.id)
            .where(~is_withdrawn(), *conditions_of(filters))
            .group_by(labels.c.sample)
            .having(func.min(labels.c.content_hash) != func.max(labels.c.content_hash))
            .order_by(labels.c.sample)
            .limit(page)
        )
        after = ""
        while True:
            with self._store.database.read() as connection:
                ids = list(connection.scalars(differing.where(labels.c.sample > after)))
                found = _in_conflict(connection, ids)
            for sample, seqs in found.items():
                newest = sorted(self._records(seqs), key=lambda each: each.at, reverse=True)
                yield Conflict(sample, tuple(newest))
            if len(ids) < page:
                return
            after = ids[-1]

    def count(self, filters: SampleFilter = ANY) -> int:
        """Returns the number of labelled samples that match."""
        query = select(func.count()).select_from(samples).where(is_labelled(), *conditions_of(filters))
        with self._store.database.read() as connection:
            return int(connection.scalar(query) or 0)

    def last_recorded(self) -> float:
        """Returns the time of the last import or verdict, seconds since 1970, for `up_to`; 0 for none."""
        with self._store.database.read() as connection:
            return last_moment(connection)

    def classes(self) -> list[FleetClass]:
        """Returns the fleet's classes, sorted by name."""
        with self._store.database.read() as connection:
            found = [FleetClass(**row) for row in connection.execute(select(classes)).mappings()]
        # Not by the database: its order of letters depends on its locale.
        return sorted(found, key=lambda each: each.name)

    def add_classes(self, names: Sequence[str], *, actor: str = "") -> list[str]:
        """Adds the classes that the fleet does not have; returns them.

        Raises:
            StoreError: a name is empty, too long, or no text.
        """
        for name in names:
            if not 1 <= len(name) <= MAX_NAME or not storable(name):
                raise StoreError(f"class {name[:64]!r}: a name has 1 to {MAX_NAME} characters of text")
        with self._store.deletion.groups.alone() as connection:
            new = sorted(set(names) - known_classes(connection))
            self._add_classes(connection, new, actor=actor)
        return new

    def _add_classes(self, connection: Connection, names: Sequence[str], *, actor: str) -> None:
        if names:
            now = next_moment(connection)
            rows = [{"name": name, "added_by": actor[:64], "added_at": now} for name in names]
            connection.execute(classes.insert(), rows)
            self._store.deletion.log(connection, actor[:64], "classes", {"names": list(names)}, at=now)

    def _records(self, seqs: Sequence[int]) -> list[LabelRecord]:
        """Returns these records, by sample; those that were deleted meanwhile are left out."""
        query = select(labels).order_by(labels.c.sample, labels.c.seq.desc())
        with self._store.database.read() as connection:
            asked = query.where(one_of(labels.c.seq, seqs, on=connection))
            rows = connection.execute(asked).mappings().all()
        return [record_of(row) for row in rows]

    def _read(self, query: Select[Any], sample: str) -> Sequence[RowMapping]:
        if not storable(sample):
            return []
        with self._store.database.read() as connection:
            return connection.execute(query).mappings().all()


def record_of(row: RowMapping) -> LabelRecord:
    """Returns the record of a row of `labels`. Raises StoreError if it is damaged."""
    try:
        return LabelRecord.model_construct(
            sample=row["sample"],
            source=row["source"],
            annotator=row["annotator"],
            version=row["version"],
            label=parse(row["content"], where=f"label of sample {str(row['sample'])[:16]}"),
            content_hash=row["content_hash"],
            at=datetime.fromtimestamp(row["at"], timezone.utc),
        )
    except (ConfigError, ValueError, OSError, OverflowError) as error:
        raise StoreError(f"the store has a damaged label: {error}") from error


def _said(connection: Connection, ids: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """Returns the records of samples without their contents, oldest first, and whether they count."""
    columns = [*(labels.c[name] for name in _RECORD), is_withdrawn().label("withdrawn")]
    query = select(labels.c.seq, *columns).where(one_of(labels.c.sample, ids, on=connection))
    said: dict[str, list[dict[str, Any]]] = {}
    for row in connection.execute(query.order_by(labels.c.recorded_at, labels.c.seq)).mappings():
        said.setdefault(row["sample"], []).append(dict(row))
    return said


def _in_conflict(connection: Connection, ids: Sequence[str]) -> dict[str, list[int]]:
    """Returns `seq` of each annotator's newest record, for the samples on which they differ."""
    found: dict[str, list[int]] = {}
    for sample, rows in sorted(_said(connection, ids).items()):
        newest: dict[tuple[str, str], dict[str, Any]] = {}
        counting = [row for row in rows if not row["withdrawn"]]
        for row in sorted(counting, key=lambda row: (row["at"], row["version"])):
            newest[row["source"], row["annotator"]] = row
        if len({row["content_hash"] for row in newest.values()}) > 1:
            found[sample] = [row["seq"] for row in newest.values()]
    return found


def _within(sized: Iterable[tuple[int, int]]) -> Iterator[list[int]]:
    """Yields the first of each pair in groups whose sizes together are bounded, or that are one."""
    group: list[int] = []
    total = 0
    for seq, size in sized:
        if group and total + size > GROUP_BYTES:
            yield group
            group, total = [], 0
        group.append(seq)
        total += size
    if group:
        yield group
