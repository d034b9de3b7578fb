"""Writes what labellers would send back for the demo's uploads: the truth, as `misfire retrain` reads it."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from misfire_fleet.demo.drive import Frame
from misfire_fleet.store.records import StoredSample
from misfire_runtime.placement import Placement
from misfire_train.boxes.columns import BOX, CLASS, IGNORE
from misfire_train.data import Dataset


def write_labels(file: Path, labels: Sequence[tuple[StoredSample, Frame]], dataset: Dataset) -> Path:
    """Writes a CSV for `misfire retrain` with the columns id and label.

    Args:
        file: path of the CSV.
        labels: uploads, each with the frame that it is.
        dataset: has the task, the names of the classes, and the contract of the targets.

    Returns:
        `file`.
    """
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", "label"])
        for sample, frame in sorted(labels, key=lambda pair: pair[0].id):
            writer.writerow([sample.id, label_of(frame.target, dataset, size=(sample.width, sample.height))])
    return file


def label_of(target: Any, dataset: Dataset, *, size: tuple[int, int]) -> str:
    """Returns a target as the text of a label: a class name, or `class,x0,y0,x1,y1` words.

    Boxes that do not count are left out: labels.csv has no word for them.

    Args:
        target: class number, or boxes [G,6] in network pixels.
        dataset: has the task, the names of the classes, and the contract of the targets.
        size: width and height of the stored picture.
    """
    if dataset.task != "detection":
        return dataset.classes[int(target)]
    boxes = target[target[:, IGNORE] == 0]
    corners = Placement.of(*size, dataset.contract).to_image(boxes[:, :BOX])
    return " ".join(
        ",".join([dataset.classes[int(row[CLASS])], *(f"{side:.2f}" for side in box)])
        for row, box in zip(boxes, corners, strict=True)
    )
