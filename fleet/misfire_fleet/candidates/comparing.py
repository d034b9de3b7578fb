"""Compares the answers of two bundles to the same frames: the task metric, and the failure scores.

Both are compared on the same resamples, which draw whole groups, so that differences are paired.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from misfire_fleet.candidates.answers import Answered, Columns, Floats
from misfire_fleet.candidates.rules import Rules
from misfire_fleet.candidates.verdict import Check, Measure, Status
from misfire_train.judge.evidence import MIN_CLUSTERS
from misfire_train.metrics import Estimate, replicate, resample_weights
from misfire_train.metrics.bootstrap import HIGHER_IS_BETTER, estimate, point

Z = 1.959964
MIN_FAILURES = 10
"""With fewer failures (or successes) of one bundle, an AUROC says nothing."""
MIN_UPLOADED = 10
"""With fewer uploads, one frame more or less would decide."""


@dataclass(frozen=True)
class Resampling:
    """Holds what a resample draws whole: groups, or frames if groups are few."""

    clusters: NDArray[Any]
    groups: int
    note: str
    replicates: int
    seed: int

    @classmethod
    def of(cls, groups: Sequence[str], rules: Rules) -> Resampling:
        """Returns how to resample frames of these groups."""
        count = len(set(groups))
        if count >= MIN_CLUSTERS:
            return cls(np.array(groups), count, "", rules.replicates, rules.seed)
        note = (
            f"{count} groups are too few to draw whole groups ({MIN_CLUSTERS} are needed): intervals are "
            "over frames and do not say how much the next group may differ."
        )
        return cls(np.arange(len(groups)), count, note, rules.replicates, rules.seed)

    def ratios(self, above: Floats, below: Floats) -> Floats:
        """Returns ratios of sums on each resample, [R] of [N] or [R,S] of [N,S]; NaN without a sum below."""
        parts = []
        for weights in resample_weights(self.clusters, replicates=self.replicates, seed=self.seed):
            top, bottom = weights @ above, weights @ below
            parts.append(np.divide(top, bottom, out=np.full_like(top, np.nan), where=bottom > 0))
        return np.concatenate(parts)


def ratio(above: Floats, below: Floats) -> float:
    """Returns a ratio of sums; NaN if there is nothing below."""
    total = float(below.sum())
    return float(above.sum()) / total if total > 0 else math.nan


def widened(
    found: Estimate, columns: tuple[Columns, Columns], rows: NDArray[Any], *, z: float = Z
) -> Estimate:
    """Returns a paired difference of ratios with an interval that is not too narrow if few frames differ.

    A bootstrap of frames that both answer alike has no width at all. The interval is joined with that of
    Agresti and Min (2005), which adds one pair that differs; for shares of 0 and 1 it is theirs, for other
    ratios the differences are linearised.
    """
    parts = []
    for side in columns:
        right, counted = side.right[rows], side.counted[rows]
        mean = counted.mean()
        if mean <= 0:
            return found
        parts.append((right - ratio(right, counted) * counted) / mean)
    moves = parts[0] - parts[1] + found.value
    count = len(moves)
    spread = float((moves**2).sum()) + 1.0 - float(moves.sum()) ** 2 / (count + 2)
    half, centre = z * math.sqrt(max(spread, 0.0)) / (count + 2), float(moves.sum()) / (count + 2)
    low = min(found.low, centre - half) if math.isfinite(found.low) else centre - half
    high = max(found.high, centre + half) if math.isfinite(found.high) else centre + half
    return replace(found, low=max(low, -1.0), high=min(high, 1.0))


def compare_task(answered: Answered, resampling: Resampling, rules: Rules, *, metric: str) -> Check:
    """Judges the task metric: not worse, and a loss above the tolerance is outside of the interval."""
    new, old = answered.candidate, answered.incumbent
    rows = np.arange(len(answered))
    values = ratio(new.right, new.counted), ratio(old.right, old.counted)
    drawn = resampling.ratios(new.right, new.counted) - resampling.ratios(old.right, old.counted)
    found = widened(estimate(values[0] - values[1], drawn), (new, old), rows)
    measures = [Measure(metric, *values, found)]
    shares = (1 - new.failed.mean(), 1 - old.failed.mean())
    if metric not in ("accuracy", "frames right") or abs(shares[0] - values[0]) > 1e-9:
        measures.append(_mean("frames right", 1.0 - new.failed, 1.0 - old.failed, resampling))
    measures.append(_mean("loss", new.loss, old.loss, resampling, higher=False))
    status: Status
    text = f"{metric} {_points(values[0])} against {_points(values[1])}, {difference_text(found)} points"
    if len(answered) < rules.min_frames:
        needed = f"{rules.min_frames} are needed ({text})"
        status, sentence = "unknown", f"{len(answered)} frames are too few to judge, {needed}"
    elif not new.right.any() and not old.right.any():
        # Two that answer nothing are alike, too, and none of them may be published for that.
        status = "unknown"
        sentence = f"neither is right about anything, so nothing shows that the candidate works ({text})"
    elif _same_network(new, old, metric):
        status, sentence = "passed", f"both answer alike, to the last bit: {text}"
    else:
        status, sentence = _judged(found, text, len(answered), rules)
    return Check("task", status, sentence, True, tuple(measures))


def _judged(found: Estimate, text: str, frames: int, rules: Rules) -> tuple[Status, str]:
    """Returns what a difference of the task metric says, and in which words."""
    if found.high < 0:
        return "failed", f"worse: {text}"
    if found.low > -rules.tolerance:
        return "passed", text
    loss = f"{100 * rules.tolerance:g} points"
    if found.value <= -rules.tolerance:
        return "failed", f"a loss of {loss} or more is likely: {text}"
    more = _needed(found, frames, rules.tolerance)
    return "unknown", f"too few frames: {frames} do not exclude a loss of {loss}, about {more} would ({text})"


def _same_network(new: Columns, old: Columns, metric: str) -> bool:
    """Returns whether both are one network, whose other frames cannot be worse either.

    A loss that is a number tells it to the last bit, whatever the order of the classes. A detector's loss is
    counted in boxes, and alike for many networks: there the answers themselves are compared.
    """
    if metric == "F1":
        return bool(new.answers) and new.answers == old.answers
    return np.array_equal(new.loss, old.loss)


def _needed(found: Estimate, frames: int, tolerance: float) -> int:
    """Returns about how many frames would exclude a loss of the tolerance, if the difference stays."""
    half = found.value - found.low
    exact = frames * (half / (found.value + tolerance)) ** 2
    digits = max(0, int(math.log10(max(exact, 1.0))) - 1)
    return int(math.ceil(exact / 10**digits) * 10**digits)


def compare_score(answered: Answered, resampling: Resampling, rules: Rules, *, budget: float) -> Check:
    """Judges how well each bundle's score finds the failures of its own network.

    A better network has other failures, which may be harder to find. So a lower AUROC alone does not fail: it
    fails if the remaining risk (AURC) is not lower either.
    """
    new, old = answered.candidate, answered.incumbent
    counts = int(new.failed.sum()), int(old.failed.sum())
    least = min(*counts, *(len(answered) - count for count in counts))
    if least < MIN_FAILURES:
        sentence = (
            f"not judged: {counts[0]} and {counts[1]} failures among {len(answered)} frames; "
            f"{MIN_FAILURES} failures and successes of each are needed"
        )
        return Check("failure score", "unknown", sentence)
    measures = [_ranking(metric, new, old, resampling) for metric in ("auroc", "aurc")]
    uploads = round(budget * len(answered))
    note = f"recall at {_percent(budget)} not judged: {uploads} uploads are too few"
    if uploads >= MIN_UPLOADED:
        measures.append(_recall(budget, answered, resampling))
        note = ""
    area, risk = measures[0].difference, measures[1].difference
    assert area is not None and risk is not None
    text = (
        f"AUROC {measures[0].candidate:.3f} against {measures[0].incumbent:.3f} "
        f"({area.value:+.3f}, {area.low:+.3f} .. {area.high:+.3f})"
    )
    if not note:
        both = _points(measures[2].candidate), _points(measures[2].incumbent)
        text += f", recall at {_percent(budget)} {both[0]} against {both[1]}"
    worse = area.high < 0 and area.value <= -rules.score_tolerance and not risk.high < 0
    lost = measures[2].difference if not note else None
    found_less = (
        lost is not None and lost.high < 0 and lost.value <= -rules.score_tolerance and not risk.high < 0
    )
    sentence = (f"worse: {text}" if worse or found_less else text) + (f"; {note}" if note else "")
    return Check(
        "failure score", "failed" if worse or found_less else "passed", sentence, False, tuple(measures)
    )


def _ranking(metric: str, new: Columns, old: Columns, resampling: Resampling) -> Measure:
    values, drawn = [], []
    for side in (new, old):
        rows = replicate(
            {"score": side.score},
            failed=side.failed,
            groups=resampling.clusters,
            metrics=(metric,),
            replicates=resampling.replicates,
            # The same seed and groups: both sides on the same resamples.
            seed=resampling.seed,
        )
        values.append(point(side.score, failed=side.failed, metric=metric))
        drawn.append(rows["score"][metric])
    found = estimate(values[0] - values[1], drawn[0] - drawn[1])
    return Measure(metric.upper(), values[0], values[1], found, metric in HIGHER_IS_BETTER)


def _recall(budget: float, answered: Answered, resampling: Resampling) -> Measure:
    values, drawn = [], []
    for side in (answered.candidate, answered.incumbent):
        flagged = flags(side.score, round(budget * len(answered)))
        hits = flagged * side.failed.astype(float)
        values.append(ratio(hits, side.failed.astype(float)))
        drawn.append(resampling.ratios(hits, side.failed.astype(float)))
    found = estimate(values[0] - values[1], drawn[0] - drawn[1])
    return Measure(f"recall at {_percent(budget)}", values[0], values[1], found)


def flags(score: Floats, count: int) -> Floats:
    """Returns 1 for the frames with the highest scores, [N]; of equal ones at the border, a share of each."""
    if count <= 0:
        return np.zeros(len(score))
    border = np.sort(score)[::-1][min(count, len(score)) - 1]
    above, level = score > border, score == border
    return np.where(above, 1.0, np.where(level, (count - above.sum()) / level.sum(), 0.0))


def _mean(
    name: str, new: NDArray[Any], old: NDArray[Any], resampling: Resampling, *, higher: bool = True
) -> Measure:
    ones = np.ones(len(new))
    drawn = resampling.ratios(np.asarray(new, float) - np.asarray(old, float), ones)
    values = float(np.mean(new)), float(np.mean(old))
    return Measure(name, *values, estimate(values[0] - values[1], drawn), higher)


def difference_text(found: Estimate) -> str:
    """Returns a difference of shares in points, with its interval."""
    return f"{100 * found.value:+.1f} ({100 * found.low:+.1f} .. {100 * found.high:+.1f})"


def _points(value: float | None) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{100 * value:.1f} %"


def _percent(share: float) -> str:
    return f"{100 * share:g} %"
