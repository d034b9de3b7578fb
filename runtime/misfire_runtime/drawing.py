"""Draws a model's answer over a picture: boxes, joints, masks, bars of classes, and a score over time.

Every function takes pictures as uint8 RGB [H,W,3] and draws into them in place; sizes of lines and letters
follow the picture. A vehicle's video (`misfire run --show`) and reports use the same lines and colours.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Rgb = tuple[int, int, int]

DOUBTFUL, UNSURE, SURE, JOINT = (255, 122, 51), (255, 210, 74), (57, 160, 255), (255, 210, 74)
WHITE, SOFT, INK, PAPER = (255, 255, 255), (150, 160, 175), (0, 0, 0), (16, 19, 24)
PALETTE: tuple[Rgb, ...] = (
    (142, 154, 166),
    (228, 87, 46),
    (46, 134, 222),
    (142, 68, 173),
    (242, 183, 5),
    (23, 165, 137),
    (211, 93, 158),
    (109, 139, 31),
)
"""Colours of classes; they repeat after eight."""
NO_CLASS = 255
"""In a mask: not labelled, or where the network did not look."""
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_MASK_SHARE = 0.45
# Drawn lines are antialiased with 4 more bits: a box edge between two pixels stays where it is.
_SHIFT = 4
_FAR = 1e6


def colour_of(number: int) -> Rgb:
    """Returns the colour of a class."""
    return PALETTE[number % len(PALETTE)]


def doubt_colour(p: float | None) -> Rgb:
    """Returns the colour of a box by the probability that it is right: below 50 %, below 80 %, above."""
    if p is None or not np.isfinite(p):
        return SURE
    return DOUBTFUL if p < 0.5 else UNSURE if p < 0.8 else SURE


def draw_boxes(
    image: NDArray[np.uint8], corners: NDArray[Any], *, labels: Sequence[str], colours: Sequence[Rgb]
) -> None:
    """Draws boxes with their labels; the first lie on top of the others.

    Args:
        image: [H,W,3] uint8 RGB.
        corners: [n,4] x0 y0 x1 y1 in pixels of the image.
        labels: n texts; "" draws none.
        colours: n colours.
    """
    line = _line(image)
    order = range(len(corners) - 1, -1, -1)
    for i in order:
        x0, y0, x1, y1 = (_fixed(float(side)) for side in corners[i])
        for colour, width in ((INK, line + 2), (colours[i], line)):
            cv2.rectangle(image, (x0, y0), (x1, y1), colour, width, cv2.LINE_AA, _SHIFT)
    # After all boxes, so that none hides a label.
    for i in order:
        if labels[i]:
            _label(image, corners[i], labels[i], colours[i])


def draw_joints(image: NDArray[np.uint8], points: NDArray[Any], *, colour: Rgb = JOINT) -> None:
    """Draws points [n,2], in pixels of the image, as dots; those that are not finite are left out."""
    radius = 2 * _line(image) + 1
    for x, y in points:
        if np.isfinite(x) and np.isfinite(y):
            centre = (_fixed(float(x)), _fixed(float(y)))
            for shade, size in ((INK, radius + 1), (colour, radius)):
                cv2.circle(image, centre, size << _SHIFT, shade, -1, cv2.LINE_AA, _SHIFT)


def blend_mask(image: NDArray[np.uint8], mask: NDArray[np.uint8]) -> None:
    """Colours every pixel by its class.

    Args:
        image: [H,W,3] uint8 RGB.
        mask: [H,W] classes; 255 leaves the pixel as it is.
    """
    colours = np.array([colour_of(number) for number in range(256)], np.uint8)[mask]
    shown = (mask != NO_CLASS)[:, :, None]
    blended = cv2.addWeighted(image, 1 - _MASK_SHARE, colours, _MASK_SHARE, 0)
    np.copyto(image, np.asarray(blended, np.uint8), where=shown)


def draw_bars(
    image: NDArray[np.uint8], bars: Sequence[tuple[str, float]], *, colours: Sequence[Rgb] = ()
) -> None:
    """Draws names with bars of their shares, 0..1, in the top left corner.

    Args:
        image: [H,W,3] uint8 RGB.
        bars: at most eight are drawn.
        colours: one per bar; by default those of the first classes.
    """
    scale = text_scale(image)
    row, width = round(26 * scale + 8), round(min(image.shape[1] * 0.45, 360 * scale + 60))
    shown = list(bars)[:8]
    if not shown or image.shape[0] < row:
        return
    bottom = min(image.shape[0], row * len(shown) + 8)
    panel = image[:bottom, :width]
    panel[:] = (panel * 0.4).astype(np.uint8)
    for i, (name, share) in enumerate(shown):
        top = 4 + i * row
        colour = colours[i] if i < len(colours) else colour_of(i)
        length = round((width - 16) * float(np.clip(share, 0, 1)))
        cv2.rectangle(image, (8, top + row - 8), (8 + length, top + row - 5), colour, -1)
        write(image, f"{name[:28]} {100 * share:.0f} %", (8, top + row - 11), scale=0.8 * scale)


def score_strip(
    width: int,
    height: int,
    *,
    levels: Sequence[float],
    marks: Sequence[Rgb | None],
    room: int,
    title: str = "",
    value: str = "",
) -> NDArray[np.uint8]:
    """Draws a score over time: the newest at the right edge, high at the top.

    Args:
        width: of the strip, in pixels.
        height: of the strip, in pixels.
        levels: 0..1, the oldest first; NaN leaves a gap.
        marks: a colour for frames that were kept, else None; as many as levels.
        room: frames that fit the strip.
        title: written at the left.
        value: written at the right.

    Returns:
        [height,width,3] uint8 RGB.
    """
    strip = np.full((height, width, 3), PAPER, np.uint8)
    scale = text_scale(strip, of=width * 0.6)
    head = round(22 * scale + 8)
    low, high = height - 5, head + 3
    for level in (0.0, 0.5, 0.95):
        y = round(low - level * (low - high))
        cv2.line(strip, (0, y), (width, y), (44, 50, 60), 1)
    step = width / max(room, 2)
    left = width - step * len(levels)
    points = [(left + step * (i + 0.5), low - float(level) * (low - high)) for i, level in enumerate(levels)]
    for (x0, y0), (x1, y1) in pairwise(points):
        if np.isfinite(y0) and np.isfinite(y1):
            cv2.line(strip, (_fixed(x0), _fixed(y0)), (_fixed(x1), _fixed(y1)), SOFT, 1, cv2.LINE_AA, _SHIFT)
    for (x, place), mark in zip(points, marks, strict=True):
        if mark is not None and np.isfinite(place):
            cv2.circle(strip, (_fixed(x), _fixed(place)), 3 << _SHIFT, mark, -1, cv2.LINE_AA, _SHIFT)
    write(strip, title, (8, head - 6), scale=scale)
    size = text_width(value, scale=scale)
    write(strip, value, (max(8, width - size - 8), head - 6), scale=scale)
    return strip


def text_scale(image: NDArray[np.uint8], *, of: float | None = None) -> float:
    """Returns the size of letters for a picture: readable in a small one, modest in a large one."""
    side = max(image.shape[:2]) if of is None else of
    return float(np.clip(side / 1300, 0.45, 1.2))


def text_width(text: str, *, scale: float) -> int:
    """Returns the width of a line of text in pixels."""
    return int(cv2.getTextSize(_plain(text), _FONT, scale, 1)[0][0])


def write(
    image: NDArray[np.uint8], text: str, place: tuple[int, int], *, scale: float, colour: Rgb = WHITE
) -> None:
    """Writes a line of text on a dark plate, its lower left corner at `place`."""
    (width, height), base = cv2.getTextSize(_plain(text), _FONT, scale, 1)
    x, y = place
    top, bottom = max(0, y - height - 2), max(0, y + base)
    # A plate, because an outline of another thickness has letters of other widths.
    plate = image[top:bottom, max(0, x - 2) : max(0, x + width + 2)]
    plate[:] = (plate * 0.25).astype(np.uint8)
    cv2.putText(image, _plain(text), place, _FONT, scale, colour, 1, cv2.LINE_AA)


def _label(image: NDArray[np.uint8], corners: NDArray[Any], text: str, colour: Rgb) -> None:
    """Writes a label above its box, or below or inside if there is no room."""
    scale = text_scale(image)
    (width, height), base = cv2.getTextSize(_plain(text), _FONT, scale, 1)
    x0, y0, _x1, y1 = (float(np.clip(side, -_FAR, _FAR)) for side in corners)
    x = round(min(max(2.0, x0), max(2.0, image.shape[1] - width - 2)))
    y = round(y0 - base - 1)
    if y - height < 2:
        y = round(y1 + height + 5)
    if y + base > image.shape[0]:
        y = round(min(max(0.0, y0), image.shape[0] - 1.0) + height + 5)
    write(image, text, (x, y), scale=scale, colour=colour)


def _line(image: NDArray[np.uint8]) -> int:
    return max(1, round(max(image.shape[:2]) / 400))


def _fixed(value: float) -> int:
    """Returns a place for OpenCV: pixel centres at whole numbers, 4 bits behind the point, and bounded."""
    return round((float(np.clip(value, -_FAR, _FAR)) - 0.5) * (1 << _SHIFT))


def _plain(text: str) -> str:
    """Returns the text in the letters that OpenCV can draw."""
    return text.encode("ascii", "replace").decode("ascii")
