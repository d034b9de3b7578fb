"""Puts the task's answer in the few numbers that an offer carries.

outputs + Placement --brief_of--> prediction of an offer --within--> that of a part of the picture
                    --top_classes--> the likeliest classes, for a picture or a film
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from misfire_runtime.engines.detections import class_name, size_of
from misfire_runtime.engines.masks import span
from misfire_runtime.placement import Placement

Outputs = Mapping[str, NDArray[Any]]


def top_classes(
    logits: NDArray[Any], classes: tuple[str, ...], *, most: int = 5
) -> tuple[tuple[str, float], ...]:
    """Returns names and probabilities of the likeliest classes, the best first. logits: [1,K]."""
    flat = np.asarray(logits[0], np.float64).reshape(-1)
    if flat.size == 0 or not np.isfinite(flat).all():
        return ()
    shares = np.exp(flat - flat.max())
    shares /= shares.sum()
    return tuple((class_name(int(k), classes), float(shares[k])) for k in np.argsort(-shares)[:most])


def brief_of(
    kind: str, values: NDArray[Any], classes: tuple[str, ...], place: Placement | None
) -> dict[str, Any]:
    """Returns an answer (of one picture, other than boxes) in a few numbers.

    An answer with NaN or infinite values is none: {"not_finite": how many} is returned instead.
    """
    not_finite = values.size - int(np.isfinite(values).sum())
    return {"not_finite": not_finite} if not_finite else _ANSWERS[kind](values, classes, place)


def brief_further(kind: str, values: NDArray[Any], classes: tuple[str, ...], place: Placement | None) -> Any:
    """Returns a further answer (of one picture) as one value of a prediction.

    The class with its probability, the labels or shares by name, or a list of values or points.
    """
    found = brief_of(kind, values, classes, place)
    if "class" in found:
        return {found["class"]: found["confidence"]}
    listed = ("shares", "labels", "values", "points", "not_finite")
    return next((found[key] for key in listed if key in found), None)


def within(
    prediction: dict[str, Any], region: tuple[int, int, int, int], *, size: tuple[int, int]
) -> dict[str, Any]:
    """Returns a prediction for a part of the picture: boxes and points are moved, those outside left out.

    Args:
        prediction: as `brief_boxes` or `brief_of` returns it.
        region: x0, y0, x1, y1 of the part, in pixels of the picture.
        size: width and height of the picture.
    """
    x0, y0, x1, y1 = region
    moved = dict(prediction)
    if "size" in moved:
        moved["size"] = [x1 - x0, y1 - y0]
    if "boxes" in moved:
        limits = ((x0, x1), (y0, y1), (x0, x1), (y0, y1))
        boxes = [
            {
                **box,
                "box": [
                    round(min(max(v, a), b) - a, 1) for v, (a, b) in zip(box["box"], limits, strict=True)
                ],
            }
            for box in moved["boxes"]
        ]
        moved["boxes"] = [b for b in boxes if b["box"][2] > b["box"][0] and b["box"][3] > b["box"][1]]
    if "points" in moved:
        points = [
            [(x * size[0] - x0) / (x1 - x0), (y * size[1] - y0) / (y1 - y0), *rest]
            for x, y, *rest in moved["points"]
        ]
        # In place of a joint that was cropped away: the others keep their numbers.
        moved["points"] = [
            [round(x, 4), round(y, 4), *rest] if 0 <= x <= 1 and 0 <= y <= 1 else [None, None, *rest]
            for x, y, *rest in points
        ]
    return moved


def _brief_class(logits: NDArray[Any], classes: tuple[str, ...], _place: Placement | None) -> dict[str, Any]:
    """Returns the likeliest class and its probability. logits: [1,K]."""
    flat = np.asarray(logits[0], np.float64).reshape(-1)
    if flat.size == 0:
        return {}
    best = int(flat.argmax())
    # The softmax of the largest; the subtraction keeps exp from overflowing.
    confidence = 1.0 / float(np.exp(flat - flat[best]).sum())
    return {"class": class_name(best, classes), "confidence": round(confidence, 4)}


def _brief_labels(logits: NDArray[Any], classes: tuple[str, ...], _place: Placement | None) -> dict[str, Any]:
    """Returns the probabilities of the labels that are there, at most 64, the surest first. logits: [1,K]."""
    flat = np.asarray(logits[0], np.float64).reshape(-1)
    p = 1 / (1 + np.exp(-np.clip(flat, -60, 60)))
    present = [int(k) for k in np.argsort(-p)[:64] if p[k] >= 0.5]
    return {"labels": {class_name(k, classes): round(float(p[k]), 4) for k in present}}


def _brief_values(
    values: NDArray[Any], _classes: tuple[str, ...], _place: Placement | None
) -> dict[str, Any]:
    """Returns the first 64 values. values: [1,...]."""
    return {"values": [round(float(value), 5) for value in values.reshape(-1)[:64]]}


def _brief_keypoints(
    heatmaps: NDArray[Any], _classes: tuple[str, ...], place: Placement | None
) -> dict[str, Any]:
    """Returns the peaks of the first 64 joints, in 0..1 of the picture's width and height.

    heatmaps: [1,J,H,W].
    """
    _batch, joints, height, width = heatmaps.shape
    flat = heatmaps[0].reshape(joints, -1)[:64]
    peaks = flat.argmax(1)
    points = np.stack([(peaks % width + 0.5) / width, (peaks // width + 0.5) / height], 1)
    if place is not None:
        points = place.shares_to_image(points)
    return {
        "points": [
            [round(float(x), 4), round(float(y), 4), round(float(row[peak]), 5)]
            for row, peak, (x, y) in zip(flat, peaks, points, strict=True)
        ],
        **size_of(place),
    }


def _brief_segmentation(
    logits: NDArray[Any], classes: tuple[str, ...], place: Placement | None
) -> dict[str, Any]:
    """Returns the share of the picture's pixels of the eight largest classes. logits: [1,K,H,W]."""
    answer = logits[0].argmax(0)
    if place is not None:
        # Without the padding of a letterbox, which is no part of the picture.
        rows = span(place.top, place.inner_height, answer.shape[0] / place.network_height)
        answer = answer[rows, span(place.left, place.inner_width, answer.shape[1] / place.network_width)]
    shares = np.bincount(answer.reshape(-1), minlength=logits.shape[1]) / max(1, answer.size)
    largest = [int(k) for k in np.argsort(-shares)[:8] if shares[k] > 0]
    return {"shares": {class_name(k, classes): round(float(shares[k]), 4) for k in largest}}


_ANSWERS: dict[str, Callable[[NDArray[Any], tuple[str, ...], Placement | None], dict[str, Any]]] = {
    "logits": _brief_class,
    "values": _brief_values,
    "heatmaps": _brief_keypoints,
    "segmentation": _brief_segmentation,
    "labels": _brief_labels,
}
"""By kind of output; of several the first."""
KINDS = ("boxes", *_ANSWERS)
