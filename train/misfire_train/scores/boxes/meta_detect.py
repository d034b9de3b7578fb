"""Scores false boxes by their neighbours: MetaDetect's statistics and a logistic regression.

kept box --candidates that overlap it--> count; min, max, mean, sd of scores and sides --> P(false box)

A right box is one of many candidates that agree, a false one often stands alone or among boxes that differ.
This sees false boxes only: a missed object has no box whose neighbours could tell.
"""

from __future__ import annotations

import torch
from torch import Tensor

from misfire_train.boxes.candidates import Candidates
from misfire_train.boxes.matching import label_candidates
from misfire_train.scores.boxes.counting import BoxScore, detection
from misfire_train.scores.registry import Recipe, register
from misfire_train.scores.stacked import logistic_regression
from misfire_train.tasks import Task

AGREES = 0.45
"""Overlap from which on a candidate speaks of the same object, as published."""
PENALTY = 1.0
# Above any side in pixels or any score, and within half precision.
FAR = 3e4
# A column that never varied tells nothing; its first other value must not become a huge one.
LEAST_SPREAD = 1e-4


@register(tasks=("detection",), needs="holdout", source="Schubert et al. 2021 (MetaDetect, arXiv:2010.01695)")
class MetaDetect(BoxScore):
    """Scores the expected number of false boxes.

    Attributes:
        weight: [D] of the standardised statistics.
        center, scale: [D].
        offset: of the log-odds.
    """

    name = "meta_detect"
    definition = "expected false boxes, from a regression on the candidates that overlap each box"
    # A regression was trained for it.
    free = False
    weight: Tensor
    center: Tensor
    scale: Tensor
    offset: Tensor

    def __init__(self, *, task: Task, weight: Tensor, center: Tensor, scale: Tensor, offset: Tensor) -> None:
        super().__init__(task=task)
        self.register_buffer("weight", weight.float())
        self.register_buffer("center", center.float())
        self.register_buffer("scale", scale.float())
        self.register_buffer("offset", offset.float())

    @classmethod
    def make(cls, recipe: Recipe) -> MetaDetect:
        """Builds it with the regression fitted to held-out frames. Raises ScoreError without them."""
        task, held_out = detection(recipe.task, cls.name), recipe.need_holdout()
        held_out.require(name=cls.name)
        found = task.candidates(held_out.signals)
        right = label_candidates(found, held_out.targets, task.rule).right
        known = ~right.isnan()
        rows, false = statistics(found)[known].double(), 1 - right[known].double()
        if not len(rows):
            # Without a single box nothing is known, and half of the next ones count as false.
            rows, false = rows.new_zeros(1, rows.shape[1]), false.new_full((1,), 0.5)
        center, scale = rows.mean(0), rows.std(0, correction=0)
        scale = torch.where(scale > LEAST_SPREAD, scale, torch.full_like(scale, 1 / LEAST_SPREAD))
        # Labels of one kind alone would push the offset to infinity (Platt 1999).
        wrong = false.sum()
        false = (false * (wrong + 1) / (wrong + 2)).clamp_min(float(1 / (len(false) - wrong + 2)))
        fitted = logistic_regression((rows - center) / scale, false, penalty=PENALTY)
        return cls(task=task, weight=fitted[:-1], center=center, scale=scale, offset=fitted[-1])

    def value(self, found: Candidates) -> Tensor:
        """Returns [N], in boxes."""
        rows = (statistics(found) - self.center) / self.scale
        false = torch.sigmoid(torch.matmul(rows, self.weight[:, None])[..., 0] + self.offset)
        return (false * found.kept.to(false.dtype)).sum(1)


def statistics(found: Candidates) -> Tensor:
    """Returns the statistics of each candidate and those that overlap it, [N,K,24].

    Columns: logit, log count, log width, log height; min, max, mean, sd of scores; the same of each side,
    measured from the box's own and by the root of its area.
    """
    p = found.probability
    own = torch.eye(p.shape[1], device=p.device, dtype=p.dtype)
    # A box without area overlaps nothing, not even itself.
    near = (found.iou + own) >= AGREES
    sides = (found.boxes[..., 2:] - found.boxes[..., :2]).clamp_min(1.0)
    size = (sides[..., :1] * sides[..., 1:]).sqrt()
    share = near.to(p.dtype)
    count = share.sum(2, keepdim=True)
    share = share / count
    own_values = torch.cat((p[..., None], found.boxes), 2)
    columns = [_about(own_value, near, share) for own_value in torch.split(own_values, 1, 2)]
    lowest, highest, mean, spread = (torch.cat(each, 2) for each in zip(*columns, strict=True))
    score = own_values[..., :1]
    return torch.cat(
        (
            found.logit[..., None],
            torch.log(count),
            torch.log(sides),
            *(score + each[..., :1] for each in (lowest, highest, mean)),
            spread[..., :1],
            *(each[..., 1:] / size for each in (lowest, highest, mean, spread)),
        ),
        2,
    )


def _about(value: Tensor, near: Tensor, share: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns min, max, mean and sd of the neighbours' values less one's own, [N,K,1] each.

    The sd of what is measured from oneself stays exact: that of places in the picture would be the root of a
    difference of large squares, in which a graph and torch differ by tenths of a pixel.

    value: [N,K,1].  near: bool [N,K,K], a row's neighbours and itself.  share: `near` by their number.
    """
    apart = value.transpose(1, 2) - value
    part = share * apart
    mean = part.sum(2, keepdim=True)
    spread = ((part * apart).sum(2, keepdim=True) - mean.square()).clamp_min(0).sqrt()
    low = torch.where(near, apart, FAR).amin(2, keepdim=True)
    high = torch.where(near, apart, -FAR).amax(2, keepdim=True)
    return low, high, mean, spread
