"""Keeps the rows of verdicts consistent with the documents next to the blobs, and asks for them.

    an act's rows --keep--> verdicts/ACT.jsonl, durable --then--> rows of `verdicts`, committed

An **act** is one press of a key: a verdict on one sample, which near-duplicates may share, or the undoing of
an earlier act. Its document has the act's name, so a repeated request writes the same file again. Everything
that writes holds the lock of deletions, so acts follow each other, and `recorded_at` rises from act to act.

A person's verdict on a sample is that of their newest row; "none" takes it back. The verdict of a sample is
the newest of all persons' that is not "none".
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlalchemy import ColumnElement, Connection, FromClause, RowMapping, Select, delete, false, func, select

from misfire_fleet.errors import SampleGoneError
from misfire_fleet.store.blobs import Blobs, Document
from misfire_fleet.store.database import Database, one_of
from misfire_fleet.store.groups import OfferGroups
from misfire_fleet.store.schema import samples, stale_verdicts, tombstones, verdicts
from misfire_runtime.messages import LAST_DATE

NONE = "none"
"""Verdict of a row that takes an earlier one back, and of a sample that nobody judged."""
ANY_VERDICT = "any"
_ENDING = ".jsonl"
_MANY = 500
_Id = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Act = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{8,40}$")]
_Time = Annotated[float, Field(ge=0, le=LAST_DATE, allow_inf_nan=False)]
_Version = Annotated[int, Field(ge=1, le=2**31 - 1)]


class VerdictLine(BaseModel):
    """Validates a line of a document: a row of `verdicts` without its number.

    Attributes:
        act: of which it is a part.
        verdict: that holds from now on; "none" if there is none any more.
        holds: the act that gave this verdict: `act`, or an earlier one that an undoing brings back; "" if
            there is no verdict any more.
        undoes: the act that this one takes back; "" if it gives a verdict.
        label_version: of the annotator's label that belongs to the verdict.
        withdraws: version of the annotator's label that no longer counts.
        shared: given to a near-duplicate, without this picture being shown.
        blind: given while score and trigger were hidden.
        took_s: seconds from showing the picture to the key.
        at: when the person pressed the key.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    act: _Act
    sample: _Id
    annotator: Annotated[str, Field(min_length=1, max_length=200)]
    verdict: Literal["right", "wrong", "missed", "ignore", "none"]
    holds: _Act | Literal[""]
    undoes: _Act | Literal[""] = ""
    label_version: _Version | None = None
    withdraws: _Version | None = None
    shared: bool = False
    blind: bool = False
    took_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    at: _Time
    recorded_at: _Time


class VerdictRows:
    """Writes, removes and restores rows of verdicts together with their documents."""

    def __init__(self, database: Database, blobs: Blobs, groups: OfferGroups) -> None:
        self._database = database
        self._blobs = blobs
        self._groups = groups

    def add(self, connection: Connection, lines: Sequence[VerdictLine]) -> None:
        """Writes the document of an act durably, then inserts its rows. `connection` has the lock."""
        rows = [line.model_dump() for line in lines]
        self._keep(rows)
        self._insert(connection, rows)

    def remove(self, connection: Connection, ids: Sequence[str]) -> int:
        """Removes the verdicts on samples in the transaction of their deletion; returns their number."""
        of_samples = one_of(verdicts.c.sample, ids, on=connection)
        for act in sorted(connection.scalars(select(verdicts.c.act).where(of_samples).distinct())):
            statement = self._database.insert_statement(stale_verdicts).values(name=f"{act}{_ENDING}")
            connection.execute(statement.on_conflict_do_nothing())
        return int(connection.execute(delete(verdicts).where(of_samples)).rowcount)

    def tidy(self) -> None:
        """Rewrites stale documents without the verdicts on deleted samples."""
        with self._database.read() as connection:
            stale = list(connection.scalars(select(stale_verdicts.c.name).limit(_MANY)))
        for name in stale:
            with self._groups.alone() as connection:
                connection.execute(delete(stale_verdicts).where(stale_verdicts.c.name == name))
                self._rewrite(connection, name)

    def tidy_unowned(self) -> None:
        """Removes verdicts on deleted samples from documents that no row names."""
        for name in self.unowned():
            with self._groups.alone() as connection:
                self._rewrite(connection, name)

    def unowned(self) -> list[str]:
        """Returns the documents that no row names: of an act whose commit failed and was not repeated."""
        # The documents first: one that is committed meanwhile is then found to be owned.
        found = list(self._blobs.documents("verdicts"))
        with self._database.read() as connection:
            owned = {f"{act}{_ENDING}" for act in connection.scalars(select(verdicts.c.act).distinct())}
        return sorted(name for name in found if name not in owned)

    def lost(self, *, deep: bool = False) -> list[str]:
        """Returns the documents that rows need and that do not exist or, with `deep`, lack some of them."""
        count = select(verdicts.c.act, func.count()).group_by(verdicts.c.act)
        with self._database.read() as connection:
            owned = {f"{act}{_ENDING}": int(rows) for act, rows in connection.execute(count)}
        there = set(self._blobs.documents("verdicts"))
        return sorted(
            name
            for name, rows in owned.items()
            if name not in there or (deep and len(list(self._lines(name))) < rows)
        )

    def write_again(self, names: Sequence[str]) -> int:
        """Writes lost documents from their rows; returns their number."""
        for name in names:
            act = name.removesuffix(_ENDING)
            with self._groups.alone() as connection:
                query = select(verdicts).where(verdicts.c.act == act).order_by(verdicts.c.seq)
                rows = connection.execute(query).mappings().all()
                if rows:
                    self._keep([{key: value for key, value in row.items() if key != "seq"} for row in rows])
        return len(names)

    def restore(self, names: Iterable[str] | None = None) -> int:
        """Adds the rows that documents have and the database lacks; returns their number.

        Args:
            names: of documents; None takes all.
        """
        listed = self._blobs.documents("verdicts") if names is None else names
        return sum(self._restore(name) for name in sorted(listed))

    def _restore(self, name: str) -> int:
        lines = {line.sample: line for line in self._lines(name)}
        if not lines:
            return 0
        act = next(iter(lines.values())).act
        with self._groups.alone() as connection:
            asked = self._database.ids(list(lines))
            gone = set(connection.scalars(self._database.among(tombstones), asked))
            there = set(connection.scalars(select(verdicts.c.sample).where(verdicts.c.act == act)))
            fresh = [line for key, line in lines.items() if key not in gone | there]
            self._insert(connection, [line.model_dump() for line in fresh])
            if not fresh and not there:
                self._blobs.drop("verdicts", name)
        return len(fresh)

    def _keep(self, rows: Sequence[Mapping[str, Any]]) -> None:
        data = b"".join(json.dumps(row, sort_keys=True, ensure_ascii=False).encode() + b"\n" for row in rows)
        self._blobs.keep(Document("verdicts", f"{rows[0]['act']}{_ENDING}", data))

    def _insert(self, connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
        if rows:
            start = int(connection.scalar(select(func.max(verdicts.c.seq))) or 0) + 1
            numbered = [dict(row) | {"seq": seq} for seq, row in enumerate(rows, start)]
            connection.execute(verdicts.insert(), numbered)

    def _rewrite(self, connection: Connection, name: str) -> None:
        lines = list(self._lines(name))
        asked = self._database.ids([line.sample for line in lines])
        gone = set(connection.scalars(self._database.among(tombstones), asked))
        kept = [line.model_dump() for line in lines if line.sample not in gone]
        if not kept:
            self._blobs.drop("verdicts", name)
        elif len(kept) < len(lines):
            self._keep(kept)

    def _lines(self, name: str) -> Iterator[VerdictLine]:
        """Yields the valid lines of a document: one damaged line must not hide the others."""
        try:
            data = self._blobs.document("verdicts", name)
        except SampleGoneError:
            return
        for raw in data.split(b"\n"):
            try:
                line = VerdictLine.model_validate_json(raw) if raw else None
            except ValidationError:
                continue
            # A line of another act would be written to another document when this one is rewritten.
            if line is not None and f"{line.act}{_ENDING}" == name:
                yield line


def is_newest(row: FromClause, *, up_to: float | None = None) -> ColumnElement[bool]:
    """Returns the condition that a row of `verdicts` is its annotator's newest about its sample.

    Args:
        row: `verdicts` or an alias of it.
        up_to: ignores what was recorded later, seconds since 1970; `row` must not be later.
    """
    newer = verdicts.alias()
    query = select(newer.c.seq).where(
        newer.c.sample == row.c.sample,
        newer.c.annotator == row.c.annotator,
        newer.c.recorded_at > row.c.recorded_at,
    )
    if up_to is not None:
        query = query.where(newer.c.recorded_at <= up_to)
    return ~query.correlate(row).exists()


def settled(*, up_to: float | None = None) -> Select[Any]:
    """Returns the query for the rows of `verdicts` that are the verdicts of their samples.

    `up_to` ignores what was recorded later, seconds since 1970.
    """
    row, other = verdicts.alias("verdict"), verdicts.alias()
    later = select(other.c.seq).where(
        other.c.sample == row.c.sample,
        other.c.recorded_at > row.c.recorded_at,
        other.c.verdict != NONE,
        is_newest(other, up_to=up_to),
    )
    query = select(row).where(row.c.verdict != NONE, is_newest(row, up_to=up_to))
    if up_to is not None:
        query, later = query.where(row.c.recorded_at <= up_to), later.where(other.c.recorded_at <= up_to)
    return query.where(~later.correlate(row).exists())


def has_verdict(name: str, *, up_to: float | None = None) -> ColumnElement[bool]:
    """Returns the condition on a row of `samples` that its verdict is `name`; "none" and "any" are names too.

    The verdicts decide, not the samples: a fleet has few verdicts and many samples.
    """
    if "\0" in name:
        return false()
    found = settled(up_to=up_to).subquery()
    query = select(found.c.sample)
    if name == NONE:
        # NOT IN would compare every sample with every verdict on PostgreSQL once they exceed its memory.
        return ~query.where(found.c.sample == samples.c.id).correlate(samples).exists()
    return samples.c.id.in_(query if name == ANY_VERDICT else query.where(found.c.verdict == name))


def is_judged_by(annotator: str) -> ColumnElement[bool]:
    """Returns the condition on a row of `samples` that a person has a verdict on it."""
    row = verdicts.alias()
    query = select(row.c.seq).where(
        row.c.sample == samples.c.id, row.c.annotator == annotator, row.c.verdict != NONE, is_newest(row)
    )
    return query.correlate(samples).exists()


def is_judged_by_another(annotator: str, *, directly: bool = False) -> ColumnElement[bool]:
    """Returns the condition on a row of `samples` that somebody else has a verdict on it.

    `directly`: only verdicts that were given to this very picture count.
    """
    row = verdicts.alias()
    query = select(row.c.seq).where(
        row.c.sample == samples.c.id, row.c.annotator != annotator, row.c.verdict != NONE, is_newest(row)
    )
    if directly:
        query = query.where(~row.c.shared)
    return query.correlate(samples).exists()


def verdicts_of(connection: Connection, ids: Sequence[str]) -> dict[str, RowMapping]:
    """Returns the rows that are the verdicts of a page of samples, by sample id."""
    found = settled().subquery()
    rows = connection.execute(select(found).where(one_of(found.c.sample, ids, on=connection)))
    return {row["sample"]: row for row in rows.mappings()}
