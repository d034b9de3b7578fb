"""Reads what a failure rate is made of: the random stream's frames, and the score sketches of all frames.

samples (random) --frames--> StreamFrame, in pages       telemetry --sketches--> Histogram by vehicle and day

Both are read by the database in pages, and only what is needed of a row is kept.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from sqlalchemy import select

from misfire_fleet.store import Store
from misfire_fleet.store.records import SampleFilter
from misfire_fleet.store.schema import samples, telemetry
from misfire_fleet.store.store import conditions_of
from misfire_fleet.truth.histogram import Histogram

_PAGE = 2000
_UNIT = 1.0 / 2**64
SKETCHED = ("vehicle", "day")
"""Slices for which vehicles' sketches tell the scores of all frames; of others, only the stream does."""
PREFERRED = ("stacked", "learning_loss_pp", "learning_loss", "expected_errors", "entropy", "msp")


@dataclass(frozen=True)
class StreamFrame:
    """Holds what is kept of a frame of the random stream.

    Attributes:
        id: of the sample.
        score: of the model, None if it was refused.
        rate: probability with which the vehicle drew it; None if the offer does not say.
        slices: the name of its slice, by what the frames are sliced by.
        order: its place in the order of dealing, uniform in 0..1 and independent of everything else.
        captured_at, stored_at: seconds since 1970.
        recorded: whether it was read from a recording.
    """

    id: str
    score: float | None
    rate: float | None
    slices: dict[str, str]
    order: float
    captured_at: float
    stored_at: float
    recorded: bool


@dataclass
class Sketches:
    """Holds what heartbeats tell of all frames of a bundle.

    Attributes:
        by: scores by slice ("" for all).
        frames: frames in the sketches of the score, of this bundle.
        beats: heartbeats read.
        counted: frames that vehicles counted between their first and last heartbeat, of all bundles.
        sketched: frames in the sketches of those heartbeats, the first of each vehicle left out.
        dropped: frames that vehicles dropped or could not read, likewise.
        lost: samples that were chosen or spooled and never came, likewise.
        bad: heartbeats or sketches that cannot be read.
    """

    by: dict[str, Histogram] = field(default_factory=dict)
    frames: float = 0.0
    beats: int = 0
    counted: int = 0
    sketched: float = 0.0
    dropped: int = 0
    lost: int = 0
    bad: int = 0


def order_of(sample: str) -> float:
    """Returns a sample's place in the order of dealing: a hash of its id, uniform in 0..1."""
    digest = hashlib.blake2b(sample.encode(), digest_size=8, person=b"misfire-deal").digest()
    return int.from_bytes(digest, "big") * _UNIT


def day_of(moment: float) -> str:
    """Returns the date in UTC."""
    return datetime.fromtimestamp(moment, timezone.utc).strftime("%Y-%m-%d")


def bundles(store: Store, *, since: float | None = None, until: float | None = None) -> list[str]:
    """Returns the bundles that have frames in the random stream, sorted."""
    chosen = conditions_of(SampleFilter(random=True, captured_from=since, captured_to=until))
    with store.database.read() as connection:
        return sorted(connection.scalars(select(samples.c.bundle).where(*chosen).distinct()))


def score_names(store: Store, filters: SampleFilter) -> list[str]:
    """Returns the scores in the newest offer of the random stream, the one to use first.

    The choice follows a list that is fixed, never the labels.
    """
    query = select(samples.c.offer).where(*conditions_of(filters)).order_by(samples.c.seq.desc()).limit(1)
    with store.database.read() as connection:
        text = connection.scalar(query)
    names = sorted(json.loads(text).get("scores", {})) if text else []
    return sorted(names, key=lambda name: (PREFERRED.index(name) if name in PREFERRED else 99, name))


def frames(store: Store, filters: SampleFilter, *, score: str, by: Collection[str]) -> Iterator[StreamFrame]:
    """Yields the frames of the random stream that match, oldest first, and their slice of each `by`."""
    columns = [samples.c[name] for name in ("seq", "id", "vehicle", "captured_at", "stored_at", "offer")]
    query = select(*columns).where(*conditions_of(filters)).order_by(samples.c.seq).limit(_PAGE)
    after = -1
    while True:
        with store.database.read() as connection:
            rows = connection.execute(query.where(samples.c.seq > after)).all()
        for row in rows:
            offer = _parsed(row.offer)
            if offer is None:
                continue
            value, rate = offer.get("scores", {}).get(score), offer.get("trigger", {}).get("rate")
            finite = isinstance(value, (int, float)) and math.isfinite(value)
            yield StreamFrame(
                id=row.id,
                score=float(value) if finite else None,
                rate=float(rate) if isinstance(rate, (int, float)) and rate > 0 else None,
                slices={name: _slice(name, row.vehicle, row.captured_at, offer) for name in by},
                order=order_of(row.id),
                captured_at=float(row.captured_at),
                stored_at=float(row.stored_at),
                recorded=offer.get("recorded_at") is not None or offer.get("position_s") is not None,
            )
        if len(rows) < _PAGE:
            return
        after = rows[-1].seq


def _parsed(text: Any) -> dict[str, Any] | None:
    # A damaged row is not a frame of the stream that could be labelled.
    try:
        offer = json.loads(text)
    except (ValueError, TypeError):
        return None
    return offer if isinstance(offer, dict) else None


def _slice(by: str, vehicle: str, captured_at: float, offer: dict[str, Any]) -> str:
    if by == "":
        return ""
    if by == "vehicle":
        return vehicle
    if by == "day":
        return day_of(captured_at)
    if by == "class":
        return str((offer.get("prediction") or {}).get("class", "unknown"))
    return str((offer.get("context") or {}).get(by, "unknown"))


def sketches(
    store: Store,
    *,
    bundle: str,
    score: str,
    by: str = "",
    since: float | None = None,
    until: float | None = None,
    vehicle: str | None = None,
) -> Sketches:
    """Returns the scores of all frames of a bundle, from the heartbeats of a period.

    A heartbeat covers the frames since the one before, so a period is exact to one heartbeat.

    Args:
        store: has the heartbeats.
        bundle: `name@version`.
        score: name of the score.
        by: "vehicle" or "day" for a histogram of each; else only one of all, under "".
        vehicle: only of this vehicle; None for all.
        since: seconds since 1970 by the vehicles' clocks; None for all.
        until: likewise, exclusive.
    """
    found = Sketches()
    last: dict[str, dict[str, Any]] = {}
    for row in _beats(store, since, until, vehicle):
        beat = _parsed(row.payload)
        if beat is None:
            found.bad += 1
            continue
        moment = float(beat.get("at", {}).get("wall", row.received_at))
        if (since is not None and moment < since) or (until is not None and moment >= until):
            continue
        found.beats += 1
        frames = 0.0
        for name, text in beat.get("sketches", {}).items():
            one = Histogram()
            try:
                count = one.add(text)
            except ValueError:
                found.bad += 1
                continue
            frames = max(frames, count)
            if name != score or beat.get("bundle") != bundle:
                continue
            found.frames += count
            for key in {"", row.vehicle if by == "vehicle" else day_of(moment) if by == "day" else ""}:
                found.by.setdefault(key, Histogram()).add(text)
        _compare(found, last.get(row.vehicle), beat.get("counters", {}), frames)
        last[row.vehicle] = beat.get("counters", {})
    return found


def _compare(found: Sketches, before: dict[str, Any] | None, now: dict[str, Any], frames: float) -> None:
    """Adds what the counters of two heartbeats say; the sketch of the later covers the time between."""
    if before is None:
        return
    grown: Counter[str] = Counter()
    for name in ("frames", "frames_dropped", "frames_unreadable", "evicted"):
        # A spool that was made anew begins at 0.
        grown[name] = max(0, int(now.get(name, 0)) - int(before.get(name, 0)))
    lost = sum(now.get("lost", {}).values()) - sum(before.get("lost", {}).values())
    found.counted += grown["frames"]
    found.sketched += frames
    found.dropped += grown["frames_dropped"] + grown["frames_unreadable"]
    found.lost += grown["evicted"] + max(0, int(lost))


def _beats(store: Store, since: float | None, until: float | None, vehicle: str | None) -> Iterator[Any]:
    """Yields heartbeats in order of arrival, in pages; two days' slack for late ones and for wrong clocks."""
    slack = 2 * 86_400.0
    query = select(telemetry).order_by(telemetry.c.seq).limit(_PAGE)
    if since is not None:
        query = query.where(telemetry.c.received_at >= since - slack)
    if until is not None:
        query = query.where(telemetry.c.received_at < until + slack)
    if vehicle is not None:
        query = query.where(telemetry.c.vehicle == vehicle)
    after = -1
    while True:
        with store.database.read() as connection:
            rows = connection.execute(query.where(telemetry.c.seq > after)).all()
        yield from rows
        if len(rows) < _PAGE:
            return
        after = rows[-1].seq
