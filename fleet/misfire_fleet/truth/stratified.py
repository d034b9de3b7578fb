"""Estimates a failure rate from labels that were drawn by strata of the score.

shares W_k of all frames, labels n_k and failures x_k of each stratum --stratified--> sum of W_k x_k / n_k

The interval is the set of rates that a score test does not reject: Wilson's idea, for several strata. At each
rate, the strata's own rates are the likeliest ones that add up to it, and give the variance. So a stratum
without any failure still counts with the failures that it may hide, which a plugged-in variance forgets.
Agresti, Categorical Data Analysis (2013), section 3.2.5; constrained estimates as in Miettinen and Nurminen
(Statistics in Medicine 1985).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from misfire_fleet.truth.intervals import CONFIDENCE, Array, Interval, normal_quantile

MIN_LABELS = 3
"""A stratum with fewer labels is merged with its neighbour."""
_STEPS = 44
_REACH = 21.0
"""Multipliers up to sinh(21), about 7e8: beyond all that W_k and n_k of a fleet ask for."""
_TINY = 1e-12


def stratified(
    weights: ArrayLike,
    labels: ArrayLike,
    failures: ArrayLike,
    *,
    pool: float | None = None,
    centre: ArrayLike | None = None,
    scale: ArrayLike = 1.0,
    confidence: float = CONFIDENCE,
) -> Interval:
    """Returns the failure rate of all frames.

    Args:
        weights: [..., K] shares of all frames in the strata; they add up to 1.
        labels: [..., K] labels in the strata, all above 0 (see `merge`); effective numbers if drawn unevenly.
        failures: [..., K] failures among them.
        pool: number of frames from which the shares were estimated; None if they are those of all frames.
        centre: another estimate of the rate, from the same labels; None takes the weighted mean.
        scale: variance of that estimate over the variance of the weighted mean.
        confidence: of the interval.

    Raises:
        ValueError: a stratum has no label.
    """
    w, n, x = np.broadcast_arrays(
        np.asarray(weights, float), np.asarray(labels, float), np.asarray(failures, float)
    )
    if not (n > 0).all():
        raise ValueError("a stratum has no label; merge it with its neighbour")
    middle = (w * x / n).sum(-1) if centre is None else np.asarray(centre, float)
    z2 = normal_quantile(confidence) ** 2 * np.asarray(scale, float)

    def surprise(multiplier: Array) -> Array:
        """Returns by how many standard errors the estimate is above the rate of that multiplier."""
        p = _constrained(w, n, x, multiplier)
        rate = (w * p).sum(-1)
        variance = (w**2 * p * (1 - p) / n).sum(-1)
        if pool is not None:
            variance = variance + (w * (p - rate[..., None]) ** 2).sum(-1) / pool
        return np.asarray((middle - rate) / np.sqrt(z2 * variance + _TINY**2))

    low = _solve(surprise, 1.0, middle.shape)
    high = _solve(surprise, -1.0, middle.shape)
    ends = [np.clip((w * _constrained(w, n, x, end)).sum(-1), 0, 1) for end in (low, high)]
    return Interval(middle, np.minimum(ends[0], middle), np.maximum(ends[1], middle))


def _solve(surprise: object, target: float, shape: tuple[int, ...]) -> Array:
    """Returns the multipliers at which `surprise`, which rises with them, has the value `target`."""
    assert callable(surprise)
    low, high = np.full(shape, -_REACH), np.full(shape, _REACH)
    for _step in range(_STEPS):
        middle = (low + high) / 2
        above = surprise(np.sinh(middle)) > target
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    return np.asarray(np.sinh((low + high) / 2))


def _constrained(w: Array, n: Array, x: Array, multiplier: Array) -> Array:
    """Returns the strata's likeliest rates, given the sum that belongs to a Lagrange multiplier.

    Each solves x/p - (n - x)/(1 - p) = multiplier * w, a quadratic equation in p with one root in 0..1. The
    sum of w*p falls as the multiplier rises; at 0 the rates are x/n.
    """
    a = np.asarray(multiplier)[..., None] * w
    b = a + n
    root = np.sqrt(np.maximum(b * b - 4 * a * x, 0.0))
    # Two forms of one root: each is stable where the other subtracts nearly equal numbers.
    stable = b >= 0
    direct = 2 * x / np.where(stable, np.maximum(b + root, _TINY), 1.0)
    other = (b - root) / np.where(stable, 1.0, 2 * a)
    return np.clip(np.where(stable, direct, other), 0.0, 1.0)


def groups_of(labels: ArrayLike, *, least: float = MIN_LABELS) -> list[list[int]]:
    """Returns which strata to merge, so that each group of neighbours has at least `least` labels.

    It looks at the numbers of labels only, never at failures, so it favours no outcome.

    Args:
        labels: [K] numbers of labels, from the lowest scores to the highest.
        least: labels that a group needs.
    """
    n = np.asarray(labels, float)
    groups: list[list[int]] = []
    for stratum in range(len(n)):
        if groups and n[groups[-1]].sum() < least:
            groups[-1].append(stratum)
        else:
            groups.append([stratum])
    # The last one may be small, and has no neighbour above.
    if len(groups) > 1 and n[groups[-1]].sum() < least:
        last = groups.pop()
        groups[-1].extend(last)
    return groups


def merge(weights: Array, labels: Array, failures: Array) -> tuple[Array, Array, Array]:
    """Returns shares, labels and failures, [K], of strata that were merged by `groups_of`.

    Only for labels that were drawn uniformly: else those of one group have different weights.
    """
    groups = groups_of(labels)
    columns = (np.asarray(column, float) for column in (weights, labels, failures))
    w, n, x = (np.array([column[group].sum() for group in groups]) for column in columns)
    return w, n, x
