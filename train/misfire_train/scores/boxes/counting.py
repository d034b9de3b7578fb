"""Defines scores of a detector's boxes that need no training: counts, entropies, and the expected errors.

Entropies and counts know only the boxes that are shown, so they cannot notice a miss. `expected_errors` also
reads the candidates below the threshold, which are the only evidence of one: each kept box is wrong, and each
other candidate is an object without a box, with a probability that is calibrated on held-out frames.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from misfire_train.boxes.candidates import Candidates
from misfire_train.boxes.losses import PRIOR
from misfire_train.boxes.matching import label_candidates
from misfire_train.errors import ScoreError
from misfire_train.scores.fitting import FitSet
from misfire_train.scores.registry import Recipe, register
from misfire_train.signals import Score, Signals
from misfire_train.tasks import Task
from misfire_train.tasks.detection import Detection

# A box without area must not divide by zero; a square pixel is far below any box.
LEAST_AREA = 1.0
# Of Platt's line: a falling or flat one would turn the detector's own order around, or lose it.
SLOPES = (0.05, 20.0)
IDENTITY = (1.0, 0.0)


class BoxScore(Score):
    """Is a score of a detector's candidates: `value` maps them to [N]."""

    free = True

    def __init__(self, *, task: Task) -> None:
        super().__init__()
        self.task = detection(task, self.name)

    @classmethod
    def make(cls, recipe: Recipe) -> BoxScore:
        """Builds it with the task's rule."""
        return cls(task=recipe.task, **recipe.options)

    def value(self, found: Candidates) -> Tensor:
        """Returns scores [N]."""
        raise NotImplementedError

    def forward(self, signals: Signals) -> Tensor:
        """Returns scores [N]."""
        return self.value(self.task.candidates(signals))


def detection(task: Task, name: str) -> Detection:
    """Returns the task as a detection. Raises ScoreError if it is none."""
    if not isinstance(task, Detection):
        raise ScoreError(f"{name} serves detection, not {task.name}")
    return task


@register(tasks=("detection",), source="this project")
class BoxCount(BoxScore):
    """Counts the boxes. A score that does not beat it only finds crowds."""

    name = "box_count"
    definition = "number of boxes above the threshold"

    def value(self, found: Candidates) -> Tensor:
        """Returns [N]."""
        return found.count


class _BoxEntropy(BoxScore):
    """Is a score from the binary entropies of each box's classes, in nats."""

    def entropies(self, found: Candidates) -> Tensor:
        """Returns the sum over classes for each candidate, [N,K,1], 0 for those that are not kept."""
        return found.entropy * found.shown[..., None]


@register(tasks=("detection",), source="Yang et al. 2024 (PPAL, arXiv:2211.11612)")
class EntropySum(_BoxEntropy):
    """Sums the entropies of all boxes."""

    name = "entropy_sum"
    definition = "sum over boxes of the binary entropies of their classes"

    def value(self, found: Candidates) -> Tensor:
        """Returns [N]."""
        return self.entropies(found).sum((1, 2))


@register(tasks=("detection",), source="Roy et al. 2018; Brust et al. 2019")
class EntropyMax(_BoxEntropy):
    """Takes the entropy of the least certain box; 0 without a box."""

    name = "entropy_max"
    definition = "largest over boxes of the binary entropies of their classes"

    def value(self, found: Candidates) -> Tensor:
        """Returns [N]."""
        return self.entropies(found).amax((1, 2))


@register(tasks=("detection",), source="Brust et al. 2019")
class EntropyMean(_BoxEntropy):
    """Takes the mean entropy of the boxes; 0 without a box."""

    name = "entropy_mean"
    definition = "mean over boxes of the binary entropies of their classes"

    def value(self, found: Candidates) -> Tensor:
        """Returns [N]."""
        return self.entropies(found).sum((1, 2)) / found.count.clamp_min(1)


@register(tasks=("detection",), source="Li et al. 2020 (GFL, arXiv:2006.04388); this project")
class BoxSpread(BoxScore):
    """Takes the mean uncertainty of the boxes' sides, where the detector predicts distributions (DFL)."""

    name = "box_spread"
    definition = "mean over boxes of the standard deviation of their sides, by the root of the area"

    def value(self, found: Candidates) -> Tensor:
        """Returns [N]; 0 without a box."""
        sides = (found.boxes[..., 2:] - found.boxes[..., :2]).clamp_min(0)
        size = (sides[..., :1] * sides[..., 1:]).clamp_min(LEAST_AREA).sqrt()
        relative = found.spread / size * found.shown[..., None]
        return relative.sum((1, 2)) / found.count.clamp_min(1)


@register(tasks=("detection",), source="Riedlinger et al. 2023 (arXiv:2107.04517)")
class BoxGradient(BoxScore):
    """Takes the squared gradient of the last layer, with the kept boxes as labels.

    Per candidate it is sum over classes of (sigmoid(z) - y)^2, times |phi|^2 + 1 with `norm`.
    """

    name = "box_gradient"
    definition = "squared gradient of the class layer with the boxes as labels, over the candidates"
    # It reads the layer's input too.
    free = False

    def forward(self, signals: Signals) -> Tensor:
        """Returns [N]."""
        found = self.task.candidates(signals)
        phi = signals.last_input.flatten(2)
        index = found.index[:, None].expand(-1, phi.shape[1], -1)
        norm = torch.gather(phi, 2, index).square().sum(1) + 1
        return (residuals(found) * norm).sum(1)


@register(tasks=("detection",), source="Riedlinger et al. 2023 (arXiv:2107.04517)")
class BoxGradientUnweighted(BoxScore):
    """Takes `box_gradient` without the norm of the features: of the bias alone."""

    name = "box_gradient_unweighted"
    definition = "squared gradient of the class layer's bias with the boxes as labels, over the candidates"

    def value(self, found: Candidates) -> Tensor:
        """Returns [N]."""
        return residuals(found).sum(1)


def residuals(found: Candidates) -> Tensor:
    """Returns sum over classes of (sigmoid(z) - y)^2 of each candidate, [N,K].

    y is 1 for the class of a kept box, else 0. Suppressed candidates count 0: their object has a box.
    """
    wanted = functional.one_hot(found.label, found.logits.shape[2]).to(found.logits.dtype)
    wanted = wanted * found.shown[..., None]
    whole = (found.scores - wanted).square().sum(2)
    return whole * found.alive.to(whole.dtype)


@dataclass(frozen=True)
class Expectations:
    """Holds the expected errors of frames, and their expected boxes and objects, [N] each."""

    errors: Tensor
    objects: Tensor


class _Expected(BoxScore):
    """Is a score from calibrated probabilities of candidates.

    Attributes:
        right: slope and offset of Platt's line for kept boxes: P(it is the box of an object).
        uncovered: the same for candidates below the threshold: P(it is an object without a box).
    """

    right: Tensor
    uncovered: Tensor

    def __init__(
        self,
        *,
        task: Task,
        right: tuple[float, float] = IDENTITY,
        uncovered: tuple[float, float] = IDENTITY,
    ) -> None:
        super().__init__(task=task)
        self._lines = (right, uncovered)
        self.register_buffer("right", torch.tensor(right))
        self.register_buffer("uncovered", torch.tensor(uncovered))

    @classmethod
    def make(cls, recipe: Recipe) -> _Expected:
        """Builds it with both lines fitted to held-out frames. Raises ScoreError without them."""
        task = detection(recipe.task, cls.name)
        if recipe.options:
            return cls(task=task, **recipe.options)
        right, uncovered = fit_lines(task, recipe.need_holdout(), name=cls.name)
        return cls(task=task, right=right, uncovered=uncovered)

    def forward(self, signals: Signals) -> Tensor:
        """Returns scores [N]."""
        # Both scores are usually fitted on the same frames, and a graph then holds their lines once.
        key = (Expectations, self.task.rule, self._lines)
        found = self.task.candidates(signals)
        return self.of(signals.once(key, lambda: self.expectations(found)))

    def value(self, found: Candidates) -> Tensor:
        """Returns scores [N]."""
        return self.of(self.expectations(found))

    def of(self, expected: Expectations) -> Tensor:
        """Returns scores [N]."""
        raise NotImplementedError

    def expectations(self, found: Candidates) -> Expectations:
        """Returns what the calibrated candidates of each frame add up to."""
        # Kept boxes are wrong with 1 - P(right), the others missed objects with P(uncovered): in one product.
        slope, offset = torch.stack((-self.right, self.uncovered)).unbind(1)
        wrong = torch.sigmoid(found.logit[:, None] * slope[:, None] + offset[:, None])
        sums = (wrong * found.states).sum(2)
        return Expectations(sums.sum(1), found.count + sums[:, 1])

    def probability(self, found: Candidates) -> Tensor:
        """Returns P(it is the box of an object) of each candidate, [N,K], if it is kept."""
        return torch.sigmoid(self.right[0] * found.logit + self.right[1])

    def details(self, signals: Signals) -> dict[str, Tensor]:
        """Returns P(true positive) of each final box, [N,M], 0 for padding."""
        found = self.task.candidates(signals)
        boxes, order = self.task.final(signals)
        return {"box.p_tp": torch.gather(self.probability(found), 1, order) * (boxes[..., 4] > 0)}


@register(tasks=("detection",), needs="holdout", source="this project")
class ExpectedErrors(_Expected):
    """Scores the expected number of errors: false boxes, and objects without one."""

    name = "expected_errors"
    definition = "expected false boxes and missed objects, from calibrated candidates"

    def of(self, expected: Expectations) -> Tensor:
        """Returns [N], in errors."""
        return expected.errors


@register(tasks=("detection",), needs="holdout", source="this project; Oksuz et al. 2021 (LRP)")
class ExpectedLrp(_Expected):
    """Scores the expected share of errors, which does not favour crowded frames."""

    name = "expected_lrp"
    definition = "expected errors by expected objects and boxes, from calibrated candidates"

    def of(self, expected: Expectations) -> Tensor:
        """Returns [N], in 0..1."""
        return expected.errors / (expected.objects + PRIOR)


def fit_lines(
    task: Detection, held_out: FitSet, *, name: str
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Returns (slope, offset) of Platt's lines of kept boxes and of candidates below the threshold.

    Raises ScoreError on signals that are not finite, or without a single candidate.
    """
    held_out.require(name=name)
    found = task.candidates(held_out.signals)
    labels = label_candidates(found, held_out.targets, task.rule)
    return platt(found.logit, labels.right), platt(found.logit, labels.uncovered)


def platt(logit: Tensor, label: Tensor, *, steps: int = 50) -> tuple[float, float]:
    """Returns slope and offset of the logistic line through labels of any shape; NaN labels are left out.

    Labels are pulled inwards as Platt (1999) does, so that a few, or all of one kind, give finite lines.
    """
    there = ~label.isnan()
    x, y = logit[there].double(), label[there].double()
    right, wrong = float(y.sum()), float((1 - y).sum())
    target = torch.where(y > 0.5, (right + 1) / (right + 2), 1 / (wrong + 2))
    slope, offset = 1.0, 0.0
    # One candidate, or one value, fits any slope: the detector's own is kept, and the offset is fitted.
    free = len(x) > 1 and float(x.std()) > 1e-6
    for _ in range(steps if len(x) else 0):
        p = torch.sigmoid(slope * x + offset)
        weight = (p * (1 - p)).clamp_min(1e-9)
        error = p - target
        # Newton's step, with a ridge that keeps it finite where every probability is 0 or 1.
        if free:
            hessian = torch.stack(
                (
                    torch.stack(((weight * x * x).sum(), (weight * x).sum())),
                    torch.stack(((weight * x).sum(), weight.sum())),
                )
            ) + 1e-6 * torch.eye(2, dtype=torch.float64)
            step = torch.linalg.solve(hessian, torch.stack(((error * x).sum(), error.sum())))
            slope = min(max(slope - float(step[0].clamp(-1, 1)), SLOPES[0]), SLOPES[1])
            offset -= float(step[1].clamp(-4, 4))
        else:
            offset -= float((error.sum() / weight.sum()).clamp(-4, 4))
    return slope, offset
