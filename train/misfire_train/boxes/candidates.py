"""Reduces a dense answer to its best candidates, and those to the boxes that a vehicle would show.

dense [N,P,K+8] --top K by best class--> candidates --class-wise suppression--> alive --s* --> kept | below
                                                                                kept --M best--> [N,M,6]

What lies below the score threshold is the only evidence of a miss, so scores need the candidates before it.
Everything is a fixed number of ordinary operators, without a loop or a NonMaxSuppression node: it is part of
the graph. Suppression is greedy: box i goes if a better one of its class that itself stays overlaps it by
more than t. One pass is Fast NMS; repeated to its fixed point it is greedy NMS (Zheng et al., Cluster-NMS,
arXiv:2005.03572).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from misfire_runtime.boxes import BoxRule
from misfire_train.boxes.columns import BOX, CELL_X, EXTRAS, SPREAD, STRIDE
from misfire_train.boxes.geometry import iou_matrix

# Chains of overlapping boxes are short: each pass settles one more link, and six settle all that were seen.
PASSES = 6
# Beyond, the sigmoid is 0 or 1 in fp32; a foreign detector's infinite logit must not make NaN.
MAX_LOGIT = 30.0


@dataclass(frozen=True)
class Candidates:
    """Holds the K best candidates of each frame, best first.

    Attributes:
        boxes: [N,K,4].
        logits: [N,K,C] of all classes.  logit, label: [N,K], of the best class.
        alive: bool [N,K], not suppressed.  kept: alive and above the score threshold.
        iou: [N,K,K].  same: bool [N,K,K], two candidates have one label.
        spread: [N,K,1].  stride: [N,K].  cell: [N,K,2].
        index: int64 [N,K], place among the P cells.
    """

    boxes: Tensor
    logits: Tensor
    logit: Tensor
    label: Tensor
    alive: Tensor
    kept: Tensor
    iou: Tensor
    same: Tensor
    spread: Tensor
    cell: Tensor
    stride: Tensor
    index: Tensor

    @property
    def below(self) -> Tensor:
        """Returns bool [N,K]: not suppressed, and below the score threshold."""
        return self.alive & ~self.kept

    # What several scores read is computed once: a graph then holds it once, too.

    @cached_property
    def probability(self) -> Tensor:
        """Returns the detector's own scores, [N,K]."""
        return torch.sigmoid(self.logit)

    @cached_property
    def shown(self) -> Tensor:
        """Returns `kept` as 0 or 1, [N,K]."""
        return self.kept.to(self.logit.dtype)

    @cached_property
    def hidden(self) -> Tensor:
        """Returns `below` as 0 or 1, [N,K]."""
        return self.alive.to(self.logit.dtype) - self.shown

    @cached_property
    def states(self) -> Tensor:
        """Returns `shown` and `hidden` side by side, [N,2,K]."""
        return torch.stack((self.shown, self.hidden), 1)

    @cached_property
    def count(self) -> Tensor:
        """Returns the number of kept boxes, [N]."""
        return self.shown.sum(1)

    @cached_property
    def scores(self) -> Tensor:
        """Returns the detector's scores of all classes, [N,K,C]."""
        return torch.sigmoid(self.logits)

    @cached_property
    def entropy(self) -> Tensor:
        """Returns the sum over classes of the binary entropies, in nats, [N,K,1]."""
        # H(sigmoid z) = softplus(z) - z sigmoid(z), without the log of a rounded 0.
        return (functional.softplus(self.logits) - self.logits * self.scores).sum(2, keepdim=True)


def find_candidates(outputs: Tensor, rule: BoxRule) -> Candidates:
    """Returns the best candidates of a dense answer [N,P,K+8]."""
    classes = outputs[..., BOX:-EXTRAS].clamp(-MAX_LOGIT, MAX_LOGIT)
    best = classes.amax(2)
    count = min(rule.candidates, int(outputs.shape[1]))
    logit, index = best.topk(count, dim=1)
    rows = torch.gather(outputs, 1, index[..., None].expand(-1, -1, outputs.shape[2]))
    boxes, logits = rows[..., :BOX], rows[..., BOX:-EXTRAS].clamp(-MAX_LOGIT, MAX_LOGIT)
    label = logits.argmax(2)
    iou = iou_matrix(boxes, boxes)
    same = label[:, :, None] == label[:, None, :]
    alive = suppress(iou, same, limit=rule.suppression)
    kept = alive & (torch.sigmoid(logit) >= rule.score_threshold)
    return Candidates(
        boxes=boxes,
        logits=logits,
        logit=logit,
        label=label,
        alive=alive,
        kept=kept,
        iou=iou,
        same=same,
        spread=rows[..., SPREAD:CELL_X],
        cell=rows[..., CELL_X:STRIDE],
        stride=rows[..., STRIDE],
        index=index,
    )


def suppress(iou: Tensor, same: Tensor, *, limit: float) -> Tensor:
    """Returns which candidates stay, bool [N,K], by greedy suppression within a class.

    iou, same: [N,K,K], candidates best first.  limit: of the overlap; 1 suppresses nothing.
    """
    better = torch.ones(iou.shape[1], iou.shape[1], device=iou.device).tril(-1)
    # 1 where column j would suppress row i, if j itself stays.
    rivals = ((iou > limit) & same).to(iou.dtype) * better
    stays = torch.ones_like(iou[..., :1])
    for _ in range(PASSES):
        # The number of rivals that stay is 0, or at least 1.
        stays = (1 - torch.matmul(rivals, stays)).clamp_min(0)
    return stays[..., 0] > 0.5


def final_boxes(found: Candidates, rule: BoxRule) -> tuple[Tensor, Tensor]:
    """Returns the boxes that a vehicle shows, [N,M,6], and their places among the candidates, [N,M].

    Rows beyond the last box are zero; their places mean nothing.
    """
    count = min(rule.max_boxes, int(found.logit.shape[1]))
    score = torch.where(found.kept, found.probability, torch.zeros_like(found.logit))
    best, order = score.topk(count, dim=1)
    boxes = torch.gather(found.boxes, 1, order[..., None].expand(-1, -1, BOX))
    label = torch.gather(found.label, 1, order).to(boxes.dtype)
    rows = torch.cat((boxes, best[..., None], label[..., None]), 2)
    return torch.where((best > 0)[..., None], rows, torch.zeros_like(rows)), order


def finals(outputs: Tensor, rule: BoxRule) -> Tensor:
    """Returns the final answer [N,M,6] of a dense one; a final one as it is."""
    return final_boxes(find_candidates(outputs, rule), rule)[0]
