"""Turns vehicles' sketches into one histogram of the score, and finds the bin of a single score.

DDSketch (protobuf, base64) of each heartbeat --Histogram.add--> bins by key --values, counts--> strata

A frame of the random stream must be in the bin in which its vehicle counted it; so single scores go through
the same rounding as the sketch: by a whole key, the logarithm of the score to the sketch's base.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict

import numpy as np
from numpy.typing import ArrayLike

from misfire_fleet.truth.intervals import Array
from misfire_fleet.truth.sketches import GAMMA, LOG_GAMMA, SMALLEST, read_sketch


class Histogram:
    """Counts frames by score. A bin is (sign, key): its values are within 1 % of each other."""

    def __init__(self) -> None:
        self._bins: defaultdict[tuple[int, int], float] = defaultdict(float)

    def add(self, sketch: str) -> float:
        """Adds a sketch as vehicles send it; returns its number of frames.

        Raises:
            ValueError: it is not a sketch of this accuracy, or a count is negative or not finite.
        """
        read = read_sketch(sketch)
        for side in read.sides:
            for key, count in enumerate(side.counts.tolist(), start=side.first):
                if count:
                    self._bins[side.sign, key] += count
        if read.zero:
            self._bins[0, 0] += read.zero
        return read.total

    def merge(self, other: Histogram) -> None:
        """Adds the frames of another histogram."""
        for pair, count in other._bins.items():
            self._bins[pair] += count

    def add_scores(self, scores: ArrayLike) -> None:
        """Adds single scores, finite numbers."""
        signs, keys = _keys(np.asarray(scores, float))
        for pair, count in Counter(zip(signs.tolist(), keys.tolist(), strict=True)).items():
            self._bins[pair] += count

    @property
    def total(self) -> float:
        """Returns the number of frames."""
        return float(sum(self._bins.values()))

    def table(self) -> tuple[Array, Array]:
        """Returns the bins' values, rising, and their counts, both [B]."""
        pairs = sorted(self._bins, key=lambda pair: pair[0] * math.exp(min(700.0, pair[1] * LOG_GAMMA)))
        signs, keys = (np.array([pair[side] for pair in pairs], float) for side in (0, 1))
        return _values(signs, keys), np.array([self._bins[pair] for pair in pairs], float)


def binned(scores: ArrayLike) -> Array:
    """Returns the value of the bin of each score."""
    signs, keys = _keys(np.asarray(scores, float))
    return _values(signs, keys)


def _keys(scores: Array) -> tuple[Array, Array]:
    size = np.abs(scores)
    counted = size > SMALLEST
    keys = np.ceil(np.log2(np.where(counted, size, 1.0)) * (math.log(2) / LOG_GAMMA))
    return np.where(counted, np.sign(scores), 0.0), np.where(counted, keys, 0.0)


def _values(signs: Array, keys: Array) -> Array:
    # The middle of a bin, as DDSketch has it; the exponent is bounded as a float's is.
    return np.asarray(signs * np.exp(np.clip(keys * LOG_GAMMA, -700, 700)) * 2 / (1 + GAMMA))
