"""Triggers made of triggers: any of several, all of several, and a cool-down around one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from misfire_runtime.triggers.observation import Firing, Observation, Trigger


def every(triggers: Sequence[Trigger]) -> Iterator[Trigger]:
    """These triggers, and all that they are made of."""
    for trigger in triggers:
        yield trigger
        if isinstance(trigger, CoolDown):
            yield from every([trigger.inner])
        elif isinstance(trigger, AnyOf | AllOf):
            yield from every(trigger.parts)


class AnyOf:
    """Fires where one of its parts does; the part of the highest priority gives the reason."""

    def __init__(self, name: str, *, parts: Sequence[Trigger], priority: int | None = None) -> None:
        self.name = name
        self.parts = tuple(parts)
        self._priority = priority
        self._fired: list[Trigger] = []

    def look(self, observation: Observation) -> Firing | None:
        """See Trigger. Every part looks at every frame."""
        firings = [(part, part.look(observation)) for part in self.parts]
        self._fired = [part for part, firing in firings if firing is not None]
        found = [firing for _part, firing in firings if firing is not None]
        if not found:
            return None
        best = max(found, key=lambda firing: firing.priority)
        priority = best.priority if self._priority is None else self._priority
        return Firing(self.name, f"{best.name}: {best.reason}", priority)

    def taken(self, observation: Observation) -> None:
        """Tells the parts that fired."""
        for part in self._fired:
            part.taken(observation)


class AllOf:
    """Fires where all of its parts do."""

    def __init__(self, name: str, *, parts: Sequence[Trigger], priority: int | None = None) -> None:
        self.name = name
        self.parts = tuple(parts)
        self._priority = priority

    def look(self, observation: Observation) -> Firing | None:
        """See Trigger. Every part looks at every frame."""
        firings = [part.look(observation) for part in self.parts]
        found = [firing for firing in firings if firing is not None]
        if len(found) < len(firings):
            return None
        reason = "; ".join(f"{firing.name}: {firing.reason}" for firing in found)
        highest = max(firing.priority for firing in found)
        return Firing(self.name, reason, highest if self._priority is None else self._priority)

    def taken(self, observation: Observation) -> None:
        """Tells all parts."""
        for part in self.parts:
            part.taken(observation)


class CoolDown:
    """Keeps a trigger quiet for a time, or a number of frames, after a frame was taken for it.

    Time is per source and is the recording's own where it has one; a clock that went backwards (a loop, the
    next file) ends the pause.
    """

    def __init__(self, inner: Trigger, *, seconds: float = 0.0, frames: int = 0) -> None:
        self.name = inner.name
        self.inner = inner
        self._seconds = seconds
        self._frames = frames
        self._last: dict[str, tuple[float, int]] = {}

    def look(self, observation: Observation) -> Firing | None:
        """See Trigger. The inner trigger goes on learning while it is quiet."""
        firing = self.inner.look(observation)
        if firing is None or observation.source not in self._last:
            return firing
        time_s, count = self._last[observation.source]
        elapsed = observation.time_s - time_s
        if 0 <= elapsed < self._seconds or observation.count - count <= self._frames:
            return None
        return firing

    def taken(self, observation: Observation) -> None:
        """Starts the pause."""
        self._last[observation.source] = (observation.time_s, observation.count)
        self.inner.taken(observation)
