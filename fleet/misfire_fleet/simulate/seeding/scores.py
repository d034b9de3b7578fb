"""Draws the scores of frames, and packs them into the sketches that vehicles send.

A frame's scores are functions of one normal number, its difficulty, and of noise. Weather, night and drift
move them all.
"""

from __future__ import annotations

import base64
import math
from dataclasses import dataclass

import numpy as np
from ddsketch.pb.proto import pb as schema
from numpy.typing import NDArray

from misfire_runtime.state.statistics import SKETCH_ACCURACY

Array = NDArray[np.float64]
SCORES = ("stacked", "expected_errors", "entropy")
_GAMMA = (1 + SKETCH_ACCURACY) / (1 - SKETCH_ACCURACY)
_WEATHER = (0.0, 0.5, 0.9, 1.1)
_NIGHT = 0.5
_DRIFT = 1.5
_BUNDLES = {"street@1.4.0": -2.7, "street@1.5.0": -2.95, "signal@2.1.0": -3.3, "signal@2.2.0": -3.4}
_LEVELS = 257


@dataclass(frozen=True)
class _Shape:
    """Holds mean, slope and deviation of a score before its link, and how much of it is the difficulty."""

    mean: float
    slope: float
    deviation: float
    shared: float
    bounded: bool


_SHAPES = {
    "stacked": _Shape(0.0, 1.0, 1.15, 1.0, True),
    "expected_errors": _Shape(1.6, 0.9, 0.8, 0.85, False),
    "entropy": _Shape(1.1, 0.55, 0.7, 0.6, False),
}


def difficulty(bundle: str, *, weather: int, night: bool, drift: float) -> float:
    """Returns the mean difficulty of the frames of a slot; `weather` is a number of `plan.WEATHERS`."""
    return _BUNDLES[bundle] + _WEATHER[weather] + _NIGHT * night + _DRIFT * drift


def draw(chance: np.random.Generator, mean: float, normal: Array) -> dict[str, Array]:
    """Returns scores, [N] each, of frames.

    Args:
        chance: draws the noise.
        mean: the difficulty.
        normal: [N] standard normal, one for each frame.
    """
    scores = {}
    for name, shape in _SHAPES.items():
        noise = math.sqrt(1 - shape.shared**2) * chance.normal(size=normal.shape)
        latent = shape.mean + shape.slope * mean + shape.deviation * (shape.shared * normal + noise)
        scores[name] = _linked(latent, shape)
    return scores


def pack(scores: Array) -> str:
    """Returns the sketch of scores above 0, [N] with N > 0, as DDSketch protobuf in base64."""
    keys = np.ceil(np.log(scores) / math.log(_GAMMA)).astype(int)
    first = int(keys.min())
    proto = schema.DDSketch()
    proto.mapping.gamma = _GAMMA
    proto.positiveValues.contiguousBinCounts.extend(np.bincount(keys - first).astype(float).tolist())
    proto.positiveValues.contiguousBinIndexOffset = first
    return base64.b64encode(proto.SerializeToString()).decode("ascii")


class Calibration:
    """Holds quantiles of each score on a bundle's hold-out, and turns scores into percentiles."""

    def __init__(self, bundle: str) -> None:
        chance = np.random.default_rng((7, *bundle.encode()))
        weathers = chance.choice(4, 60_000, p=[0.68, 0.18, 0.09, 0.05])
        means = _BUNDLES[bundle] + np.array(_WEATHER)[weathers] + _NIGHT * (chance.random(60_000) < 0.4)
        self.levels = np.linspace(0, 1, _LEVELS)
        self.values = {
            name: np.quantile(_linked_at(chance, means, shape), self.levels)
            for name, shape in _SHAPES.items()
        }

    def percentiles(self, name: str, scores: Array) -> Array:
        """Returns the share of the hold-out below each score, [N]."""
        return np.asarray(np.interp(scores, self.values[name], self.levels))


def _linked_at(chance: np.random.Generator, means: Array, shape: _Shape) -> Array:
    return _linked(
        shape.mean + shape.slope * means + shape.deviation * chance.normal(size=means.shape), shape
    )


def _linked(latent: Array, shape: _Shape) -> Array:
    return np.asarray(1 / (1 + np.exp(-latent)) if shape.bounded else np.exp(latent))
