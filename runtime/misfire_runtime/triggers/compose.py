"""Combines triggers: any of several, all of several, and a cool-down around one."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from misfire_runtime.triggers.base import (
    BuildContext,
    Trigger,
    TriggerEvent,
    TriggerKind,
    TriggerTable,
)
from misfire_runtime.triggers.registry import register
from misfire_runtime.triggers.scored_frame import ScoredFrame


class _GroupTable(TriggerTable):
    of: tuple[str, ...] = Field(min_length=1, max_length=64)

    @property
    def part_names(self) -> Sequence[str]:
        """See TriggerTable."""
        return self.of


class AnyTable(_GroupTable):
    """Any of other triggers, by name."""

    kind: Literal["any"]


class AllTable(_GroupTable):
    """All of other triggers, by name."""

    kind: Literal["all"]


class _Group(TriggerKind):
    def __init__(self, name: str, *, parts: Sequence[Trigger], priority: int | None = None) -> None:
        """Takes the parts. priority: None takes the highest of the parts that want the frame."""
        self.name = name
        self._parts = tuple(parts)
        self._priority = priority

    @classmethod
    def build(cls, settings: _GroupTable, context: BuildContext) -> Trigger:
        """See TriggerKind."""
        parts = [context.part(name) for name in settings.of]
        priority = settings.priority if "priority" in settings.model_fields_set else None
        return cls(context.name, parts=parts, priority=priority)

    @property
    def parts(self) -> Sequence[Trigger]:
        """See Trigger."""
        return self._parts

    @abstractmethod
    def look(self, frame: ScoredFrame) -> TriggerEvent | None:
        """See Trigger."""


@register
class AnyOf(_Group):
    """Fires if one of its parts does; the part of the highest priority gives the reason."""

    Settings = AnyTable

    def __init__(self, name: str, *, parts: Sequence[Trigger], priority: int | None = None) -> None:
        super().__init__(name, parts=parts, priority=priority)
        self._fired: list[Trigger] = []

    def look(self, frame: ScoredFrame) -> TriggerEvent | None:
        """See Trigger. Every part looks at every frame."""
        # Every part looks, even after one has fired: parts may learn from each frame.
        events = [(part, part.look(frame)) for part in self._parts]
        # Only these pay for the frame: the others did not ask for it.
        self._fired = [part for part, event in events if event is not None]
        found = [event for _part, event in events if event is not None]
        if not found:
            return None
        best = max(found, key=lambda event: event.priority)
        priority = best.priority if self._priority is None else self._priority
        return TriggerEvent(self.name, f"{best.name}: {best.reason}", priority)

    def taken(self, frame: ScoredFrame) -> None:
        """Tells the parts that fired that the frame was kept."""
        for part in self._fired:
            part.taken(frame)


@register
class AllOf(_Group):
    """Fires if all of its parts do."""

    Settings = AllTable

    def look(self, frame: ScoredFrame) -> TriggerEvent | None:
        """See Trigger. Every part looks at every frame."""
        events = [part.look(frame) for part in self._parts]
        found = [event for event in events if event is not None]
        if len(found) < len(events):
            return None
        reason = "; ".join(f"{event.name}: {event.reason}" for event in found)
        highest = max(event.priority for event in found)
        return TriggerEvent(self.name, reason, highest if self._priority is None else self._priority)

    def taken(self, frame: ScoredFrame) -> None:
        """Tells all parts that the frame was kept."""
        for part in self._parts:
            part.taken(frame)


class CoolDown(Trigger):
    """Keeps a trigger quiet for a time, or a number of frames, after a frame was taken for it.

    Time is per source, and the recording's own if it has one; a clock that went backwards (a loop, the
    next file) ends the pause. Every table may ask for it (`cool_down_s`, `cool_down_frames`): it has no kind.
    """

    def __init__(self, inner: Trigger, *, seconds: float = 0.0, frames: int = 0) -> None:
        self.name = inner.name
        self.inner = inner
        self._seconds = seconds
        self._frames = frames
        self._last: dict[str, tuple[float, int]] = {}

    def look(self, frame: ScoredFrame) -> TriggerEvent | None:
        """See Trigger. The inner trigger goes on learning while it is quiet."""
        # Before the pause is checked: the inner trigger learns from every frame.
        event = self.inner.look(frame)
        if event is None or frame.source not in self._last:
            return event
        time_s, count = self._last[frame.source]
        elapsed = frame.time_s - time_s
        # Below 0 a recording began again, and its pause is over.
        if 0 <= elapsed < self._seconds or frame.count - count <= self._frames:
            return None
        return event

    def taken(self, frame: ScoredFrame) -> None:
        """Starts the pause."""
        self._last[frame.source] = (frame.time_s, frame.count)
        self.inner.taken(frame)

    @property
    def parts(self) -> Sequence[Trigger]:
        """See Trigger."""
        return (self.inner,)

    @property
    def threshold(self) -> float | None:
        """Returns the threshold of the inner trigger."""
        return self.inner.threshold
