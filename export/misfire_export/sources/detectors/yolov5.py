"""Reads YOLOv5 and v7: three boxes a cell, with an objectness; decoded in one tensor, or raw maps.

[N,3 cells,5+C] cx cy w h objectness classes, network pixels and sigmoids
[N,3,h,w,5+C] or [N,3 (5+C),h,w] for each of three levels: (2 s - .5 + cell) stride, (2 s)^2 anchor

The maps are the same for v5 and v7, whose anchors differ, so these have to be told apart by --layout.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from misfire_export.sources.detectors.base import FLAT, MAPS, Layout, Reading, Seen, layout, unit
from misfire_export.sources.detectors.decoding import Decoder, as_corners
from misfire_export.sources.detectors.grids import Grid, find_grid, find_levels

Anchors = tuple[tuple[int, ...], ...]
V5: Anchors = ((10, 13, 16, 30, 33, 23), (30, 61, 62, 45, 59, 119), (116, 90, 156, 198, 373, 326))
V7: Anchors = ((12, 16, 19, 36, 40, 28), (36, 75, 76, 55, 72, 146), (142, 110, 192, 243, 459, 401))
"""Widths and heights of the published networks' anchors, in pixels, by level."""


class ObjectnessDecoder(Decoder):
    """Decodes [N,P,5+C] of boxes in network pixels; the score is objectness times class."""

    cells: Tensor
    strides: Tensor

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        cells, strides = grid.cells()
        self.register_buffer("cells", cells)
        self.register_buffer("strides", strides)

    def forward(self, answer: Tensor) -> Tensor:
        """Returns the dense answer."""
        return self.answer(
            as_corners(answer[..., :4], "cxcywh"),
            answer[..., 5:],
            objectness=answer[..., 4:5],
            cells=self.cells,
            strides=self.strides,
        )


class MapsDecoder(Decoder):
    """Decodes three maps; `activated` if they have been through their sigmoid."""

    cells: Tensor
    strides: Tensor
    anchors: Tensor

    def __init__(self, grid: Grid, anchors: Anchors, *, activated: bool) -> None:
        super().__init__()
        self.activated, self.per_cell = activated, grid.per_cell
        cells, strides = grid.cells(offset=0.0)
        sizes = [
            torch.tensor(level, dtype=torch.float32).reshape(-1, 2).repeat_interleave(rows * columns, 0)
            for level, (rows, columns) in zip(anchors, grid.sizes, strict=True)
        ]
        self.register_buffer("cells", cells)
        self.register_buffer("strides", strides)
        self.register_buffer("anchors", torch.cat(sizes))

    def forward(self, *maps: Tensor) -> Tensor:
        """Returns the dense answer."""
        rows = torch.cat([self._rows(level) for level in maps], 1)
        values = rows if self.activated else torch.sigmoid(rows)
        centre = (values[..., :2] * 2 - 0.5) * self.strides[:, None] + self.cells
        size = (values[..., 2:4] * 2).square() * self.anchors
        return self.answer(
            as_corners(torch.cat((centre, size), -1), "cxcywh"),
            values[..., 5:],
            objectness=values[..., 4:5],
            cells=self.cells + self.strides[:, None] / 2,
            strides=self.strides,
        )

    def _rows(self, level: Tensor) -> Tensor:
        if level.ndim == 4:
            batch, channels, rows, columns = level.shape
            level = level.reshape(batch, self.per_cell, channels // self.per_cell, rows, columns)
            level = level.permute(0, 1, 3, 4, 2)
        return level.flatten(1, 3)


@layout
class YoloV5(Layout):
    """Recognises YOLOv5, and v7 where it decodes its boxes itself."""

    name = "yolov5"
    about = "YOLOv5, v7: [N,P,5+C] with an objectness, three boxes a cell; or three raw maps of YOLOv5"

    def read(self, seen: Seen) -> Iterator[Reading]:
        """Yields one tensor of all cells, or three raw maps with this version's anchors."""
        yield from _flat(self.name, seen)
        yield from _maps(self.name, seen, V5)


@layout
class YoloV7(Layout):
    """Recognises YOLOv7 as three raw maps."""

    name = "yolov7"
    about = "YOLOv7 as three raw maps, whose anchors differ from YOLOv5's"

    def read(self, seen: Seen) -> Iterator[Reading]:
        """Yields three raw maps with this version's anchors."""
        yield from _maps(self.name, seen, V7)


def _flat(name: str, seen: Seen) -> Iterator[Reading]:
    for tensor, value in seen.tensors(3):
        count, width = value.shape[1:]
        grid = find_grid(count, width=seen.width, height=seen.height, per_cell=(3,))
        if grid is None or width < 6 or (seen.classes and width != 5 + seen.classes):
            continue
        if unit(value[..., 4:]):
            yield Reading(
                name,
                (tensor,),
                ObjectnessDecoder(grid),
                FLAT,
                f"{list(value.shape[1:])} is box, objectness and {width - 5} class scores of {grid.about}",
                classes=width - 5,
            )


def _maps(name: str, seen: Seen, anchors: Anchors) -> Iterator[Reading]:
    for found in (_levels(seen, 5), _levels(seen, 4)):
        if found is None:
            continue
        names, strides, width = found
        values = [seen.values[tensor] for tensor in names]
        activated = all(unit(value) for value in values)
        yield Reading(
            name,
            names,
            MapsDecoder(Grid(seen.width, seen.height, strides, 3), anchors, activated=activated),
            MAPS,
            f"{len(names)} maps of three boxes a cell, each box, objectness and {width - 5} classes, "
            f"{'after' if activated else 'before'} the sigmoid",
            classes=width - 5,
        )


def _levels(seen: Seen, rank: int) -> tuple[tuple[str, ...], tuple[int, ...], int] | None:
    """Returns the maps of three levels, finest first, with strides and 5+C."""
    groups: dict[int, list[tuple[int, str, NDArray[np.float32]]]] = {}
    for name, value in seen.tensors(rank):
        shape: Sequence[int] = value.shape
        if rank == 5 and shape[1] == 3:
            groups.setdefault(shape[4], []).append((shape[2] * shape[3], name, value))
        elif rank == 4 and shape[1] % 3 == 0:
            groups.setdefault(shape[1] // 3, []).append((shape[2] * shape[3], name, value))
    for width, maps in groups.items():
        # The nearest to the output of each size.
        sizes = {cells: (name, value) for cells, name, value in reversed(maps)}
        if len(sizes) != 3 or width < 6 or (seen.classes and width != 5 + seen.classes):
            continue
        ordered = [sizes[cells] for cells in sorted(sizes, reverse=True)]
        places = [value.shape[2:4] for _, value in ordered]
        strides = find_levels([(p[0], p[1]) for p in places], width=seen.width, height=seen.height)
        if strides == (8, 16, 32):
            return tuple(name for name, _ in ordered), strides, width
    return None
