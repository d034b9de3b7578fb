"""Keeps label rows consistent with the documents next to the blobs from which they can be rebuilt.

    ledger --lines--> labels/TIME-RANDOM-NUMBER, durable --then--> rows of `labels` and `label_names`

A line of a document is a row as JSON. An import is marked in `stale_labels` before its first document is
written, and the mark goes with the import's commit: documents of an import that was killed are dropped by the
next `tidy`. A deleted sample's labels are removed from the rows in the deletion's transaction, and from the
documents afterwards. Everything that writes holds the lock of deletions, so writes follow each other.
"""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlalchemy import (
    ColumnElement,
    Connection,
    RowMapping,
    ScalarSelect,
    Select,
    case,
    delete,
    func,
    select,
)

from misfire_fleet.errors import SampleGoneError
from misfire_fleet.store.blobs import Blobs, Document
from misfire_fleet.store.database import Database, one_of
from misfire_fleet.store.groups import OfferGroups
from misfire_fleet.store.schema import (
    classes,
    label_names,
    labels,
    samples,
    snapshot_samples,
    stale_labels,
    tombstones,
    verdicts,
)
from misfire_runtime.clock import wall_time
from misfire_runtime.messages import LAST_DATE

MACHINES = ("vote",)
"""Sources that are no people: their records count only for samples that nobody else labelled."""
PERSON = "person"
"""Source of labels that are made with a verdict, and that a person can take back."""
_GROUP = 500
_ABANDONED_S = 3600.0
"""Age of an import's mark after which its process is taken for dead: an import takes minutes at most."""
_KEY = (labels.c.sample, labels.c.source, labels.c.annotator, labels.c.version)
_Id = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Time = Annotated[float, Field(ge=0, le=LAST_DATE, allow_inf_nan=False)]


class LabelLine(BaseModel):
    """Validates a line of a document: a row of `labels` and the classes that its content names."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    sample: _Id
    source: Annotated[str, Field(min_length=1, max_length=64)]
    annotator: Annotated[str, Field(max_length=200)]
    version: Annotated[int, Field(ge=1, le=2**31 - 1)]
    kind: Annotated[str, Field(min_length=1, max_length=16)]
    content: str
    content_hash: _Id
    at: _Time
    recorded_at: _Time
    names: tuple[Annotated[str, Field(max_length=200)], ...] = ()


class LabelRows:
    """Writes, removes and restores label rows together with their documents."""

    def __init__(self, database: Database, blobs: Blobs, groups: OfferGroups) -> None:
        self._database = database
        self._blobs = blobs
        self._groups = groups

    def begin(self) -> str:
        """Marks a new import durably, and returns the prefix of its documents' names."""
        self.tidy()
        prefix = f"{int(wall_time() * 1_000_000):018d}-{secrets.token_hex(4)}"
        with self._database.write() as connection:
            connection.execute(stale_labels.insert(), {"name": prefix})
        return prefix

    def keep(self, prefix: str, number: int, rows: Sequence[Mapping[str, Any]]) -> str:
        """Writes a document of an import durably; returns its name. `rows`: with `names`."""
        data = b"".join(json.dumps(row, sort_keys=True, ensure_ascii=False).encode() + b"\n" for row in rows)
        name = f"{prefix}-{number:06d}.jsonl"
        self._blobs.keep(Document("labels", name, data))
        return name

    def insert(self, connection: Connection, rows: Sequence[Mapping[str, Any]], *, document: str) -> None:
        """Inserts rows in the transaction of `connection`, which has the lock. `rows`: with `names`."""
        if not rows:
            return
        start = int(connection.scalar(select(func.max(labels.c.seq))) or 0) + 1
        added, named = [], []
        for seq, row in enumerate(rows, start):
            columns = {key: value for key, value in row.items() if key != "names"}
            added.append(columns | {"seq": seq, "document": document})
            named += [{"label": seq, "name": name} for name in row["names"]]
        connection.execute(labels.insert(), added)
        if named:
            connection.execute(label_names.insert(), named)

    def commit(self, connection: Connection, prefix: str) -> None:
        """Removes the mark of an import in its transaction."""
        connection.execute(delete(stale_labels).where(stale_labels.c.name == prefix))

    def abandon(self, prefix: str) -> None:
        """Drops the documents and the mark of an import that was not committed."""
        self._drop(prefix)
        with self._database.write() as connection:
            self.commit(connection, prefix)

    def remove(self, connection: Connection, ids: Sequence[str]) -> int:
        """Removes the labels of samples in the transaction of their deletion; returns their number."""
        of_samples = one_of(labels.c.sample, ids, on=connection)
        names = connection.scalars(select(labels.c.document).where(of_samples).distinct())
        for name in sorted(names):
            statement = self._database.insert_statement(stale_labels).values(name=name)
            connection.execute(statement.on_conflict_do_nothing())
        seqs = connection.scalars(select(labels.c.seq).where(of_samples)).all()
        connection.execute(delete(label_names).where(one_of(label_names.c.label, seqs, on=connection)))
        return int(connection.execute(delete(labels).where(of_samples)).rowcount)

    def tidy(self) -> None:
        """Rewrites stale documents without labels of deleted samples, and drops those of killed imports."""
        with self._database.read() as connection:
            stale = list(connection.scalars(select(stale_labels.c.name).limit(_GROUP)))
        for name in stale:
            if not name.endswith(".jsonl"):
                if _moment_of(name) < wall_time() - _ABANDONED_S:
                    self.abandon(name)
                continue
            with self._groups.alone() as connection:
                self.commit(connection, name)
                self._rewrite(connection, name)

    def tidy_unowned(self) -> None:
        """Removes deleted samples' labels from documents that no row names."""
        for name in self.unowned():
            with self._groups.alone() as connection:
                self._rewrite(connection, name)

    def unowned(self) -> list[str]:
        """Returns the documents that no row names, except those of running and of killed imports."""
        # The documents first: one that an import commits meanwhile is then found to be owned.
        found = list(self._blobs.documents("labels"))
        with self._database.read() as connection:
            owned = set(connection.scalars(select(labels.c.document).distinct()))
            marked = set(connection.scalars(select(stale_labels.c.name)))
        return sorted(name for name in found if name not in owned and name.rpartition("-")[0] not in marked)

    def lost(self, *, deep: bool = False) -> list[str]:
        """Returns the documents that rows name and that do not exist or, with `deep`, lack some of them."""
        count = select(labels.c.document, func.count()).group_by(labels.c.document)
        with self._database.read() as connection:
            owned = {name: int(rows) for name, rows in connection.execute(count)}
        there = set(self._blobs.documents("labels"))
        return sorted(
            name
            for name, rows in owned.items()
            if name not in there or (deep and len(list(self._lines(name))) < rows)
        )

    def write_again(self, names: Sequence[str]) -> int:
        """Writes lost documents from their rows; returns their number."""
        for name in names:
            with self._groups.alone() as connection:
                query = select(labels).where(labels.c.document == name).order_by(labels.c.seq)
                listed = [self._line(connection, row) for row in connection.execute(query).mappings().all()]
                if listed:
                    prefix, _, number = name.removesuffix(".jsonl").rpartition("-")
                    self.keep(prefix, int(number), listed)
        return len(names)

    def restore(self, names: Iterable[str] | None = None) -> int:
        """Adds the rows that documents have and the database lacks; returns their number.

        Args:
            names: of documents; None takes all.
        """
        # Newest first: if an import was killed before its commit, its versions were given again later, and
        # the later record is the one that was committed.
        listed = self._blobs.documents("labels") if names is None else names
        return sum(self._restore(name) for name in sorted(listed, reverse=True))

    def _restore(self, name: str) -> int:
        lines = {_key(line): line for line in self._lines(name)}
        if not lines:
            return 0
        ids = sorted({line.sample for line in lines.values()})
        with self._groups.alone() as connection:
            gone: set[str] = set()
            for start in range(0, len(ids), _GROUP):
                some = ids[start : start + _GROUP]
                gone |= set(connection.scalars(self._database.among(tombstones), self._database.ids(some)))
                rows = connection.execute(select(*_KEY).where(one_of(labels.c.sample, some, on=connection)))
                for row in rows:
                    lines.pop((row.sample, row.source, row.annotator, row.version), None)
            fresh = [line.model_dump() for line in lines.values() if line.sample not in gone]
            self.insert(connection, fresh, document=name)
            owned = select(labels.c.seq).where(labels.c.document == name).limit(1)
            if not fresh and connection.scalar(owned) is None:
                self._blobs.drop("labels", name)
        return len(fresh)

    def _rewrite(self, connection: Connection, name: str) -> None:
        lines = list(self._lines(name))
        ids = sorted({line.sample for line in lines})
        gone: set[str] = set()
        for start in range(0, len(ids), _GROUP):
            some = self._database.ids(ids[start : start + _GROUP])
            gone |= set(connection.scalars(self._database.among(tombstones), some))
        if not gone:
            return
        kept = [line.model_dump() for line in lines if line.sample not in gone]
        if not kept:
            self._blobs.drop("labels", name)
            return
        prefix, _, number = name.removesuffix(".jsonl").rpartition("-")
        self.keep(prefix, int(number), kept)

    def _line(self, connection: Connection, row: RowMapping) -> dict[str, Any]:
        names = connection.scalars(select(label_names.c.name).where(label_names.c.label == row["seq"]))
        kept = {key: value for key, value in row.items() if key not in ("seq", "document")}
        return kept | {"names": sorted(names)}

    def _lines(self, name: str) -> Iterator[LabelLine]:
        """Yields the valid lines of a document: one damaged line must not hide the others."""
        try:
            data = self._blobs.document("labels", name)
        except SampleGoneError:
            return
        for raw in data.split(b"\n"):
            try:
                if raw:
                    yield LabelLine.model_validate_json(raw)
            except ValidationError:
                continue

    def _drop(self, prefix: str) -> None:
        for name in list(self._blobs.documents("labels")):
            if name.startswith(f"{prefix}-"):
                self._blobs.drop("labels", name)


def newest_label(*, up_to: float | None = None) -> ScalarSelect[Any]:
    """Returns the query for `seq` of the record that is the label of a row of `samples`.

    People before machines, then the newest by `at`, then the last recorded; the rest makes ties the same on
    every database, and after a rebuild. `up_to` ignores what was recorded later, seconds since 1970.
    """
    return (
        _counting(up_to)
        .order_by(
            case((labels.c.source.in_(MACHINES), 1), else_=0),
            labels.c.at.desc(),
            labels.c.recorded_at.desc(),
            labels.c.version.desc(),
            labels.c.content_hash,
        )
        .limit(1)
        .correlate(samples)
        .scalar_subquery()
    )


def is_labelled(*, up_to: float | None = None) -> ColumnElement[bool]:
    """Returns the condition on a row of `samples` that it has a label. `up_to`: as in `newest_label`."""
    return _counting(up_to).correlate(samples).exists()


def _counting(up_to: float | None) -> Select[Any]:
    """Returns the query for `seq` of the records of a row of `samples` that count."""
    query = select(labels.c.seq).where(labels.c.sample == samples.c.id, ~is_withdrawn(up_to=up_to))
    return query if up_to is None else query.where(labels.c.recorded_at <= up_to)


def is_withdrawn(*, up_to: float | None = None) -> ColumnElement[bool]:
    """Returns the condition on a row of `labels` that its annotator took it back with its verdict."""
    query = select(verdicts.c.seq).where(
        verdicts.c.sample == labels.c.sample,
        verdicts.c.annotator == labels.c.annotator,
        verdicts.c.withdraws == labels.c.version,
        labels.c.source == PERSON,
    )
    if up_to is not None:
        query = query.where(verdicts.c.recorded_at <= up_to)
    return query.correlate(labels).exists()


def names_class(name: str, *, up_to: float | None = None) -> ColumnElement[bool]:
    """Returns the condition on a row of `samples` that its label names a class."""
    query = select(label_names.c.label).where(
        label_names.c.name == name, label_names.c.label == newest_label(up_to=up_to)
    )
    return query.correlate(samples).exists()


def is_in_snapshot(name: str) -> ColumnElement[bool]:
    """Returns the condition on a row of `samples` that a snapshot holds it."""
    query = select(snapshot_samples.c.sample).where(
        snapshot_samples.c.sample == samples.c.id, snapshot_samples.c.snapshot == name
    )
    return query.correlate(samples).exists()


def labelled_pages(database: Database, *, page: int) -> Iterator[list[str]]:
    """Yields the ids of all samples with a label record, sorted, in pages.

    A query about labels asks for a page of samples by their ids. With a LIMIT instead, PostgreSQL looks for
    the label of every sample of the fleet, and sorts them, for each page.
    """
    query = select(labels.c.sample).distinct().order_by(labels.c.sample).limit(page)
    after = ""
    while True:
        with database.read() as connection:
            ids = list(connection.scalars(query.where(labels.c.sample > after)))
        yield ids
        if len(ids) < page:
            return
        after = ids[-1]


def next_moment(connection: Connection) -> float:
    """Returns the time of the next import or verdict: now, but after every earlier one."""
    last = last_moment(connection)
    # A float of seconds since 1970 has steps below a microsecond.
    return max(wall_time(), math.nextafter(last, math.inf))


def last_moment(connection: Connection) -> float:
    """Returns the time of the last import or verdict, seconds since 1970, for `up_to`; 0 if there is none."""
    newest = (select(func.max(table.c.recorded_at)) for table in (labels, verdicts))
    return max(float(connection.scalar(query) or 0.0) for query in newest)


def known_classes(connection: Connection) -> set[str]:
    """Returns the names of the fleet's classes."""
    return set(connection.scalars(select(classes.c.name)))


def _key(line: LabelLine) -> tuple[str, str, str, int]:
    return line.sample, line.source, line.annotator, line.version


def _moment_of(prefix: str) -> float:
    digits = prefix.partition("-")[0]
    return int(digits) / 1_000_000 if digits.isdigit() else 0.0
