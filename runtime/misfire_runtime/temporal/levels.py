"""Learns the distribution of a score on the vehicle: which share of the frames before had a lower one.

No held-out video calibrates a comparison in time, so the vehicle's own last frames do. Two DDSketches take
turns, as in a target rate: a sketch cannot forget single frames.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ddsketch import LogCollapsingLowestDenseDDSketch
from ddsketch.ddsketch import BaseDDSketch

from misfire_runtime.state.statistics import pack_sketch, unpack_sketch

WINDOW = 100_000
"""Frames that levels look back on, at least half of it: an hour at 25 frames per second. Events are rare."""
_ACCURACY = 0.01
_BINS = 2048
_STEPS = 14
"""Bisections, to 1/16384: finer than half a window of a drive can tell."""


class Levels:
    """Holds the scores of past frames. A score's level is known from the first frame on, and is causal."""

    def __init__(self, *, window: int = WINDOW) -> None:
        self._half = max(1, window // 2)
        self._older: BaseDDSketch = _sketch()
        self._newer: BaseDDSketch = _sketch()

    def level(self, score: float) -> float:
        """Returns the share of past frames below `score`, and half of those equal to it; 0..1.

        One imaginary frame counts as equal, so that neither 0 nor 1 is ever claimed.

        Args:
            score: 0 or more.
        """
        count = float(self._older.count)
        if not count:
            return 0.5
        # The sketch knows its values to within its accuracy: those as near as that are equal.
        near = 2 * _ACCURACY * score
        below, up_to = self._share(score - near, equal=False), self._share(score + near, equal=True)
        return ((below + up_to) / 2 * count + 0.5) / (count + 1)

    def add(self, score: float) -> None:
        """Takes the score of one more frame; 0 or more."""
        self._older.add(score)
        self._newer.add(score)
        if self._newer.count >= self._half:
            self._older, self._newer = self._newer, _sketch()

    def learned(self) -> dict[str, Any]:
        """Returns what `relearn` takes after a restart, in JSON's types."""
        return {"older": pack_sketch(self._older), "newer": pack_sketch(self._newer)}

    def relearn(self, learned: Mapping[str, Any]) -> None:
        """Goes on where `learned` stopped. Raises ValueError, KeyError, TypeError if it makes no sense."""
        older, newer = (unpack_sketch(learned[name], accuracy=_ACCURACY) for name in ("older", "newer"))
        self._older, self._newer = older, newer

    def _share(self, score: float, *, equal: bool) -> float:
        """Returns the share of frames below `score`; with `equal`, of those equal to it as well."""

        def is_below(level: float) -> bool:
            value = float(self._older.get_quantile_value(level))
            return value <= score if equal else value < score

        if is_below(1.0):
            return 1.0
        if not is_below(0.0):
            return 0.0
        low, high = 0.0, 1.0
        # The sketch has quantiles only; their inverse is found by bisection.
        for _step in range(_STEPS):
            middle = (low + high) / 2
            low, high = (middle, high) if is_below(middle) else (low, middle)
        return (low + high) / 2


def _sketch() -> LogCollapsingLowestDenseDDSketch:
    return LogCollapsingLowestDenseDDSketch(relative_accuracy=_ACCURACY, bin_limit=_BINS)
