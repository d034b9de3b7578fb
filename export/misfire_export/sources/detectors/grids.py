"""Knows the cells of anchor-free and anchor-based heads: their number alone tells strides and boxes a cell.

P, input size --> strides of the levels, boxes per cell --> centre and stride of each of the P cells
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

PYRAMIDS = (
    (8, 16, 32),
    (8, 16, 32, 64),
    (8, 16, 32, 64, 128),
    (16, 32),
    (4, 8, 16, 32),
)
"""Strides of heads in use; of several that fit, the first is taken.

A single level is none: one of several maps would be taken for the whole answer.
"""
PER_CELL = (1, 3, 9)


@dataclass(frozen=True)
class Grid:
    """Describes the cells of all levels, level by level, anchor by anchor, row by row."""

    width: int
    height: int
    strides: tuple[int, ...]
    per_cell: int = 1

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """Returns rows and columns of each level; a last, partial cell counts."""
        return tuple((math.ceil(self.height / s), math.ceil(self.width / s)) for s in self.strides)

    @property
    def count(self) -> int:
        """Returns P, the number of boxes."""
        return self.per_cell * sum(rows * columns for rows, columns in self.sizes)

    @property
    def about(self) -> str:
        """Returns the grid in words."""
        boxes = "cells" if self.per_cell == 1 else f"boxes, {self.per_cell} a cell,"
        return f"{self.count} {boxes} of strides {', '.join(map(str, self.strides))}"

    def cells(self, *, offset: float = 0.5) -> tuple[Tensor, Tensor]:
        """Returns the centres [P,2] and strides [P] in network pixels.

        offset: of a centre within its cell, in cells.
        """
        centres, strides = [], []
        for stride, (rows, columns) in zip(self.strides, self.sizes, strict=True):
            y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
            level = (torch.stack((x, y), -1).reshape(-1, 2).float() + offset) * stride
            centres.append(level.repeat(self.per_cell, 1))
            strides.append(torch.full((len(level) * self.per_cell,), float(stride)))
        return torch.cat(centres), torch.cat(strides)


def find_grid(count: int, *, width: int, height: int, per_cell: tuple[int, ...] = PER_CELL) -> Grid | None:
    """Returns the grid that has `count` boxes, None if none has.

    >>> find_grid(8400, width=640, height=640).strides
    (8, 16, 32)
    >>> find_grid(25200, width=640, height=640).per_cell
    3
    >>> find_grid(300, width=640, height=640) is None
    True
    """
    for number in per_cell:
        for strides in PYRAMIDS:
            grid = Grid(width, height, strides, number)
            if grid.count == count:
                return grid
    return None


def find_levels(maps: list[tuple[int, int]], *, width: int, height: int) -> tuple[int, ...] | None:
    """Returns the strides of maps of these rows and columns, finest first; None if no pyramid has them."""
    for strides in PYRAMIDS:
        if len(strides) == len(maps) and Grid(width, height, strides).sizes == tuple(maps):
            return strides
    return None
