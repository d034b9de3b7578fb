"""Reads final boxes: what a detector's own suppression left. Its misses cannot be seen in them.

[N,M,6] x0 y0 x1 y1 score class       boxes [N,M,4], scores [N,M], classes [N,M], perhaps a count [N,1]
--each box its one class, all others impossible--> dense answer of M boxes
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from misfire_export.sources.detectors.base import FINAL, Image, Layout, Reading, Seen, layout, unit
from misfire_export.sources.detectors.decoding import Decoder, Format, as_corners

_TENSORFLOW: Image = {"resize": "stretch", "mean": (0.5,), "std": (0.5,)}
"""Pixels of -1..1; most of its graphs take bytes and normalise by themselves."""
_NOTE = (
    "only the boxes that the detector chose are there, so the scores read those alone and misses cannot be "
    "seen: export the model without its suppression to see them"
)


class ChosenDecoder(Decoder):
    """Decodes rows of one box, score and class each.

    Args:
        classes: K.
        form: of the boxes.
        scale: width and height that boxes in 0..1 are multiplied by.
        first: number of the first class (1 where 0 is the background).
        columns: places of score and class in a joint tensor; None if they come as tensors of their own.
        counted: a count of valid rows comes last.
    """

    size: Tensor

    def __init__(
        self,
        *,
        classes: int,
        form: Format = "xyxy",
        scale: tuple[float, float] = (1.0, 1.0),
        first: int = 0,
        columns: tuple[int, int] | None = None,
        counted: bool = False,
    ) -> None:
        super().__init__()
        self.classes, self.form, self.first = classes, form, first
        self.columns, self.counted = columns, counted
        across, down = scale
        order = (down, across, down, across) if form == "yxyx" else (across, down, across, down)
        self.register_buffer("size", torch.tensor(order))

    def forward(self, *tensors: Tensor) -> Tensor:
        """Returns the dense answer."""
        boxes = tensors[0][..., :4]
        if self.columns is not None:
            score, label = (tensors[0][..., column] for column in self.columns)
        else:
            score, label = tensors[1].flatten(1), tensors[2].flatten(1)
        if self.counted:
            rows = torch.arange(boxes.shape[1], device=boxes.device)[None]
            score = torch.where(rows < tensors[-1].reshape(-1, 1), score, torch.zeros_like(score))
        numbers = torch.arange(self.classes, device=boxes.device) + self.first
        own = label.round()[..., None] == numbers
        # A padded row has score 0; sides the wrong way round are those of no box either.
        scores = torch.where(own, score[..., None], torch.zeros_like(score[..., None]))
        return self.answer(as_corners(boxes * self.size, self.form), scores)


@layout
class ChosenRows(Layout):
    """Is [N,M,6]: end-to-end YOLO, or `nms=True`, where nothing before the choice could be found."""

    name = "chosen-rows"
    about = "[N,M,6] x0 y0 x1 y1 score class, padded with zeros: only what the detector chose"

    def read(self, seen: Seen) -> Iterator[Reading]:
        """Yields rows of six numbers whose score and class columns look like such."""
        for name, value in seen.tensors(3, final=True):
            if not seen.own(name) or value.shape[2] != 6 or value.shape[1] < 2:
                continue
            for score, label in ((4, 5), (5, 4)):
                # Rows of padding may have any class, such as -1.
                labels = np.where(value[..., score] > 0, value[..., label], 0)
                if unit(value[..., score]) and np.allclose(labels, labels.round()) and labels.min() >= 0:
                    classes = seen.classes or max(int(labels.max()) + 1, seen.at_least)
                    inside = float(np.abs(value[..., :4]).max()) <= 2.5
                    yield Reading(
                        self.name,
                        (name,),
                        ChosenDecoder(
                            classes=classes,
                            columns=(score, label),
                            scale=(float(seen.width), float(seen.height)) if inside else (1.0, 1.0),
                        ),
                        FINAL,
                        f"{list(value.shape[1:])} is {value.shape[1]} chosen boxes with score and class",
                        final=True,
                        classes=classes,
                        notes=(_NOTE,),
                    )
                    break


@layout
class ChosenParts(Layout):
    """Is TensorFlow's SSD and others: boxes, scores and classes as tensors of their own."""

    name = "chosen-parts"
    about = "boxes [N,M,4], scores [N,M], classes [N,M] (SSD of TensorFlow, y first): only what was chosen"
    image = _TENSORFLOW

    def read(self, seen: Seen) -> Iterator[Reading]:
        """Yields boxes beside which stand as many scores and class numbers."""
        boxes = next(
            (n for n, v in seen.tensors(3, final=True) if seen.own(n) and v.shape[2] == 4 and v.shape[1] > 1),
            "",
        )
        if not boxes:
            return
        count = seen.values[boxes].shape[1]
        rows = {
            name: value.reshape(len(value), -1)
            for name, value in seen.values.items()
            if seen.own(name) and name != boxes and value.size == len(value) * count
        }
        whole = [n for n, v in rows.items() if np.allclose(v, v.round()) and float(v.max()) >= 1]
        scores = next((n for n, v in rows.items() if n not in whole and unit(v)), "")
        if not scores or not whole:
            return
        label = whole[0]
        counted = next(
            (n for n, v in seen.values.items() if seen.own(n) and v.size == len(v) and count > 1), ""
        )
        lowest = int(rows[label].min())
        tensorflow = "detection_boxes" in boxes or "detection_classes" in label
        first = 1 if tensorflow and lowest >= 1 else 0
        classes = seen.classes or max(int(rows[label].max()) + 1 - first, seen.at_least)
        inside = float(np.abs(seen.values[boxes]).max()) <= 2.5
        for form in ("yxyx", "xyxy") if tensorflow else ("xyxy", "yxyx"):
            yield Reading(
                self.name,
                (boxes, scores, label, *([counted] if counted else [])),
                ChosenDecoder(
                    classes=classes,
                    form=form,
                    scale=(float(seen.width), float(seen.height)) if inside else (1.0, 1.0),
                    first=first,
                    counted=bool(counted),
                ),
                FINAL,
                f"{count} chosen boxes as {form}, with score and class",
                final=True,
                classes=classes,
                notes=(_NOTE,),
            )
            # Both orders lie inside a picture, so values cannot tell: the exporter's habit decides.
            if tensorflow:
                return
