"""Compares what a bundle declares of its score with what it does on the test frames.

The share of frames above the threshold is that of a fleet only on frames that were sent at random: the others
were chosen because their score was high.
"""

from __future__ import annotations

import numpy as np

from misfire_fleet.candidates.answers import Answered, Columns, Floats, Pair
from misfire_fleet.candidates.comparing import Resampling
from misfire_fleet.candidates.verdict import Check, Measure, Status
from misfire_runtime.engines.scoring import quantile
from misfire_train.judge.bundle_judging import Subject
from misfire_train.metrics import Estimate
from misfire_train.metrics.bootstrap import estimate, wilson
from misfire_train.metrics.calibration import reliability

OFF_BY = 2.0
"""A rate from this factor on is more, or less, than the fleet planned for."""
MIN_RANDOM = 50


def compare_calibration(
    answered: Answered, pair: Pair, resampling: Resampling
) -> tuple[Check, dict[str, object]]:
    """Judges the upload rate at the declared threshold, and the predicted loss.

    Returns:
        The check, and the bins of predicted and observed loss for the report.
    """
    sides = (answered.candidate, answered.incumbent)
    random = np.array([frame.sample.offer.trigger.random for frame in answered.frames])
    rates = [
        _rate(subject, name, side, random=random, budget=pair.budget, resampling=resampling)
        for subject, name, side in zip((pair.candidate, pair.incumbent), pair.scores, sides, strict=True)
    ]
    losses = [_predicted(side) for side in sides]
    bins: dict[str, object] = {
        name: None if found is None else found[1]
        for name, found in zip(("candidate", "incumbent"), losses, strict=True)
    }
    ratios = [None if found is None else found[0] for found in losses]
    measures = []
    if rates[0] is not None and rates[1] is not None:
        measures.append(
            Measure(
                f"upload rate, declared {100 * pair.budget:g} %",
                rates[0].value,
                rates[1].value,
                None,
                None,
            )
        )
    if any(each is not None for each in ratios):
        measures.append(Measure("predicted over true loss", ratios[0], ratios[1], None, None))
    text = []
    if losses[0] is not None:
        text.append(f"predicted loss is {losses[0][0]:.2f} of the true one")
    if rates[0] is None:
        counted = int(random.sum())
        sentence = f"upload rate not judged: {counted} random frames, {MIN_RANDOM} are needed"
        return Check("calibration", "unknown", "; ".join([sentence, *text]), False, tuple(measures)), bins
    first = rates[0]
    text.insert(
        0,
        f"uploads {100 * first.value:.1f} % ({100 * first.low:.1f} .. {100 * first.high:.1f}) where it "
        f"declares {100 * pair.budget:g} %",
    )
    off = _is_off(first, pair.budget) and not (rates[1] is not None and _is_off(rates[1], pair.budget))
    status: Status = "failed" if off else "passed"
    if _is_off(first, pair.budget) and not off:
        text.append("the incumbent is off as well, so the frames may have changed")
    return Check("calibration", status, "; ".join(text), False, tuple(measures)), bins


def _rate(
    subject: Subject,
    name: str,
    side: Columns,
    *,
    random: np.typing.NDArray[np.bool_],
    budget: float,
    resampling: Resampling,
) -> Estimate | None:
    """Returns the share of random frames above the bundle's own threshold, None with few of them."""
    if random.sum() < MIN_RANDOM:
        return None
    threshold = quantile(subject.scorer.tables[name], 1 - budget)
    above = ((side.score > threshold) & random).astype(float)
    drawn = resampling.ratios(above, random.astype(float))
    hits, total = float(above.sum()), float(random.sum())
    found = estimate(hits / total, drawn)
    low, high = wilson(hits, total)
    return Estimate(found.value, min(found.low, low), max(found.high, high), found.usable)


def _is_off(found: Estimate, declared: float) -> bool:
    return found.low > OFF_BY * declared or found.high < declared / OFF_BY


def _predicted(side: Columns) -> tuple[float, list[tuple[float, float, float, float]]] | None:
    """Returns predicted over observed loss, and (predicted, observed, low, high) of tenths of the frames."""
    expected: Floats | None = side.expected
    if expected is None or side.loss.sum() <= 0:
        return None
    found = reliability(expected, side.loss)
    bins = [(row.predicted, row.observed, row.low, row.high) for row in found.bins]
    return float(expected.sum() / side.loss.sum()), bins
