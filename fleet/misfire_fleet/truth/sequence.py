"""Bounds a rate at every look: confidence sequences by betting, and the paired comparison of two bundles.

values in 0..1, in the order of their labels --betting_sequence--> bounds after each of them

A gambler bets on every value against every candidate mean; a mean against which the wealth reaches 1/alpha is
refuted for good. So a rollout may look after every label, stop when it likes, and still be wrong with
probability alpha at most. Waudby-Smith and Ramdas, Estimating means of bounded random variables by betting
(JRSS-B 2024): the hedged capital process with predictable plug-in bets (their theorem 3, equation 23).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from misfire_fleet.truth.intervals import CONFIDENCE, Array, Interval

_GRID = 1001
_LARGEST_BET = 0.5
"""Share of the wealth that the worst value may cost; 1/2 as in the paper."""


def betting_sequence(values: ArrayLike, *, confidence: float = CONFIDENCE, grid: int = _GRID) -> Interval:
    """Returns the running mean with its bounds, [..., n]: valid at all looks together.

    Args:
        values: [..., n] in 0..1, in the order in which they became known.
        confidence: probability that the mean is inside of the bounds at every look.
        grid: number of candidate means.

    Raises:
        ValueError: a value is outside of 0..1.
    """
    x = np.asarray(values, float)
    if x.size and not ((x >= 0) & (x <= 1)).all():
        raise ValueError("values must be in 0..1")
    alpha, count = 1 - confidence, x.shape[-1]
    means: Array = np.linspace(0, 1, grid).astype(np.float64)
    bets = _bets(x, alpha)
    # Log wealth of the bet that the mean is higher than each candidate, and of the bet that it is lower.
    up, down = np.zeros((*x.shape[:-1], grid)), np.zeros((*x.shape[:-1], grid))
    alive = np.ones((*x.shape[:-1], grid), bool)
    lows, highs = np.zeros(x.shape), np.ones(x.shape)
    with np.errstate(divide="ignore"):
        most_up, most_down = _LARGEST_BET / means, _LARGEST_BET / (1 - means)
    for look in range(count):
        bet, gain = bets[..., look, None], x[..., look, None] - means
        # At the ends 0 * inf: a candidate of 0 is refuted by any higher value, so a finite bet is enough.
        up += np.log1p(np.minimum(bet, most_up) * gain)
        down += np.log1p(-np.minimum(bet, most_down) * gain)
        wealth = np.maximum(up, down) + np.log(0.5)
        alive &= wealth < np.log(1 / alpha)
        lows[..., look], highs[..., look] = _ends(alive, means)
    running = np.cumsum(x, axis=-1) / np.arange(1, count + 1)
    return Interval(running, lows, highs)


def _bets(x: Array, alpha: float) -> Array:
    """Returns the stakes, [..., n]: each depends on the values before it only (equation 26)."""
    count = x.shape[-1]
    number = np.arange(1, count + 1)
    mean = (0.5 + np.cumsum(x, -1)) / (number + 1)
    spread = (0.25 + np.cumsum((x - mean) ** 2, -1)) / (number + 1)
    before = np.concatenate([np.full((*x.shape[:-1], 1), 0.25), spread[..., :-1]], axis=-1)
    return np.asarray(np.sqrt(2 * np.log(2 / alpha) / (before * number * np.log(number + 1))))


def _ends(alive: np.ndarray[tuple[int, ...], np.dtype[np.bool_]], means: Array) -> tuple[Array, Array]:
    """Returns the lowest and highest candidates left, one step wider: the mean may be between two."""
    step = means[1]
    some = alive.any(-1)
    low = means[alive.argmax(-1)] - step
    high = means[len(means) - 1 - alive[..., ::-1].argmax(-1)] + step
    return np.where(some, np.clip(low, 0, 1), 0.0), np.where(some, np.clip(high, 0, 1), 1.0)


def compare(
    canary_failed: ArrayLike,
    incumbent_failed: ArrayLike,
    *,
    disagreeing: float = 1.0,
    confidence: float = CONFIDENCE,
) -> Interval:
    """Returns the failure rate of a canary minus that of the incumbent, [n] looks, on the same frames.

    Frames on which both answer alike fail or succeed together, so only disagreements need labels.

    Args:
        canary_failed: [n] 1 for a failure, of labelled frames that were drawn uniformly from those on which
            the two disagree (or from all).
        incumbent_failed: [n] likewise, of the same frames.
        disagreeing: share of all frames that the labelled ones were drawn from; 1 if from all.
        confidence: of the sequence, at every look.

    Returns:
        Differences and their bounds, -1..1: a negative `high` shows that the canary is better.
    """
    difference = np.asarray(canary_failed, float) - np.asarray(incumbent_failed, float)
    found = betting_sequence((difference + 1) / 2, confidence=confidence)
    return Interval(*(disagreeing * (2 * each - 1) for each in found))
