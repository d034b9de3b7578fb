"""Measures whether a predicted loss comes true.

A prediction is a curve (`loss_curve`) or c * exp(score), fitted on one set and judged on another.
LearningLoss++ fixes only ratios of losses, so its score is a log-loss up to a constant, which is c.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from misfire_train.errors import JudgeError
from misfire_train.metrics.ranking import Floats, as_losses, as_scores, rank_scores, same_length


def fit_loss_scale(score: ArrayLike, loss: ArrayLike) -> float:
    """Returns c such that the mean of c * exp(score) is the mean loss. Raises JudgeError if it overflows."""
    scores, losses = as_scores(score).astype(np.float64), as_losses(loss)
    same_length(score=scores, loss=losses)
    # Subtracted before exp, so that large scores do not overflow in the mean.
    shift = float(scores.max())
    if not np.isfinite(shift):
        raise JudgeError("an infinite score predicts no loss")
    with np.errstate(over="ignore"):
        scale = losses.mean() / np.exp(scores - shift).mean() * np.exp(-shift)
    if not np.isfinite(scale):
        raise JudgeError(f"scores around {shift:g} are no log-loss: c of c * exp(score) is not a number")
    return float(scale)


FACTOR = 1.25
"""A predicted loss that is off by less serves a budget."""


@dataclass(frozen=True)
class ReliabilityBin:
    """Holds one bin of equally many frames: mean prediction and truth, and the truth's 95 % interval."""

    count: int
    predicted: float
    observed: float
    low: float
    high: float


@dataclass(frozen=True)
class Reliability:
    """Holds bins by rising prediction, and their summary.

    Attributes:
        error: mean |predicted - observed| over bins, weighted by count.
        relative_error: the same as a share of the mean observed value.
        bias: mean predicted / mean observed.
    """

    bins: tuple[ReliabilityBin, ...]
    error: float
    relative_error: float
    bias: float

    def within(self, factor: float = FACTOR) -> int:
        """Returns the number of bins whose prediction is within this factor of the truth."""
        return sum(row.observed / factor <= row.predicted <= row.observed * factor for row in self.bins)

    def consistent(self, factor: float = FACTOR) -> int:
        """Returns the number of bins whose prediction is within this factor of the truth's 95 % interval.

        A bin in which one frame in a hundred fails has a mean loss that hardly anything is known of.
        """
        return sum(max(row.low, 0.0) / factor <= row.predicted <= row.high * factor for row in self.bins)


def loss_reliability(score: ArrayLike, loss: ArrayLike, *, scale: float, bins: int = 10) -> Reliability:
    """Returns the reliability of c * exp(score) against the true loss; tied predictions stay in one bin.

    Args:
        score: [N], a log-loss up to a constant.
        loss: [N] >= 0.
        scale: c, fitted on other frames (`fit_loss_scale`).
        bins: number of bins of equally many frames.
    """
    scores = as_scores(score).astype(np.float64)
    with np.errstate(over="ignore"):
        predicted = scale * np.exp(scores)
    return reliability(predicted, loss, bins=bins)


def reliability(predicted: ArrayLike, observed: ArrayLike, *, bins: int = 10) -> Reliability:
    """Returns the reliability of any prediction of a non-negative quantity, such as a failure probability."""
    if bins < 1:
        raise JudgeError(f"bins must be at least 1, got {bins}")
    predictions, truths = as_scores(predicted, what="prediction").astype(np.float64), as_losses(observed)
    same_length(predicted=predictions, observed=truths)
    if not np.isfinite(predictions).all():
        raise JudgeError("a prediction is infinite")
    # Bins end with a group of equal predictions, so ties stay together.
    ranking = rank_scores(predictions)
    targets = np.arange(1, bins + 1) * len(truths) / bins - 1
    cuts = np.unique(
        ranking.ends[np.searchsorted(ranking.ends, targets - 1e-9).clip(max=len(ranking.ends) - 1)]
    )
    rows, start = [], 0
    for stop in cuts + 1:
        members = ranking.order[start:stop]
        rows.append(_bin(predictions[members], truths[members]))
        start = stop
    error = sum(row.count * abs(row.predicted - row.observed) for row in rows) / len(truths)
    mean = float(truths.mean())
    nan = float("nan")
    relative = (error / mean, float(predictions.mean()) / mean) if mean > 0 else (nan, nan)
    return Reliability(tuple(rows), error, *relative)


def _bin(predicted: Floats, observed: Floats) -> ReliabilityBin:
    mean = float(observed.mean())
    # The normal 95 % quantile.
    half = 1.96 * float(observed.std(ddof=1)) / np.sqrt(len(observed)) if len(observed) > 1 else float("inf")
    return ReliabilityBin(
        len(observed), float(predicted.mean()), mean, float(mean - half), float(mean + half)
    )
