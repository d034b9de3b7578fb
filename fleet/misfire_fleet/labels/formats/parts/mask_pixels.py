"""Turns the numbers of a mask label into an array and back, and into COCO's run lengths and back."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from misfire_fleet.labels.content import MaskLabel

UNLABELLED = 255
"""In exported masks: no class; what trainers of segmentation ignore."""
MAX_PIXELS = 64_000_000
_PNG = b"\x89PNG\r\n\x1a\n"
Mask = NDArray[np.uint16]


def pixels_of(label: MaskLabel) -> Mask:
    """Returns the numbers of a mask label, uint16 [H,W].

    Raises:
        ValueError: the PNG is damaged, larger than MAX_PIXELS, or not grey.
    """
    try:
        data = base64.b64decode(label.png, validate=True)
    except binascii.Error as error:
        raise ValueError(f"png is no base64 ({error})") from error
    if not data.startswith(_PNG) or len(data) < 24:
        raise ValueError("png is no PNG")
    # Width and height stand in the first chunk: they are checked before anything is decoded.
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    if not 0 < width * height <= MAX_PIXELS:
        raise ValueError(f"the mask has {width}x{height} pixels; at most {MAX_PIXELS:,} are read")
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if decoded is None or decoded.ndim != 2 or decoded.dtype not in (np.uint8, np.uint16):
        raise ValueError("the mask is no grey PNG of 8 or 16 bits")
    return np.asarray(decoded, np.uint16)


def mask_label(pixels: NDArray[Any], names: Mapping[int, str]) -> MaskLabel:
    """Returns the label of an array of numbers [H,W]; names that no pixel has are left out."""
    data = png_of(pixels)
    present = set(np.unique(pixels).tolist())
    return MaskLabel(
        png=base64.b64encode(data).decode("ascii"),
        names={number: name for number, name in sorted(names.items()) if number in present},
    )


def png_of(pixels: NDArray[Any]) -> bytes:
    """Returns an array of numbers [H,W] as a grey PNG, of 8 bits if they fit."""
    depth = np.uint8 if pixels.size == 0 or int(pixels.max()) <= 255 else np.uint16
    done, data = cv2.imencode(".png", pixels.astype(depth))
    if not done:
        raise ValueError("the mask cannot be encoded as PNG")
    return data.tobytes()


def renumbered(label: MaskLabel, numbers: Mapping[str, int]) -> NDArray[np.uint8]:
    """Returns the mask with the project's class numbers, 255 where there is no class, uint8 [H,W].

    Raises:
        ValueError: as `pixels_of`, or a class has a number above 254.
    """
    pixels = pixels_of(label)
    table = np.full(65_536, UNLABELLED, np.uint8)
    for stored, name in label.names.items():
        if numbers[name] >= UNLABELLED:
            raise ValueError(f"class {name} has the number {numbers[name]}; a mask has at most 255 classes")
        if 0 <= stored < len(table):
            table[stored] = numbers[name]
    return np.asarray(table[pixels], np.uint8)


def runs_of(mask: NDArray[Any]) -> dict[str, Any]:
    """Returns COCO's run lengths of a mask of truths [H,W]: columns first, beginning with zeros."""
    flat = np.asarray(mask, bool).reshape(-1, order="F")
    changes = [0, *(np.flatnonzero(flat[1:] != flat[:-1]) + 1).tolist(), flat.size]
    counts = [end - start for start, end in pairwise(changes)]
    if flat.size and flat[0]:
        counts.insert(0, 0)
    return {"size": [int(mask.shape[0]), int(mask.shape[1])], "counts": counts}


def mask_of_runs(runs: Mapping[str, Any]) -> NDArray[np.bool_]:
    """Returns the truths [H,W] of COCO's run lengths, as numbers or in its compressed text.

    Raises:
        ValueError: they do not add up to the size, or the size is above MAX_PIXELS.
    """
    size, counts = runs.get("size"), runs.get("counts")
    if not isinstance(size, Sequence) or len(size) != 2 or not all(type(v) is int and v > 0 for v in size):
        raise ValueError("size is not height and width")
    height, width = size
    if height * width > MAX_PIXELS:
        raise ValueError(f"the mask has {width}x{height} pixels; at most {MAX_PIXELS:,} are read")
    if isinstance(counts, str):
        counts = _uncompressed(counts)
    if not isinstance(counts, list) or not all(type(v) is int and v >= 0 for v in counts):
        raise ValueError("counts are not run lengths")
    if sum(counts) != height * width:
        raise ValueError(f"counts add up to {sum(counts):,}; expected {height * width:,}")
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape(height, width, order="F")


def _uncompressed(text: str) -> list[int]:
    """Returns the run lengths of COCO's text: five bits a character, each but two a difference."""
    counts: list[int] = []
    value, shift = 0, 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 40:
            raise ValueError("counts are not COCO's compressed run lengths")
        value |= (bits & 0x1F) << shift
        shift += 5
        if bits & 0x20:
            continue
        if bits & 0x10:
            value |= -1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value, shift = 0, 0
    if shift:
        raise ValueError("counts are cut off")
    return counts


def filled(polygons: Sequence[Sequence[float]], *, height: int, width: int) -> NDArray[np.bool_]:
    """Returns the truths [H,W] inside polygons of x, y, x, y, ...

    Raises:
        ValueError: a polygon has fewer than three points or an odd number of values.
    """
    mask: NDArray[np.uint8] = np.zeros((height, width), np.uint8)
    for polygon in polygons:
        if len(polygon) < 6 or len(polygon) % 2:
            raise ValueError(f"a polygon has {len(polygon)} numbers; expected three or more points")
        points = np.asarray(polygon, np.float64).reshape(-1, 2)
        if not np.isfinite(points).all() or np.abs(points).max() > 1e6:
            raise ValueError("a polygon has numbers that are no places in a picture")
        cv2.fillPoly(mask, [np.round(points - 0.5).astype(np.int32)], 1)
    return mask.astype(bool)


def mask_size(label: MaskLabel) -> tuple[int, int]:
    """Returns width and height as the PNG's first chunk states them; zeros if it has none."""
    try:
        # 32 characters of base64 are the signature and the first chunk's size.
        head = base64.b64decode(label.png[:32])
    except binascii.Error:
        return 0, 0
    return int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")
