"""Holds what a reader of boxes finds: pictures, their boxes, names of classes, and what is missing."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Box:
    """Is one labelled box. label: the class's name, "" for a region in which any class is to be ignored."""

    x0: float
    y0: float
    x1: float
    y1: float
    label: str
    ignore: bool = False


@dataclass(frozen=True)
class BoxFrame:
    """Holds what the labels say of one picture.

    boxes: in pixels of the picture.  relative: in shares of its width and height instead.
    word: split word, "" for none.  group: "" if the labels name none.
    size: width and height as the labels state them, None if they do not.
    """

    path: Path
    boxes: tuple[Box, ...] = ()
    relative: bool = False
    word: str = ""
    group: str = ""
    size: tuple[int, int] | None = None


@dataclass
class Found:
    """Collects what a reader found. classes: in order; None numbers the names that occur alphabetically.

    labels: the label files.  absent: names of pictures that are not there.  looked: where they were searched.
    """

    frames: list[BoxFrame] = field(default_factory=list)
    classes: tuple[str, ...] | None = None
    labels: list[Path] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    looked: str = ""
    notes: list[str] = field(default_factory=list)


def finite(text: str) -> float:
    """Returns the number. Raises ValueError if it is none, infinite or NaN."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is not finite")
    return value
