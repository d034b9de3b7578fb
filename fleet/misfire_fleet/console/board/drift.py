"""Compares a bundle's scores over time, whole and by group, with what they should look like.

score_hours --steps--> bands of all frames and of the random stream
calibration, or first days --PSI--> how far each group's last frames are from it
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from misfire_fleet.console.board.calibration import FIRST_S, LEVELS, Calibrations, Reference
from misfire_fleet.console.board.history import Bands, bands_of, step_of, times_of
from misfire_fleet.console.board.rows import DAY_S
from misfire_fleet.store import Store
from misfire_fleet.truth.bins import MIN_FRAMES, PSI_DRIFT, PSI_WATCH, Bins, psi
from misfire_fleet.truth.rollups import HOUR_S, STREAM_S, Source, Step, steps
from misfire_runtime.clock import wall_time

SKETCHED = ("vehicle", "region")
"""Groups of which the heartbeats' sketches tell all frames; of others only the random stream does."""
_WINDOW_S = {"all": 86_400, "stream": 2 * 86_400}
_MOST_GROUPS = 500
_LINES = 6
"""Groups that the chart shows: those that are farthest off."""
Verdict = Literal["ok", "watch", "drift", "few frames", "no reference"]


@dataclass(frozen=True)
class Group:
    """Holds the last frames of a group, and how far they are from the reference.

    Attributes:
        name: of the group; "" for all frames.
        frames: in the window.
        quantiles: p50, p90 and p99.
        psi: population stability index; None without a reference.
        verdict: by the thresholds of `bins.py`.
        p90: over time, at the times of the chart; empty if the chart does not show it.
    """

    name: str
    frames: float
    quantiles: tuple[float, ...]
    psi: float | None
    verdict: Verdict
    p90: tuple[float | None, ...] = ()


@dataclass(frozen=True)
class Drift:
    """Holds what the drift page shows of a bundle and a score.

    Attributes:
        at: begin of each step, seconds since 1970.
        all: of all frames, by heartbeats.
        stream: of the random stream, the same times.
        reference: what they should look like; None if nothing is known.
        whole: the last frames of all vehicles.
        groups: those of each group, the farthest first.
        source: what the groups are of: "all" frames, or the random "stream".
        window_s: length of the last frames' time.
    """

    bundle: str
    score: str
    by: str
    days: int
    step_s: int
    at: list[int]
    all: Bands
    stream: Bands
    reference: Reference | None
    whole: Group | None
    groups: list[Group]
    source: Source
    window_s: int


def read_drift(
    store: Store, calibrations: Calibrations, *, bundle: str, score: str, by: str, days: int
) -> Drift:
    """Returns the drift of a bundle's score.

    Args:
        store: has the histograms.
        calibrations: of published bundles.
        bundle: `name@version`.
        score: its name.
        by: what frames are grouped by: "vehicle", "region" or a key of the context; "" for no groups.
        days: how many of the last days.
    """
    now = wall_time()
    since, step_s = now - days * DAY_S, max(step_of(days), STREAM_S if days > 3 else 0)
    every = steps(store, "all", score=score, bundle=bundle, since=since)
    first = steps(store, "all", score=score, bundle=bundle, since=0, limit=FIRST_S // HOUR_S)
    stream = steps(store, "stream", score=score, bundle=bundle, since=since)
    reference = calibrations.reference(bundle, score, first)
    at = times_of([*every, *stream], step_s)
    source: Source = "all" if by in SKETCHED else "stream"
    parts: dict[str, list[Step]] = {}
    if by and at:
        # Only the last frames of every group: hundreds of vehicles have many steps.
        last = max(since, at[-1] + step_s - 2 * _WINDOW_S[source])
        for step in steps(store, source, score=score, bundle=bundle, by=by, since=last):
            parts.setdefault(step.slice, []).append(step)
    every_group = (_group(name, found, source, reference) for name, found in parts.items())
    groups = [group for group in every_group if group is not None]
    groups.sort(key=lambda group: (-(group.psi or 0.0), group.name))
    groups = groups[:_MOST_GROUPS]
    shown = {group.name for group in [each for each in groups if each.frames >= MIN_FRAMES][:_LINES]}

    def line(name: str) -> list[Step]:
        return steps(store, source, score=score, bundle=bundle, by=by, slice_=name, since=since)

    return Drift(
        bundle=bundle,
        score=score,
        by=by,
        days=days,
        step_s=step_s,
        at=at,
        all=bands_of(every, at, step_s),
        stream=bands_of(stream, at, step_s),
        reference=reference,
        whole=_group("", every, "all", reference),
        groups=[
            _with_line(each, line(each.name), at, step_s) if each.name in shown else each for each in groups
        ],
        source=source,
        window_s=_WINDOW_S[source],
    )


def _with_line(group: Group, found: Sequence[Step], at: Sequence[int], step_s: int) -> Group:
    line = tuple(bands_of(found, at, step_s).p90)
    return Group(group.name, group.frames, group.quantiles, group.psi, group.verdict, line)


def _group(name: str, found: Sequence[Step], source: Source, reference: Reference | None) -> Group | None:
    """Returns the last frames of a group: those of the window before its newest ones."""
    if not found:
        return None
    from_ = found[-1].begins - _WINDOW_S[source]
    last = Bins()
    for step in found:
        if step.begins > from_:
            last.merge(step.bins)
    quantiles = last.quantiles(LEVELS)
    if quantiles is None:
        return None
    index = None if reference is None else psi(reference.below, last.below(reference.edges))
    return Group(name, last.total, tuple(quantiles), index, _verdict(index, last.total))


def _verdict(index: float | None, frames: float) -> Verdict:
    if index is None:
        return "no reference"
    if frames < MIN_FRAMES:
        return "few frames"
    return "drift" if index > PSI_DRIFT else "watch" if index > PSI_WATCH else "ok"
