"""Turns what people and teachers said of a sample into layers over its picture, beside the vehicle's answer.

label records --layers--> one Layer for each source and annotator: boxes, points, or a mask as a picture
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from misfire_fleet.labels.content import (
    BoxesLabel,
    ClassesLabel,
    ClassLabel,
    LabelRecord,
    MaskLabel,
    PointsLabel,
    ValuesLabel,
)
from misfire_fleet.labels.formats.parts.mask_pixels import pixels_of
from misfire_fleet.store.labels import MACHINES
from misfire_fleet.store.records import StoredSample

_MOST = 8
"""Layers of one sample: the newest ones."""
_WIDEST = 1024
_OPACITY = 120
COLOURS = ("8e9aa6", "e4572e", "2e86de", "8e44ad", "f2b705", "17a589", "d35d9e", "6d8b1f")
"""Of classes, as in console.css."""


@dataclass(frozen=True)
class Place:
    """A box or a point of a label, in pixels of the stored picture."""

    name: str
    x: float
    y: float
    width: float = 0.0
    height: float = 0.0
    degrees: float = 0.0

    @property
    def centre(self) -> tuple[float, float]:
        """Returns the point that a box is turned about."""
        return self.x + self.width / 2, self.y + self.height / 2


@dataclass(frozen=True)
class Layer:
    """What one annotator said last. `kind`: "label" of people and files, "vote" of teachers.

    `mask`: path of a picture to lay over; `legend`: class and colour of its numbers.
    """

    key: str
    kind: Literal["label", "vote"]
    title: str
    words: str
    boxes: tuple[Place, ...] = ()
    points: tuple[Place, ...] = ()
    mask: str = ""
    legend: tuple[tuple[str, str], ...] = ()

    @property
    def drawn(self) -> bool:
        """Returns True if there is something to lay over the picture."""
        return bool(self.boxes or self.points or self.mask)


def layers_of(sample: StoredSample, records: Sequence[LabelRecord]) -> list[Layer]:
    """Returns a layer for the newest of each annotator's records, which are given oldest first."""
    newest: dict[tuple[str, str], LabelRecord] = {}
    for record in records:
        newest.pop((record.source, record.annotator), None)
        newest[record.source, record.annotator] = record
    return [_layer(sample, record, number) for number, record in enumerate(list(newest.values())[-_MOST:])]


def mask_picture(record: LabelRecord) -> bytes | None:
    """Returns a mask label as a PNG with colours, half transparent; None if it cannot be drawn."""
    if not isinstance(record.label, MaskLabel):
        return None
    try:
        numbers = pixels_of(record.label)
    except ValueError:
        return None
    if numbers.shape[1] > _WIDEST:
        height = max(1, round(numbers.shape[0] * _WIDEST / numbers.shape[1]))
        numbers = np.asarray(
            cv2.resize(numbers, (_WIDEST, height), interpolation=cv2.INTER_NEAREST), np.uint16
        )
    image = np.zeros((*numbers.shape, 4), np.uint8)
    for number in record.label.names:
        colour = COLOURS[number % len(COLOURS)]
        blue_green_red = [int(colour[at : at + 2], 16) for at in (4, 2, 0)]
        image[numbers == number] = [*blue_green_red, _OPACITY]
    done, data = cv2.imencode(".png", image)
    return bytes(data) if done else None


def _layer(sample: StoredSample, record: LabelRecord, number: int) -> Layer:
    label, who = record.label, record.annotator or record.source
    vote = record.source in MACHINES
    boxes: tuple[Place, ...] = ()
    points: tuple[Place, ...] = ()
    mask = ""
    legend: tuple[tuple[str, str], ...] = ()
    if isinstance(label, BoxesLabel):
        boxes = tuple(
            Place(box.name, box.x0, box.y0, box.x1 - box.x0, box.y1 - box.y0, box.degrees)
            for box in label.boxes[:500]
        )
    elif isinstance(label, PointsLabel):
        points = tuple(
            Place(str(place), point.x, point.y)
            for place, point in enumerate(label.points[:500], start=1)
            if point.visible
        )
    elif isinstance(label, MaskLabel):
        mask = f"/samples/{sample.id}/mask/{record.content_hash}"
        legend = tuple((name, f"c{key % len(COLOURS)}") for key, name in list(label.names.items())[:50])
    return Layer(
        f"layer-{number}",
        "vote" if vote else "label",
        f"{'teacher' if vote else 'label'}: {who}",
        words_of(record),
        boxes,
        points,
        mask,
        legend,
    )


def words_of(record: LabelRecord) -> str:
    """Returns what a record says, in a few words."""
    label = record.label
    if isinstance(label, ClassLabel):
        return label.name
    if isinstance(label, ClassesLabel):
        return ", ".join(label.names[:20]) or "no class"
    if isinstance(label, BoxesLabel):
        return f"{len(label.boxes):,} {'box' if len(label.boxes) == 1 else 'boxes'}"
    if isinstance(label, PointsLabel):
        return f"{len(label.points):,} points"
    if isinstance(label, ValuesLabel):
        return ", ".join(f"{value:.3g}" for value in label.values[:12])
    return "mask of " + ", ".join(list(label.names.values())[:8])
