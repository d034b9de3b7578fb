"""Brings labelled boxes into a foreign detector's pixels and class numbers, and checks that both fit.

targets in the data set's network pixels --its placement--> pixels of the picture --the detector's--> targets
boxes of the detector on real frames, by overlap alone --> pairs of classes --> another order far likelier?
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from misfire_export.errors import LabelError
from misfire_export.sources.frames import Frames
from misfire_export.sources.labels import Answered, ClassOrder, check_order, order_classes
from misfire_runtime.placement import Placement
from misfire_runtime.preprocess import InputContract
from misfire_train.boxes.columns import BOX, CLASS, FINAL, IGNORE
from misfire_train.boxes.geometry import iou_matrix
from misfire_train.data import Examples
from misfire_train.data.readers.class_lists import nfc
from misfire_train.tasks.detection import Detection

FEW_FOUND = 0.1
"""Share of the objects that a usable detector finds at least, whatever their class."""


def in_detectors_terms(frames: Frames, contract: InputContract, order: ClassOrder, task: Detection) -> Frames:
    """Returns the frames with boxes in the detector's network pixels and class numbers.

    Raises LabelError if the targets are no boxes.
    """
    if not frames.labelled:
        return frames
    before = frames.contract or contract
    fit, holdout = (
        None if part is None else _placed(part, before, contract, order, task)
        for part in (frames.fit, frames.holdout)
    )
    calibration = _placed(frames.calibration, before, contract, order, task)
    return replace(frames, calibration=calibration, fit=fit, holdout=holdout)


def order_known_classes(
    data: Sequence[str], outputs: int, *, stated: Sequence[str], metadata: Sequence[str]
) -> ClassOrder:
    """Returns which output is which class of the data; -1 for classes that the detector does not have.

    Raises LabelError as `order_classes` does, also if the detector has none of the classes.
    """
    own = [nfc(name) for name in stated or (metadata if len(metadata) == outputs else ())]
    missing = [name for name in data if nfc(name) not in own]
    if not own or not 0 < len(missing) < len(data):
        return order_classes(data, outputs, stated=stated, metadata=metadata)
    known = [name for name in data if name not in missing]
    order = order_classes(known, outputs, stated=stated, metadata=metadata)
    index = tuple(own.index(nfc(name)) if name not in missing else -1 for name in data)
    note = f"the detector has no class for {', '.join(missing)}: such objects are left out of the labels"
    return replace(order, index=index, note=note)


def _placed(
    part: Examples, before: InputContract, after: InputContract, order: ClassOrder, task: Detection
) -> Examples:
    if part.targets.dtype != object and (part.targets.ndim != 3 or part.targets.shape[-1] != FINAL):
        raise LabelError("a detector needs labelled boxes: a data set such as coco-boxes, yolo, voc or kitti")
    index = np.asarray(order.index, np.float32)
    rows = []
    for image, target in zip(part.images, part.targets, strict=True):
        found = np.array(target, np.float32).reshape(-1, FINAL)
        height, width = image.shape[:2]
        picture = Placement.of(width, height, before).to_image(found[:, :BOX])
        found[:, :BOX] = Placement.of(width, height, after).to_network(picture)
        real = found[:, CLASS] >= 0
        found[real, CLASS] = index[found[real, CLASS].astype(int)]
        # A detector cannot miss what it has no class for.
        rows.append(found[~real | (found[:, CLASS] >= 0)])
    return replace(part, targets=task.stack(rows))


def check_classes(
    answered: Sequence[tuple[NDArray[np.float32], NDArray[Any]]], order: ClassOrder, task: Detection
) -> tuple[str, ...]:
    """Returns notes on the order of the classes and on the share of objects that are found at all.

    answered: detections [M,6] and targets [G,6] of each frame. Raises LabelError if another order of the
    classes explains the boxes far better.
    """
    objects, pairs = 0, []
    for detections, targets in answered:
        real = targets[(targets[:, CLASS] >= 0) & (targets[:, IGNORE] == 0)]
        objects += len(real)
        pairs += list(_pairs(detections, real, task))
    notes: list[str] = []
    if objects and len(pairs) < FEW_FOUND * objects:
        notes.append(
            f"the detector finds {len(pairs)} of {objects} labelled objects, whatever their class: check "
            "--layout and --image (size, resize, colours, mean and std), or whether it knows such objects"
        )
    if pairs:
        truth, answer = (np.array(column, np.int64)[:, None] for column in zip(*pairs, strict=True))
        notes += check_order(
            Answered(truth, answer, len(order.names) or int(max(map(max, pairs))) + 1), order
        )
    return tuple(notes)


def _pairs(detections: NDArray[np.float32], real: NDArray[Any], task: Detection) -> Iterator[tuple[int, int]]:
    """Yields (true class, answered class) of the box that overlaps each object most, if it does enough."""
    boxes = detections[detections[:, 4] > 0]
    if not len(boxes) or not len(real):
        return
    iou = iou_matrix(torch.from_numpy(real[:, :BOX]), torch.from_numpy(boxes[:, :BOX])).numpy()
    for row, column in enumerate(iou.argmax(1)):
        if iou[row, column] >= task.rule.matching:
            yield int(real[row, CLASS]), int(boxes[column, 5])
