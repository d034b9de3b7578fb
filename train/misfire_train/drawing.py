"""Draws the frames of a report: the picture, its colours, and how to read them.

image --enlarged, lines and fillings by the task--> Drawing (picture as a data URL, truth and answer in words)
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from misfire_runtime.preprocess import Image, encode_png

SIDE = 320
"""Maximum width and height of a picture, in pixels: many fit beside each other on a page."""
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


def enlarged(image: Image) -> tuple[Image, float]:
    """Returns the picture at about SIDE pixels, so that thin lines stay thin, and the factor."""
    factor = SIDE / max(image.shape[:2])
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
