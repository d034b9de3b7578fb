"""Reads YOLOX: one box a cell with an objectness, its places raw unless they were decoded at export.

[N,P,5+C] x y w h objectness classes, the last two sigmoids; raw: ((xy + cell) stride, exp(wh) stride)
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from misfire_export.sources.detectors.base import FLAT, Image, Layout, Reading, Seen, layout, unit
from misfire_export.sources.detectors.decoding import Decoder, as_corners
from misfire_export.sources.detectors.grids import Grid, find_grid

_IMAGE: Image = {"resize": "letterbox-topleft", "pad": 114, "color": "bgr", "std": (1 / 255,)}
# exp of more is wider than any picture; without a bound a stray cell would be infinite.
_MAX_LOG_SIDE = 10.0


class YoloXDecoder(Decoder):
    """Decodes [N,P,5+C]; raw: places are in cells and logarithms of strides."""

    cells: Tensor
    strides: Tensor

    def __init__(self, grid: Grid, *, raw: bool) -> None:
        super().__init__()
        self.raw = raw
        cells, strides = grid.cells(offset=0.0)
        self.register_buffer("cells", cells)
        self.register_buffer("strides", strides)

    def forward(self, answer: Tensor) -> Tensor:
        """Returns the dense answer."""
        boxes, scale = answer[..., :4], self.strides[:, None]
        if self.raw:
            centre = boxes[..., :2] * scale + self.cells
            boxes = torch.cat((centre, torch.exp(boxes[..., 2:].clamp(max=_MAX_LOG_SIDE)) * scale), -1)
        return self.answer(
            as_corners(boxes, "cxcywh"),
            answer[..., 5:],
            objectness=answer[..., 4:5],
            cells=self.cells + scale / 2,
            strides=self.strides,
        )


@layout
class YoloX(Layout):
    """Recognises YOLOX, decoded or not."""

    name = "yolox"
    about = "YOLOX: [N,P,5+C] with an objectness, one box a cell; boxes raw or decoded"
    image = _IMAGE

    def read(self, seen: Seen) -> Iterator[Reading]:
        """Yields boxes, objectness and class scores of every cell, decoded or raw."""
        for name, value in seen.tensors(3):
            count, width = value.shape[1:]
            grid = find_grid(count, width=seen.width, height=seen.height, per_cell=(1,))
            if grid is None or width < 6 or (seen.classes and width != 5 + seen.classes):
                continue
            if not unit(value[..., 4:]):
                continue
            for raw in (False, True):
                yield Reading(
                    self.name,
                    (name,),
                    YoloXDecoder(grid, raw=raw),
                    FLAT,
                    f"{list(value.shape[1:])} is box, objectness and {width - 5} class scores of "
                    f"{grid.about}, boxes {'raw' if raw else 'decoded'}",
                    classes=width - 5,
                )
