"""Makes coarse masks of carla-detection's boxes: segmentation whose groups are real drives of real towns.

boxes [G,6] of a scene --painted as rectangles, large ones first--> classes [96,160], background 0

A rectangle is not an outline, so a right answer at the border of an object counts as wrong; the pictures, the
towns and what is in them are as they were rendered.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from misfire_train.data.boxes import Boxes, with_contract
from misfire_train.data.catalogue import find_entry
from misfire_train.data.examples import Dataset, Examples
from misfire_train.data.readers.boxes.carla_detection import load_carla_detection
from misfire_train.data.readers.mask_images import IGNORE

WIDTH, HEIGHT = 160, 96


def load_carla_masks(root: Path | None = None) -> Dataset:
    """Returns the scenes of carla-detection at 160x96 with masks that were made of their boxes."""
    source = load_carla_detection(root)
    size = {"width": WIDTH, "height": HEIGHT, "resize": "stretch"}
    small = with_contract(source, source.contract.model_copy(update=size))
    return replace(
        small,
        name=find_entry("carla-masks").name,
        task="segmentation",
        classes=("background", *small.classes),
        train=_masked(small.train),
        test=_masked(small.test),
        notes=(*small.notes, "masks were made of boxes: an object is a rectangle"),
    )


def _masked(examples: Examples) -> Examples:
    masks = [mask_of(boxes) for boxes in examples.targets]
    return replace(examples, targets=np.stack(masks))


def mask_of(boxes: Boxes) -> NDArray[np.uint8]:
    """Returns the class of each pixel, uint8 [96,160], of boxes [G,6]; small boxes cover large ones.

    Pixels of an ignored box have no label.
    """
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    for x0, y0, x1, y1, label, ignored in boxes[np.argsort(-areas, kind="stable")]:
        rows = slice(int(np.floor(y0)), int(np.ceil(y1)))
        columns = slice(int(np.floor(x0)), int(np.ceil(x1)))
        mask[rows, columns] = IGNORE if ignored else int(label) + 1
    return mask
