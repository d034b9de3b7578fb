"""Computes the loss on which a dense detector is trained.

dense answer [N,P,K+8], targets [N,G,6] --assign--> scores to reach, boxes to reach --> one scalar

- classes: cross-entropy with the quality of the assignment as soft label, over all judged cells;
- boxes: 1 - GIoU of the assigned cells (Rezatofighi et al. 2019);
- sides: negative log-likelihood of the true sides under a Laplace distribution around the box, whose standard
  deviation is the answer's spread. It trains the mean and the spread of the distances together.

Boxes and sides are weighted by the cell's share of its object. TOOD weights by quality; objects whose boxes
are bad would then hardly be learned at all.

The last one takes the place of GFL's distribution focal loss, which needs the bins: a dense answer holds only
their mean and their spread. It also makes the spread mean something: pixels by which a side is wrong.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from misfire_runtime.boxes import BoxRule
from misfire_train.boxes.assignment import Assignment, assign
from misfire_train.boxes.columns import BOX, CLASS, EXTRAS, SPREAD, STRIDE
from misfire_train.boxes.geometry import TINY, areas

BOX_WEIGHT, SIDES_WEIGHT = 2.0, 0.5
"""Against 1 for classes. GFL's weight of boxes; the likelihood counts less, as it has no lower bound."""
# In strides. A certain answer must not turn a rounding error of a label into a large gradient.
SMALLEST_SPREAD = 0.05


def training_loss(outputs: Tensor, targets: Tensor, rule: BoxRule) -> Tensor:
    """Returns the scalar that a detector is trained on.

    Args:
        outputs: [N,P,K+8], dense answers whose cells and strides are known, without gaps in their boxes.
        targets: [N,G,6], padded; ignored objects are neither to be found nor background.
        rule: objects with a shorter side below half of its `min_side` count as ignored.
    """
    outputs = outputs.float()
    # Objects a little too small to count teach what those look like that do.
    found = assign(outputs, targets, min_side=rule.min_side / 2)
    # At least 1, or a batch without objects would divide by 0.
    classes = _class_loss(outputs, targets, found) / found.quality.sum().clamp_min(1.0)
    return classes + _box_loss(outputs, targets, found) / found.share.sum().clamp_min(1.0)


def _class_loss(outputs: Tensor, targets: Tensor, found: Assignment) -> Tensor:
    logits = outputs[..., BOX:-EXTRAS]
    labels = targets[..., CLASS].long().clamp_min(0).gather(1, found.object)
    wanted = torch.zeros_like(logits).scatter_(2, labels[..., None], found.quality[..., None])
    losses = functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    return (losses * found.judged[..., None]).sum()


def _box_loss(outputs: Tensor, targets: Tensor, found: Assignment) -> Tensor:
    chosen, share = outputs[found.taken], found.share[found.taken]
    truth = targets[..., :BOX].gather(1, found.object[..., None].expand(-1, -1, BOX))[found.taken]
    boxes, stride = chosen[:, :BOX], chosen[:, STRIDE]
    error = ((boxes - truth).abs() / stride[:, None]).mean(1)
    spread = (chosen[:, SPREAD] / stride).clamp_min(SMALLEST_SPREAD)
    # Of a Laplace distribution: log-likelihood by standard deviation instead of scale.
    surprise = math.sqrt(2) * error / spread + torch.log(math.sqrt(2) * spread)
    overlap = BOX_WEIGHT * (1 - giou(boxes, truth))
    return ((overlap + SIDES_WEIGHT * surprise) * share).sum()


def giou(first: Tensor, second: Tensor) -> Tensor:
    """Returns the generalised IoU [...] of boxes [...,4], pair by pair, in -1..1.

    It still tells near from far where boxes do not overlap (Rezatofighi et al. 2019, algorithm 1).

    >>> a = torch.tensor([0.0, 0.0, 1.0, 1.0])
    >>> giou(torch.stack((a, a)), torch.stack((a, a + 2.0))).tolist()
    [1.0, -0.7777777910232544]
    """
    low, high = torch.maximum(first[..., :2], second[..., :2]), torch.minimum(first[..., 2:], second[..., 2:])
    common = areas(torch.cat((low, high), dim=-1))
    union = areas(first) + areas(second) - common
    around = torch.cat(
        (torch.minimum(first[..., :2], second[..., :2]), torch.maximum(first[..., 2:], second[..., 2:])), -1
    )
    hull = areas(around).clamp_min(TINY)
    return common / union.clamp_min(TINY) - (hull - union) / hull
