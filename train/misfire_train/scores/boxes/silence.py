"""Scores frames in which a detector may see nothing, such as fog: every score of boxes is fooled there.

features of all cells --mean--> [N,C] --distance to held-out frames--> D^2     boxes --count--> n
silence = log D^2 - log(1 + n) / 2

Without a candidate there is no evidence of a miss. But features of fog, night or noise are far from those of
frames that the detector was checked on. Boxes speak against silence: a strange frame with many of them is
less likely one in which the detector is blind. It is fitted on clean frames alone, and has a calibration of
its own. A trigger takes either: frames with a high default score, or a high silence.
"""

from __future__ import annotations

import torch
from torch import Tensor

from misfire_runtime.boxes import SILENCE
from misfire_train.errors import ScoreError
from misfire_train.scores.boxes.counting import detection
from misfire_train.scores.registry import Recipe, register
from misfire_train.signals import Score, Signals
from misfire_train.tasks import Task

SHRINKAGE = 0.05
BOX_WEIGHT = 0.5
# Below the squared distance of any frame but one that is the mean itself.
LEAST = 1e-6


@register(
    tasks=("detection",), needs="holdout", source="this project; Lee et al. 2018 (Mahalanobis distance)"
)
class Silence(Score):
    """Scores how strange a frame's features are, less if there are boxes.

    Attributes:
        whitener: [C,C] of the channels' means.
        center: [C], whitened.
    """

    name = SILENCE
    definition = (
        "log squared Mahalanobis distance of the features to held-out frames, less log(1 + boxes) / 2"
    )
    whitener: Tensor
    center: Tensor

    def __init__(self, *, task: Task, whitener: Tensor, center: Tensor) -> None:
        super().__init__()
        self.task = detection(task, self.name)
        self.register_buffer("whitener", whitener.float())
        self.register_buffer("center", center.float())

    @classmethod
    def make(cls, recipe: Recipe) -> Silence:
        """Builds it from held-out frames. Raises ScoreError without them, or on fewer than three."""
        task, held_out = detection(recipe.task, cls.name), recipe.need_holdout()
        held_out.require(name=cls.name, least=3)
        if recipe.options:
            raise ScoreError(f"{cls.name} takes no options, got {', '.join(recipe.options)}")
        whitener, center = whitening(held_out.signals.flat)
        return cls(task=task, whitener=whitener, center=center)

    def forward(self, signals: Signals) -> Tensor:
        """Returns scores [N]; 0 is about the usual distance without boxes."""
        strange = torch.addmm(-self.center, signals.flat, self.whitener).square().sum(1)
        count = self.task.candidates(signals).count
        return torch.log(strange.clamp_min(LEAST) / (1 + count) ** BOX_WEIGHT)


def whitening(features: Tensor, *, shrinkage: float = SHRINKAGE) -> tuple[Tensor, Tensor]:
    """Returns (whitener W [C,C], center m [C]): |x W - m|^2 is the squared Mahalanobis distance by C.

    Channels are standardised first, so that shrinking towards a sphere does not hide the quiet ones.
    """
    x = features.double()
    mean, deviation = x.mean(0), x.std(0, correction=0)
    # A channel that never varied has no scale of its own; the others' smallest must not be far above it.
    usual = deviation.mean().clamp_min(1e-12)
    deviation = torch.maximum(deviation, 1e-3 * usual)
    z = (x - mean) / deviation
    covariance = z.T @ z / len(z)
    level = covariance.diagonal().mean().clamp_min(1e-12)
    covariance = (1 - shrinkage) * covariance + shrinkage * level * torch.eye(len(covariance)).double()
    values, vectors = torch.linalg.eigh(covariance)
    whitener = vectors / torch.sqrt(values * len(values)) / deviation[:, None]
    return whitener.float(), (mean @ whitener).float()
