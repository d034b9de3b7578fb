"""Draws the frames of a report: the picture, its colours, and how to read them.

image --enlarged, lines and fillings by the task--> Drawing (picture as a data URL, truth and answer in words)
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
from numpy.typing import NDArray

from misfire_runtime.preprocess import Image, encode_png

SIDE = 320
"""Maximum width and height of a picture, in pixels: many fit beside each other on a page."""
TEXT_SIZE = 12
"""Height of texts in a picture, in pixels."""
_DASH = 4
_IGNORED = (170, 170, 170)
RIGHT, WRONG, TRUE = (88, 214, 141), (255, 99, 71), (255, 255, 255)
_PALETTE = ("#8e9aa6", "#e4572e", "#2e86de", "#8e44ad", "#f2b705", "#17a589", "#d35d9e", "#6d8b1f")


@dataclass(frozen=True)
class Drawing:
    """Holds one frame: the picture as a data URL.

    Truth and answer in words, empty if the picture shows them.
    """

    picture: str
    truth: str = ""
    predicted: str = ""


@dataclass(frozen=True)
class Legend:
    """Explains the pictures.

    colours: (name, "#rrggbb") of a mask's classes. drawn: lines are drawn into them.
    """

    text: str
    colours: tuple[tuple[str, str], ...] = ()
    drawn: bool = True


def colour_of(number: int) -> str:
    """Returns the colour of a class, "#rrggbb"; colours repeat after eight."""
    return _PALETTE[number % len(_PALETTE)]


def box_colour(number: int) -> str:
    """Returns the colour of a class of boxes, "#rrggbb": never the grey of boxes to be ignored."""
    return _PALETTE[1 + number % (len(_PALETTE) - 1)]


def enlarged(image: Image, side: int = SIDE) -> tuple[Image, float]:
    """Returns the picture with a longer side of `side` pixels, so thin lines stay thin, and the factor."""
    factor = side / max(image.shape[:2])
    size = (max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor)))
    # Areas are averaged when shrinking, which would alias otherwise.
    how = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, size, interpolation=how), np.uint8), factor


def pixel(point: NDArray[Any], factor: float) -> tuple[int, int]:
    """Converts network pixels to those of the enlarged picture; the centre of a pixel stays its centre."""
    x, y = (point.astype(np.float64) + 0.5) * factor - 0.5
    return round(float(x)), round(float(y))


def rgb(colour: str) -> tuple[int, int, int]:
    """Returns the three numbers of "#rrggbb"."""
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def data_url(image: Image) -> str:
    """Returns a PNG as a data URL, shrunk to at most 320 pixels a side."""
    factor = SIDE / max(image.shape[:2])
    if factor < 1:
        size = (max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor)))
        image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
    return "data:image/png;base64," + base64.b64encode(encode_png(image)).decode()


@dataclass(frozen=True)
class Words:
    """Is a text to be written into a picture; x and y are its top left corner.

    background: colour of a bar behind it, None for none.
    """

    text: str
    x: float
    y: float
    colour: tuple[int, int, int] = TRUE
    background: tuple[int, int, int] | None = None


def outline(
    canvas: Image,
    box: NDArray[Any],
    colour: tuple[int, int, int],
    *,
    width: int = 1,
    dashed: bool = False,
) -> None:
    """Draws the outline of a box into the picture; x0 y0 x1 y1 are edges in its pixels."""
    x0, y0 = (round(float(value)) for value in box[:2])
    # The last pixel inside, and at least one.
    x1, y1 = max(x0, round(float(box[2])) - 1), max(y0, round(float(box[3])) - 1)
    if not dashed:
        # Inside of the edge: lines of two boxes side by side do not cover each other.
        for inset in range(width):
            far = max(x0, x1 - inset), max(y0, y1 - inset)
            cv2.rectangle(canvas, (min(x0 + inset, far[0]), min(y0 + inset, far[1])), far, colour, 1)
        return
    for start in range(x0, x1 + 1, 2 * _DASH):
        end = min(start + _DASH - 1, x1)
        for y in (y0, y1):
            cv2.line(canvas, (start, y), (end, y), colour, width)
    for start in range(y0, y1 + 1, 2 * _DASH):
        end = min(start + _DASH - 1, y1)
        for x in (x0, x1):
            cv2.line(canvas, (x, start), (x, end), colour, width)


def written(canvas: Image, words: Sequence[Words]) -> Image:
    """Returns the picture with texts; one that would leave it is moved inside."""
    picture = PIL.Image.fromarray(canvas)
    brush = PIL.ImageDraw.Draw(picture)
    font = PIL.ImageFont.load_default(TEXT_SIZE)
    for each in words:
        length = brush.textlength(each.text, font=font)
        x = max(0, min(each.x, picture.width - (length + 2)))
        y = max(0, min(each.y, picture.height - (TEXT_SIZE + 2)))
        if each.background is not None:
            brush.rectangle((x, y, x + length + 1, y + TEXT_SIZE + 1), fill=each.background)
        # "la": the top of the tallest letters, so that texts side by side have one line.
        brush.text((x + 1, y), each.text, fill=each.colour, font=font, anchor="la")
    return np.asarray(picture, np.uint8)


def contrasting(colour: tuple[int, int, int]) -> tuple[int, int, int]:
    """Returns black or white, whichever is easier to read on this colour."""
    # Rec. 601 luma.
    bright = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
    return (0, 0, 0) if bright > 140 else (255, 255, 255)


def text_width(text: str) -> int:
    """Returns the width of a text in pixels, as `written` writes it."""
    return int(PIL.ImageFont.load_default(TEXT_SIZE).getlength(text)) + 2


def labelled_boxes(
    image: Image, boxes: NDArray[Any], *, classes: Sequence[str], side: int = SIDE
) -> tuple[Image, str]:
    """Returns a picture with its labelled boxes and the names of their classes, and their counts in words.

    Boxes to be ignored are grey and dashed, without a name.

    Args:
        image: uint8 RGB [H,W,3].
        boxes: [G,6], x0 y0 x1 y1 in pixels of the picture, class, ignore.
        classes: names.
        side: longer side of the result in pixels.
    """
    canvas, factor = enlarged(image, side)
    canvas = canvas.copy()
    words, counts, ignored = [], Counter[str](), 0
    # Ignored regions first: an object in a crowd must stay visible.
    for box in sorted(boxes, key=lambda row: -float(row[5])):
        corners = box[:4] * factor
        if box[5]:
            ignored += 1
            outline(canvas, corners, _IGNORED, dashed=True)
            continue
        name, colour = classes[int(box[4])], rgb(box_colour(int(box[4])))
        counts[name] += 1
        outline(canvas, corners, colour, width=2)
        above = float(corners[1]) - TEXT_SIZE - 2
        words.append(
            Words(
                name,
                float(corners[0]),
                above if above >= 0 else float(corners[3]),
                contrasting(colour),
                colour,
            )
        )
    said = [f"{count} {name}" for name, count in counts.items()]
    said += [f"{ignored} to be ignored"] if ignored else []
    return written(canvas, words), ", ".join(said) or "no box"
