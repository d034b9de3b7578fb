"""Joins four labelled pictures to one, each in a quarter of its own: more objects, sizes and neighbours.

draw_mosaics --> Mosaics --join_pictures, join_boxes--> [N,C,H,W], [N,4G,6]      (Bochkovskiy et al. 2020)

A picture is enlarged or reduced, never below the size of its quarter, so that each quarter is filled.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from misfire_train.boxes.columns import BOX
from misfire_train.boxes.geometry import cut_boxes

QUARTERS = 4
CROSS = (0.3, 0.7)
"""Where the four pictures meet, as a share of either side."""
FACTORS = (-0.7, 0.2)
"""Bounds of the logarithm of a picture's size: mostly smaller, as each has less than half of the place."""


@dataclass(frozen=True)
class Mosaics:
    """Holds where the pictures of N mosaics go: picture x is at factor * x + corner.

    windows: int64 [N,4,4], the quarters, x0 y0 x1 y1.  factor: [N,4].  corner: [N,4,2], x and y.
    """

    windows: Tensor
    factor: Tensor
    corner: Tensor


def draw_mosaics(count: int, generator: np.random.Generator, *, width: int, height: int) -> Mosaics:
    """Returns `count` random mosaics of pictures of width x height."""
    size = np.array((width, height))
    cross = np.rint(generator.uniform(*CROSS, (count, 2)) * size).astype(np.int64)
    x, y = cross.T
    left, right, top, bottom = (
        np.zeros_like(x),
        np.full_like(x, width),
        np.zeros_like(y),
        np.full_like(y, height),
    )
    windows = np.stack(
        [
            np.stack(quarter, 1)
            for quarter in (
                (left, top, x, y),
                (x, top, right, y),
                (left, y, x, bottom),
                (x, y, right, bottom),
            )
        ],
        1,
    )
    sides = windows[..., 2:] - windows[..., :2]
    drawn = np.exp(generator.uniform(*FACTORS, (count, QUARTERS)))
    factor = np.maximum(drawn, (sides / size).max(2))
    # Which part of the picture is seen: any, but never beyond its border.
    spare = factor[..., None] * size - sides
    corner = windows[..., :2] - generator.random((count, QUARTERS, 2)) * spare
    return Mosaics(
        torch.from_numpy(windows), torch.from_numpy(factor).float(), torch.from_numpy(corner).float()
    )


def join_pictures(images: Tensor, mosaics: Mosaics) -> Tensor:
    """Returns the mosaics [N,C,H,W] of pictures [N,4,C,H,W], bilinear."""
    height, width = images.shape[3:]
    joined = torch.empty_like(images[:, 0])
    for row in range(len(images)):
        for quarter in range(QUARTERS):
            x0, y0, x1, y1 = mosaics.windows[row, quarter].tolist()
            factor, corner = mosaics.factor[row, quarter], mosaics.corner[row, quarter]
            # grid_sample asks where each pixel's centre comes from, and puts the picture's edges at -1 and 1.
            x = 2 * (torch.arange(x0, x1) + 0.5 - corner[0]) / (factor * width) - 1
            y = 2 * (torch.arange(y0, y1) + 0.5 - corner[1]) / (factor * height) - 1
            places = torch.stack(torch.meshgrid(x, y, indexing="xy"), 2)[None].to(images.dtype)
            joined[row, :, y0:y1, x0:x1] = functional.grid_sample(
                images[row, quarter : quarter + 1], places, padding_mode="border", align_corners=False
            )[0]
    return joined


def join_boxes(targets: Tensor, mosaics: Mosaics) -> Tensor:
    """Returns the boxes [N,4G,6] of mosaics of pictures with boxes [N,4,G,6], cut at the quarters' edges."""
    moved = targets.clone()
    corner = mosaics.corner.repeat(1, 1, 2)[:, :, None]
    moved[..., :BOX] = mosaics.factor[..., None, None] * targets[..., :BOX] + corner
    return cut_boxes(moved, mosaics.windows[:, :, None].to(moved.dtype)).flatten(1, 2)
