"""Turns boxes into corners and back, and moves labels to a picture of another size.

Angles are degrees clockwise on the screen (y points down), about the box's centre.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from misfire_fleet.labels.content import Box, BoxesLabel, Label, MaskLabel, Point, PointsLabel

Corner = tuple[float, float]
_SAME = 1e-3
"""Relative difference from which four corners are no rectangle; label files round to 3 to 6 digits."""


def corners_of(box: Box) -> tuple[Corner, Corner, Corner, Corner]:
    """Returns the corners after the rotation, clockwise from the one that was top left before it."""
    x, y = (box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2
    turn = math.radians(box.degrees)
    cosine, sine = math.cos(turn), math.sin(turn)

    def turned(at_x: float, at_y: float) -> Corner:
        return x + (at_x - x) * cosine - (at_y - y) * sine, y + (at_x - x) * sine + (at_y - y) * cosine

    return (
        turned(box.x0, box.y0),
        turned(box.x1, box.y0),
        turned(box.x1, box.y1),
        turned(box.x0, box.y1),
    )


def hull_of(box: Box) -> tuple[float, float, float, float]:
    """Returns x0 y0 x1 y1 of the upright box around a box that may be turned."""
    return around(corners_of(box)) if box.degrees else (box.x0, box.y0, box.x1, box.y1)


def around(points: Sequence[Corner]) -> tuple[float, float, float, float]:
    """Returns x0 y0 x1 y1 of the upright box around points."""
    columns, rows = [x for x, _ in points], [y for _, y in points]
    return min(columns), min(rows), max(columns), max(rows)


def box_from_corners(name: str, corners: Sequence[Corner]) -> Box:
    """Returns the box with these corners; for other polygons the smallest turned box around them.

    Args:
        name: of the class.
        corners: clockwise from the top left before the rotation, if they are four of a rectangle.

    Raises:
        ValueError: the points have no area.
    """
    sides = _sides(corners)
    if sides is None:
        sides = _sides(_smallest(corners))
    if sides is None or min(sides[:2]) <= 0:
        raise ValueError("the corners have no area")
    width, height, degrees = sides
    x = sum(x for x, _ in corners) / 4 if len(corners) == 4 else 0.0
    y = sum(y for _, y in corners) / 4 if len(corners) == 4 else 0.0
    if len(corners) != 4 or _sides(corners) is None:
        x0, y0, x1, y1 = around(_smallest(corners))
        x, y = (x0 + x1) / 2, (y0 + y1) / 2
    return Box(
        name=name, x0=x - width / 2, y0=y - height / 2, x1=x + width / 2, y1=y + height / 2, degrees=degrees
    )


def _sides(corners: Sequence[Corner]) -> tuple[float, float, float] | None:
    """Returns width, height and degrees of a rectangle; None if the corners are not those of one."""
    if len(corners) != 4:
        return None
    (ax, ay), (bx, by), (cx, cy), (dx, dy) = corners
    width, height = math.hypot(bx - ax, by - ay), math.hypot(dx - ax, dy - ay)
    tolerance = _SAME * max(width, height) + 1e-9
    # In a parallelogram the diagonals halve each other; in a rectangle they are equally long too.
    apart = math.hypot(ax + cx - bx - dx, ay + cy - by - dy)
    if apart > 2 * tolerance or abs(math.hypot(cx - ax, cy - ay) - math.hypot(dx - bx, dy - by)) > tolerance:
        return None
    # Corners listed counter-clockwise: the same rectangle, seen from its other side.
    if (bx - ax) * (dy - ay) - (by - ay) * (dx - ax) < 0:
        return _sides((corners[0], corners[3], corners[2], corners[1]))
    degrees = math.degrees(math.atan2(by - ay, bx - ax))
    return width, height, 0.0 if abs(degrees) < 1e-6 else degrees


def _smallest(points: Sequence[Corner]) -> list[Corner]:
    """Returns the corners of the smallest turned box around points, clockwise."""
    import cv2
    import numpy as np

    found = cv2.boxPoints(cv2.minAreaRect(np.asarray(points, np.float32).reshape(-1, 1, 2)))
    return [(float(x), float(y)) for x, y in found]


def same_shape(size: tuple[float, float], stored: tuple[float, float]) -> bool:
    """Returns whether two sizes (width, height) can be of one picture, only resized.

    Rounding to whole pixels changes the shape of a thumbnail by half a pixel on each side.
    """
    slack = 1.01 * (0.5 / min(size) + 0.5 / min(stored)) + 1e-3
    return abs((stored[0] / size[0]) / (stored[1] / size[1]) - 1) <= slack


def moved(label: Label, *, across: float, down: float) -> Label:
    """Returns a label for the same picture in another size.

    Args:
        label: of any kind but a mask, whose pixels cannot be made up.
        across: new width / old width.
        down: new height / old height, about the same: a turned box stays a box only then.

    Raises:
        ValueError: the label is a mask.
    """
    if isinstance(label, MaskLabel):
        raise ValueError("a mask cannot be resized")
    if isinstance(label, BoxesLabel):
        sides = {"x0": across, "x1": across, "y0": down, "y1": down}
        boxes = (
            box.model_copy(update={side: getattr(box, side) * factor for side, factor in sides.items()})
            for box in label.boxes
        )
        return BoxesLabel(boxes=tuple(boxes))
    if isinstance(label, PointsLabel):
        points = (Point(x=p.x * across, y=p.y * down, visible=p.visible) for p in label.points)
        return PointsLabel(points=tuple(points))
    return label
