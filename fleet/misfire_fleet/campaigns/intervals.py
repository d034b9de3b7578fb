"""Computes what a coming period will bring from what past ones brought, with a prediction interval.

counts of past blocks of time --t interval--> a period like them;  few frames that were drawn at a known rate
--exact interval of a Poisson rate--> the same;  the wider of the two holds
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Range:
    """Holds an estimate and the ends of its interval."""

    value: float
    low: float
    high: float

    def times(self, other: Range) -> Range:
        """Returns the product of two estimates; if each holds with 97.5 %, the product does with 95 %."""
        return Range(self.value * other.value, self.low * other.low, self.high * other.high)

    def at_most(self, most: float) -> Range:
        """Returns it with all three cut off at a limit."""
        return Range(min(self.value, most), min(self.low, most), min(self.high, most))


def t_quantile(probability: float, degrees: float) -> float:
    """Returns a quantile of Student's t (Cornish-Fisher, Abramowitz & Stegun 26.7.5; 1 % at 3 degrees)."""
    z = NormalDist().inv_cdf(probability)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / degrees ** (power + 1) for power, term in enumerate(terms))


def poisson_rate(count: float, *, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Returns Garwood's interval (1936) of a Poisson mean, by Wilson and Hilferty's cube root."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    low = 0.0 if count <= 0 else count * (1 - 1 / (9 * count) - z / (3 * math.sqrt(count))) ** 3
    above = count + 1
    return max(0.0, low), above * (1 - 1 / (9 * above) + z / (3 * math.sqrt(above))) ** 3


def predicted(
    blocks: Sequence[float],
    *,
    ahead: float,
    drawn: float | None = None,
    weight: float = 1.0,
    confidence: float = CONFIDENCE,
) -> Range:
    """Returns the total of a coming period.

    Args:
        blocks: totals of equally long past blocks of time; at least two.
        ahead: length of the coming period, in blocks.
        drawn: frames that the totals were estimated from; None if all frames were counted.
        weight: frames that each of those stands for.
        confidence: of the interval.
    """
    past = np.asarray(blocks, float)
    mean, count = float(past.mean()), len(past)
    value = mean * ahead
    # What single blocks scatter by is in the coming period, and in the mean of the past ones.
    spread = float(past.var(ddof=1)) * (ahead + ahead**2 / count)
    half = t_quantile((1 + confidence) / 2, count - 1) * math.sqrt(spread)
    low, high = value - half, value + half
    # Blocks that happen to be alike say little of rare frames: these scatter at least as Poisson's do.
    seen = float(past.sum()) if drawn is None else drawn
    each = (1 + confidence) / 2
    z = NormalDist().inv_cdf((1 + each) / 2)
    scale = (1.0 if drawn is None else weight) * ahead / count
    ends = [end * scale for end in poisson_rate(seen, confidence=each)]
    low = min(low, ends[0] - z * math.sqrt(ends[0]))
    high = max(high, ends[1] + z * math.sqrt(ends[1]))
    return Range(value, max(0.0, low), high)


def mean_of(values: Sequence[float], weights: Sequence[float], *, confidence: float) -> Range:
    """Returns a weighted mean with its t interval (Kish's effective number of values)."""
    v, w = np.asarray(values, float), np.asarray(weights, float)
    mean = float(w @ v / w.sum())
    effective = float(w.sum() ** 2 / (w @ w))
    if effective < 2:
        return Range(mean, 0.0, 2 * mean)
    variance = float(w @ (v - mean) ** 2 / w.sum()) * effective / (effective - 1)
    half = t_quantile((1 + confidence) / 2, max(1.0, effective - 1)) * math.sqrt(variance / effective)
    return Range(mean, max(0.0, mean - half), mean + half)
