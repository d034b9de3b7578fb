"""Reads a mask out of a graph's output: the class of every pixel of the picture, and where it is in doubt.

logits [1,K,h,w] + Placement --mask_of--> [H,W] classes;  --tile_doubts--> boxes of tiles and their entropy
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from misfire_runtime.placement import Placement


def mask_of(logits: NDArray[Any], place: Placement, *, network: tuple[int, int]) -> NDArray[np.uint8]:
    """Returns the class of every pixel of the picture, [H,W]; 255 where the network did not look.

    Args:
        logits: [1,K,h,w]; with one channel, above 0 is class 1.
        place: of the picture in the network's input.
        network: width and height of the network's input.
    """
    classes = logits[0].argmax(0) if logits.shape[1] > 1 else logits[0, 0] > 0
    # 255 means no class.
    small = np.minimum(classes, 254).astype(np.uint8)
    # From network pixels to pixels of the picture, in one nearest-neighbour warp.
    scale_x, scale_y = small.shape[1] / network[0], small.shape[0] / network[1]
    per_x, per_y = place.inner_width / place.width * scale_x, place.inner_height / place.height * scale_y
    move = np.array(
        [
            [per_x, 0, place.left * scale_x + 0.5 * per_x - 0.5],
            [0, per_y, place.top * scale_y + 0.5 * per_y - 0.5],
        ]
    )
    return np.asarray(
        cv2.warpAffine(
            small,
            move,
            (place.width, place.height),
            flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=255,
        ),
        np.uint8,
    )


def tile_doubts(
    logits: NDArray[Any], place: Placement, *, rows: int = 4, columns: int = 4
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Returns where a mask is in doubt: a grid of tiles, as the heads of segmentation score them.

    Args:
        logits: [1,K,h,w], K at least 2.
        place: of the picture in the network's input.

    Returns:
        Boxes of the tiles in pixels of the picture, [rows*columns,4], and the mean entropy of their pixels,
        0..1 of its maximum.
    """
    scaled = np.asarray(logits[0], np.float32)
    shares = np.exp(scaled - scaled.max(0))
    shares /= shares.sum(0)
    entropy = -(shares * np.log(np.maximum(shares, 1e-9))).sum(0) / np.log(max(2, len(shares)))
    height, width = entropy.shape
    tops, lefts = np.arange(rows + 1) * height / rows, np.arange(columns + 1) * width / columns
    to_network = np.tile([place.network_width / width, place.network_height / height], 2)
    boxes, doubts = [], []
    for y0, y1 in pairwise(tops):
        for x0, x1 in pairwise(lefts):
            boxes.append((x0, y0, x1, y1))
            tile = entropy[int(y0) : max(int(y0) + 1, int(y1)), int(x0) : max(int(x0) + 1, int(x1))]
            doubts.append(float(tile.mean()) if tile.size else 0.0)
    corners = place.clip(place.to_image(np.array(boxes) * to_network))
    return corners, np.array(doubts, np.float32)


def span(start: int, length: int, scale: float) -> slice:
    """Returns the cells of a map that lie on a stretch of network pixels, at least one."""
    first = max(0, int(start * scale))
    return slice(first, max(first + 1, round((start + length) * scale)))
