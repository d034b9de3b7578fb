"""Keeps the rows of verdicts consistent with the documents next to the blobs, and asks for them.

    an act's rows --keep--> verdicts/ACT.jsonl, durable --then--> rows of `verdicts`, committed

An **act** is one press of a key: a verdict on one sample, which near-duplicates may share, or the undoing of
an earlier act. Its document has the act's name, so a repeated request writes the same file again. Everything
that writes holds the lock of deletions, so acts follow each other, and `recorded_at` rises from act to act.

A person's verdict on a sample is that of their newest row; "none" takes it back. The verdict of a sample is
the newest of all persons' that is not "none".
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field
from sqlalchemy import ColumnElement, Connection, FromClause, RowMapping, Select, false, func, select

from misfire_fleet.store.audit.record import Change, record
from misfire_fleet.store.database import one_of
from misfire_fleet.store.documents.rows import ENDING, KeptRows, Line
from misfire_fleet.store.schema import samples, stale_verdicts, verdicts
from misfire_runtime.messages import LAST_DATE

NONE = "none"
"""Verdict of a row that takes an earlier one back, and of a sample that nobody judged."""
ANY_VERDICT = "any"
_Act = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{8,40}$")]
_Time = Annotated[float, Field(ge=0, le=LAST_DATE, allow_inf_nan=False)]
_Version = Annotated[int, Field(ge=1, le=2**31 - 1)]


class VerdictLine(Line):
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

    act: _Act
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


class VerdictRows(KeptRows[VerdictLine]):
    """Writes, removes and restores rows of verdicts together with their documents, one for each act."""

    kind = "verdicts"
    line = VerdictLine
    table = verdicts
    stale = stale_verdicts
    owner = verdicts.c.act

    def add(self, connection: Connection, lines: Sequence[VerdictLine]) -> None:
        """Writes the document of an act durably, then inserts its rows. `connection` has the lock."""
        name, rows = self._name(lines[0].act), [line.model_dump() for line in lines]
        self.write(name, rows)
        record(connection, _change(connection, lines))
        self._insert(connection, rows, name)

    def _name(self, owner: str) -> str:
        return f"{owner}{ENDING}"

    def _owner(self, name: str) -> str:
        return name.removesuffix(ENDING)

    def _belongs(self, line: VerdictLine, name: str) -> bool:
        # A line of another act would be written to another document when this one is rewritten.
        return self._name(line.act) == name

    def _key(self, line: VerdictLine) -> Hashable:
        return line.sample

    def _present(self, connection: Connection, lines: Sequence[VerdictLine]) -> set[Hashable]:
        of_act = select(verdicts.c.sample).where(verdicts.c.act == lines[0].act)
        return set(connection.scalars(of_act))

    def _as_line(self, connection: Connection, row: RowMapping) -> dict[str, Any]:
        return {key: value for key, value in row.items() if key != "seq"}

    def _insert(self, connection: Connection, rows: Sequence[Mapping[str, Any]], name: str) -> None:
        if rows:
            start = int(connection.scalar(select(func.max(verdicts.c.seq))) or 0) + 1
            numbered = [dict(row) | {"seq": seq} for seq, row in enumerate(rows, start)]
            connection.execute(verdicts.insert(), numbered)


def _change(connection: Connection, lines: Sequence[VerdictLine]) -> Change:
    """Returns an act for the audit log: of the first sample; near-duplicates that share it are counted."""
    first = lines[0]
    held = select(verdicts.c.verdict).where(
        verdicts.c.sample == first.sample, verdicts.c.annotator == first.annotator
    )
    before = connection.scalar(held.order_by(verdicts.c.recorded_at.desc()).limit(1))
    return Change(
        first.annotator,
        "verdict-undo" if first.undoes else "verdict",
        f"sample:{first.sample}",
        before=None if before is None else {"verdict": before},
        after={"verdict": first.verdict},
        detail={"act": first.act, "samples": len(lines)},
    )


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
