"""Reads the task's answer out of a graph's outputs: boxes, masks, and the few numbers that an offer carries.

outputs + Placement --find_boxes--> Boxes, in pixels of the picture
                    --mask_of--> the class of every pixel of the picture
                    --brief_of--> prediction of an offer

A foreign graph may answer with anything. What cannot be a box (not finite, no area, a score above 1) is
dropped and counted, and never raises.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from misfire_runtime.errors import EngineError
from misfire_runtime.messages import MAX_TEXT
from misfire_runtime.placement import Placement

Outputs = Mapping[str, NDArray[Any]]

MAX_BOXES = 64
"""Boxes in an offer: about 5 KB; further ones are counted."""
P_TP = "box.p_tp"
_MAX_LABEL = 1_000_000
# Rounding inside the graph may lift a score of 1 a little.
_ABOVE_ONE = 1e-3


@dataclass(frozen=True)
class Boxes:
    """Holds the boxes of one picture, the best score first.

    corners: [n,4] x0 y0 x1 y1, in pixels of the picture, inside of it.  scores: [n].  labels: [n].
    p_tp: [n] probabilities that a box is right, NaN if unknown; None if the graph does not say.
    dropped: rows that are no boxes.  not_finite: of these, rows with NaN or infinite values.
    """

    corners: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    p_tp: NDArray[np.float32] | None = None
    dropped: int = 0
    not_finite: int = 0

    def __len__(self) -> int:
        return len(self.scores)


def check_detections(shape: tuple[int, ...], *, name: str) -> None:
    """Raises EngineError unless the shape is that of the detections of one picture, [1,M,6]."""
    if len(shape) != 3 or shape[0] != 1 or shape[2] != 6:
        raise EngineError(f"{name} has shape {list(shape)} for one frame; expected [1,M,6]")


def find_boxes(
    detections: NDArray[Any], place: Placement | None = None, *, p_tp: NDArray[Any] | None = None
) -> Boxes:
    """Returns the boxes of one picture.

    Args:
        detections: [1,M,6] x0 y0 x1 y1 score class, in network pixels; a score of 0 is no box.
        place: maps them to the picture; None leaves them in network pixels, not clipped.
        p_tp: [1,M] probabilities that a box is right.
    """
    rows = np.asarray(detections, np.float32).reshape(-1, 6)
    chances = None if p_tp is None or p_tp.size != len(rows) else np.asarray(p_tp, np.float32).reshape(-1)
    finite = np.asarray(np.isfinite(rows).all(axis=1))
    # Of a row that is not finite, the score may be the number that is not.
    is_box = ~finite | (rows[:, 4] > 0)
    corners = (
        rows[:, :4]
        if place is None
        else place.clip(place.to_image(np.where(finite[:, None], rows, 0)[:, :4]))
    )
    usable = (
        finite
        & is_box
        & (rows[:, 4] <= 1 + _ABOVE_ONE)
        & (corners[:, 2] > corners[:, 0])
        & (corners[:, 3] > corners[:, 1])
        & (rows[:, 5] >= 0)
        & (rows[:, 5] < _MAX_LABEL)
    )
    kept = np.flatnonzero(usable)
    kept = kept[np.argsort(-rows[kept, 4], kind="stable")]
    return Boxes(
        corners=corners[kept],
        scores=np.minimum(rows[kept, 4], np.float32(1)),
        labels=rows[kept, 5].astype(np.int64),
        p_tp=None if chances is None else np.clip(chances[kept], 0, 1),
        dropped=int(is_box.sum() - len(kept)),
        not_finite=int((~finite).sum()),
    )


def mask_of(logits: NDArray[Any], place: Placement, *, network: tuple[int, int]) -> NDArray[np.uint8]:
    """Returns the class of every pixel of the picture, [H,W]; 255 where the network did not look.

    Args:
        logits: [1,K,h,w]; with one channel, above 0 is class 1.
        place: of the picture in the network's input.
        network: width and height of the network's input.
    """
    classes = logits[0].argmax(0) if logits.shape[1] > 1 else logits[0, 0] > 0
    small = classes.astype(np.uint8)
    # From network pixels to pixels of the picture, in one nearest-neighbour warp.
    scale_x, scale_y = small.shape[1] / network[0], small.shape[0] / network[1]
    per_x, per_y = place.inner_width / place.width * scale_x, place.inner_height / place.height * scale_y
    move = np.array(
        [
            [per_x, 0, place.left * scale_x + 0.5 * per_x - 0.5],
            [0, per_y, place.top * scale_y + 0.5 * per_y - 0.5],
        ]
    )
    return np.asarray(
        cv2.warpAffine(
            small,
            move,
            (place.width, place.height),
            flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=255,
        ),
        np.uint8,
    )


def tile_doubts(
    logits: NDArray[Any], place: Placement, *, rows: int = 4, columns: int = 4
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Returns where a mask is in doubt: a grid of tiles, as the heads of segmentation score them.

    Args:
        logits: [1,K,h,w], K at least 2.
        place: of the picture in the network's input.

    Returns:
        Boxes of the tiles in pixels of the picture, [rows*columns,4], and the mean entropy of their pixels,
        0..1 of its maximum.
    """
    scaled = np.asarray(logits[0], np.float32)
    shares = np.exp(scaled - scaled.max(0))
    shares /= shares.sum(0)
    entropy = -(shares * np.log(np.maximum(shares, 1e-9))).sum(0) / np.log(max(2, len(shares)))
    height, width = entropy.shape
    tops, lefts = np.arange(rows + 1) * height / rows, np.arange(columns + 1) * width / columns
    to_network = np.tile([place.network_width / width, place.network_height / height], 2)
    boxes, doubts = [], []
    for y0, y1 in pairwise(tops):
        for x0, x1 in pairwise(lefts):
            boxes.append((x0, y0, x1, y1))
            tile = entropy[int(y0) : max(int(y0) + 1, int(y1)), int(x0) : max(int(x0) + 1, int(x1))]
            doubts.append(float(tile.mean()) if tile.size else 0.0)
    corners = place.clip(place.to_image(np.array(boxes) * to_network))
    return corners, np.array(doubts, np.float32)


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


def class_name(index: int, classes: tuple[str, ...]) -> str:
    """Returns a class name as far as it fits an offer."""
    return classes[index][:MAX_TEXT] if index < len(classes) else str(index)


def brief_of(
    kind: str, values: NDArray[Any], classes: tuple[str, ...], place: Placement | None
) -> dict[str, Any]:
    """Returns an answer (of one picture, other than boxes) in a few numbers.

    An answer with NaN or infinite values is none: {"not_finite": how many} is returned instead.
    """
    not_finite = values.size - int(np.isfinite(values).sum())
    return {"not_finite": not_finite} if not_finite else _ANSWERS[kind](values, classes, place)


def brief_boxes(boxes: Boxes, classes: tuple[str, ...], place: Placement | None = None) -> dict[str, Any]:
    """Returns the best 64 boxes as an offer carries them, and how many more there are.

    {"boxes": [{"class", "score", "p" if known, "box": [x0, y0, x1, y1]}], "more": n, "size": [width, height]
    of the picture}, and `dropped` and `not_finite` if rows of the answer could not be boxes.
    """
    found = []
    for i in range(min(len(boxes), MAX_BOXES)):
        box = {"class": class_name(int(boxes.labels[i]), classes), "score": round(float(boxes.scores[i]), 4)}
        if boxes.p_tp is not None and np.isfinite(boxes.p_tp[i]):
            box["p"] = round(float(boxes.p_tp[i]), 4)
        found.append({**box, "box": [round(float(side), 1) for side in boxes.corners[i]]})
    brief: dict[str, Any] = {"boxes": found, "more": len(boxes) - len(found), **_size(place)}
    problems = (("dropped", boxes.dropped), ("not_finite", boxes.not_finite))
    return brief | {name: count for name, count in problems if count}


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
        **_size(place),
    }


def _size(place: Placement | None) -> dict[str, list[int]]:
    """Returns the size of the picture: that in a file's header is another if Exif turns it upright."""
    return {} if place is None else {"size": [place.width, place.height]}


def _brief_segmentation(
    logits: NDArray[Any], classes: tuple[str, ...], place: Placement | None
) -> dict[str, Any]:
    """Returns the share of the picture's pixels of the eight largest classes. logits: [1,K,H,W]."""
    answer = logits[0].argmax(0)
    if place is not None:
        # Without the padding of a letterbox, which is no part of the picture.
        rows = _span(place.top, place.inner_height, answer.shape[0] / place.network_height)
        answer = answer[rows, _span(place.left, place.inner_width, answer.shape[1] / place.network_width)]
    shares = np.bincount(answer.reshape(-1), minlength=logits.shape[1]) / max(1, answer.size)
    largest = [int(k) for k in np.argsort(-shares)[:8] if shares[k] > 0]
    return {"shares": {class_name(k, classes): round(float(shares[k]), 4) for k in largest}}


def _span(start: int, length: int, scale: float) -> slice:
    """Returns the cells of a map that lie on a stretch of network pixels, at least one."""
    first = max(0, int(start * scale))
    return slice(first, max(first + 1, round((start + length) * scale)))


_ANSWERS: dict[str, Callable[[NDArray[Any], tuple[str, ...], Placement | None], dict[str, Any]]] = {
    "logits": _brief_class,
    "values": _brief_values,
    "heatmaps": _brief_keypoints,
    "segmentation": _brief_segmentation,
}
"""By kind of output; of several the first."""
KINDS = ("boxes", *_ANSWERS)
