"""Reads detectors' answers by numpy, one picture at a time: the second opinion on decoding and scores.

outputs of a file --as its family documents them--> boxes [P,4], scores [P,K] --> boxes shown, scores

Nothing here is shared with the code that it checks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from misfire_runtime.boxes import BoxRule

HEIGHT, WIDTH, CLASSES = 64, 96, 3
V5_ANCHORS = ((10, 13, 16, 30, 33, 23), (30, 61, 62, 45, 59, 119), (116, 90, 156, 198, 373, 326))
Array = NDArray[np.float64]


def cells(strides: Sequence[int], *, offset: float, height: int = HEIGHT, width: int = WIDTH) -> Array:
    """Returns [P,3] of centre x, centre y and stride, row by row."""
    rows = []
    for s in strides:
        for j in range(-(-height // s)):
            for i in range(-(-width // s)):
                rows.append(((i + offset) * s, (j + offset) * s, s))
    return np.array(rows, np.float64)


def corners(boxes: Array) -> Array:
    """Returns corners of centres and sizes [P,4]."""
    x, y, w, h = boxes.astype(np.float64).T
    return np.stack((x - w / 2, y - h / 2, x + w / 2, y + h / 2), 1)


def sides(scores: Array, bins: Array, grid: Array) -> tuple[Array, Array]:
    """Returns corners of distributions [P,32], and the scores."""
    powers = np.exp(bins.reshape(-1, 4, 8) - bins.reshape(-1, 4, 8).max(2, keepdims=True))
    mean = (powers / powers.sum(2, keepdims=True)) @ np.arange(8) * grid[:, 2:]
    return np.concatenate((grid[:, :2] - mean[:, :2], grid[:, :2] + mean[:, 2:]), 1), scores


def read_v8(answer: Array) -> tuple[Array, Array]:
    """Reads [1,4+C,P], centres and sizes."""
    return corners(answer[0, :4].T), answer[0, 4:].T


def read_corners(answer: Array) -> tuple[Array, Array]:
    """Reads [1,4+C,P], corners."""
    return answer[0, :4].T, answer[0, 4:].T


def read_v5(answer: Array) -> tuple[Array, Array]:
    """Reads [1,P,5+C] with an objectness."""
    return corners(answer[0, :, :4]), answer[0, :, 4:5] * answer[0, :, 5:]


def read_v5_maps(*maps: Array) -> tuple[Array, Array]:
    """Reads three maps of YOLOv5, cell by cell."""
    boxes, scores = [], []
    for level, s, part in zip(V5_ANCHORS, (8, 16, 32), maps, strict=True):
        values = 1 / (1 + np.exp(-part[0].astype(np.float64)))
        for a in range(3):
            for j in range(values.shape[1]):
                for i in range(values.shape[2]):
                    v = values[a, j, i]
                    centre = (2 * v[:2] - 0.5 + (i, j)) * s
                    boxes.append((*centre, *((2 * v[2:4]) ** 2 * level[2 * a : 2 * a + 2])))
                    scores.append(v[4] * v[5:])
    return corners(np.array(boxes)), np.array(scores)


def read_yolox(answer: Array) -> tuple[Array, Array]:
    """Reads raw places of YOLOX."""
    grid, rows = cells((8, 16, 32), offset=0.0), answer[0].astype(np.float64)
    boxes = np.concatenate((rows[:, :2] * grid[:, 2:] + grid[:, :2], np.exp(rows[:, 2:4]) * grid[:, 2:]), 1)
    return corners(boxes), rows[:, 4:5] * rows[:, 5:]


def read_nanodet(answer: Array) -> tuple[Array, Array]:
    """Reads [1,P,C+32]."""
    rows = answer[0].astype(np.float64)
    return sides(rows[:, :CLASSES], rows[:, CLASSES:], cells((8, 16, 32, 64), offset=0.0))


def read_picodet(*parts: Array) -> tuple[Array, Array]:
    """Reads four class maps and four of distributions."""
    rows = [np.concatenate([p[0] for p in half]).astype(np.float64) for half in (parts[:4], parts[4:])]
    return sides(rows[0], rows[1], cells((8, 16, 32, 64), offset=0.5))


def read_queries(boxes: Array, logits: Array) -> tuple[Array, Array]:
    """Reads boxes in 0..1 and logits."""
    return corners(boxes[0]) * (WIDTH, HEIGHT, WIDTH, HEIGHT), 1 / (1 + np.exp(-logits[0].astype(np.float64)))


def read_rows(answer: Array) -> tuple[Array, Array]:
    """Reads chosen boxes [1,M,6]."""
    rows = answer[0].astype(np.float64)
    return rows[:, :4], (np.arange(CLASSES) == rows[:, 5:]) * rows[:, 4:5]


def read_parts(boxes: Array, labels: Array, scores: Array, count: Array) -> tuple[Array, Array]:
    """Reads TensorFlow's four outputs."""
    valid = np.arange(boxes.shape[1]) < count[0]
    turned = boxes[0][:, [1, 0, 3, 2]].astype(np.float64) * (WIDTH, HEIGHT, WIDTH, HEIGHT)
    return turned, (np.arange(CLASSES) + 1 == labels[0][:, None]) * (scores[0] * valid)[:, None]


def read_anchored(scores: Array, boxes: Array) -> tuple[Array, Array]:
    """Reads a softmax with a background and boxes in 0..1."""
    return boxes[0].astype(np.float64) * (WIDTH, HEIGHT, WIDTH, HEIGHT), scores[0][:, 1:].astype(np.float64)


def kept(
    boxes: Array,
    scores: Array,
    *,
    threshold: float = 0.3,
    suppression: float = 0.6,
    candidates: int = 100,
) -> Array:
    """Returns final boxes [m,6] by greedy suppression within a class, best first: written plainly."""
    alive = [i for i in survivors(boxes, scores, suppression, candidates) if scores[i].max() >= threshold]
    return np.array([(*boxes[i], scores[i].max(), scores[i].argmax()) for i in alive]).reshape(-1, 6)


def survivors(boxes: Array, scores: Array, suppression: float, candidates: int) -> list[int]:
    """Returns the places of the best candidates that no better one of their class suppresses, best first."""
    best, label = scores.max(1), scores.argmax(1)
    chosen: list[int] = []
    for i in np.argsort(-best, kind="stable")[:candidates]:
        if all(label[i] != label[j] or _iou(boxes[i], boxes[j]) <= suppression for j in chosen):
            chosen.append(int(i))
    return chosen


def plain_scores(
    boxes: Array, scores: Array, rule: BoxRule, *, spread: Array | None = None
) -> dict[str, float]:
    """Returns the free scores of a frame, by their definitions, from boxes [P,4] and scores [P,K].

    Without labels the detector's own scores are the probabilities of `expected_errors`. spread: [P].
    """
    alive = survivors(boxes, scores, rule.suppression, rule.candidates)
    shown = [i for i in alive if scores[i].max() >= rule.score_threshold]
    p = np.clip(scores.astype(np.float64), 1e-7, 1 - 1e-6)
    entropies = np.array([-(p[i] * np.log(p[i]) + (1 - p[i]) * np.log(1 - p[i])).sum() for i in shown])
    right = float(sum(p[i].max() for i in shown))
    missed = float(sum(p[i].max() for i in alive if i not in set(shown)))
    errors = len(shown) - right + missed
    wanted = {i: np.eye(p.shape[1])[p[i].argmax()] for i in shown}
    residual = sum(((p[i] - wanted.get(i, 0)) ** 2).sum() for i in alive)
    found = {
        "box_count": float(len(shown)),
        "entropy_sum": float(entropies.sum()),
        "entropy_max": float(entropies.max(initial=0)),
        "entropy_mean": float(entropies.sum() / max(len(shown), 1)),
        "box_gradient_unweighted": float(residual),
        "expected_errors": errors,
        "expected_lrp": errors / (right + errors + 1),
    }
    if spread is not None:
        sides = [np.sqrt(max(float(np.prod(boxes[i, 2:] - boxes[i, :2])), 1.0)) for i in shown]
        wide = [float(spread[i]) / side for i, side in zip(shown, sides, strict=True)]
        found["box_spread"] = sum(wide) / max(len(shown), 1)
    return found


def _iou(a: Array, b: Array) -> float:
    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
    common = float(np.prod(np.maximum(high - low, 0)))
    area = [float(np.prod(np.maximum(box[2:4] - box[:2], 0))) for box in (a, b)]
    return common / max(sum(area) - common, 1e-9)
