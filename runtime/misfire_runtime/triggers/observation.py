"""What a trigger sees of a frame, and what it may answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from misfire_runtime.engines.scoring import Scored

Value = float | str | bool


@dataclass(frozen=True, slots=True)
class Observation:
    """One scored frame in its context.

    time_s: the recording's time, or monotonic; what cool-downs are measured in.  count: frames seen so far.
    """

    scored: Scored
    context: Mapping[str, Value]
    source: str
    time_s: float
    count: int


@dataclass(frozen=True, slots=True)
class Firing:
    """A trigger wants this frame, and says why in one line."""

    name: str
    reason: str
    priority: int = 5


class Trigger(Protocol):
    """Decides from scores and context. `look` sees every frame, `taken` those that it brought in."""

    name: str

    def look(self, observation: Observation) -> Firing | None:
        """A firing, or None."""
        ...

    def taken(self, observation: Observation) -> None:
        """The frame on which it fired was kept: start a cool-down, pay a token."""
        ...
