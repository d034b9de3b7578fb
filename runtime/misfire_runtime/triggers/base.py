"""Defines a trigger: its settings table, how it is built, what it sees of a frame, and what it may answer.

table --Trigger.build--> trigger;  every frame --look--> TriggerEvent or None;  kept --taken--> trigger

A new kind is one file: a subclass of `TriggerTable` for its settings, a subclass of `TriggerKind` that names
them, and `@register` (registry.py) above it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from pydantic import Field

from misfire_runtime.engines.scoring import Scorer, quantile
from misfire_runtime.errors import ConfigError
from misfire_runtime.tables import Table
from misfire_runtime.temporal.base import NAME as TEMPORAL
from misfire_runtime.temporal.drop import NAME as BOX_DROP
from misfire_runtime.temporal.registry import MAX_SCORES, comparison_of
from misfire_runtime.triggers.scored_frame import ScoredFrame

Priority = Annotated[int, Field(ge=0, le=9)]


class TriggerTable(Table):
    """Settings that every trigger has. A subclass narrows `kind` to a Literal of its own names."""

    kind: str
    priority: Priority = 5
    cool_down_s: float = Field(default=0.0, ge=0)
    cool_down_frames: int = Field(default=0, ge=0)

    @property
    def part_names(self) -> Sequence[str]:
        """Returns the names of the triggers that this one is made of; those are not asked by themselves."""
        return ()


@dataclass(frozen=True, slots=True)
class TriggerEvent:
    """Reports that a trigger wants this frame, and why, in one line."""

    name: str
    reason: str
    priority: int = 5


@dataclass(frozen=True)
class BuildContext:
    """Provides what a trigger may use while it is built: its name, the bundle's scores, and other triggers.

    part: builds another trigger of the configuration by its name.  used: collects the names of the scores
    that triggers look at.
    """

    name: str
    scorer: Scorer
    part: Callable[[str], Trigger]
    used: set[str] = field(default_factory=set)

    @property
    def scores(self) -> Collection[str]:
        """Returns the names of the bundle's scores, and of those that the vehicle computes from its answers.

        Those are `temporal` if answers can be compared in time, and `box_drop` if they are boxes.
        """
        names = list(self.scorer.tables)
        if comparison_of(self.scorer) is not None:
            names.append(TEMPORAL)
        # An offer takes so many.
        if self.scorer.output_of("boxes") is not None and BOX_DROP not in names and len(names) < MAX_SCORES:
            names.append(BOX_DROP)
        return tuple(names)

    def score(self, wanted: str | None, *, rate: float | None = None) -> str:
        """Returns the score to look at: the wanted one, or the bundle's own.

        Args:
            wanted: name in the configuration, None for the bundle's own.
            rate: share of frames that the trigger takes; the bundle may have another score for another rate.

        Raises:
            ConfigError: the bundle has no score of that name.
        """
        score = wanted or (self.scorer.default_score if rate is None else self.scorer.score_at(rate))
        if score not in self.scores:
            known = ", ".join(self.scores)
            raise ConfigError(
                f"triggers.{self.name}.score: {self.scorer.label} has no score {score!r}; it has {known}"
            )
        self.used.add(score)
        return score

    def prior(self, score: str, level: float) -> float | None:
        """Returns a quantile of the score's calibration; None if only the vehicle itself can learn it."""
        table = self.scorer.tables.get(score)
        return None if table is None else quantile(table, level)

    def nothing(self, score: str) -> float:
        """Returns the score that means that nothing was found; -infinity if no score of it does."""
        return -math.inf if score in self.scorer.tables else 0.0


class Trigger(ABC):
    """Decides from scores and context. `look` sees every frame, `taken` those that it brought in.

    Only `look` has to be written; a trigger that keeps state between frames, learns across restarts or is
    made of others overrides the rest.
    """

    name: str

    @abstractmethod
    def look(self, frame: ScoredFrame) -> TriggerEvent | None:
        """Returns an event if the trigger wants this frame. Is called for every frame, in order."""

    def taken(self, frame: ScoredFrame) -> None:  # noqa: B027  (most triggers keep no state)
        """Learns that the frame of its last event was kept: starts a cool-down, pays a token."""

    @property
    def parts(self) -> Sequence[Trigger]:
        """Returns the triggers that this one is made of."""
        return ()

    @property
    def threshold(self) -> float | None:
        """Returns the current threshold of a trigger that adapts it, for telemetry; None for all others."""
        return None

    def learned(self) -> Mapping[str, Any] | None:
        """Returns what it has to know again after a restart, in JSON's types; None if it learns nothing."""
        return None

    def relearn(self, learned: Mapping[str, Any]) -> bool:
        """Goes on where `learned` stopped.

        Returns:
            False if nothing changed, because that was learned with other settings.

        Raises:
            ValueError, KeyError, TypeError: `learned` makes no sense; then nothing changed either.
        """
        return False


class TriggerKind(Trigger):
    """Defines a trigger that a configuration can name."""

    Settings: ClassVar[type[TriggerTable]]

    @classmethod
    @abstractmethod
    def build(cls, settings: Any, context: BuildContext) -> Trigger:
        """Returns a trigger with these settings.

        Args:
            settings: an instance of `Settings`.
            context: the trigger's name, and what it may look up.

        Raises:
            ConfigError: the settings do not fit the bundle, or other triggers.
        """


def every(triggers: Sequence[Trigger]) -> Iterator[Trigger]:
    """Yields these triggers, and all that they are made of."""
    for trigger in triggers:
        yield trigger
        yield from every(trigger.parts)
