"""Reads a vehicle's last days: its scores against the fleet's, its uploads, and its health."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import select

from misfire_fleet.console.board.calibration import LEVELS
from misfire_fleet.console.board.rows import DAY_S, Telemetry
from misfire_fleet.store import Store
from misfire_fleet.store.rows import message_of, seconds
from misfire_fleet.store.schema import samples, telemetry
from misfire_fleet.truth.bins import Bins
from misfire_fleet.truth.rollups import HOUR_S, Step, steps
from misfire_runtime.clock import wall_time

MAX_DAYS = 60
_POINTS = 90
"""Points of a chart: more cannot be told apart."""
_BEATS = 3000
_UPLOADS = 200_000


@dataclass(frozen=True)
class Bands:
    """Holds quantiles over time, a list each; None where there was no frame."""

    p50: list[float | None]
    p90: list[float | None]
    p99: list[float | None]
    frames: list[float]


@dataclass(frozen=True)
class Uploads:
    """Counts uploads by step. `at`: seconds since 1970."""

    at: list[int]
    count: list[int]
    random: list[int]


@dataclass(frozen=True)
class Health:
    """Holds what heartbeats say, a list each; `dropped` counts since the heartbeat before."""

    at: list[float]
    pending: list[int]
    dropped: list[int]
    degradation: list[int]


@dataclass(frozen=True)
class VehicleHistory:
    """Holds a vehicle's last days. `at`: begin of each step, seconds since 1970."""

    score: str
    scores: list[str]
    step_s: int
    at: list[int]
    vehicle: Bands
    fleet: Bands
    uploads: Uploads
    health: Health


def step_of(days: int) -> int:
    """Returns the length of a step in seconds, whole hours that divide a day."""
    return next(h for h in (1, 2, 3, 6, 12, 24) if days * 24 / h <= _POINTS or h == 24) * HOUR_S


def times_of(found: Iterable[Step], step_s: int) -> list[int]:
    """Returns the begins of all steps from the first to the last with frames, without gaps."""
    begins = [step.begins // step_s * step_s for step in found]
    return list(range(min(begins), max(begins) + 1, step_s)) if begins else []


def bands_of(found: Iterable[Step], at: Sequence[int], step_s: int) -> Bands:
    """Returns the quantiles of the steps' frames at each time."""
    merged: dict[int, Bins] = {}
    for step in found:
        merged.setdefault(step.begins // step_s * step_s, Bins()).merge(step.bins)
    levels = [merged[time].quantiles(LEVELS) if time in merged else None for time in at]
    p50, p90, p99 = ([None if each is None else round(each[i], 6) for each in levels] for i in range(3))
    return Bands(p50, p90, p99, [merged[time].total if time in merged else 0.0 for time in at])


def read_history(
    store: Store, vehicle: str, *, score: str | None, scores: list[str], days: int
) -> VehicleHistory:
    """Returns a vehicle's last days.

    Args:
        store: has them.
        vehicle: its name.
        score: name of a score; None for the first of `scores`.
        scores: that the fleet has.
        days: how many.
    """
    since, step_s = wall_time() - days * DAY_S, step_of(days)
    chosen = score or (scores[0] if scores else "")
    own = steps(store, "all", score=chosen, by="vehicle", slice_=vehicle, since=since)
    ran = {step.bundle for step in own}
    # Against vehicles that run what it runs: another bundle's scores are no comparison.
    all_ = [step for step in steps(store, "all", score=chosen, since=since) if step.bundle in ran]
    at = times_of([*own, *all_], step_s)
    return VehicleHistory(
        score=chosen,
        scores=scores,
        step_s=step_s,
        at=at,
        vehicle=bands_of(own, at, step_s),
        fleet=bands_of(all_, at, step_s),
        uploads=_uploads(store, vehicle, since, step_s),
        health=_health(store, vehicle, since),
    )


def _uploads(store: Store, vehicle: str, since: float, step_s: int) -> Uploads:
    query = (
        select(samples.c.stored_at, samples.c.random)
        .where(samples.c.vehicle == vehicle, samples.c.stored_at >= since)
        .limit(_UPLOADS)
    )
    counts: Counter[int] = Counter()
    drawn: Counter[int] = Counter()
    with store.database.read() as connection:
        for stored_at, random in connection.execute(query):
            moment = seconds(stored_at)
            if moment is not None:
                begins = int(moment // step_s) * step_s
                counts[begins] += 1
                drawn[begins] += bool(random)
    at = list(range(min(counts), max(counts) + 1, step_s)) if counts else []
    return Uploads(at, [counts[time] for time in at], [drawn[time] for time in at])


def _health(store: Store, vehicle: str, since: float) -> Health:
    query = (
        select(telemetry.c.received_at, telemetry.c.payload)
        .where(telemetry.c.vehicle == vehicle, telemetry.c.received_at >= since)
        .order_by(telemetry.c.received_at.desc())
        .limit(_BEATS)
    )
    with store.database.read() as connection:
        rows = connection.execute(query).all()[::-1]
    # Thinned before they are parsed; the last one stays.
    rows = rows[:: -(len(rows) // (4 * _POINTS) + 1)][::-1]
    beats = [(row.received_at, message_of(Telemetry, row.payload, f"vehicle {vehicle}")[0]) for row in rows]
    readable = [(at, beat) for at, beat in beats if beat is not None]
    lost = [beat.counters.frames_dropped + beat.counters.frames_unreadable for _, beat in readable]
    return Health(
        at=[float(at) for at, _ in readable],
        pending=[beat.counters.pending for _, beat in readable],
        dropped=[max(0, now - before) for before, now in zip([lost[0], *lost], lost, strict=False)]
        if lost
        else [],
        degradation=[beat.degradation for _, beat in readable],
    )
