"""Reads a vehicle's sketch of scores, and says in which bin of it a score is.

A bin of a DDSketch is (sign, key): its values are within 1 % of each other. Keys rise with the size of the
score; what is nearer to 0 than SMALLEST counts as 0.
"""

from __future__ import annotations

import base64
import binascii
import math
from dataclasses import dataclass

import numpy as np
from ddsketch.pb.proto import pb as schema
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from misfire_fleet.truth.intervals import Array
from misfire_runtime.state.statistics import SKETCH_ACCURACY

GAMMA = (1 + SKETCH_ACCURACY) / (1 - SKETCH_ACCURACY)
LOG_GAMMA = math.log(GAMMA)
SMALLEST = 2.2250738585072014e-308 * GAMMA
MOST_BINS = 100_000
_LARGEST_KEY = 2**30


@dataclass(frozen=True)
class Side:
    """Holds the counts of the scores of one sign; `counts[i]` [B] is that of the bin (sign, first + i)."""

    sign: int
    first: int
    counts: Array


@dataclass(frozen=True)
class Sketch:
    """Holds what a sketch counts: scores above and below 0, and those that count as 0."""

    sides: tuple[Side, ...]
    zero: float

    @property
    def total(self) -> float:
        """Returns the number of frames."""
        return float(self.zero + sum(float(side.counts.sum()) for side in self.sides))


def read_sketch(text: str) -> Sketch:
    """Returns a sketch that a vehicle sent, as base64 of DDSketch's protobuf.

    Raises:
        ValueError: it is not a sketch of this accuracy, or a count is negative or not finite.
    """
    proto = schema.DDSketch()
    try:
        proto.ParseFromString(base64.b64decode(text, validate=True))
    except (DecodeError, binascii.Error) as error:
        raise ValueError(f"not a sketch: {error}") from error
    if abs(proto.mapping.gamma / GAMMA - 1) > 1e-9:
        raise ValueError(f"not a sketch of relative accuracy {SKETCH_ACCURACY}")
    sides = []
    for sign, store in ((1, proto.positiveValues), (-1, proto.negativeValues)):
        first = store.contiguousBinIndexOffset
        if len(store.contiguousBinCounts) > MOST_BINS or abs(first) > _LARGEST_KEY:
            raise ValueError("not a sketch: too many bins")
        counts = np.array(store.contiguousBinCounts, float)
        if not (np.isfinite(counts).all() and (counts >= 0).all()):
            raise ValueError("not a sketch: a count is negative or not finite")
        there = np.flatnonzero(counts)
        if len(there):
            sides.append(Side(sign, first + int(there[0]), counts[there[0] : there[-1] + 1]))
    if not 0 <= proto.zeroCount < math.inf:
        raise ValueError("not a sketch: a count is negative or not finite")
    return Sketch(tuple(sides), float(proto.zeroCount))
