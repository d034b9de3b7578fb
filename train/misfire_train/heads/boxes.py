"""Implements the default head of a detector: calibrated log-odds of candidates, corrected by a committee.

log-odds of a candidate = Platt's line + mean over members of MLP(standardised statistics)
    kept boxes: it is the box of an object      candidates below the threshold: it is one without a box
log of the unseen objects = constant + mean over members of MLP(standardised statistics of the frame)
score of a frame = log of the LRP that probabilities, predicted overlaps and unseen objects add up to

One network serves all candidates. Last layers start at zero, so the head starts as `expected_lrp` and cannot
start worse. What a candidate looks like, which others agree with it, and what stands around it tell false
boxes and misses apart better than its score alone. An object without any candidate has no evidence of its
own; but how many there are on average depends on how well the frame can be seen, and that shows in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from misfire_runtime.boxes import BoxRule
from misfire_train.boxes.candidates import Candidates
from misfire_train.boxes.losses import PRIOR
from misfire_train.heads.base import LossHead, Parts
from misfire_train.heads.residual import CLIP, Committee
from misfire_train.signals import Signals
from misfire_train.tasks.detection import Detection

# Ranks of candidates whose log-odds describe a frame: the best, those of usual objects, the background.
RANKS = (0, 9, 29)
LOG_UNSEEN = (-8.0, 4.0)
"""Bounds of the logarithm of the unseen objects, so that an unfamiliar frame cannot make it explode."""
# MetaDetect's limit (Schubert et al. 2021): candidates above it speak of one object.
AGREES = 0.45
# Below any loss that matters; keeps the log of an empty frame finite.
LEAST_LOSS = 1e-4
KEPT_ROW, BELOW_ROW = 0, 1
"""Rows of `lines`."""


class BoxHead(LossHead):
    """Is LearningLoss++ for detectors.

    Its parts are (statistics [N,K,D], logit, kept, below [N,K], statistics of the frame [N,F]).

    Args:
        rule: threshold, suppression and matching that it was trained for.
        width, height: of the network's input.
        columns, frame_columns: number of statistics of a candidate, and of a frame.
        sees_features: it reads the features of each candidate's cell; a graph from elsewhere may have none.
        hidden, members: of its committees.
    """

    serves = Detection.name
    recipe = "learning-loss-pp"
    definition = "log of the expected LRP: calibrated candidates, corrected from their statistics"
    lines: Tensor
    center: Tensor
    spread: Tensor
    frame_center: Tensor
    frame_spread: Tensor

    def __init__(
        self,
        *,
        rule: Mapping[str, Any] | BoxRule,
        width: int,
        height: int,
        columns: int,
        frame_columns: int,
        sees_features: bool = True,
        hidden: int = 32,
        members: int = 4,
        task: str = "detection",
    ) -> None:
        super().__init__()
        self.task = Detection(rule if isinstance(rule, BoxRule) else BoxRule.model_validate(dict(rule)))
        self.width, self.height, self.sees_features = width, height, sees_features
        self.hidden, self.members = hidden, members
        self.correction = Committee(columns, hidden=hidden, members=members)
        self.overlap = Committee(columns, hidden=hidden, members=members)
        self.unseen = Committee(frame_columns, hidden=hidden, members=members)
        # Slope and offset of Platt's line of kept boxes, and of candidates below the threshold.
        self.lines = nn.Parameter(torch.tensor(((1.0, 0.0), (1.0, 0.0))))
        self.typical_overlap = nn.Parameter(torch.zeros(()))
        self.log_unseen = nn.Parameter(torch.zeros(()))
        self.register_buffer("frame_center", torch.zeros(frame_columns))
        self.register_buffer("frame_spread", torch.ones(frame_columns))
        self.register_buffer("center", torch.zeros(columns))
        self.register_buffer("spread", torch.ones(columns))

    @property
    def options(self) -> dict[str, Any]:
        """Returns keyword arguments that build a head of the same shapes."""
        return {
            "task": self.task.name,
            "rule": self.task.rule.model_dump(),
            "width": self.width,
            "height": self.height,
            "columns": len(self.center),
            "frame_columns": len(self.frame_center),
            "sees_features": self.sees_features,
            "hidden": self.hidden,
            "members": self.members,
        }

    def extract(self, signals: Signals) -> Parts:
        """Returns the parts: statistics of candidates and of the frame, and what is kept."""
        found = self.task.candidates(signals)
        x = candidate_statistics(found, width=self.width, height=self.height)
        if self.sees_features:
            x = torch.cat((x, feature_statistics(found, signals)), 2)
        kept, below = found.kept.to(x.dtype), found.below.to(x.dtype)
        frame = frame_statistics(found)
        if self.sees_features:
            # The candidates' own features, and those of the whole frame.
            frame = torch.cat((frame, x[..., -2:].mean(1)), 1)
        return x, found.logit, kept, below, frame

    def predict(self, parts: Parts) -> Tensor:
        """Returns the score of each frame, [N,1]."""
        return self.score_of(parts, *self.answers(parts))[:, None]

    def predict_members(self, parts: Parts) -> Tensor:
        """Returns each member's score, [members,N,1]."""
        return self.score_of(parts, *self.member_answers(parts))[..., None]

    def member_answers(self, parts: Parts) -> tuple[Tensor, Tensor, Tensor]:
        """Returns each member's `answers`, [members,N,K] twice and [members,N]."""
        rows, shape = self._rows(parts[0]), parts[1].shape
        log_odds = self._base(parts) + self.correction(rows).view(-1, *shape)
        overlap = self.typical_overlap + self.overlap(rows).view(-1, *shape)
        return log_odds, overlap, self.log_unseen + self.unseen(self._frames(parts))

    def answers(self, parts: Parts) -> tuple[Tensor, Tensor, Tensor]:
        """Returns log-odds of candidates and of overlaps above tau, [N,K], and log unseen objects, [N]."""
        rows, shape = self._rows(parts[0]), parts[1].shape
        log_odds = self._base(parts) + self.correction.average(rows).view(shape)
        overlap = self.typical_overlap + self.overlap.average(rows).view(shape)
        return log_odds, overlap, self.log_unseen + self.unseen.average(self._frames(parts))[:, 0]

    def details(self, signals: Signals) -> dict[str, Tensor]:
        """Returns P(true positive) and the expected overlap of each final box, [N,M], 0 for padding."""
        log_odds, overlap, _unseen = signals.once(
            (id(self), "answers"), lambda: self.answers(self._parts(signals))
        )
        boxes, order = self.task.final(signals)
        there = (boxes[..., 4] > 0).to(boxes.dtype)
        tau = self.task.rule.matching
        p = torch.gather(torch.sigmoid(log_odds), 1, order) * there
        iou = (tau + (1 - tau) * torch.gather(torch.sigmoid(overlap), 1, order)) * there
        return {"box.p_tp": p, "box.iou": iou}

    def forward(self, signals: Signals) -> Tensor:
        """Returns scores [N]."""
        parts = self._parts(signals)
        answers = signals.once((id(self), "answers"), lambda: self.answers(parts))
        return self.score_of(parts, *answers)

    def _parts(self, signals: Signals) -> Parts:
        return signals.once((id(self), "parts"), lambda: self.extract(signals))

    def _rows(self, x: Tensor) -> Tensor:
        return ((x.flatten(0, 1) - self.center) / self.spread).clamp(-CLIP, CLIP)

    def _frames(self, parts: Parts) -> Tensor:
        return ((parts[4] - self.frame_center) / self.frame_spread).clamp(-CLIP / 2, CLIP / 2)

    def _base(self, parts: Parts) -> Tensor:
        """Returns Platt's line of each candidate, [N,K]."""
        _x, logit, kept, _below, _frame = parts
        slope = torch.lerp(self.lines[BELOW_ROW, 0], self.lines[KEPT_ROW, 0], kept)
        offset = torch.lerp(self.lines[BELOW_ROW, 1], self.lines[KEPT_ROW, 1], kept)
        return slope * logit + offset

    def score_of(self, parts: Parts, log_odds: Tensor, overlap: Tensor, log_unseen: Tensor) -> Tensor:
        """Returns the log of the expected loss, [...,N].

        log_odds, overlap: [...,N,K].  log_unseen: [...,N].
        """
        _x, _logit, kept, below, _frame = parts
        p = torch.sigmoid(log_odds)
        right, false = (p * kept).sum(-1), ((1 - p) * kept).sum(-1)
        # The overlap runs from tau to 1, and (1 - IoU)/(1 - tau) from 1 to 0.
        misplaced = (p * (1 - torch.sigmoid(overlap)) * kept).sum(-1)
        missed = (p * below).sum(-1) + torch.exp(log_unseen.clamp(*LOG_UNSEEN))
        loss = (misplaced + false + missed) / (right + false + missed + PRIOR)
        return torch.log(loss + LEAST_LOSS)


def candidate_statistics(found: Candidates, *, width: int, height: int) -> Tensor:
    """Returns what a candidate looks like, who agrees with it, and what stands around it, [N,K,D]."""
    p = found.probability
    kept = found.kept.to(p.dtype)
    sides = (found.boxes[..., 2:] - found.boxes[..., :2]).clamp_min(1.0)
    log_sides = torch.log(sides)
    size = (log_sides.sum(2) / 2).exp()
    best = found.logits.topk(min(2, found.logits.shape[2]), dim=2).values
    x0, y0, x1, y1 = found.boxes.unbind(2)
    border = torch.minimum(torch.minimum(x0, y0), torch.minimum(width - x1, height - y1))
    own = torch.stack(
        (
            found.logit,
            kept,
            best[..., 0] - best[..., -1],
            log_sides[..., 0],
            log_sides[..., 1],
            log_sides[..., 0] - log_sides[..., 1],
            y1 / height,
            (x0 + x1) / (2 * width),
            (border / min(width, height)).clamp(-0.1, 0.5),
            torch.log(found.spread / size + 1e-3),
            torch.log(found.stride.clamp_min(1.0)),
        ),
        2,
    )
    return torch.cat((own, _agreement(found, size), _surroundings(found)), 2)


def _agreement(found: Candidates, size: Tensor) -> Tensor:
    """Returns how many candidates agree, and how sure and how united those of its class are, [N,K,6]."""
    p = found.probability
    near = (found.iou >= AGREES).to(p.dtype)
    alike = near * found.same.to(p.dtype)
    count = alike.sum(2).clamp_min(1.0)
    # Differences of pairs, not squares minus a square: with places of hundreds of pixels that would be noise.
    mean = (alike * p[:, None, :]).sum(2) / count
    score_spread = (alike * (p[:, None, :] - p[..., None]).abs()).sum(2) / count
    side_spread = torch.zeros_like(p)
    for side in found.boxes.unbind(2):
        side_spread = side_spread + (alike * (side[:, None, :] - side[..., None]).abs()).sum(2)
    side_spread = side_spread / (4 * count * size)
    return torch.stack(
        (
            torch.log(count),
            torch.log(near.sum(2).clamp_min(1.0)),
            (alike * p[:, None, :]).amax(2),
            mean,
            score_spread,
            side_spread,
        ),
        2,
    )


def _surroundings(found: Candidates) -> Tensor:
    """Returns overlaps with kept boxes of its and other classes, and what the whole frame holds, [N,K,6]."""
    p = found.probability
    kept, below = found.kept.to(p.dtype), found.below.to(p.dtype)
    same = found.same.to(p.dtype)
    others = found.iou * (1 - torch.eye(found.iou.shape[1], device=p.device, dtype=p.dtype))
    covering = others * kept[:, None, :]
    z = found.logit
    entropy = functional.softplus(z) - z * p
    frame = torch.stack(
        (
            torch.log1p(kept.sum(1)),
            torch.log1p((p * kept).sum(1)),
            torch.log1p((p * below).sum(1)),
            (entropy * (kept + below)).sum(1) / (kept + below).sum(1).clamp_min(1.0),
        ),
        1,
    )
    return torch.cat(
        (
            (covering * same).amax(2)[..., None],
            (covering * (1 - same)).amax(2)[..., None],
            frame[:, None].expand(-1, p.shape[1], -1),
        ),
        2,
    )


def frame_statistics(found: Candidates) -> Tensor:
    """Returns what a frame's candidates look like together, [N,F]: how much a detector sees in it."""
    z, p = found.logit, found.probability
    kept, below = found.kept.to(p.dtype), found.below.to(p.dtype)
    near = (found.iou >= AGREES).to(p.dtype)
    alike = torch.log((near * found.same.to(p.dtype)).sum(2).clamp_min(1.0)).mean(1)
    sides = (found.boxes[..., 2:] - found.boxes[..., :2]).clamp_min(1.0)
    spread = torch.log(found.spread / (sides[..., 0] * sides[..., 1]).sqrt() + 1e-3)
    entropy = functional.softplus(z) - z * p
    last = z.shape[1] - 1
    mean = z.mean(1)
    columns = [z[:, min(rank, last)] for rank in RANKS]
    columns += [
        mean,
        (z.square().mean(1) - mean.square()).clamp_min(0).sqrt(),
        torch.log1p(kept.sum(1)),
        torch.log1p((p * kept).sum(1)),
        torch.log1p((p * below).sum(1)),
        (entropy * (kept + below)).sum(1) / (kept + below).sum(1).clamp_min(1.0),
        alike,
        spread[:, : RANKS[1] + 1].mean(1),
    ]
    return torch.stack(columns, 1)


def feature_statistics(found: Candidates, signals: Signals) -> Tensor:
    """Returns the log of the squared length of each candidate's features, own and frame's, [N,K,2]."""
    phi = signals.last_input.flatten(2)
    index = found.index[:, None].expand(-1, phi.shape[1], -1)
    own = torch.gather(phi, 2, index).square().sum(1)
    whole = signals.flat.square().sum(1, keepdim=True).expand_as(own)
    return torch.log(torch.stack((own, whole), 2).clamp_min(1e-9))
