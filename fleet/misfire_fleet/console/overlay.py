"""Reads the model's answer out of an offer, to be drawn over its picture as SVG and listed beside it.

prediction (any valid message) --answer_of--> Answer: boxes, the most doubtful first; joints; bars

Everything is checked again here: a prediction may have any keys and types, and only what can be drawn is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from misfire_fleet.store.records import StoredSample

_DOUBTFUL, _UNSURE = 0.5, 0.8
_DRAWN = frozenset({"boxes", "points", "shares", "more", "size"})
_MOST = 64
_NAMED = 6
"""More labels with class names would cover each other, and the picture; the table names them all."""


@dataclass(frozen=True)
class Box:
    """Holds a box in pixels of the picture. number: its place by score, from 1.  p: None if unknown."""

    number: int
    name: str
    score: float | None
    p: float | None
    x: float
    y: float
    width: float
    height: float

    @property
    def doubt(self) -> float | None:
        """Returns the probability that the box is wrong."""
        return None if self.p is None else 1 - self.p

    @property
    def level(self) -> str:
        """Returns how it is drawn: doubtful, unsure, sure, or plain if the bundle does not say."""
        if self.p is None:
            return "plain"
        return "doubtful" if self.p < _DOUBTFUL else "unsure" if self.p < _UNSURE else "sure"


@dataclass(frozen=True)
class Joint:
    """Holds a keypoint in pixels of the picture, and the value of its peak."""

    number: int
    x: float
    y: float
    value: float | None


@dataclass(frozen=True)
class Bar:
    """Holds a class and its share or probability, 0..1."""

    name: str
    share: float


@dataclass(frozen=True)
class Answer:
    """Holds what is drawn of an offer. width, height: of the upright picture that the places belong to.

    boxes: the most doubtful first.  more: boxes that the offer counts and does not carry.
    other: what is not drawn, as it is.
    """

    width: int
    height: int
    boxes: tuple[Box, ...] = ()
    more: int = 0
    joints: tuple[Joint, ...] = ()
    bars: tuple[Bar, ...] = ()
    detector: bool = False
    other: Mapping[str, Any] | None = None

    @property
    def drawn(self) -> bool:
        """Returns True if there is something to draw over the picture."""
        return bool(self.boxes or self.joints)

    @property
    def rated(self) -> bool:
        """Returns True if a box has a probability of being right."""
        return any(box.p is not None for box in self.boxes)

    def label(self, box: Box) -> str:
        """Returns what is written at a box: P(TP), else the score; with the class unless there are many."""
        value = box.score if box.p is None else box.p
        words = "" if value is None else f"{100 * value:.0f} %" if box.p is not None else f"{value:.2f}"
        return words if len(self.boxes) > _NAMED and words else f"{box.name} {words}".strip()

    @property
    def unit(self) -> float:
        """Returns a line's width in pixels of the picture, so that text and joints look alike at any size."""
        return max(self.width, self.height) / 400

    @property
    def summary(self) -> str:
        """Returns the boxes in a few words: `3 boxes, car 31 %` has their number, and the most doubtful."""
        if not self.detector:
            return ""
        count = len(self.boxes) + self.more
        words = f"{count:,} {'box' if count == 1 else 'boxes'}"
        first = self.boxes[0] if self.boxes else None
        return (
            words if first is None or first.p is None else f"{words}, {first.name[:40]} {100 * first.p:.0f} %"
        )


def answer_of(sample: StoredSample) -> Answer:
    """Returns what can be drawn of a sample's prediction."""
    prediction = sample.prediction
    width, height = _size(prediction.get("size")) or (max(1, sample.width), max(1, sample.height))
    boxes = _boxes(prediction.get("boxes"))
    more = prediction.get("more")
    return Answer(
        width=width,
        height=height,
        boxes=tuple(sorted(boxes, key=lambda box: -1.0 if box.doubt is None else box.doubt, reverse=True)),
        more=more if isinstance(more, int) and more > 0 else 0,
        joints=_joints(prediction.get("points"), width, height),
        bars=_bars(prediction),
        detector=isinstance(prediction.get("boxes"), list),
        other={key: value for key, value in prediction.items() if key not in _DRAWN},
    )


def _size(value: Any) -> tuple[int, int] | None:
    if isinstance(value, list) and len(value) == 2 and all(type(v) is int and 0 < v < 1e6 for v in value):
        return value[0], value[1]
    return None


def _boxes(listed: Any) -> list[Box]:
    found = []
    for number, each in enumerate(listed[:_MOST] if isinstance(listed, list) else (), start=1):
        corners = each.get("box") if isinstance(each, dict) else None
        if not isinstance(corners, list) or len(corners) != 4 or any(_number(v) is None for v in corners):
            continue
        x0, y0, x1, y1 = (float(value) for value in corners)
        if x1 > x0 and y1 > y0:
            score, p = _number(each.get("score")), _number(each.get("p"))
            p = None if p is None else min(1.0, max(0.0, p))
            found.append(Box(number, str(each.get("class", "?")), score, p, x0, y0, x1 - x0, y1 - y0))
    return found


def _joints(listed: Any, width: int, height: int) -> tuple[Joint, ...]:
    found = []
    for number, each in enumerate(listed[:_MOST] if isinstance(listed, list) else (), start=1):
        if not isinstance(each, list) or len(each) < 2:
            continue
        x, y = _number(each[0]), _number(each[1])
        if x is not None and y is not None and 0 <= x <= 1 and 0 <= y <= 1:
            value = _number(each[2]) if len(each) > 2 else None
            found.append(Joint(number, x * width, y * height, value))
    return tuple(found)


def _bars(prediction: Mapping[str, Any]) -> tuple[Bar, ...]:
    """Returns the shares of a mask's classes, or the probability of a frame's class."""
    shares = prediction.get("shares")
    if isinstance(shares, dict):
        numbers = [(name, _number(value)) for name, value in shares.items()]
        return tuple(Bar(name, min(1.0, max(0.0, value))) for name, value in numbers if value is not None)
    confidence = _number(prediction.get("confidence"))
    if confidence is None or not isinstance(prediction.get("class"), str):
        return ()
    return (Bar(str(prediction["class"]), min(1.0, max(0.0, confidence))),)


def _number(value: Any) -> float | None:
    """Returns a value as a number that fits a page; None if it is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e9:
        return None
    return float(value)
