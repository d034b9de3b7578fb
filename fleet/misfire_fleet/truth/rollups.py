"""Adds heartbeats and the random stream to histograms by hour, so that charts read few rows.

telemetry --sketches--> "all": whole, by vehicle, by region      samples (random) --> "stream": by context

A cursor says how far it came; the rows and the cursor change in one transaction, so nothing counts twice.
Deleted samples stay counted.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, func, select

from misfire_fleet.store import Store
from misfire_fleet.store.schema import rolled_up, samples, score_hours, telemetry
from misfire_fleet.truth.bins import Bins

log = logging.getLogger(__name__)

Source = Literal["all", "stream"]
HOUR_S, STREAM_S = 3600, 6 * 3600
"""Length of a step: single frames of the stream are few."""
BATCH = 1000
_MOST_SLICES = 60
"""Values of a key of the context; further ones are counted as "other"."""
_MOST_KEYS = 24
OTHER = "other"
_LATE_S = 30 * 86_400.0

Key = tuple[str, str, str, str, str, int]
"""source, by, slice, bundle, score, begins."""


@dataclass(frozen=True)
class Step:
    """Holds the scores of the frames of a step; `begins`: seconds since 1970."""

    slice: str
    bundle: str
    begins: int
    bins: Bins


def roll_up(store: Store, *, limit: int = BATCH) -> int:
    """Adds up to `limit` rows of each source; returns how many were read. Raises StoreUnavailableError."""
    return sum(_roll(store, source, limit) for source in ("all", "stream"))


def behind(store: Store) -> int:
    """Returns how many rows are not yet added, at most."""
    with store.database.read() as connection:
        newest = {
            "all": connection.scalar(select(func.max(telemetry.c.seq))),
            "stream": connection.scalar(select(func.max(samples.c.seq))),
        }
        done = {row.source: row.seq for row in connection.execute(select(rolled_up))}
    return sum(max(0, int(last or 0) - int(done.get(source, 0))) for source, last in newest.items())


def _roll(store: Store, source: Source, limit: int) -> int:
    table = telemetry if source == "all" else samples
    with store.database.write() as connection:
        cursor = select(rolled_up.c.seq).where(rolled_up.c.source == source)
        # FOR UPDATE, which SQLite ignores: its write transactions follow each other anyway.
        after = connection.scalar(cursor.with_for_update())
        if after is None:
            insert = store.database.insert_statement(rolled_up).values(source=source, seq=0)
            connection.execute(insert.on_conflict_do_nothing())
            after = connection.scalar(cursor.with_for_update()) or 0
        query = select(table).where(table.c.seq > after).order_by(table.c.seq).limit(limit)
        if source == "stream":
            columns = [samples.c[name] for name in ("seq", "vehicle", "bundle", "captured_at", "stored_at")]
            query = (
                select(*columns, samples.c.offer)
                .where(samples.c.seq > after, samples.c.random)
                .order_by(samples.c.seq)
                .limit(limit)
            )
        rows = connection.execute(query).all()
        if not rows:
            return 0
        found: dict[Key, Bins] = {}
        slices = _Slices(connection)
        for row in rows:
            for key, value in _of_beat(row) if source == "all" else _of_sample(row, slices):
                _add(found.setdefault(key, Bins()), value)
        _merge(store, connection, found)
        connection.execute(
            rolled_up.update().where(rolled_up.c.source == source).values(seq=int(rows[-1].seq))
        )
    return len(rows)


def _add(bins: Bins, value: str | float) -> None:
    try:
        if isinstance(value, str):
            bins.add_sketch(value)
        else:
            bins.add_score(value)
    except ValueError as error:
        # One bad sketch must not stop the others; field truth counts and reports them.
        log.debug("sketch_not_added", extra={"fields": {"problem": str(error)}})


def _of_beat(row: Any) -> Iterator[tuple[Key, str]]:
    beat = _parsed(row.payload)
    bundle = beat.get("bundle")
    sketches = beat.get("sketches")
    if not isinstance(bundle, str) or not isinstance(sketches, dict) or not bundle:
        return
    begins = int(row.received_at // HOUR_S) * HOUR_S
    place = beat.get("place")
    region = place.get("region") if isinstance(place, dict) else None
    cuts = [("", ""), ("vehicle", row.vehicle)]
    if isinstance(region, str) and region:
        cuts.append(("region", region[:128]))
    for score, sketch in sketches.items():
        if isinstance(sketch, str):
            for by, name in cuts:
                yield ("all", by, name, bundle[:130], score[:128], begins), sketch


def _of_sample(row: Any, slices: _Slices) -> Iterator[tuple[Key, float]]:
    offer = _parsed(row.offer)
    scores, context = offer.get("scores"), offer.get("context")
    if not isinstance(scores, dict):
        return
    at = row.captured_at if 0 <= row.stored_at - row.captured_at < _LATE_S else row.stored_at
    begins = int(at // STREAM_S) * STREAM_S
    cuts = [("", "")]
    if isinstance(context, dict):
        cuts += [cut for key, value in context.items() if (cut := slices.of(key, value)) is not None]
    for score, value in scores.items():
        if isinstance(value, (int, float)) and math.isfinite(value):
            for by, name in cuts:
                yield ("stream", by, name, str(row.bundle)[:130], score[:128], begins), float(value)


class _Slices:
    """Bounds the keys and values of contexts that are counted apart: a vehicle can send any number."""

    def __init__(self, connection: Connection) -> None:
        query = select(score_hours.c.by, score_hours.c.slice).where(score_hours.c.source == "stream")
        self._known: dict[str, set[str]] = {}
        for by, name in connection.execute(query.distinct()):
            self._known.setdefault(by, set()).add(name)

    def of(self, key: str, value: Any) -> tuple[str, str] | None:
        """Returns the slice of a key of the context; None for a number, and for too many keys."""
        if isinstance(value, bool):
            value = str(value).lower()
        if not isinstance(value, str) or not value or len(key) > 128:
            return None
        if key not in self._known and len(self._known) > _MOST_KEYS:
            return None
        names = self._known.setdefault(key, set())
        name = value[:128]
        if name not in names and len(names) >= _MOST_SLICES:
            name = OTHER
        names.add(name)
        return key, name


def _merge(store: Store, connection: Connection, found: Mapping[Key, Bins]) -> None:
    columns = ("source", "by", "slice", "bundle", "score", "begins")
    # Sorted: PostgreSQL locks rows in this order, and two transactions with other orders would deadlock.
    for key in sorted(found):
        bins = found[key]
        if not bins.total:
            continue
        mine = [score_hours.c[name] == value for name, value in zip(columns, key, strict=True)]
        before = connection.scalar(select(score_hours.c.bins).where(*mine))
        if before is not None:
            bins.merge(Bins.unpack(before))
        row = dict(zip(columns, key, strict=True)) | {"frames": bins.total, "bins": bins.pack()}
        store.database.upsert(connection, score_hours, [row])


def _parsed(text: Any) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}


def steps(
    store: Store,
    source: Source,
    *,
    score: str,
    bundle: str | None = None,
    by: str = "",
    slice_: str | None = None,
    since: float,
    limit: int | None = None,
) -> list[Step]:
    """Returns the histograms of a score, oldest first.

    Args:
        store: has them.
        source: "all" for all frames, "stream" for the random stream.
        score: name of the score.
        bundle: `name@version`; None for all, one step each.
        by: "" for all frames, else what they are sliced by.
        slice_: one slice; None for all of `by`.
        since: seconds since 1970.
        limit: the first so many; None for all.
    """
    table = score_hours.c
    query = select(table.slice, table.bundle, table.begins, table.bins).where(
        table.source == source, table.by == by, table.score == score, table.begins >= since
    )
    if slice_ is not None:
        query = query.where(table.slice == slice_)
    if bundle is not None:
        query = query.where(table.bundle == bundle)
    made = []
    with store.database.read() as connection:
        for row in connection.execute(query.order_by(table.begins).limit(limit)):
            try:
                made.append(Step(row.slice, row.bundle, int(row.begins), Bins.unpack(row.bins)))
            except ValueError:
                continue
    return made


def choices(store: Store) -> tuple[list[str], list[str], list[str]]:
    """Returns the bundles, scores and slicings that have histograms, each sorted."""
    table = score_hours.c
    with store.database.read() as connection:
        whole = select(table.bundle, table.score).where(table.by == "").distinct()
        pairs = connection.execute(whole).all()
        keys: Sequence[str] = connection.scalars(select(table.by).distinct()).all()
    return sorted({row.bundle for row in pairs}), sorted({row.score for row in pairs}), sorted(keys)
