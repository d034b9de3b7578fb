"""Keeps label rows consistent with the documents next to the blobs from which they can be rebuilt.

    ledger --lines--> labels/TIME-RANDOM-NUMBER, durable --then--> rows of `labels` and `label_names`

A line of a document is a row as JSON. An import is marked in `stale_labels` before its first document is
written, and the mark goes with the import's commit: documents of an import that was killed are dropped by the
next `tidy`. A deleted sample's labels are removed from the rows in the deletion's transaction, and from the
documents afterwards. Everything that writes holds the lock of deletions, so writes follow each other.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Hashable, Iterator, Mapping, Sequence, Set
from typing import Annotated, Any

from pydantic import Field
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

from misfire_fleet.store.database import Database, one_of
from misfire_fleet.store.documents.rows import ENDING, KeptRows, Line
from misfire_fleet.store.schema import (
    classes,
    label_names,
    labels,
    samples,
    snapshot_samples,
    stale_labels,
    verdicts,
)
from misfire_runtime.clock import wall_time
from misfire_runtime.messages import LAST_DATE

MACHINES = ("vote",)
"""Sources that are no people: their records count only for samples that nobody else labelled."""
PERSON = "person"
"""Source of labels that are made with a verdict, and that a person can take back."""
_ABANDONED_S = 3600.0
"""Age of an import's mark after which its process is taken for dead: an import takes minutes at most."""
_KEY = (labels.c.sample, labels.c.source, labels.c.annotator, labels.c.version)
_Id = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Time = Annotated[float, Field(ge=0, le=LAST_DATE, allow_inf_nan=False)]


class LabelLine(Line):
    """Validates a line of a document: a row of `labels` and the classes that its content names."""

    source: Annotated[str, Field(min_length=1, max_length=64)]
    annotator: Annotated[str, Field(max_length=200)]
    version: Annotated[int, Field(ge=1, le=2**31 - 1)]
    kind: Annotated[str, Field(min_length=1, max_length=16)]
    content: str
    content_hash: _Id
    at: _Time
    recorded_at: _Time
    names: tuple[Annotated[str, Field(max_length=200)], ...] = ()


class LabelRows(KeptRows[LabelLine]):
    """Writes, removes and restores label rows together with their documents."""

    kind = "labels"
    line = LabelLine
    table = labels
    stale = stale_labels
    owner = labels.c.document
    # If an import was killed before its commit, its versions were given again later, and the later record is
    # the one that was committed.
    newest_first = True

    def begin(self) -> str:
        """Marks a new import durably, and returns the prefix of its documents' names."""
        self.tidy()
        prefix = f"{int(wall_time() * 1_000_000):018d}-{secrets.token_hex(4)}"
        with self._database.write() as connection:
            connection.execute(stale_labels.insert(), {"name": prefix})
        return prefix

    def keep(self, prefix: str, number: int, rows: Sequence[Mapping[str, Any]]) -> str:
        """Writes a document of an import durably; returns its name. `rows`: with `names`."""
        name = f"{prefix}-{number:06d}{ENDING}"
        self.write(name, rows)
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
        for name in list(self._blobs.documents(self.kind)):
            if name.startswith(f"{prefix}-"):
                self._blobs.drop(self.kind, name)
        with self._database.write() as connection:
            self.commit(connection, prefix)

    def remove(self, connection: Connection, ids: Sequence[str]) -> int:
        """Removes the labels of samples in the transaction of their deletion; returns their number."""
        of_samples = one_of(labels.c.sample, ids, on=connection)
        seqs = connection.scalars(select(labels.c.seq).where(of_samples)).all()
        connection.execute(delete(label_names).where(one_of(label_names.c.label, seqs, on=connection)))
        return super().remove(connection, ids)

    def _tidy(self, name: str) -> None:
        """Rewrites a document, or drops those of a killed import."""
        if name.endswith(ENDING):
            super()._tidy(name)
        elif _moment_of(name) < wall_time() - _ABANDONED_S:
            self.abandon(name)

    def _marks(self, connection: Connection) -> set[str]:
        return set(connection.scalars(select(stale_labels.c.name)))

    def _running(self, name: str, marks: Set[str]) -> bool:
        return name.rpartition("-")[0] in marks

    def _belongs(self, line: LabelLine, name: str) -> bool:
        return True

    def _key(self, line: LabelLine) -> Hashable:
        return line.sample, line.source, line.annotator, line.version

    def _present(self, connection: Connection, lines: Sequence[LabelLine]) -> set[Hashable]:
        asked = one_of(labels.c.sample, sorted({line.sample for line in lines}), on=connection)
        return {tuple(row) for row in connection.execute(select(*_KEY).where(asked))}

    def _insert(self, connection: Connection, rows: Sequence[Mapping[str, Any]], name: str) -> None:
        self.insert(connection, rows, document=name)

    def _as_line(self, connection: Connection, row: RowMapping) -> dict[str, Any]:
        names = connection.scalars(select(label_names.c.name).where(label_names.c.label == row["seq"]))
        kept = {key: value for key, value in row.items() if key not in ("seq", "document")}
        return kept | {"names": sorted(names)}


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


def _moment_of(prefix: str) -> float:
    digits = prefix.partition("-")[0]
    return int(digits) / 1_000_000 if digits.isdigit() else 0.0
