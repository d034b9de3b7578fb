"""Reads YOLOv8, v9, v10, 11 and 26: box and class scores of each cell in one tensor, without an objectness.

[N,4+C,P] cx cy w h (x0 y0 x1 y1 of end-to-end heads) in network pixels, then C sigmoids. Where the graph
still has the distributions of the sides (the softmax of a DFL head), their deviation becomes the spread.
An end-to-end head and `nms=True` hold this tensor before their TopK or suppression.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from misfire_export.sources.detectors.base import FLAT, Layout, Reading, Seen, layout, unit
from misfire_export.sources.detectors.decoding import (
    Decoder,
    Format,
    as_corners,
    side_statistics,
)
from misfire_export.sources.detectors.grids import Grid, find_grid


class FlatDecoder(Decoder):
    """Decodes [N,4+C,P] or [N,P,4+C]; with `bins`, the order of axes that makes distributions [N,P,4,R]."""

    cells: Tensor
    strides: Tensor

    def __init__(
        self, grid: Grid, *, form: Format, channels_first: bool, bins: tuple[int, ...] | None
    ) -> None:
        super().__init__()
        self.form, self.channels_first, self.bins = form, channels_first, bins
        cells, strides = grid.cells()
        self.register_buffer("cells", cells)
        self.register_buffer("strides", strides)

    def forward(self, answer: Tensor, distributions: Tensor | None = None) -> Tensor:
        """Returns the dense answer."""
        rows = answer.transpose(1, 2) if self.channels_first else answer
        spread = None
        if distributions is not None and self.bins is not None:
            deviation = side_statistics(distributions.permute(self.bins))[1]
            spread = deviation.mean(-1) * self.strides
        return self.answer(
            as_corners(rows[..., :4], self.form),
            rows[..., 4:],
            spread=spread,
            cells=self.cells,
            strides=self.strides,
        )


@layout
class Ultralytics(Layout):
    """Is YOLOv8 to YOLO26 by Ultralytics, and what writes its answer likewise."""

    name = "ultralytics"
    about = "YOLOv8, v9, v10, 11, 26: [N,4+C,P], no objectness; also before nms=True or an end-to-end TopK"

    def read(self, seen: Seen) -> Iterator[Reading]:
        """Yields boxes and class scores of every cell, with channels in either axis."""
        for name, value in seen.tensors(3):
            for channels_first in (True, False):
                count, width = (
                    value.shape[2 if channels_first else 1],
                    value.shape[1 if channels_first else 2],
                )
                grid = find_grid(count, width=seen.width, height=seen.height, per_cell=(1,))
                if grid is None or width < 5 or (seen.classes and width != 4 + seen.classes):
                    continue
                scores = value[:, 4:] if channels_first else value[..., 4:]
                if not unit(scores):
                    continue
                spread = _distributions(seen, grid)
                # Written across, [N,P,4+C] could as well have an objectness: the usual way round is stronger.
                strength = FLAT + (1 if channels_first else 0)
                for form in ("cxcywh", "xyxy"):
                    yield Reading(
                        self.name,
                        (name, *([spread[0]] if spread else [])),
                        FlatDecoder(
                            grid,
                            form=form,
                            channels_first=channels_first,
                            bins=spread[1] if spread else None,
                        ),
                        strength,
                        f"{list(value.shape[1:])} is box and {width - 4} class scores of {grid.about}, "
                        f"boxes as {form}",
                        classes=width - 4,
                        notes=("box distributions found: their spread is known",) if spread else (),
                    )


def _distributions(seen: Seen, grid: Grid) -> tuple[str, tuple[int, ...]] | None:
    """Returns the softmax of the sides' distributions, and the order of axes that makes it [N,P,4,R]."""
    for name, value in seen.inside(4):
        if seen.makers.get(name) != "Softmax":
            continue
        order = _order(value, grid.count)
        if order is not None:
            return name, order
    return None


def _order(value: NDArray[np.float32], count: int) -> tuple[int, ...] | None:
    cells = [axis for axis in (1, 2, 3) if value.shape[axis] == count]
    sides = [axis for axis in (1, 2, 3) if value.shape[axis] == 4]
    for cell in cells:
        for side in sides:
            bins = 6 - cell - side
            if side == cell or value.shape[bins] < 4:
                continue
            if np.allclose(value.sum(axis=bins), 1, atol=1e-3):
                return 0, cell, side, bins
    return None


def mean_sides(bins: Tensor) -> Tensor:
    """Returns the mean of logits [..,R] over 0..R-1 after a softmax."""
    return side_statistics(torch.softmax(bins, -1))[0]
