"""Compares both bundles slice by slice: vehicle, day, class, and every key of the vehicles' context.

    frames --groupings--> {kind: {value: rows}} --slice_reports--> a row for each slice, gaps between them

Many slices are looked at, so the interval of one is widened until all together keep the 5 % chance of a false
alarm. A slice with few frames is listed, and not compared. Predictive parity means two things: that the task
metric is the same in all groups, and that a flag means a failure equally often in all groups.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from misfire_fleet.candidates.answers import Answered, Floats, Kept
from misfire_fleet.candidates.comparing import Resampling, difference_text, flags, ratio, widened
from misfire_fleet.candidates.rules import Rules
from misfire_fleet.candidates.verdict import Check, Measure
from misfire_train.judge.slices import MAX_GROUPS_SHOWN
from misfire_train.metrics import Estimate
from misfire_train.metrics.bootstrap import estimate, wilson

_SHUFFLES = 200
_FLAGS_NEEDED = 10
_NAMED = 3


@dataclass(frozen=True)
class SliceRow:
    """Holds one slice. `precision`: of the flags of (candidate, incumbent), None with few flags."""

    value: str
    frames: int
    groups: int
    candidate: float
    incumbent: float
    difference: Estimate
    precision: tuple[Estimate | None, Estimate | None]

    @property
    def worse(self) -> bool:
        """Returns whether the candidate is worse here beyond what chance would show in so many slices."""
        return self.difference.high < 0


@dataclass(frozen=True)
class Gap:
    """Holds the difference between the best and the worst slice of both bundles.

    `by_chance`: 95 % of the candidate's gaps between groups drawn at random are smaller. `growth`: candidate
    minus incumbent, paired.
    """

    measure: str
    candidate: Estimate
    incumbent: Estimate
    growth: Estimate
    by_chance: float
    worst: str
    best: str


@dataclass(frozen=True)
class SliceReport:
    """Holds the slices of one kind. `few`: values with too few frames to compare, with their number."""

    kind: str
    rows: tuple[SliceRow, ...]
    gaps: tuple[Gap, ...]
    few: Mapping[str, int]

    @property
    def worst(self) -> SliceRow | None:
        """Returns the slice with the candidate's lowest metric."""
        return min(self.rows, key=lambda row: row.candidate, default=None)


def groupings(frames: Sequence[Kept]) -> dict[str, dict[str, NDArray[np.intp]]]:
    """Returns the rows of each slice, {kind: {value: rows}}, of the kinds that divide the frames.

    A frame whose label names several classes is in the slice of each. A key of the context with more than 40
    values is no kind of weather; it is left out.
    """
    found: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for row, frame in enumerate(frames):
        sample = frame.sample
        day = datetime.fromtimestamp(sample.captured_at, timezone.utc).date().isoformat()
        for name in frame.names:
            found["class"][name].append(row)
        found["vehicle"][sample.vehicle].append(row)
        found["day"][day].append(row)
        for key, value in sample.offer.context.items():
            kind = key if key not in ("class", "vehicle", "day") else f"context {key}"
            found[kind][f"{value:g}" if isinstance(value, float) else str(value)].append(row)
    return {
        kind: {value: np.array(rows) for value, rows in sorted(values.items())}
        for kind, values in found.items()
        if 1 < len(values) <= MAX_GROUPS_SHOWN or (kind == "class" and len(values) > 1)
    }


def slice_reports(
    answered: Answered, resampling: Resampling, rules: Rules, *, budget: float
) -> tuple[SliceReport, ...]:
    """Returns the slices of all kinds."""
    kinds = groupings(answered.frames)
    compared = sum(1 for v in kinds.values() for rows in v.values() if len(rows) >= rules.min_frames)
    return tuple(
        _report(kind, values, answered, resampling, rules, budget=budget, compared=max(1, compared))
        for kind, values in kinds.items()
    )


def compare_slices(reports: Sequence[SliceReport], rules: Rules, *, metric: str) -> Check:
    """Judges the slices: none may be worse beyond chance, and no gap may be above the limit."""
    rows = [(report.kind, row) for report in reports for row in report.rows]
    if not rows:
        return Check(
            "slices",
            "unknown",
            f"not judged: no slice has {rules.min_frames} frames, or there is only one of each kind",
        )
    kind, worst = min(rows, key=lambda each: each[1].candidate)
    measures = [
        Measure(f"worst slice ({kind} {worst.value})", worst.candidate, worst.incumbent, worst.difference)
    ]
    for report in reports:
        for gap in report.gaps:
            name = f"gap of {metric if gap.measure == 'metric' else 'flag precision'} by {report.kind}"
            measures.append(Measure(name, gap.candidate.value, gap.incumbent.value, gap.growth, higher=False))
    worse = [f"{kind} {row.value} {difference_text(row.difference)}" for kind, row in rows if row.worse]
    wide = [
        f"{report.kind} {100 * gap.candidate.value:.1f} points"
        for report in reports
        for gap in report.gaps
        if rules.max_gap is not None
        and gap.measure == "metric"
        and gap.candidate.value > gap.by_chance
        and gap.candidate.low > rules.max_gap
    ]
    reasons = []
    if worse:
        reasons.append(f"worse in {_some(worse)}")
    if wide:
        reasons.append(f"a gap above {100 * (rules.max_gap or 0):g} points: {_some(wide)}")
    text = f"worst: {kind} {worst.value}, {metric} {100 * worst.candidate:.1f} %"
    text += f" against {100 * worst.incumbent:.1f} %, of {len(rows)} slices"
    sentence = f"{'; '.join(reasons)}; {text}" if reasons else f"{text}; none is worse beyond chance"
    return Check("slices", "failed" if reasons else "passed", sentence, False, tuple(measures))


def _report(
    kind: str,
    values: Mapping[str, NDArray[np.intp]],
    answered: Answered,
    resampling: Resampling,
    rules: Rules,
    *,
    budget: float,
    compared: int,
) -> SliceReport:
    kept = {value: rows for value, rows in values.items() if len(rows) >= rules.min_frames}
    few = {value: len(rows) for value, rows in values.items() if value not in kept}
    if not kept:
        return SliceReport(kind, (), (), few)
    members = np.zeros((len(answered), len(kept)))
    for column, rows in enumerate(kept.values()):
        members[rows, column] = 1.0
    sides = (answered.candidate, answered.incumbent)
    flagged = [flags(side.score, max(1, round(budget * len(answered)))) for side in sides]
    drawn = [
        resampling.ratios(members * side.right[:, None], members * side.counted[:, None]) for side in sides
    ]
    precise = [
        resampling.ratios(members * (flag * side.failed)[:, None], members * flag[:, None])
        for side, flag in zip(sides, flagged, strict=True)
    ]
    confidence = 1 - 0.05 / compared
    made = []
    for column, (value, rows) in enumerate(kept.items()):
        new, old = (ratio(side.right[rows], side.counted[rows]) for side in sides)
        gain = estimate(new - old, drawn[0][:, column] - drawn[1][:, column], confidence=confidence)
        z = NormalDist().inv_cdf((1 + confidence) / 2)
        made.append(
            SliceRow(
                value,
                len(rows),
                len({answered.frames[row].group for row in rows}),
                new,
                old,
                widened(gain, sides, rows, z=z),
                (
                    _precision(flagged[0][rows], sides[0].failed[rows], precise[0][:, column]),
                    _precision(flagged[1][rows], sides[1].failed[rows], precise[1][:, column]),
                ),
            )
        )
    gaps = [
        _gap("metric", made, drawn, members=members, parts=[(s.right, s.counted) for s in sides], rules=rules)
    ]
    enough = [column for column, row in enumerate(made) if None not in row.precision]
    if len(enough) > 1:
        parts = [(flag * side.failed, flag) for side, flag in zip(sides, flagged, strict=True)]
        some = [each[:, enough] for each in precise]
        rows_of = [made[column] for column in enough]
        gaps.append(_gap("precision", rows_of, some, members=members[:, enough], parts=parts, rules=rules))
    return SliceReport(kind, tuple(made), tuple(gaps) if len(made) > 1 else (), few)


def _precision(flag: Floats, failed: NDArray[np.bool_], drawn: Floats) -> Estimate | None:
    """Returns the share of failures among flagged frames, None with few; at least as wide as Wilson's."""
    total = float(flag.sum())
    if total < _FLAGS_NEEDED:
        return None
    hits = float((flag * failed).sum())
    found = estimate(hits / total, drawn)
    low, high = wilson(hits, total)
    return Estimate(found.value, min(found.low, low), max(found.high, high), found.usable)


def _gap(
    measure: str,
    rows: Sequence[SliceRow],
    drawn: Sequence[Floats],
    *,
    members: Floats,
    parts: Sequence[tuple[Floats, Floats]],
    rules: Rules,
) -> Gap:
    values = [
        np.array([_at(side, members[:, column]) for column in range(members.shape[1])]) for side in parts
    ]
    # A resample may draw no frame of a slice, whose ratio is then NaN.
    spreads = [np.nanmax(each, axis=1) - np.nanmin(each, axis=1) for each in drawn]
    gaps = [float(each.max() - each.min()) for each in values]
    rng = np.random.default_rng(rules.seed)
    chance = []
    for _ in range(_SHUFFLES):
        order = rng.permutation(len(members))
        shuffled = [_at(parts[0], members[order, column]) for column in range(members.shape[1])]
        finite = [value for value in shuffled if math.isfinite(value)]
        chance.append(max(finite, default=0.0) - min(finite, default=0.0))
    found = [estimate(gap, spread) for gap, spread in zip(gaps, spreads, strict=True)]
    return Gap(
        measure,
        found[0],
        found[1],
        estimate(gaps[0] - gaps[1], spreads[0] - spreads[1]),
        float(np.quantile(chance, 0.95)),
        rows[int(values[0].argmin())].value,
        rows[int(values[0].argmax())].value,
    )


def _at(side: tuple[Floats, Floats], member: Floats) -> float:
    return ratio(side[0] * member, side[1] * member)


def _some(texts: Sequence[Any]) -> str:
    more = f" and {len(texts) - _NAMED} more" if len(texts) > _NAMED else ""
    return ", ".join(texts[:_NAMED]) + more
