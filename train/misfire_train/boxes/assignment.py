"""Assigns the cells of a dense detector to labelled objects, and says which cells must stay out of the loss.

dense answer, targets [N,G,6] --assign--> object and quality of each cell; cells that no loss may judge

Assignment is task-aligned (Feng et al. 2021, TOOD, eq. 1): an object takes the cells inside it whose answers
fit best so far, by score^alpha * IoU^beta. So the class branch learns to be sure where the box is good.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from misfire_train.boxes.columns import BOX, CELL_X, CLASS, IGNORE, STRIDE
from misfire_train.boxes.geometry import covered, iou_matrix

ALPHA, BETA = 0.5, 6.0
"""Exponents of the class score and of the IoU (TOOD's beta; YOLOv8's alpha)."""
CELLS = 10
"""Most cells of one object."""
# Below it all cells fit equally badly: an object that no box touches yet still gets cells that learn.
LEAST_IOU = 0.05
# A box of which half lies in an ignored region may well be right about what is there.
IGNORED_SHARE = 0.5


@dataclass(frozen=True)
class Assignment:
    """Holds what each of P cells has to answer.

    Attributes:
        taken: bool [N,P], cells that answer for an object.
        object: int64 [N,P], row of that object in the targets, 0 elsewhere.
        quality: [N,P], score to be reached for the class of the object, 0 elsewhere.
        share: [N,P], how well the cell fits compared with the object's best one, 0..1; 0 elsewhere.
        judged: bool [N,P], cells whose class scores the loss may judge.
    """

    taken: Tensor
    object: Tensor
    quality: Tensor
    share: Tensor
    judged: Tensor


@torch.no_grad()
def assign(outputs: Tensor, targets: Tensor, *, min_side: float = 0.0, cells: int = CELLS) -> Assignment:
    """Returns what the cells of a dense answer have to learn from labelled objects.

    Args:
        outputs: [N,P,K+8], dense answers whose cells and strides are known.
        targets: [N,G,6], padded.
        min_side: objects with a shorter side below it count as ignored, in network pixels.
        cells: most cells of one object.
    """
    ignored, real = _ignored_and_real(targets, min_side)
    places = outputs[0, :, CELL_X:STRIDE]
    boxes, objects = outputs[..., :BOX], targets[..., :BOX]
    inside = _inside(places, objects) & real[..., None]
    iou = iou_matrix(objects, boxes)
    aligned = _scores_for(outputs, targets).pow(ALPHA) * iou.clamp_min(LEAST_IOU).pow(BETA) * inside
    best = aligned.topk(min(cells, aligned.shape[2]), dim=2).indices
    chosen = torch.zeros_like(inside).scatter_(2, best, True) & inside
    # Where objects overlap, a cell answers for the one that its box fits best.
    winner = (iou * chosen).argmax(1)
    chosen &= functional.one_hot(winner, targets.shape[1]).transpose(1, 2).bool()
    aligned, iou = aligned * chosen, iou * chosen
    # The best cell of an object has to reach its IoU, the others a share of it.
    share = aligned / aligned.amax(2, keepdim=True).clamp_min(torch.finfo(aligned.dtype).tiny)
    quality = (share * iou.amax(2, keepdim=True)).amax(1)
    taken = chosen.any(1)
    judged = taken | ~_ignores(places, boxes, objects, ignored, min_side)
    return Assignment(taken, winner * taken, quality, share.amax(1), judged)


def _ignored_and_real(targets: Tensor, min_side: float) -> tuple[Tensor, Tensor]:
    """Returns bool [N,G] twice: ignored objects, and those to be found. Padding is neither."""
    sides = targets[..., 2:BOX] - targets[..., :2]
    present = sides.amin(2) > 0
    small = sides.amin(2) < min_side
    # An ignored region may have no class, which padding has neither.
    ignored = present & ((targets[..., IGNORE] > 0) | (small & (targets[..., CLASS] >= 0)))
    return ignored, present & (targets[..., CLASS] >= 0) & ~ignored


def _inside(places: Tensor, objects: Tensor) -> Tensor:
    """Returns bool [N,G,P]: whether a cell's centre lies in an object."""
    low, high = objects[..., None, :2], objects[..., None, 2:]
    return ((places > low) & (places < high)).all(3)


def _scores_for(outputs: Tensor, targets: Tensor) -> Tensor:
    """Returns the scores [N,G,P] of all cells for the class of each object."""
    scores = outputs[..., BOX:-4].sigmoid().transpose(1, 2)
    labels = targets[..., CLASS].long().clamp_min(0)
    return scores.gather(1, labels[..., None].expand(-1, -1, scores.shape[2]))


def _ignores(places: Tensor, boxes: Tensor, objects: Tensor, ignored: Tensor, min_side: float) -> Tensor:
    """Returns bool [N,P]: cells in an ignored region, or whose box is mostly in one."""
    middle = (objects[..., :2] + objects[..., 2:]) / 2
    # A tiny object may hold no cell's centre; the cell next to it must not be told that there is nothing.
    half = ((objects[..., 2:] - objects[..., :2]) / 2).clamp_min(min_side / 2)
    regions = torch.cat((middle - half, middle + half), dim=2)
    within = covered(boxes, regions).transpose(1, 2) >= IGNORED_SHARE
    return ((_inside(places, regions) | within) & ignored[..., None]).any(1)
