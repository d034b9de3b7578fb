"""Turns a score into an expected loss in the loss's own units: a rising curve, fitted on held-out frames.

score, loss [N] --mean loss of equally many frames a bin, isotonic--> LossCurve --predict--> expected loss [M]

A score is a log-loss only up to scale, slope and shape, and those differ between tasks: c * exp(score) can be
off by a factor of two, and ten, in its lowest tenths. The mean of a curve is right at every level, because
isotonic regression fits means. Under a hundred frames that is too much to learn, and exp(a + b * score) is
fitted by Poisson deviance.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from misfire_train.errors import JudgeError
from misfire_train.metrics.ranking import Floats, as_losses, as_scores, same_length

LEAST_FRAMES = 100
"""With fewer frames only a line is fitted."""
_PER_BIN = 25
"""Frames of a bin: the mean of so many losses is known to about a fifth."""
MOST_KNOTS = 20
"""Finer than deciles, and small in a manifest."""
_ROUNDS = 4
_LEAST_LOSS = 1e-12
"""Of a bin without any loss; the logarithm needs a number."""


@dataclass(frozen=True)
class LossCurve:
    """Holds knots of a rising curve, interpolated in the logarithm of the loss, flat beyond its ends.

    Attributes:
        scores: [K], rising.
        losses: [K], above zero, not falling.
    """

    scores: tuple[float, ...]
    losses: tuple[float, ...]

    def predict(self, score: ArrayLike) -> Floats:
        """Returns expected losses [M] for scores [M]."""
        values = as_scores(score).astype(np.float64)
        return np.asarray(np.exp(np.interp(values, self.scores, np.log(self.losses))))


def fit_loss_curve(score: ArrayLike, loss: ArrayLike) -> LossCurve | None:
    """Returns the expected loss by score; None if no frame has a loss, or all have one score.

    Args:
        score: [N], higher for larger losses.
        loss: [N] >= 0, of frames that neither network nor score was fitted on.

    Raises:
        JudgeError: a score or loss is not a number, or lengths differ.

    >>> rng = np.random.default_rng(0)
    >>> score = rng.normal(size=2000)
    >>> curve = fit_loss_curve(score, np.exp(2 * score) * rng.exponential(size=2000))
    >>> bool(0.8 < curve.predict([0.0])[0] < 1.25)
    True
    """
    scores, losses = as_scores(score).astype(np.float64), as_losses(loss)
    same_length(score=scores, loss=losses)
    if not np.isfinite(scores).all():
        raise JudgeError("an infinite score predicts no loss")
    if losses.mean() <= 0 or np.ptp(scores) <= 0:
        return None
    return _line(scores, losses) if len(scores) < LEAST_FRAMES else _bins(scores, losses)


def _bins(scores: Floats, losses: Floats) -> LossCurve:
    """Returns the curve whose mean over each of equally large bins is the bin's mean loss, made to rise."""
    order = np.argsort(scores, kind="stable")
    rows = np.array_split(order, min(MOST_KNOTS, len(scores) // _PER_BIN))
    sizes = np.array([len(each) for each in rows], np.float64)
    wanted = np.log(np.maximum(_rising(np.array([losses[each].mean() for each in rows]), sizes), _LEAST_LOSS))
    places = np.array([scores[each].mean() for each in rows])
    # Equal scores may fill more than one bin.
    kept = np.flatnonzero(np.diff(places, prepend=-np.inf) > 0)
    places, logs = places[kept], wanted[kept].copy()
    ends = float(scores.min()), float(scores.max())
    bounds = np.log(np.maximum([losses[rows[0]].min(), losses[rows[-1]].max()], _LEAST_LOSS))
    curve = _with_ends(places, logs, ends, bounds)
    # Within a bin the curve is bent, so its mean is not its value at the mean score. Each round takes most of
    # the difference away.
    for _ in range(_ROUNDS):
        means = np.array([curve.predict(scores[rows[k]]).mean() for k in kept])
        logs = np.maximum.accumulate(logs + wanted[kept] - np.log(means))
        curve = _with_ends(places, logs, ends, bounds)
    return curve


def _with_ends(places: Floats, logs: Floats, ends: tuple[float, float], bounds: Floats) -> LossCurve:
    """Returns the curve with its end segments continued to the lowest and highest score.

    Flat ends would predict too much for the lowest tenth and too little for the highest. No end leaves what
    was observed there.
    """
    if len(places) > 1:
        low = logs[0] - (places[0] - ends[0]) * (logs[1] - logs[0]) / (places[1] - places[0])
        high = logs[-1] + (ends[1] - places[-1]) * (logs[-1] - logs[-2]) / (places[-1] - places[-2])
        if ends[0] < places[0]:
            places, logs = np.append(ends[0], places), np.append(min(max(low, bounds[0]), logs[0]), logs)
        if ends[1] > places[-1]:
            places, logs = np.append(places, ends[1]), np.append(logs, max(min(high, bounds[1]), logs[-1]))
    return LossCurve(_floats(places), _floats(np.exp(logs)))


def _rising(values: Floats, weights: Floats) -> Floats:
    """Returns the nearest sequence that does not fall (pool adjacent violators)."""
    blocks: list[tuple[float, float, int]] = []
    for value, weight in zip(values, weights, strict=True):
        blocks.append((float(value), float(weight), 1))
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            last, before = blocks.pop(), blocks.pop()
            total = last[1] + before[1]
            mean = (last[0] * last[1] + before[0] * before[1]) / total
            blocks.append((mean, total, last[2] + before[2]))
    return np.concatenate([np.full(size, value) for value, _, size in blocks])


def _line(scores: Floats, losses: Floats) -> LossCurve:
    """Returns exp(a + b * score) with b >= 0, by Poisson deviance, at quantiles of the scores."""
    x = (scores - scores.mean()) / scores.std()
    offset, slope = float(np.log(losses.mean())), 0.0
    # Newton's method on a convex function; a dozen steps reach rounding.
    for _ in range(50):
        mean = np.exp(np.clip(offset + slope * x, -50, 50))
        gradient = np.array([(mean - losses).sum(), ((mean - losses) * x).sum()])
        curvature = np.array([[mean.sum(), (mean * x).sum()], [(mean * x).sum(), (mean * x * x).sum()]])
        # A little of the identity, because one frame may have nearly all of the mean.
        step = np.linalg.solve(curvature + 1e-9 * np.trace(curvature) * np.eye(2), gradient)
        # Far from the optimum a full step overshoots.
        step = np.clip(step, -2, 2)
        offset, slope = offset - float(step[0]), slope - float(step[1])
        if np.abs(step).max() < 1e-10:
            break
    if slope <= 0:
        offset, slope = float(np.log(losses.mean())), 0.0
    knots = np.unique(np.quantile(x, np.linspace(0, 1, MOST_KNOTS)))
    values = np.maximum(np.exp(offset + slope * knots), _LEAST_LOSS)
    return LossCurve(_floats(knots * scores.std() + scores.mean()), _floats(values))


def _floats(values: Floats) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
