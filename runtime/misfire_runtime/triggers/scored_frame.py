"""Defines a frame on its way through the vehicle, once the engine has scored it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from misfire_runtime.engines.scoring import Scored
from misfire_runtime.messages import Trigger as TriggerMessage
from misfire_runtime.preprocess import Image
from misfire_runtime.sources.frame import Frame

Value = float | str | bool


@dataclass(frozen=True, slots=True)
class Choice:
    """Says why a frame is kept. `budgeted` ones are paid for by the budget, the random stream is not."""

    trigger: TriggerMessage
    priority: int
    budgeted: bool


@dataclass(frozen=True, slots=True)
class ScoredFrame:
    """Holds a frame, its scores and its context: what triggers look at, and what a sample is made of.

    bundle: label of the bundle that scored it.  context: signals of the vehicle at that moment.
    count: frames scored before it.  choice: None if it is not kept, or not yet decided on.
    """

    frame: Frame
    scored: Scored
    bundle: str
    context: Mapping[str, Value]
    count: int = 0
    choice: Choice | None = None

    @property
    def image(self) -> Image:
        """Returns the picture, [H,W,3] uint8 RGB."""
        return self.frame.image

    @property
    def source(self) -> str:
        """Returns the name of the source it came from."""
        return self.frame.source

    @property
    def time_s(self) -> float:
        """Returns the recording's time, or monotonic: what cool-downs and clips are measured in."""
        return self.frame.time_s
