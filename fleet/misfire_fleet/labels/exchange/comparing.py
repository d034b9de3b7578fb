"""Tells whether two labels say the same up to the rounding of a file.

A label that leaves in shares of its picture comes back a millionth of a pixel away, and a mask with other
numbers for its classes. That is no new opinion.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from misfire_fleet.labels.content import (
    BoxesLabel,
    Label,
    MaskLabel,
    PointsLabel,
    ValuesLabel,
)
from misfire_fleet.labels.formats.parts.mask_pixels import pixels_of

_PIXELS = 0.01
"""Formats are written with at least six digits; a person's correction is a pixel or more."""
_DEGREES = 0.05
_RELATIVE = 1e-9


def alike(one: Label, other: Label) -> bool:
    """Returns whether two labels say the same. Boxes and points are compared in their order."""
    if one == other:
        return True
    if isinstance(one, BoxesLabel) and isinstance(other, BoxesLabel):
        pairs = zip(one.boxes, other.boxes, strict=False)
        return len(one.boxes) == len(other.boxes) and all(
            (a.name, a.crowd, a.ignore) == (b.name, b.crowd, b.ignore)
            and _near((a.x0, a.y0, a.x1, a.y1), (b.x0, b.y0, b.x1, b.y1), _PIXELS)
            # A turn by 360 degrees is none.
            and abs((a.degrees - b.degrees + 180) % 360 - 180) <= _DEGREES
            for a, b in pairs
        )
    if isinstance(one, PointsLabel) and isinstance(other, PointsLabel):
        points = zip(one.points, other.points, strict=False)
        return len(one.points) == len(other.points) and all(
            a.visible == b.visible and _near((a.x, a.y), (b.x, b.y), _PIXELS) for a, b in points
        )
    if isinstance(one, ValuesLabel) and isinstance(other, ValuesLabel):
        return len(one.values) == len(other.values) and all(
            abs(a - b) <= _RELATIVE * max(abs(a), abs(b))
            for a, b in zip(one.values, other.values, strict=True)
        )
    return isinstance(one, MaskLabel) and isinstance(other, MaskLabel) and _same_mask(one, other)


def _near(one: tuple[float, ...], other: tuple[float, ...], within: float) -> bool:
    return all(abs(a - b) <= within for a, b in zip(one, other, strict=True))


def _same_mask(one: MaskLabel, other: MaskLabel) -> bool:
    numbers = {name: at for at, name in enumerate({*one.names.values(), *other.names.values()}, start=1)}
    try:
        first, second = _named(one, numbers), _named(other, numbers)
    except ValueError:
        return False
    return first.shape == second.shape and bool((first == second).all())


def _named(label: MaskLabel, numbers: Mapping[str, int]) -> NDArray[Any]:
    """Returns a mask with common numbers, 0 where it has no class."""
    table: NDArray[np.int32] = np.zeros(65_536, np.int32)
    for number, name in label.names.items():
        if 0 <= number < len(table):
            table[number] = numbers[name]
    return table[pixels_of(label)]
