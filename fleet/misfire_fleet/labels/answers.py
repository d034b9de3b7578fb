"""Turns the answer of a vehicle's model, as an offer carries it, into a label that a person can correct.

offer.prediction (any valid message) --answer_of--> Answer, or None

A prediction may have any keys and types: all is checked again, and what is no label is left out. Places
in a prediction belong to the upright picture of its `size`; a label has those of the stored one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from misfire_fleet.labels.content import (
    Box,
    BoxesLabel,
    ClassesLabel,
    ClassLabel,
    Point,
    PointsLabel,
    ValuesLabel,
)
from misfire_fleet.labels.formats.base import Answer
from misfire_fleet.store.records import StoredSample


def answer_of(sample: StoredSample) -> Answer | None:
    """Returns what the vehicle's model answered; None if its offer has no answer that is a label."""
    prediction = sample.prediction
    for key, reader in _READERS.items():
        if key in prediction:
            try:
                return reader(prediction, sample)
            except (ValidationError, ValueError, TypeError):
                return None
    return None


def _boxes(prediction: Mapping[str, Any], sample: StoredSample) -> Answer:
    across, down = _scale(prediction, sample)
    boxes, scores, right = [], [], []
    for each in prediction["boxes"]:
        corners = each.get("box") if isinstance(each, dict) else None
        if not isinstance(corners, list) or len(corners) != 4:
            continue
        x0, y0, x1, y1 = (float(value) for value in corners)
        if x0 < x1 and y0 < y1:
            sides = {"x0": x0 * across, "y0": y0 * down, "x1": x1 * across, "y1": y1 * down}
            boxes.append(Box(name=str(each.get("class") or "?"), **sides))
            scores.append(_number(each.get("score")))
            right.append(_share(each.get("p")))
    more = prediction.get("more")
    return Answer(
        BoxesLabel(boxes=tuple(boxes)),
        confidence=tuple(scores),
        p_correct=tuple(right),
        more=more if type(more) is int and more > 0 else 0,
    )


def _points(prediction: Mapping[str, Any], sample: StoredSample) -> Answer:
    points, peaks = [], []
    for x, y, *rest in prediction["points"]:
        # A joint that was cropped away has no place; it keeps its number.
        seen = x is not None and y is not None and 0 <= x <= 1 and 0 <= y <= 1
        place = (float(x) * sample.width, float(y) * sample.height) if seen else (0.0, 0.0)
        points.append(Point(x=place[0], y=place[1], visible=2 if seen else 0))
        peaks.append(_number(rest[0]) if rest else None)
    return Answer(PointsLabel(points=tuple(points)), confidence=tuple(peaks))


def _class(prediction: Mapping[str, Any], _sample: StoredSample) -> Answer:
    confidence = _share(prediction.get("confidence"))
    return Answer(ClassLabel(name=str(prediction["class"])), confidence=(confidence,))


def _classes(prediction: Mapping[str, Any], _sample: StoredSample) -> Answer:
    shares = dict(prediction["labels"])
    confidence = tuple(_share(value) for value in shares.values())
    return Answer(ClassesLabel(names=tuple(map(str, shares))), confidence=confidence)


def _values(prediction: Mapping[str, Any], _sample: StoredSample) -> Answer:
    return Answer(ValuesLabel(values=tuple(prediction["values"])))


def _scale(prediction: Mapping[str, Any], sample: StoredSample) -> tuple[float, float]:
    """Returns stored pixels for each pixel of the picture that the prediction's places belong to."""
    size = prediction.get("size")
    if not (isinstance(size, list) and len(size) == 2 and all(type(v) is int and v > 0 for v in size)):
        return 1.0, 1.0
    return sample.width / size[0], sample.height / size[1]


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _share(value: Any) -> float | None:
    number = _number(value)
    return None if number is None else min(1.0, max(0.0, number))


_READERS = {"boxes": _boxes, "points": _points, "labels": _classes, "class": _class, "values": _values}
