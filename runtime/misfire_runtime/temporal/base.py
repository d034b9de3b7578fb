"""Defines what a comparison in time finds, and the class that every kind of answer implements.

A new kind of answer is one file: a subclass of `Comparison` with `@register` (registry.py) above it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from numpy.typing import NDArray

from misfire_runtime.placement import NetworkInput

NAME = "temporal"
"""The score's name in triggers, offers and telemetry, and the key of its reason in an offer's context."""
MAX_REASON = 256
"""Characters that an offer's context takes."""


@dataclass(frozen=True, slots=True)
class AnswerFormat:
    """Describes the answers that are compared.

    contract: size of the network's input, and how pictures are placed in it.  classes: their names.
    threshold: score from which a box is kept.
    """

    contract: NetworkInput
    classes: tuple[str, ...] = ()
    threshold: float = 0.0

    def class_name(self, index: int) -> str:
        """Returns the name of a class, or its number if it has none; at most 64 characters."""
        return self.classes[index][:64] if 0 <= index < len(self.classes) else f"class {index}"


@dataclass(frozen=True, slots=True)
class Event:
    """Reports one thing that happened at a frame.

    kind: "break", "flash", "flip", "pixels" or "class".  weight: what it adds to the score.
    text: one short sentence.  box: x0 y0 x1 y1 in network pixels, if it has a place.
    """

    kind: str
    weight: float
    text: str
    box: tuple[float, float, float, float] | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """Holds what was found at one frame; without events the answer agrees with its neighbours."""

    events: tuple[Event, ...] = ()

    @property
    def score(self) -> float:
        """Returns the sum of the weights."""
        return sum(event.weight for event in self.events)

    @property
    def reason(self) -> str:
        """Returns the heaviest event's text, and how many more there are; "" without events."""
        if not self.events:
            return ""
        more = len(self.events) - 1
        end = f", and {more} more" if more else ""
        text = max(self.events, key=lambda event: event.weight).text
        return text[: MAX_REASON - len(end)] + end


Reading = TypeVar("Reading")
"""What a comparison keeps of an answer."""


class Comparison(ABC, Generic[Reading]):
    """Compares the answers of one source, one after another."""

    kind: ClassVar[str]
    """Kind of the output, as in the manifest."""
    delay: ClassVar[int]
    """Frames between a frame and the one whose answer settles what happened at it."""

    def __init__(self, form: AnswerFormat) -> None:
        self.form = form
        self.picture = (0.0, 0.0, float(form.contract.width), float(form.contract.height))
        """Where the picture lies in the network's input: x0 y0 x1 y1 in network pixels."""

    @abstractmethod
    def read(self, answer: NDArray[Any]) -> Reading | None:
        """Returns what is compared of an answer; None if it is not finite.

        Args:
            answer: of a batch of one, as the graph gave it.
        """

    @abstractmethod
    def compare(self, reading: Reading, *, elapsed_s: float) -> Finding | None:
        """Takes the next answer.

        Args:
            reading: what `read` returned.
            elapsed_s: seconds since the answer before it; above 0, and ignored at the first.

        Returns:
            What happened `delay` frames ago. None if that frame is before the second since `reset`: it has no
            neighbour to compare with.
        """

    @abstractmethod
    def reset(self) -> None:
        """Forgets all answers, because the next does not continue them."""


def with_article(noun: str) -> str:
    """Returns a noun with `a` or `an`.

    >>> with_article("truck"), with_article("animal")
    ('a truck', 'an animal')
    """
    return f"{'an' if noun[:1].lower() in 'aeiou' and noun else 'a'} {noun}"
