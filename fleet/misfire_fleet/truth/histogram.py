"""Turns vehicles' sketches into one histogram of the score, and finds the bin of a single score.

DDSketch (protobuf, base64) of each heartbeat --Histogram.add--> bins by key --values, counts--> strata

A frame of the random stream must be in the bin in which its vehicle counted it; so single scores go through
the same rounding as the sketch: by a whole key, the logarithm of the score to the sketch's base.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections import Counter

import numpy as np
from ddsketch.pb.proto import pb as schema
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from numpy.typing import ArrayLike

from misfire_fleet.truth.intervals import Array
from misfire_runtime.state.statistics import SKETCH_ACCURACY

_GAMMA = (1 + SKETCH_ACCURACY) / (1 - SKETCH_ACCURACY)
_LOG_GAMMA = math.log(_GAMMA)
_SMALLEST = 2.2250738585072014e-308 * _GAMMA
"""DDSketch counts what is nearer to 0 as 0."""
_MOST_BINS = 100_000


class Histogram:
    """Counts frames by score. A bin is (sign, key): its values are within 1 % of each other."""

    def __init__(self) -> None:
        self._bins: Counter[tuple[int, int]] = Counter()

    def add(self, sketch: str) -> float:
        """Adds a sketch as vehicles send it; returns its number of frames.

        Raises:
            ValueError: it is not a sketch of this accuracy, or a count is negative or not finite.
        """
        proto = schema.DDSketch()
        try:
            proto.ParseFromString(base64.b64decode(sketch, validate=True))
        except (DecodeError, binascii.Error) as error:
            raise ValueError(f"not a sketch: {error}") from error
        if abs(proto.mapping.gamma / _GAMMA - 1) > 1e-9:
            raise ValueError(f"not a sketch of relative accuracy {SKETCH_ACCURACY}")
        found: Counter[tuple[int, int]] = Counter()
        for sign, store in ((1, proto.positiveValues), (-1, proto.negativeValues)):
            if len(store.contiguousBinCounts) > _MOST_BINS:
                raise ValueError("not a sketch: too many bins")
            for key, count in enumerate(store.contiguousBinCounts, start=store.contiguousBinIndexOffset):
                if count:
                    found[sign, key] += count
        if proto.zeroCount:
            found[0, 0] += proto.zeroCount
        if not all(0 <= count < math.inf for count in found.values()):
            raise ValueError("not a sketch: a count is negative or not finite")
        self._bins.update(found)
        return float(sum(found.values()))

    def merge(self, other: Histogram) -> None:
        """Adds the frames of another histogram."""
        self._bins.update(other._bins)

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
        pairs = sorted(self._bins, key=lambda pair: pair[0] * math.exp(min(700.0, pair[1] * _LOG_GAMMA)))
        signs, keys = (np.array([pair[side] for pair in pairs], float) for side in (0, 1))
        return _values(signs, keys), np.array([self._bins[pair] for pair in pairs], float)


def binned(scores: ArrayLike) -> Array:
    """Returns the value of the bin of each score."""
    signs, keys = _keys(np.asarray(scores, float))
    return _values(signs, keys)


def _keys(scores: Array) -> tuple[Array, Array]:
    size = np.abs(scores)
    counted = size > _SMALLEST
    keys = np.ceil(np.log2(np.where(counted, size, 1.0)) * (math.log(2) / _LOG_GAMMA))
    return np.where(counted, np.sign(scores), 0.0), np.where(counted, keys, 0.0)


def _values(signs: Array, keys: Array) -> Array:
    # The middle of a bin, as DDSketch has it; the exponent is bounded as a float's is.
    return np.asarray(signs * np.exp(np.clip(keys * _LOG_GAMMA, -700, 700)) * 2 / (1 + _GAMMA))
