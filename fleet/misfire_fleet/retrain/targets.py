"""Turns the content of a label record into the target that a run's task is trained on.

ClassLabel   -> classification: the class's number         ValuesLabel -> regression: the values
ClassesLabel -> multi-label: 0 or 1 for each class         PointsLabel -> keypoints: x, y, visible
BoxesLabel   -> detection: boxes in network pixels         MaskLabel   -> segmentation: a number per pixel
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from misfire_fleet.labels.content import (
    Box,
    BoxesLabel,
    ClassesLabel,
    ClassLabel,
    Label,
    MaskLabel,
    PointsLabel,
    ValuesLabel,
)
from misfire_fleet.labels.formats.parts.mask_pixels import renumbered
from misfire_runtime.errors import ConfigError
from misfire_runtime.placement import Placement
from misfire_runtime.preprocess import InputContract
from misfire_train.data.boxes import to_targets
from misfire_train.data.readers.mask_images import resize_mask
from misfire_train.tasks import Task

KINDS = {
    "classification": "class",
    "multi-label": "classes",
    "regression": "values",
    "detection": "boxes",
    "keypoints": "points",
    "segmentation": "mask",
}
"""The kind of label that a task is trained on, by the form of the task."""
_NAMES_SHOWN = 10


class Classes(Protocol):
    """Has the names of the classes that a model knows, in the order of its outputs."""

    @property
    def classes(self) -> tuple[str, ...]: ...


class Learner(Protocol):
    """Is what labels and pixels are read for: a run, or a bundle."""

    @property
    def task(self) -> Task: ...

    @property
    def contract(self) -> InputContract: ...

    @property
    def record(self) -> Classes: ...


@dataclass(frozen=True)
class Reading:
    """Holds how labels become targets: the task, the names that its outputs have, and the network's input."""

    task: Task
    classes: tuple[str, ...]
    contract: InputContract


def target_of(label: Label, *, run: Learner, size: tuple[int, int], where: str) -> NDArray[Any]:
    """Returns the target that a label means, with the shape and type of the run's task.

    Args:
        label: the label.
        run: has the task, its classes and its contract.
        size: width and height of the stored picture, in whose pixels the label is.
        where: the sample, for errors.

    Raises:
        ConfigError: the label is of another kind than the task's, or does not fit the run or the picture.
    """
    return read_target(label, Reading(run.task, run.record.classes, run.contract), size=size, where=where)


def read_target(label: Label, reading: Reading, *, size: tuple[int, int], where: str) -> NDArray[Any]:
    """Returns the target that a label means; as `target_of`, without a run."""
    form, classes = reading.task.form, reading.classes
    if KINDS.get(form) != label.kind:
        needed = f"needs labels of kind {KINDS[form]}" if form in KINDS else "takes labels as CSV only"
        raise ConfigError(f"label of {where}: it is of kind {label.kind}; {reading.task.name} {needed}")
    try:
        match label:
            case ClassLabel():
                return np.asarray(_number(label.name, classes), np.int64)
            case ClassesLabel():
                found = np.zeros(len(classes), np.float32)
                found[[_number(name, classes) for name in label.names]] = 1
                return found
            case ValuesLabel():
                return _values(label, count=len(classes))
            case BoxesLabel():
                return _boxes(label.boxes, classes, size=size, contract=reading.contract)
            case PointsLabel():
                return _points(label, len(classes), Placement.of(*size, reading.contract))
            case MaskLabel():
                return _mask(label, classes, size=size, contract=reading.contract)
    except ValueError as error:
        raise ConfigError(f"label of {where}: {error}") from error


def _number(name: str, classes: Sequence[str]) -> int:
    try:
        return classes.index(name)
    except ValueError:
        more = f" and {len(classes) - _NAMES_SHOWN} more" if len(classes) > _NAMES_SHOWN else ""
        shown = ", ".join(classes[:_NAMES_SHOWN])
        raise ValueError(f"the run has no class {name!r}; it has {shown}{more}") from None


def _values(label: ValuesLabel, *, count: int) -> NDArray[np.float32]:
    if len(label.values) != count:
        raise ValueError(f"{len(label.values)} values; the run predicts {count}")
    return np.array(label.values, np.float32)


def _boxes(
    boxes: Sequence[Box], classes: Sequence[str], *, size: tuple[int, int], contract: InputContract
) -> NDArray[np.float32]:
    rows = [(*_hull(box), _number(box.name, classes), float(box.crowd or box.ignore)) for box in boxes]
    return to_targets(np.array(rows, np.float32).reshape(-1, 6), size=size, contract=contract)


def _hull(box: Box) -> tuple[float, float, float, float]:
    """Returns the upright box around a rotated one: the network's boxes are upright."""
    if not box.degrees:
        return box.x0, box.y0, box.x1, box.y1
    turn = math.radians(box.degrees)
    width, height = box.x1 - box.x0, box.y1 - box.y0
    half_w = (abs(width * math.cos(turn)) + abs(height * math.sin(turn))) / 2
    half_h = (abs(width * math.sin(turn)) + abs(height * math.cos(turn))) / 2
    x, y = (box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2
    return x - half_w, y - half_h, x + half_w, y + half_h


def _points(label: PointsLabel, count: int, placement: Placement) -> NDArray[np.float32]:
    if len(label.points) != count:
        raise ValueError(f"{len(label.points)} points; the run's skeleton has {count}")
    places = np.array([(point.x, point.y) for point in label.points], np.float32)
    visible = np.array([[point.visible] for point in label.points], np.float32)
    return np.concatenate([placement.to_network(places), visible], axis=1)


def _mask(
    label: MaskLabel, classes: Sequence[str], *, size: tuple[int, int], contract: InputContract
) -> NDArray[np.uint8]:
    mask = renumbered(label, {name: _number(name, classes) for name in label.names.values()})
    if mask.shape != (size[1], size[0]):
        raise ValueError(f"the mask is {mask.shape[1]}x{mask.shape[0]}, its picture {size[0]}x{size[1]}")
    return resize_mask(mask, height=contract.height, width=contract.width)
