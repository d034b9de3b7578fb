"""Defines triggers on one score: an absolute threshold, a calibrated percentile, and a target rate.

TargetRate keeps the share of frames it takes near `rate` wherever the score's distribution moves: its
threshold is the (1 - rate) quantile of the last `window/2` to `window` frames, from a DDSketch; until it has
seen enough, the bundle's calibration stands in. A token per taken frame bounds what a sudden shift can cost.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from ddsketch import LogCollapsingLowestDenseDDSketch
from ddsketch.ddsketch import BaseDDSketch
from pydantic import Field

from misfire_runtime.state.statistics import pack_sketch, unpack_sketch
from misfire_runtime.tables import Rate
from misfire_runtime.triggers.base import (
    BuildContext,
    Trigger,
    TriggerEvent,
    TriggerKind,
    TriggerTable,
)
from misfire_runtime.triggers.registry import register
from misfire_runtime.triggers.scored_frame import ScoredFrame

_ACCURACY = 0.002
"""Relative error of the threshold: far below the noise of a quantile of some hundred frames."""
_BINS = 8192
"""Enough for 14 decades of scores at that accuracy; those below share the lowest bin."""
_TINY = 1e-12
"""Below it a score is zero: the sketch's bins are for what can be told apart."""
_REFRESH_FRAMES = 16
"""Frames between two looks at the quantile, which walks all bins of the sketch."""


class ThresholdTable(TriggerTable):
    """At or above a fixed score."""

    kind: Literal["threshold"]
    score: str | None = None
    above: float


@register
class Threshold(TriggerKind):
    """Fires if the score is at or above a fixed value."""

    Settings = ThresholdTable

    def __init__(self, name: str, *, score: str, above: float, priority: int = 5) -> None:
        self.name = name
        self._score = score
        self._above = above
        self._priority = priority

    @classmethod
    def build(cls, settings: ThresholdTable, context: BuildContext) -> Trigger:
        """See TriggerKind."""
        score = context.score(settings.score)
        return cls(context.name, score=score, above=settings.above, priority=settings.priority)

    def look(self, frame: ScoredFrame) -> TriggerEvent | None:
        """See Trigger."""
        value = frame.scored.scores.get(self._score)
        if value is None or value < self._above:
            return None
        return TriggerEvent(self.name, f"{self._score} {value:.4g} >= {self._above:.4g}", self._priority)


class PercentileTable(TriggerTable):
    """At or above a level of the bundle's calibration."""

    kind: Literal["percentile"]
    score: str | None = None
    level: Rate


@register
class Percentile(TriggerKind):
    """Fires if the score is at or above a level of its calibration."""

    Settings = PercentileTable

    def __init__(self, name: str, *, score: str, level: float, priority: int = 5) -> None:
        """Takes the score's name and the level, 0..1."""
        self.name = name
        self._score = score
        self._level = level
        self._priority = priority

    @classmethod
    def build(cls, settings: PercentileTable, context: BuildContext) -> Trigger:
        """See TriggerKind."""
        score = context.score(settings.score, rate=1.0 - settings.level)
        return cls(context.name, score=score, level=settings.level, priority=settings.priority)

    def look(self, frame: ScoredFrame) -> TriggerEvent | None:
        """See Trigger."""
        if self._score not in frame.scored.scores:
            return None
        level = frame.scored.percentile(self._score)
        if level < self._level:
            return None
        return TriggerEvent(
            self.name, f"{self._score} at calibrated {level:.4f} >= {self._level:.4f}", self._priority
        )


class TargetRateTable(TriggerTable):
    """The top share of recent frames."""

    kind: Literal["target-rate"]
    score: str | None = None
    rate: Rate = 0.02
    window: int = Field(default=2000, ge=50, le=1_000_000)
    warm_up: int = Field(default=50, ge=2, le=1_000_000)


@register
class TargetRate(TriggerKind):
    """Fires on the highest-scored `rate` of recent frames; takes at most that in the long run."""

    Settings = TargetRateTable

    def __init__(
        self,
        name: str,
        *,
        score: str,
        rate: float,
        prior: float | None = None,
        nothing: float = -math.inf,
        window: int = 2000,
        warm_up: int = 50,
        priority: int = 5,
    ) -> None:
        """Starts with nothing seen.

        Args:
            name: of the trigger.
            score: what it looks at.
            rate: share of frames to take, 0..1.
            prior: threshold until `warm_up` frames were seen: the calibration's quantile.
            nothing: a score that is not above it never fires, however rare higher ones are.
            window: frames that the threshold looks back on.
            warm_up: frames before the threshold is its own.
            priority: of what it takes, 0..9.
        """
        self.name = name
        self._threshold = prior if prior is not None else float("inf")
        self._score = score
        self._nothing = nothing
        self._rate = rate
        self._warm_up = max(2, warm_up)
        # Two sketches take turns, because a sketch cannot forget single frames.
        self._half = max(self._warm_up, window // 2)
        self._priority = priority
        self._older: BaseDDSketch = _sketch()
        self._newer: BaseDDSketch = _sketch()
        self._seen = 0
        self._burst = max(2.0, rate * window)
        self._tokens = min(self._burst, max(1.0, rate * warm_up)) if rate > 0 else 0.0

    @classmethod
    def build(cls, settings: TargetRateTable, context: BuildContext) -> Trigger:
        """See TriggerKind. The calibration stands in until the trigger has seen enough."""
        score = context.score(settings.score, rate=settings.rate)
        return cls(
            context.name,
            score=score,
            rate=settings.rate,
            prior=context.prior(score, 1.0 - settings.rate),
            nothing=context.nothing(score),
            window=settings.window,
            warm_up=settings.warm_up,
            priority=settings.priority,
        )

    @property
    def threshold(self) -> float:
        """Returns the score at which it fires now; infinite before it knows one."""
        return self._threshold

    def look(self, frame: ScoredFrame) -> TriggerEvent | None:
        """See Trigger. The frame is compared with the threshold of the frames before it."""
        value = frame.scored.scores.get(self._score)
        if value is None:
            return None
        value = 0.0 if abs(value) < _TINY else value
        fires = value >= self._threshold and value > self._nothing and self._tokens >= 1.0
        reason = f"{self._score} {value:.4g} in the top {self._rate:.3g} of recent frames" if fires else ""
        # After the comparison: a frame must not raise the threshold that it is compared with.
        self._learn(value)
        return TriggerEvent(self.name, reason, self._priority) if fires else None

    def taken(self, frame: ScoredFrame) -> None:
        """Pays one token; they come back at `rate` per frame."""
        self._tokens -= 1.0

    def learned(self) -> dict[str, Any]:
        """Returns threshold, tokens and sketches, for `relearn` after a restart."""
        return {
            "terms": self._terms,
            "threshold": self._threshold,
            "tokens": self._tokens,
            "seen": self._seen,
            "older": pack_sketch(self._older),
            "newer": pack_sketch(self._newer),
        }

    def relearn(self, learned: Mapping[str, Any]) -> bool:
        """See Trigger. What was learned with another score, rate, window or warm-up is not taken over."""
        # A list, because JSON has no tuples.
        if list(learned["terms"]) != self._terms:
            return False
        older, newer = (unpack_sketch(learned[name], accuracy=_ACCURACY) for name in ("older", "newer"))
        threshold, tokens, seen = float(learned["threshold"]), float(learned["tokens"]), int(learned["seen"])
        if math.isnan(threshold) or not 0 <= tokens <= self._burst or seen < 0:
            raise ValueError(f"threshold {threshold}, {tokens} tokens after {seen} frames")
        self._older, self._newer = older, newer
        self._threshold, self._tokens, self._seen = threshold, tokens, seen
        return True

    @property
    def _terms(self) -> list[Any]:
        return [self._score, self._rate, self._half, self._warm_up]

    def _learn(self, value: float) -> None:
        self._tokens = min(self._burst, self._tokens + self._rate)
        self._older.add(value)
        self._newer.add(value)
        self._seen += 1
        if self._newer.count >= self._half:
            self._older, self._newer = self._newer, _sketch()
        if self._seen >= self._warm_up and self._seen % _REFRESH_FRAMES == 0:
            level = self._older.get_quantile_value(1.0 - self._rate)
            if level is not None:
                # The sketch knows its quantile to within its accuracy: equal scores must not fall just below.
                self._threshold = float(level) - 2 * _ACCURACY * abs(float(level))


def _sketch() -> LogCollapsingLowestDenseDDSketch:
    return LogCollapsingLowestDenseDDSketch(relative_accuracy=_ACCURACY, bin_limit=_BINS)
