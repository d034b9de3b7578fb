"""Computes COCO's average precision, by the library faster-coco-eval.

boxes and objects of all frames --COCO documents--> AP over IoU .5 to .95 and 101 recalls, AP at .5

It describes a detector over all thresholds, so the boxes should not have been cut at the deployed one; what a
vehicle misses is in `losses.py`.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from misfire_train.boxes.columns import CLASS, IGNORE

# COCO's own limit of boxes per image.
MAX_BOXES = 100


@dataclass(frozen=True)
class AveragePrecision:
    """Holds average precisions in 0..1, NaN without an object.

    mean: over IoU .5 to .95.  half: at IoU .5.  by_class: at IoU .5 to .95, for each class.
    small, medium, large: by COCO's areas, below 32^2 and from 96^2 pixels.
    """

    mean: float
    half: float
    small: float
    medium: float
    large: float
    by_class: tuple[float, ...]


def average_precision(
    detections: Sequence[Tensor], targets: Sequence[Tensor], *, classes: int
) -> AveragePrecision:
    """Returns COCO's average precision.

    Args:
        detections: of each frame [B,6]: x0 y0 x1 y1 score class.  A score of 0 is no box.
        targets: of each frame [G,6]: x0 y0 x1 y1 class ignore.  Ignored objects are crowds.
        classes: their number.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    truth: dict[str, list[dict[str, Any]]] = {
        "images": [{"id": i} for i in range(1, len(targets) + 1)],
        "categories": [{"id": k, "name": str(k)} for k in range(1, classes + 1)],
        "annotations": _annotations(targets),
    }
    results = _results(detections)
    # A library without boxes or objects raises or divides by zero; the answers are known.
    real = any(not annotation["iscrowd"] for annotation in truth["annotations"])
    if not real or not results:
        empty = 0.0 if real else float("nan")
        present = {a["category_id"] for a in truth["annotations"] if not a["iscrowd"]}
        each = tuple(0.0 if k in present else float("nan") for k in range(1, classes + 1))
        return AveragePrecision(empty, empty, empty, empty, empty, each)
    # It prints its progress.
    with contextlib.redirect_stdout(io.StringIO()):
        document = COCO(truth)
        evaluation = COCOeval_faster(document, document.loadRes(results), "bbox", print_function=_silent)
        evaluation.run()
    stats = [float(value) if value >= 0 else float("nan") for value in evaluation.stats[:6]]
    precision = np.asarray(evaluation.eval["precision"])[:, :, :, 0, -1].astype(float)
    precision[precision < 0] = np.nan
    each = tuple(
        float(np.mean(precision[:, :, k])) if np.isfinite(precision[:, :, k]).all() else float("nan")
        for k in range(precision.shape[2])
    )
    return AveragePrecision(stats[0], stats[1], stats[3], stats[4], stats[5], each)


def _silent(*_words: Any, **_options: Any) -> None:
    """Swallows what the library would log."""


def _annotations(targets: Sequence[Tensor]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for image, objects in enumerate(targets, start=1):
        for row in objects.double().tolist():
            # Padding, and regions that hold for all classes, which COCO does not know.
            if row[CLASS] < 0:
                continue
            width, height = row[2] - row[0], row[3] - row[1]
            found.append(
                {
                    "id": len(found) + 1,
                    "image_id": image,
                    "category_id": round(row[CLASS]) + 1,
                    "bbox": [row[0], row[1], width, height],
                    "area": width * height,
                    "iscrowd": int(row[IGNORE] > 0),
                }
            )
    return found


def _results(detections: Sequence[Tensor]) -> list[dict[str, Any]]:
    return [
        {
            "image_id": image,
            "category_id": round(row[5]) + 1,
            "bbox": [row[0], row[1], row[2] - row[0], row[3] - row[1]],
            "score": row[4],
        }
        for image, boxes in enumerate(detections, start=1)
        for row in boxes[boxes[:, 4] > 0][:MAX_BOXES].double().tolist()
    ]
