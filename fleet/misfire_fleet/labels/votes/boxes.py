"""Compares boxes of several voters: unanimous if each object of one has its counterpart in all others.

answers --pairs by class and overlap--> one list of objects, at the mean of their places; None if they differ

Two voters agree if their boxes match one to one: the same class, and an intersection over union of at least
0.5. Nothing is an answer, too. Boxes below a detector's alarm threshold are not its answer: it is unsure of
them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from misfire_fleet.labels.content import Box, BoxesLabel

MATCHING = 0.5
"""Smallest intersection over union of two boxes of one object."""
Corners = NDArray[np.float64]


def sure_boxes(prediction: Mapping[str, Any], *, alarm: float) -> BoxesLabel | None:
    """Returns the boxes of a prediction with at least this score; None if there are more than it carries."""
    if prediction.get("more") or "boxes" not in prediction:
        return None
    sure = [each for each in prediction["boxes"] if each["score"] >= alarm]
    made = []
    for each in sure:
        x0, y0, x1, y1 = map(float, each["box"])
        if x0 < x1 and y0 < y1:
            made.append(Box(name=str(each["class"]), x0=x0, y0=y0, x1=x1, y1=y1))
    return BoxesLabel(boxes=tuple(made))


def joined(answers: Sequence[BoxesLabel]) -> BoxesLabel | None:
    """Returns the objects that all answers agree on, each at the mean place; None if they do not agree."""
    first, *others = answers
    found = [pairs(first, other) for other in others]
    if any(each is None for each in found):
        return None
    boxes = []
    for number, box in enumerate(first.boxes):
        own = [box, *(o.boxes[p[number]] for o, p in zip(others, found, strict=True) if p is not None)]
        mean = np.mean([[b.x0, b.y0, b.x1, b.y1] for b in own], axis=0)
        sides = dict(zip(("x0", "y0", "x1", "y1"), map(float, mean), strict=True))
        boxes.append(Box(name=box.name, **sides))
    return BoxesLabel(boxes=tuple(boxes))


def pairs(one: BoxesLabel, other: BoxesLabel) -> list[int] | None:
    """Returns the number of the box of `other` for each box of `one`; None if they do not match."""
    if len(one.boxes) != len(other.boxes):
        return None
    overlap = _overlap(_corners(one), _corners(other))
    same = np.array([[a.name == b.name for b in other.boxes] for a in one.boxes], bool)
    overlap = np.where(same.reshape(overlap.shape), overlap, 0.0)
    found = [-1] * len(one.boxes)
    for _ in one.boxes:
        place = np.unravel_index(int(overlap.argmax()), overlap.shape)
        if overlap[place] < MATCHING:
            return None
        found[int(place[0])] = int(place[1])
        overlap[place[0], :] = overlap[:, place[1]] = 0.0
    return found


def agree(vote: BoxesLabel, said: BoxesLabel) -> bool:
    """Returns whether a person's boxes are those of a vote; what does not count is left out."""
    counted = tuple(box for box in said.boxes if not (box.crowd or box.ignore))
    return pairs(vote, BoxesLabel(boxes=counted)) is not None


def _corners(label: BoxesLabel) -> Corners:
    return np.array([[b.x0, b.y0, b.x1, b.y1] for b in label.boxes], float).reshape(-1, 4)


def _overlap(a: Corners, b: Corners) -> Corners:
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.prod(np.maximum(high - low, 0.0), axis=2)
    areas = [np.prod(each[:, 2:] - each[:, :2], axis=1) for each in (a, b)]
    return np.asarray(shared / np.maximum(areas[0][:, None] + areas[1][None] - shared, 1e-9))
