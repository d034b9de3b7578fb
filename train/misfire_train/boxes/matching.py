"""Matches the boxes of a detector with labelled objects, as COCO does at one overlap.

boxes, best first --each takes the free object of its class that it overlaps most, at least tau--> Match

An object that is flagged as ignored (a crowd, a region without labels) or is too small is neither missed nor
makes a box false: a box that fits only such a region counts as neither right nor wrong. Kinds of errors are
those of TIDE (Bolya et al., ECCV 2020, arXiv:2008.08115).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from misfire_runtime.boxes import BoxRule
from misfire_train.boxes.candidates import Candidates, finals
from misfire_train.boxes.columns import CLASS, IGNORE, is_final
from misfire_train.boxes.geometry import covered, iou_matrix

Kind = Literal["right", "ignored", "class", "place", "both", "duplicate", "background"]
# TIDE's lower limit: below it a box has nothing to do with an object.
NEARBY = 0.1
ANY_CLASS = -1
"""Class of an ignored region that holds for all classes."""


@dataclass(frozen=True)
class Match:
    """Holds what became of the B boxes and G objects of one frame.

    Attributes:
        score, label: of each box, [B], best first.
        right: bool [B], it is the box of an object.  ignored: bool [B], it counts as neither.
        overlap: [B], with the object of its class that it overlaps most.
        object: int64 [B], the object of a right box, else -1.
        kind: [B], the kind of error, "right" or "ignored".
        classes: int64 [G].  real: bool [G], objects that count.  found: bool [G].
    """

    score: NDArray[np.float64]
    label: NDArray[np.int64]
    right: NDArray[np.bool_]
    ignored: NDArray[np.bool_]
    overlap: NDArray[np.float64]
    object: NDArray[np.int64]
    kind: tuple[Kind, ...]
    classes: NDArray[np.int64]
    real: NDArray[np.bool_]
    found: NDArray[np.bool_]

    @property
    def false(self) -> NDArray[np.bool_]:
        """Returns which boxes are wrong, bool [B]."""
        return ~(self.right | self.ignored)

    @property
    def missed(self) -> NDArray[np.bool_]:
        """Returns which objects have no box, bool [G]."""
        return self.real & ~self.found


def match_frames(outputs: Tensor, targets: Tensor, rule: BoxRule) -> list[Match]:
    """Returns the match of each frame.

    Args:
        outputs: answers, dense [N,P,K+8] or final [N,M,6].
        targets: [N,G,6], padded with class -1.
        rule: threshold and suppression (of dense answers), overlap and smallest side.
    """
    boxes = (outputs if is_final(outputs) else finals(outputs, rule)).detach().cpu()
    return [
        match_frame(rows[rows[:, 4] > 0], objects, rule)
        for rows, objects in zip(boxes, _objects(targets), strict=True)
    ]


def match_frame(boxes: Tensor, objects: Tensor, rule: BoxRule) -> Match:
    """Returns the match of one frame. boxes: [B,6], best first.  objects: [G,6], without padding."""
    label = boxes[:, 5].round().long().numpy()
    classes = objects[:, CLASS].round().long().numpy()
    real = ~_ignored(objects, rule).numpy()
    iou = iou_matrix(boxes[:, :4], objects[:, :4]).double().numpy()
    of_class = label[:, None] == classes[None, :]
    fits_class = of_class | (classes == ANY_CLASS)[None, :]
    overlap = np.where(of_class & real, iou, 0.0)
    taken = np.full(len(boxes), -1, np.int64)
    found = np.zeros(len(objects), bool)
    for box in range(len(boxes)):
        free = np.where(found, -1.0, overlap[box])
        if free.size and free.max() >= rule.matching:
            taken[box] = int(free.argmax())
            found[taken[box]] = True
    right = taken >= 0
    ignored = ~right & _in_ignored(boxes, objects, ~real[None] & fits_class, iou, rule)
    kinds = tuple(
        "right" if right[b] else "ignored" if ignored[b] else _kind(iou[b], of_class[b], real, rule)
        for b in range(len(boxes))
    )
    return Match(
        score=boxes[:, 4].double().numpy(),
        label=label,
        right=right,
        ignored=ignored,
        overlap=overlap.max(1) if len(objects) else np.zeros(len(boxes)),
        object=taken,
        kind=kinds,
        classes=classes,
        real=real,
        found=found,
    )


def _ignored(objects: Tensor, rule: BoxRule) -> Tensor:
    sides = (objects[:, 2:4] - objects[:, :2]).amin(1)
    return (objects[:, IGNORE] > 0) | (sides < rule.min_side)


def _in_ignored(
    boxes: Tensor, objects: Tensor, eligible: NDArray[np.bool_], iou: NDArray[np.float64], rule: BoxRule
) -> NDArray[np.bool_]:
    """Returns which boxes fit an ignored region: they overlap it like an object, or lie inside it.

    eligible: bool [B,G], pairs of a box and an ignored region of its class.
    """
    if not eligible.any():
        return np.zeros(len(boxes), bool)
    inside = covered(boxes[:, :4], objects[:, :4]).double().numpy() >= rule.matching
    # A flagged region may hold many objects, so a box inside it is not false; a small object holds itself.
    flagged = objects[:, IGNORE].numpy() > 0
    return np.asarray((((iou >= rule.matching) | (inside & flagged)) & eligible).any(1))


def _kind(
    iou: NDArray[np.float64], of_class: NDArray[np.bool_], real: NDArray[np.bool_], rule: BoxRule
) -> Kind:
    own = float(np.max(iou, where=of_class & real, initial=0.0))
    other = float(np.max(iou, where=~of_class & real, initial=0.0))
    if NEARBY <= own < rule.matching:
        return "place"
    if other >= rule.matching:
        return "class"
    # It fits an object of its class, which a better box has.
    if own >= rule.matching:
        return "duplicate"
    return "background" if max(own, other) < NEARBY else "both"


@dataclass(frozen=True)
class CandidateLabels:
    """Holds what candidates really are, each [N,K], NaN where nothing is to be learned.

    Attributes:
        right: of kept ones, 1 if it is the box of an object, else 0.
        overlap: of kept ones, with the object of its class that it overlaps most.
        uncovered: of those below the threshold, 1 if it is the best one of an object that no kept box has.
    """

    right: Tensor
    overlap: Tensor
    uncovered: Tensor


def label_candidates(found: Candidates, targets: Tensor, rule: BoxRule) -> CandidateLabels:
    """Returns the labels of candidates, from which a head learns. targets: [N,G,6], padded with class -1."""
    right, overlap, uncovered = (torch.full_like(found.logit, torch.nan) for _ in range(3))
    for frame, objects in enumerate(_objects(targets)):
        kept = found.kept[frame].nonzero().flatten()
        boxes = torch.cat(
            (
                found.boxes[frame, kept],
                found.probability[frame, kept, None],
                found.label[frame, kept, None].to(found.boxes.dtype),
            ),
            1,
        )
        match = match_frame(boxes, objects, rule)
        counts = torch.from_numpy(~match.ignored)
        right[frame, kept[counts]] = torch.from_numpy(match.right)[counts].to(right.dtype)
        overlap[frame, kept[counts]] = torch.from_numpy(match.overlap)[counts].to(overlap.dtype)
        below = found.below[frame].nonzero().flatten()
        uncovered[frame, below] = _uncovered(found.boxes[frame, below], objects, match, rule).to(
            uncovered.dtype
        )
    return CandidateLabels(right, overlap, uncovered)


def _uncovered(boxes: Tensor, objects: Tensor, match: Match, rule: BoxRule) -> Tensor:
    """Returns [B] of candidates, best first: 1 for the best of a missed object, NaN in ignored regions."""
    labels = torch.zeros(len(boxes))
    if not len(objects) or not len(boxes):
        return labels
    iou = iou_matrix(boxes, objects[:, :4])
    ignored = torch.from_numpy(~match.real)
    inside = covered(boxes, objects[:, :4]) >= rule.matching
    vague = ((iou >= rule.matching) | (inside & (objects[:, IGNORE] > 0))) & ignored
    labels[vague.any(1)] = torch.nan
    for missed in np.flatnonzero(match.missed):
        fitting = (iou[:, missed] >= rule.matching).nonzero().flatten()
        # They are sorted: the first is the best.
        if len(fitting):
            labels[fitting[0]] = 1.0
    return labels


def _objects(targets: Tensor) -> Iterator[Tensor]:
    """Yields the objects [G,6] of each frame, without the rows of padding."""
    for rows in targets.detach().cpu().float():
        yield rows[(rows[:, CLASS] >= 0) | (rows[:, IGNORE] > 0)]
