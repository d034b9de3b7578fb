"""Implements the default head of a detector: calibrated log-odds of candidates, corrected by a committee.

log-odds of a candidate = Platt's line + mean over members of MLP(standardised statistics)
    kept boxes: it is the box of an object      candidates below the threshold: it is one without a box
log of the unseen objects = constant + mean over members of MLP(standardised statistics of the frame)
score of a frame = log of the LRP, or of the errors, that probabilities, overlaps and unseen objects add up to

One network serves all candidates. Last layers start at zero, so the head starts as the free score and cannot
start worse; its correction is weakened to what holds on groups left out (heads/box_strength.py). What a
candidate looks like, which others agree with it, and what stands around it tell false boxes and misses apart
better than its score alone. An object without any candidate has no evidence of its own; but how many there
are on average depends on how well the frame can be seen, and that shows in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from misfire_runtime.boxes import BoxRule
from misfire_train.boxes.candidates import Candidates
from misfire_train.boxes.losses import PRIOR
from misfire_train.heads.base import LossHead, Parts
from misfire_train.heads.residual import CLIP, Committee
from misfire_train.signals import Signals
from misfire_train.tasks.detection import Detection

RANKS = (0, 4, 9, 19, 29, 59, 99)
"""Ranks of candidates whose log-odds describe a frame: the best, those of usual objects, the background."""
SUMMED = slice(10, 14)
"""Statistics of candidates that are added up over a frame: entropy, spread, agreement, score."""
SUMS = 2 * (1 + SUMMED.stop - SUMMED.start)
LINE = 3
"""Statistics of a candidate that Platt's lines read: the first ones."""
ANSWERS = 2
"""Of a candidate: log-odds of being right, and of its overlap between tau and 1."""
LOG_UNSEEN = (-8.0, 4.0)
"""Bounds of the logarithm of the unseen objects, so that an unfamiliar frame cannot make it explode."""
BASES = ("expected_lrp", "expected_errors")
"""Free scores that a head can end as: the share of errors, and their number."""
MARGIN = 1.25
"""By how much the log of the unseen objects must rise before it counts half, and from twice that in full.

It was chosen by leaving out a town of the held-out half of carla-detection: frames of another town differ
that much without being harder; corrupted ones differ more.
"""
# MetaDetect's limit (Schubert et al. 2021): candidates above it speak of one object.
AGREES = 0.45
# Below any loss that matters; keeps the log of an empty frame finite.
LEAST_LOSS = 1e-4
KEPT_ROW, BELOW_ROW = 0, 1
"""Rows of `lines`."""


class BoxHead(LossHead):
    """Is LearningLoss++ for detectors.

    Its parts are (statistics [N,K,D], kept, below [N,K], statistics of the frame [N,F]).

    Args:
        rule: threshold, suppression and matching that it was trained for.
        width, height: of the network's input.
        columns, frame_columns: number of statistics of a candidate, and of a frame.
        sees_features: it reads the features of each candidate's cell; a graph from elsewhere may have none.
        hidden, members: of its committees.
        base: the free score that it corrects, of BASES.
        strength: what is left of the correction of candidates; at 0 the head is the free score.
    """

    serves = Detection.name
    recipe = "learning-loss-pp"
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
        base: str = BASES[0],
        strength: float = 1.0,
        task: str = "detection",
    ) -> None:
        super().__init__()
        self.task = Detection(rule if isinstance(rule, BoxRule) else BoxRule.model_validate(dict(rule)))
        self.width, self.height, self.sees_features = width, height, sees_features
        self.hidden, self.members = hidden, members
        self.base, self.strength = base, strength
        self.correction = _Pairs(columns, hidden=hidden, members=members)
        self.unseen = Committee(frame_columns, hidden=hidden, members=members)
        # Slope and offset of Platt's line of kept boxes, and of candidates below the threshold.
        self.lines = nn.Parameter(torch.tensor(((1.0, 0.0), (1.0, 0.0))))
        self.typical_overlap = nn.Parameter(torch.zeros(()))
        self.log_unseen = nn.Parameter(torch.zeros(()))
        self.register_buffer("frame_center", torch.zeros(frame_columns))
        self.register_buffer("frame_spread", torch.ones(frame_columns))
        self.register_buffer("center", torch.zeros(columns))
        self.register_buffer("spread", torch.ones(columns))
        self.define()

    def define(self) -> None:
        """Sets the definition that a manifest prints."""
        if self.strength == 0:
            self.definition = f"log of {self.base} alone: no correction earned its place"
            return
        what = "LRP" if self.base == BASES[0] else "errors"
        share = "corrected" if self.strength == 1 else f"{self.strength:g} corrected"
        self.definition = f"log of the expected {what}: calibrated candidates, {share} from their statistics"

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
            "base": self.base,
            "strength": self.strength,
        }

    def extract(self, signals: Signals) -> Parts:
        """Returns the parts: statistics of candidates and of the frame, and what is kept."""
        found = self.task.candidates(signals)
        if self.strength == 0:
            # Nothing else is read, so nothing else is computed.
            return (
                scored_logits(found),
                found.shown,
                found.hidden,
                signals.outputs.new_zeros(len(found.logit), 0),
            )
        own = candidate_statistics(found, width=self.width, height=self.height)
        sums, logits = frame_sums(found, own), ranked_logits(found)
        # What the whole frame holds, seen from each candidate; its own columns stay in front.
        x = torch.cat((own, sums.expand(-1, own.shape[1], -1)), 2)
        frame = [sums.flatten(1), logits]
        if self.sees_features:
            frame.append(torch.log(signals.flat.square().sum(1, keepdim=True).clamp_min(1e-9)))
        return x, found.shown, found.hidden, torch.cat(frame, 1)

    def predict(self, parts: Parts) -> Tensor:
        """Returns the score of each frame, [N,1]."""
        return self.score_of(parts, *self.answers(parts))[:, None]

    def predict_members(self, parts: Parts) -> Tensor:
        """Returns each member's score as it is trained, [members,N,1]."""
        return self.score_of(parts, *self.member_answers(parts))[..., None]

    @torch.no_grad()
    def weaken(self, strength: float) -> None:
        """Keeps this share of what training made of candidates; at 0 nothing of the head is kept.

        What was learned of unseen objects stays whole above 0: MARGIN already holds it back.
        """
        self.correction.last.mul_(strength)
        self.strength = strength
        self.define()

    def member_answers(self, parts: Parts) -> tuple[Tensor, Tensor]:
        """Returns each member's answers as they are trained, [members,N,K,2] and [members,N]."""
        x, shape = parts[0].flatten(0, 1), parts[0].shape[:2]
        line, start = self._line()
        base = torch.addmm(start, x[:, :LINE], line)
        both = (self.correction(self._rows(x)) + base).view(-1, *shape, ANSWERS)
        return both, self.log_unseen + self.unseen(self._frames(parts))

    def answers(self, parts: Parts) -> tuple[Tensor, Tensor]:
        """Returns log-odds [N,K,2] of being right and of overlaps above tau, and log unseen objects, [N].

        Unseen objects are as many as on average unless the frame says clearly that they are more.
        """
        x, shape = parts[0].flatten(0, 1), parts[0].shape[:2]
        if self.strength == 0:
            line, start = self._line()
            both = torch.addmm(start, x[:, :LINE], line).view(*shape, ANSWERS)
            return both, self.log_unseen.expand(len(parts[0]))
        # One product for the members' mean, the line and the offsets.
        seen = torch.cat((self.correction.wide(self._rows(x)), x[:, :LINE]), 1)
        line, start = self._line()
        weight = torch.cat((_mean_last(self.correction), line))
        both = torch.addmm(start, seen, weight).view(*shape, ANSWERS)
        # The smaller of x and 2 (x - MARGIN), but at least 0; both are columns of one product.
        last = _mean_last(self.unseen)
        offsets = self.log_unseen + last.new_tensor((0.0, -2 * MARGIN))
        raised = torch.addmm(offsets, self.unseen.wide(self._frames(parts)), torch.cat((last, 2 * last), 1))
        return both, torch.maximum(raised.amin(1), self.log_unseen)

    def details(self, signals: Signals) -> dict[str, Tensor]:
        """Returns P(true positive) and the expected overlap of each final box, [N,M], 0 for padding."""
        both, _unseen = self._answers(signals)
        _boxes, order = self.task.final(signals)
        tau = self.task.rule.matching
        # A probability as it is; the overlap runs from tau to 1.
        scale, start = both.new_tensor((1.0, 1 - tau)), both.new_tensor((0.0, tau))
        # Padding of the final boxes are candidates that are not kept.
        shown = self.task.candidates(signals).shown[..., None]
        values = (torch.sigmoid(both) * scale + start) * shown
        p, iou = torch.gather(values, 1, order[..., None].expand(-1, -1, ANSWERS)).unbind(2)
        return {"box.p_tp": p, "box.iou": iou}

    def forward(self, signals: Signals) -> Tensor:
        """Returns scores [N]."""
        return self.score_of(self._parts(signals), *self._answers(signals))

    def _parts(self, signals: Signals) -> Parts:
        return signals.once((id(self), "parts"), lambda: self.extract(signals))

    def _answers(self, signals: Signals) -> tuple[Tensor, Tensor]:
        return signals.once((id(self), "answers"), lambda: self.answers(self._parts(signals)))

    def _rows(self, x: Tensor) -> Tensor:
        return ((x - self.center) / self.spread).clamp(-CLIP, CLIP)

    def _frames(self, parts: Parts) -> Tensor:
        return ((parts[3] - self.frame_center) / self.frame_spread).clamp(-CLIP / 2, CLIP / 2)

    def _line(self) -> tuple[Tensor, Tensor]:
        """Returns Platt's lines and the typical overlap: weights [LINE,2] of statistics, and offsets [2]."""
        kept, below = self.lines[KEPT_ROW], self.lines[BELOW_ROW]
        # The first statistics are the logit, whether it is kept, and their product.
        line = torch.stack((below[0], kept[1] - below[1], kept[0] - below[0]))
        return torch.stack((line, torch.zeros_like(line)), 1), torch.stack((below[1], self.typical_overlap))

    def score_of(self, parts: Parts, both: Tensor, log_unseen: Tensor) -> Tensor:
        """Returns the log of the expected loss, or of the expected errors if they are the base, [...,N].

        both: [...,N,K,2].  log_unseen: [...,N].
        """
        _x, kept, below, _frame = parts
        p, overlap = torch.sigmoid(both).unbind(-1)
        # Kept boxes are right or false; candidates below the threshold, and unseen objects, are missed.
        there, right = (kept + p * below).sum(-1), p * kept
        if self.strength:
            there = there + torch.exp(log_unseen.clamp(*LOG_UNSEEN))
            # The overlap runs from tau to 1, and (1 - IoU)/(1 - tau) from 1 to 0.
            right = right * overlap
        wrong = there - right.sum(-1) + LEAST_LOSS
        return torch.log(wrong if self.base == BASES[1] else wrong / (there + PRIOR))


class _Pairs(Committee):
    """Is a committee with two answers for each row, [R,D] -> [R,2]."""

    def __init__(self, width: int, *, hidden: int, members: int) -> None:
        super().__init__(width, hidden=hidden, members=members)
        self.last = nn.Parameter(torch.zeros(members, hidden, ANSWERS))

    def forward(self, x: Tensor) -> Tensor:
        """Returns each member's answers, [members,R,2]."""
        return torch.matmul(self.inner(x), self.last)


def _mean_last(committee: Committee) -> Tensor:
    """Returns the last layers of all members as one that gives their mean, [members*hidden,answers]."""
    return committee.last.flatten(0, 1) / len(committee.last)


def candidate_statistics(found: Candidates, *, width: int, height: int) -> Tensor:
    """Returns what a candidate looks like, who agrees with it, and what covers it, [N,K,OWN].

    Columns: logit, kept, their product | log of the sides | box | distance to the border | entropy |
    spread by size | candidates of its class that agree | its score, their mean score | overlap with the best
    other kept box.
    """
    z, p, kept = found.logit[..., None], found.probability[..., None], found.shown[..., None]
    boxes = found.boxes
    log_sides = torch.log((boxes[..., 2:] - boxes[..., :2]).clamp_min(1.0))
    size = log_sides.mean(2, keepdim=True).exp()
    inward = boxes.new_tensor((1.0, 1.0, -1.0, -1.0))
    beyond = boxes.new_tensor((0.0, 0.0, width, height))
    border = (boxes * inward + beyond).amin(2, keepdim=True)
    alike = ((found.iou >= AGREES) & found.same).to(z.dtype)
    count = alike.sum(2, keepdim=True).clamp_min(1.0)
    mean = torch.matmul(alike, p) / count
    others = 1 - torch.eye(boxes.shape[1], device=boxes.device, dtype=boxes.dtype)
    # No overlap exceeds 1, so the smaller of the two takes out a box's overlap with itself.
    covered = (torch.minimum(found.iou, others) * found.shown[:, None]).amax(2, keepdim=True)
    return torch.cat(
        (
            z,
            kept,
            z * kept,
            log_sides,
            boxes,
            border,
            found.entropy,
            found.spread / size,
            torch.log(count),
            p,
            mean,
            covered,
        ),
        2,
    )


def scored_logits(found: Candidates) -> Tensor:
    """Returns what Platt's lines read, [N,K,LINE]: a candidate's logit, whether it is kept, their product."""
    return torch.stack((found.logit, found.shown, found.logit * found.shown), 2)


def frame_sums(found: Candidates, own: Tensor) -> Tensor:
    """Returns logs of numbers and of sums of SUMMED statistics, over kept boxes and below, [N,1,SUMS]."""
    states = found.states
    sums = torch.cat((states.sum(2, keepdim=True), torch.matmul(states, own[..., SUMMED])), 2)
    return torch.log1p(sums.view(-1, 1, SUMS))


def ranked_logits(found: Candidates) -> Tensor:
    """Returns the logits of the candidates at RANKS, [N,R]: how much a detector sees in a frame."""
    last = found.logit.shape[1] - 1
    ranks = torch.tensor([min(rank, last) for rank in RANKS], device=found.logit.device)
    return found.logit.index_select(1, ranks)
