"""Reads NanoDet-Plus and PicoDet: sides as distributions over 0..R-1 strides, before their softmax.

NanoDet-Plus  [N,P,C+4R], R = 8, cells from their upper left corner
PicoDet       [N,P_l,C] and [N,P_l,4R], or [N,C,h,w] and [N,4R,h,w], for each level, cells from their centre
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from misfire_export.sources.detectors.base import (
    FLAT,
    IMAGENET,
    MAPS,
    Image,
    Layout,
    Reading,
    Seen,
    layout,
    unit,
)
from misfire_export.sources.detectors.decoding import (
    Decoder,
    from_sides,
    side_statistics,
)
from misfire_export.sources.detectors.grids import PYRAMIDS, Grid, find_grid

_NANODET: Image = {
    "color": "bgr",
    "resize": "stretch",
    "mean": (103.53 / 255, 116.28 / 255, 123.675 / 255),
    "std": (57.375 / 255, 57.12 / 255, 58.395 / 255),
}
NANODET_BINS = 8
_LARGEST = 33
"""Bins of a side that are in use: 8 (PicoDet, NanoDet), 16 and 17 (GFL), 33 (D-FINE)."""


class DistributionDecoder(Decoder):
    """Decodes class scores and distributions of all cells.

    With `classes` both come in one tensor; else first the scores of all levels, then their distributions.
    """

    cells: Tensor
    strides: Tensor

    def __init__(self, grid: Grid, *, offset: float, classes: int = 0, sigmoid: bool = False) -> None:
        super().__init__()
        self.classes, self.sigmoid = classes, sigmoid
        cells, strides = grid.cells(offset=offset)
        self.register_buffer("cells", cells)
        self.register_buffer("strides", strides)

    def forward(self, *tensors: Tensor) -> Tensor:
        """Returns the dense answer."""
        if self.classes:
            scores, sides = tensors[0][..., : self.classes], tensors[0][..., self.classes :]
        else:
            levels = [level.flatten(2).transpose(1, 2) if level.ndim == 4 else level for level in tensors]
            half = len(levels) // 2
            scores, sides = torch.cat(levels[:half], 1), torch.cat(levels[half:], 1)
        bins = torch.softmax(sides.reshape(sides.shape[0], sides.shape[1], 4, -1), -1)
        mean, deviation = side_statistics(bins)
        return self.answer(
            from_sides(mean, self.cells, self.strides),
            scores,
            are_logits=self.sigmoid,
            spread=deviation.mean(-1) * self.strides,
            cells=self.cells,
            strides=self.strides,
        )


@layout
class NanoDet(Layout):
    """Recognises NanoDet-Plus."""

    name = "nanodet"
    about = "NanoDet-Plus: [N,P,C+32], sigmoids and raw distributions of the sides"
    image = _NANODET

    def read(self, seen: Seen) -> Iterator[Reading]:
        """Yields rows of class scores that are followed by distributions of the four sides."""
        for name, value in seen.tensors(3):
            count, width = value.shape[1:]
            classes = width - 4 * NANODET_BINS
            grid = find_grid(count, width=seen.width, height=seen.height, per_cell=(1,))
            if grid is None or classes < 1 or (seen.classes and classes != seen.classes):
                continue
            if not unit(value[..., :classes]) or unit(value[..., classes:]):
                continue
            yield Reading(
                self.name,
                (name,),
                DistributionDecoder(grid, offset=0.0, classes=classes),
                FLAT,
                f"{list(value.shape[1:])} is {classes} class scores and four distributions of {grid.about}",
                classes=classes,
            )


@layout
class PicoDet(Layout):
    """Recognises PicoDet (PaddleDetection) without its post-processing."""

    name = "picodet"
    about = "PicoDet: class maps and raw distributions of each level"
    image = IMAGENET

    def read(self, seen: Seen) -> Iterator[Reading]:
        """Yields pairs of class scores and distributions, one pair for each stride."""
        for strides in sorted(PYRAMIDS, key=len, reverse=True):
            grid = Grid(seen.width, seen.height, strides)
            if len(strides) < 3:
                continue
            for scores, sides in _pairs(seen, grid):
                values = [seen.values[name] for name in scores]
                classes = values[0].shape[1 if values[0].ndim == 4 else 2]
                raw = not all(unit(value) for value in values)
                yield Reading(
                    self.name,
                    (*scores, *sides),
                    DistributionDecoder(grid, offset=0.5, sigmoid=raw),
                    MAPS,
                    f"{len(strides)} levels of {classes} class {'logits' if raw else 'scores'} and four "
                    f"distributions, strides {', '.join(map(str, strides))}",
                    classes=classes,
                )
                # The pyramid with most levels: a smaller one would leave maps out.
                return


def _pairs(seen: Seen, grid: Grid) -> Iterator[tuple[list[str], list[str]]]:
    """Yields (class tensors, distribution tensors) of all levels; their widths differ."""
    for rank in (3, 4):
        by_width: dict[int, dict[tuple[int, ...], str]] = {}
        for name, value in seen.tensors(rank):
            places, width = (
                (value.shape[2:], value.shape[1]) if rank == 4 else (value.shape[1:2], value.shape[2])
            )
            by_width.setdefault(width, {}).setdefault(tuple(places), name)
        wanted = [size if rank == 4 else (size[0] * size[1],) for size in grid.sizes]
        whole = {
            width: [found[place] for place in wanted]
            for width, found in by_width.items()
            if all(place in found for place in wanted)
        }
        for wide, sides in whole.items():
            if wide % 4 or not 4 * 4 <= wide <= 4 * _LARGEST or all(unit(seen.values[n]) for n in sides):
                continue
            for width, scores in whole.items():
                if width != wide and (not seen.classes or width == seen.classes):
                    yield scores, sides
