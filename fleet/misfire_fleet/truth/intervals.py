"""Computes Wilson's interval of a failure rate, and what all estimators share.

failures of n labels, or a rate with an effective number of labels --wilson--> Interval

All functions of this package's estimators take arrays whose leading axes are independent repetitions, so that
the same code serves one question of the fleet and a simulation of thousands.
"""

from __future__ import annotations

from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
CONFIDENCE = 0.95


class Interval(NamedTuple):
    """Holds an estimated rate and the ends of its confidence interval: arrays of one shape, all in 0..1."""

    rate: Array
    low: Array
    high: Array

    @property
    def width(self) -> Array:
        """Returns the distance of the ends."""
        return self.high - self.low


def normal_quantile(confidence: float) -> float:
    """Returns z, such that a standard normal variable is in -z..z with this probability."""
    if not 0 < confidence < 1:
        raise ValueError(f"a confidence of {confidence} is not between 0 and 1")
    return NormalDist().inv_cdf((1 + confidence) / 2)


def wilson(rate: ArrayLike, labels: ArrayLike, *, confidence: float = CONFIDENCE) -> Interval:
    """Returns Wilson's score interval (1927): the rates at which the observed one is no surprise.

    Args:
        rate: observed rate, 0..1.
        labels: (effective) number of labels; with 0, the interval is 0..1.
        confidence: of the interval.
    """
    p, n = np.asarray(rate, float), np.asarray(labels, float)
    z2 = normal_quantile(confidence) ** 2
    known = n > 0
    safe = np.where(known, n, 1.0)
    centre = (p + z2 / (2 * safe)) / (1 + z2 / safe)
    half = np.sqrt(z2 * (p * (1 - p) / safe + z2 / (4 * safe**2))) / (1 + z2 / safe)
    low = np.where(known, np.clip(centre - half, 0, 1), 0.0)
    return Interval(p, low, np.where(known, np.clip(centre + half, 0, 1), 1.0))


def plain(failed: ArrayLike, *, confidence: float = CONFIDENCE) -> Interval:
    """Returns the rate of failures among labels that were drawn uniformly, with Wilson's interval.

    Args:
        failed: [..., n] 1 for a failure, else 0.
        confidence: of the interval.
    """
    y = np.asarray(failed, float)
    count = y.shape[-1]
    rate = y.mean(axis=-1) if count else np.zeros(y.shape[:-1])
    return wilson(rate, np.full(rate.shape, count), confidence=confidence)


def ratio(numerator: Any, denominator: Any) -> Array:
    """Returns the quotient, and 0 where the denominator is not positive."""
    top, bottom = np.broadcast_arrays(np.asarray(numerator, float), np.asarray(denominator, float))
    return np.asarray(np.divide(top, bottom, out=np.zeros(top.shape), where=bottom > 0))
