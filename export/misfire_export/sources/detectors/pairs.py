"""Reads boxes and class scores that come as two tensors: queries of transformers, inputs of a suppression.

boxes [N,P,4] in network pixels or in 0..1, by corners or by centre; scores [N,P,C] or [N,C,P]: sigmoids,
logits, or a softmax with a background class. Which of them is decided by values.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from misfire_export.graph.rename import own_name
from misfire_export.sources.detectors.base import (
    IMAGENET,
    PAIRS,
    QUERIES,
    Image,
    Layout,
    Reading,
    Seen,
    layout,
    unit,
)
from misfire_export.sources.detectors.decoding import (
    FORMATS,
    Decoder,
    Format,
    as_corners,
)
from misfire_export.sources.detectors.grids import Grid, find_grid

_STRETCHED: Image = {"resize": "stretch"}
Numbers = Literal["sigmoid", "logits", "softmax"]


class PairDecoder(Decoder):
    """Decodes boxes and scores.

    Args:
        form: of the boxes.
        scale: width and height that boxes in 0..1 are multiplied by, 1 and 1 for pixels.
        numbers: what the scores are.
        classes_first: scores are [N,C,P].
        background: column of a softmax that is no object, -1 if there is none.
        grid: of the cells, None for queries.
    """

    size: Tensor
    cells: Tensor | None
    strides: Tensor | None

    def __init__(
        self,
        *,
        form: Format,
        scale: tuple[float, float],
        numbers: Numbers,
        classes_first: bool = False,
        background: int = -1,
        grid: Grid | None = None,
    ) -> None:
        super().__init__()
        self.form, self.numbers, self.classes_first = form, numbers, classes_first
        self.background = background
        across, down = scale
        order = (down, across, down, across) if form in ("yxyx", "cycxhw") else (across, down, across, down)
        self.register_buffer("size", torch.tensor(order))
        cells, strides = (None, None) if grid is None else grid.cells()
        self.register_buffer("cells", cells)
        self.register_buffer("strides", strides)

    def forward(self, boxes: Tensor, scores: Tensor) -> Tensor:
        """Returns the dense answer."""
        # TensorRT's plug-ins take [N,P,1,4] too.
        boxes = boxes.flatten(1, 2) if boxes.ndim == 4 else boxes
        rows = scores.transpose(1, 2) if self.classes_first else scores
        if self.background >= 0:
            rows = torch.cat((rows[..., : self.background], rows[..., self.background + 1 :]), -1)
        return self.answer(
            as_corners(boxes * self.size, self.form),
            rows,
            are_logits=self.numbers == "logits",
            cells=self.cells,
            strides=self.strides,
        )


class _Pairs(Layout):
    """Finds pairs of boxes and scores."""

    def _read(
        self, seen: Seen, *, queries: bool, forms: tuple[Format, ...], strength: int
    ) -> Iterator[Reading]:
        for box_name, boxes in _boxes(seen):
            count = boxes.shape[1]
            grid = find_grid(count, width=seen.width, height=seen.height)
            if queries and grid is not None:
                continue
            found = _scores(seen, count, box_name)
            if found is None:
                continue
            score_name, first, numbers, background = found
            if queries and (numbers == "softmax" or count > _MOST_QUERIES):
                continue
            scores = seen.values[score_name]
            width = scores.shape[1 if first else 2]
            classes = width - (1 if background >= 0 else 0)
            if seen.classes and classes != seen.classes:
                continue
            inside = float(np.abs(boxes).max()) <= 2.5
            scale = (float(seen.width), float(seen.height)) if inside else (1.0, 1.0)
            for form in forms:
                yield Reading(
                    self.name,
                    (box_name, score_name),
                    PairDecoder(
                        form=form,
                        scale=scale,
                        numbers=numbers,
                        classes_first=first,
                        background=background,
                        grid=grid,
                    ),
                    strength,
                    f"{count} {'queries' if queries else 'boxes'} {'in 0..1' if inside else 'in pixels'} as "
                    f"{form}, and {classes} class scores each ({numbers}"
                    f"{', without the background' if background >= 0 else ''})",
                    classes=classes,
                )


def _boxes(seen: Seen) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yields tensors that could be boxes [n,P,4], the nearest to the output first, at most a handful."""
    found = 0
    for name, value in [*seen.tensors(3), *seen.tensors(4)]:
        boxes = value[:, :, 0] if value.ndim == 4 and value.shape[2:] == (1, 4) else value
        if boxes.ndim == 3 and boxes.shape[2] == 4 and boxes.shape[1] > 4 and found < _TRIED:
            if _named_score(name) or np.allclose(boxes.sum(axis=2), 1, atol=1e-3):
                continue
            found += 1
            yield name, boxes


_TRIED = 6
_Y_FIRST: tuple[Format, ...] = ("yxyx", "cycxhw")
_MOST_QUERIES = 1_200


def _named_score(name: str) -> bool:
    return any(part in name.lower() for part in ("score", "cls", "class", "logit", "label", "prob", "conf"))


def _scores(seen: Seen, count: int, boxes: str) -> tuple[str, bool, Numbers, int] | None:
    """Returns (tensor, classes first, kind of numbers, background) of the scores nearest to the output."""
    for name, value in seen.tensors(3):
        if name == boxes or count not in value.shape[1:]:
            continue
        first = value.shape[2] == count and value.shape[1] != count
        width = value.shape[1 if first else 2]
        axis = 1 if first else 2
        # Four columns beside boxes are boxes too, unless names, sums or a user say that they are classes.
        sums = np.allclose(value.sum(axis=axis), 1, atol=1e-3)
        if width == 4 and seen.classes != 4 and not sums and not _named_score(name):
            continue
        if not unit(value):
            return name, first, "logits", -1
        if width > 1 and sums:
            mean = value.mean(axis=(0, 2 if first else 1))
            # Nearly everything is background, so its column is the largest.
            return name, first, "softmax", int(mean.argmax())
        return name, first, "sigmoid", -1
    return None


@layout
class RtDetr(_Pairs):
    """Recognises RT-DETR and D-FINE, before the TopK of their post-processing."""

    name = "rt-detr"
    about = "RT-DETR, D-FINE: queries with class scores, before their TopK"
    image = _STRETCHED

    def read(self, seen: Seen) -> Iterator[Reading]:
        """Yields boxes of queries with their scores, unless they are those of RF-DETR."""
        if _rf_detr(seen):
            return
        yield from self._read(seen, queries=True, forms=("xyxy", "cxcywh"), strength=QUERIES)


@layout
class RfDetr(_Pairs):
    """Recognises RF-DETR: queries with raw logits, and pictures normalised as ImageNet's."""

    name = "rf-detr"
    about = "RF-DETR: queries in 0..1 and raw logits; pictures normalised as ImageNet's"
    image = IMAGENET

    def read(self, seen: Seen) -> Iterator[Reading]:
        """Yields boxes of queries with raw logits."""
        # A graph that was cut, or that takes the picture's size, has RT-DETR's post-processing.
        if (seen.cut or len(seen.inputs) > 1) and not _rf_detr(seen):
            return
        for reading in self._read(seen, queries=True, forms=("cxcywh",), strength=QUERIES):
            if reading.tensors[1] in seen.outputs and "logits" in reading.why:
                yield reading


def _rf_detr(seen: Seen) -> bool:
    # `labels` is a name of ours as well, so the graph's own tensor was renamed.
    return {"dets", "labels"} <= {own_name(name) for name in seen.outputs}


@layout
class BoxesAndScores(_Pairs):
    """Is any pair of boxes and scores, as suppressions and plug-ins take them."""

    name = "boxes-and-scores"
    about = "boxes [N,P,4] and scores [N,P,C], before a suppression (EfficientNMS, ...) or alone"

    def read(self, seen: Seen) -> Iterator[Reading]:
        """Yields boxes with the scores of all classes."""
        # TensorFlow writes y first; inside a square nothing else could tell.
        forms = _Y_FIRST if any("detection_boxes" in name for name in seen.outputs) else FORMATS
        yield from self._read(seen, queries=False, forms=forms, strength=PAIRS)
