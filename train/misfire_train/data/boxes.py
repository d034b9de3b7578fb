"""Holds labelled boxes as the targets of detection: float32 [G,6], x0 y0 x1 y1 class ignore, network pixels.

boxes in pixels of the picture --clip_boxes--> --to_targets (Placement)--> targets --with_contract--> others

G differs from frame to frame and may be 0, so the targets of a data set are an array of arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from misfire_runtime.placement import Placement
from misfire_runtime.preprocess import InputContract
from misfire_train.data.examples import Dataset, Examples
from misfire_train.data.images import sizes_of

Boxes = NDArray[np.float32]
"""[G,6]: x0 y0 x1 y1 class ignore (0 or 1)."""
ANY_CLASS = -1
"""Class of a region in which every class is ignored."""


def clip_boxes(boxes: Boxes, *, width: float, height: float) -> tuple[Boxes, NDArray[np.bool_]]:
    """Cuts boxes at the border of a picture.

    Args:
        boxes: [G,6], of which the first four columns are x0 y0 x1 y1.
        width: of the picture, in the unit of the boxes.
        height: of the picture.

    Returns:
        The cut boxes [G,6], and bool [G]: which of them still have an area.
    """
    cut = boxes.copy()
    cut[:, [0, 2]] = np.clip(cut[:, [0, 2]], 0, width)
    cut[:, [1, 3]] = np.clip(cut[:, [1, 3]], 0, height)
    return cut, (cut[:, 2] > cut[:, 0]) & (cut[:, 3] > cut[:, 1])


def to_targets(boxes: Boxes, *, size: tuple[int, int], contract: InputContract) -> Boxes:
    """Returns boxes in network pixels, without those that a centre crop cuts away.

    Args:
        boxes: [G,6] in pixels of the picture.
        size: width and height of the picture.
        contract: the network's input.
    """
    moved = boxes.copy()
    moved[:, :4] = Placement.of(*size, contract).to_network(boxes[:, :4])
    # A centre crop leaves parts of a picture out; no other rule moves a box over the border.
    cut, seen = clip_boxes(moved, width=contract.width, height=contract.height)
    return cut[seen]


def stack_boxes(boxes: Sequence[Boxes]) -> NDArray[np.object_]:
    """Returns an array of arrays, even if all frames have the same number of boxes."""
    rows = np.empty(len(boxes), object)
    rows[:] = list(boxes)
    return rows


def with_contract(dataset: Dataset, contract: InputContract) -> Dataset:
    """Returns a data set of boxes for a network with another input: the same pictures, targets placed anew.

    Args:
        dataset: with targets [G,6] in pixels of its own contract.
        contract: of the other network.
    """
    if contract == dataset.contract:
        return dataset
    train, test = (_placed_anew(half, dataset.contract, contract) for half in (dataset.train, dataset.test))
    return replace(dataset, contract=contract, train=train, test=test)


def _placed_anew(examples: Examples, old: InputContract, new: InputContract) -> Examples:
    moved = []
    for boxes, (width, height) in zip(examples.targets, sizes_of(examples.images), strict=True):
        size = int(width), int(height)
        own = boxes.copy()
        own[:, :4] = Placement.of(*size, old).to_image(boxes[:, :4])
        moved.append(to_targets(own, size=size, contract=new))
    return replace(examples, targets=stack_boxes(moved))
