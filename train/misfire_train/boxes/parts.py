"""Lists every object and every false box of a set of frames, for reports: what is missed, and where.

answers [N,M,6], targets --match--> Parts: a row for each object and each false box, with its class, size and
distance to the picture's border; average precision, LRP and F1 of all frames; kinds of errors
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from misfire_runtime.boxes import BoxRule
from misfire_runtime.placement import NetworkInput, Placement
from misfire_train.boxes.average_precision import average_precision
from misfire_train.boxes.columns import BOX, CLASS, IGNORE
from misfire_train.boxes.losses import f1, lrp
from misfire_train.boxes.matching import Match, match_frames

LOOSE = 0.01
"""Score from which average precision counts boxes: it looks at all thresholds, not at the deployed one."""
# COCO's bands, in pixels of the side of a square of the same area.
_SIZES = ((32.0, "small, below 32 px"), (96.0, "medium, 32 to 96 px"), (np.inf, "large, from 96 px"))
# Shares of the picture's shorter side. At the border an object is usually cut off.
_BORDERS = ((0.01, "at the border"), (0.1, "near, within 10 %"), (np.inf, "inside"))


@dataclass(frozen=True)
class Parts:
    """Holds the objects that count and the false boxes of N frames, R rows.

    Attributes:
        frame: int64 [R], 0..N-1.
        is_object: bool [R]; the others are false boxes.
        wrong: bool [R], a missed object or a false box.
        slices: {kind of slice: [R] labels}.
        summary: {measure: value in 0..1}, of all frames together.
        kinds: {kind of error: count}, as TIDE names them, and "missed".
    """

    frame: NDArray[np.int64]
    is_object: NDArray[np.bool_]
    wrong: NDArray[np.bool_]
    slices: Mapping[str, NDArray[np.str_]]
    summary: Mapping[str, float]
    kinds: Mapping[str, int]


def find_parts(
    answers: Tensor,
    targets: Sequence[Tensor],
    rule: BoxRule,
    *,
    sizes: Sequence[tuple[int, int]],
    contract: NetworkInput,
    classes: Sequence[str],
) -> Parts:
    """Returns what is right and wrong in a set of frames.

    Args:
        answers: final boxes [N,M,6], down to `LOOSE` if they are there.
        targets: of each frame [G,6].
        rule: the deployed threshold, and what counts.
        sizes: width and height of each picture.
        contract: the network's input.
        classes: names.
    """
    deployed = answers.clone()
    deployed[answers[..., 4] < rule.score_threshold] = 0
    matches = match_frames(deployed, _padded(targets), rule)
    rows = [
        _rows(match, boxes, objects) for match, boxes, objects in zip(matches, deployed, targets, strict=True)
    ]
    frame = np.repeat(np.arange(len(rows)), [len(each.box) for each in rows])
    box = np.concatenate([each.box for each in rows]) if rows else np.zeros((0, BOX))
    label = np.concatenate([each.label for each in rows]) if rows else np.zeros(0, np.int64)
    pictures = np.array([_picture(*size, contract) for size in sizes]).reshape(-1, BOX)[frame]
    kinds = [kind for match in matches for kind in match.kind if kind not in ("right", "ignored")]
    missed = sum(int(match.missed.sum()) for match in matches)
    return Parts(
        frame=frame,
        is_object=np.concatenate([each.is_object for each in rows]),
        wrong=np.concatenate([each.wrong for each in rows]),
        slices={
            "class": np.array([_name(int(each), classes) for each in label], np.str_),
            "size": _bands(np.sqrt(_area(box)), _SIZES),
            "distance to the border": _bands(_to_border(box, pictures), _BORDERS),
        },
        summary=_summary(answers, targets, matches, rule, classes=len(classes)),
        kinds={kind: kinds.count(kind) for kind in dict.fromkeys(sorted(kinds))} | {"missed": missed},
    )


@dataclass(frozen=True)
class _Rows:
    """Holds the rows of one frame: its objects that count, then its false boxes."""

    box: NDArray[np.float64]
    label: NDArray[np.int64]
    is_object: NDArray[np.bool_]
    wrong: NDArray[np.bool_]


def _rows(match: Match, boxes: Tensor, objects: Tensor) -> _Rows:
    known = objects[(objects[:, CLASS] >= 0) | (objects[:, IGNORE] > 0)]
    of_objects = known[:, :BOX].double().numpy()[match.real]
    of_boxes = boxes[boxes[:, 4] > 0][:, :BOX].double().cpu().numpy()[match.false]
    objects_here, false = len(of_objects), len(of_boxes)
    return _Rows(
        box=np.concatenate([of_objects, of_boxes]),
        label=np.concatenate([match.classes[match.real], match.label[match.false]]),
        is_object=np.repeat([True, False], [objects_here, false]),
        wrong=np.concatenate([match.missed[match.real], np.ones(false, bool)]),
    )


def _summary(
    answers: Tensor, targets: Sequence[Tensor], matches: Sequence[Match], rule: BoxRule, *, classes: int
) -> dict[str, float]:
    counted = [_with_small_ignored(objects, rule) for objects in targets]
    precision = average_precision(list(answers.cpu()), counted, classes=max(classes, 1))
    right = sum(int(match.right.sum()) for match in matches)
    false = sum(int(match.false.sum()) for match in matches)
    missed = sum(int(match.missed.sum()) for match in matches)
    return {
        "AP": precision.mean,
        "AP at .5": precision.half,
        "LRP": lrp(matches, rule),
        "F1": f1(matches),
        "precision": right / (right + false) if right + false else float("nan"),
        "recall": right / (right + missed) if right + missed else float("nan"),
    }


def _with_small_ignored(objects: Tensor, rule: BoxRule) -> Tensor:
    changed = objects.clone()
    small = (objects[:, 2:4] - objects[:, :2]).amin(1) < rule.min_side
    changed[small, IGNORE] = 1
    return changed


def _padded(targets: Sequence[Tensor]) -> Tensor:
    most = max([1, *(len(each) for each in targets)])
    padded = torch.zeros(len(targets), most, IGNORE + 1)
    padded[..., CLASS] = -1
    for position, each in enumerate(targets):
        padded[position, : len(each)] = each
    return padded


def _picture(width: int, height: int, contract: NetworkInput) -> NDArray[np.float32]:
    """Returns where the picture's border is in the network's input: inside it, if it is letterboxed."""
    place = Placement.of(width, height, contract).to_network(np.array([[0.0, 0.0, width, height]]))[0]
    limit = np.array([contract.width, contract.height] * 2, np.float32)
    return np.asarray(np.clip(place, 0, limit), np.float32)


def _to_border(box: NDArray[np.float64], picture: NDArray[np.float32]) -> NDArray[np.float64]:
    """Returns the distance of each box to the nearest border, as a share of the picture's shorter side."""
    before, after = box[:, :2] - picture[:, :2], picture[:, 2:] - box[:, 2:]
    shorter = (picture[:, 2:] - picture[:, :2]).min(axis=1)
    nearest = np.concatenate([before, after], axis=1).min(axis=1) if len(box) else np.zeros(0)
    return np.asarray(np.maximum(nearest, 0) / np.maximum(shorter, 1))


def _area(box: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.maximum(box[:, 2] - box[:, 0], 0) * np.maximum(box[:, 3] - box[:, 1], 0))


def _bands(values: NDArray[np.float64], bands: Sequence[tuple[float, str]]) -> NDArray[np.str_]:
    place = np.searchsorted([limit for limit, _ in bands[:-1]], values, side="right")
    return np.array([name for _, name in bands], np.str_)[place]


def _name(label: int, classes: Sequence[str]) -> str:
    return classes[label] if 0 <= label < len(classes) else str(label)
