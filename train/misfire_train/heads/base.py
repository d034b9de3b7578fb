"""Defines the loss-predicting head: signals -> what can be cached -> a score per unit -> a score per frame.

`extract` has no learned part, so head training runs it once per image and then works on its result.
`predict` is what the optimiser sees. `pool` joins units (joints, tiles) to the frame. `forward` is all three,
and is what the graph gets.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from misfire_train.signals import Score, Signals

Parts = tuple[Tensor, ...]
NAME = "learning_loss_pp"


class LossHead(Score):
    """Is a learned failure score. A unit's score is its predicted log-loss, up to a constant.

    Attributes:
        recipe: name of the recipe that built it.
        options: arguments to build it again; weights come from its state.
        layers: names of the feature maps that it reads.
    """

    name = NAME
    recipe: str = ""

    @property
    def options(self) -> dict[str, Any]:
        """Returns keyword arguments that build a head of the same shapes."""
        raise NotImplementedError

    @property
    def layers(self) -> tuple[str, ...]:
        """Returns the feature maps that it reads, by layer name."""
        return ()

    def extract(self, signals: Signals) -> Parts:
        """Returns tensors [N,...]: everything of the signals that `predict` needs, without a learned part."""
        raise NotImplementedError

    def predict(self, parts: Parts) -> Tensor:
        """Returns scores of units, [N,U]; U is 1 if the frame is the unit."""
        raise NotImplementedError

    def predict_members(self, parts: Parts) -> Tensor:
        """Returns [members,N,U]: answers that are trained separately and averaged in use.

        Most heads are one.
        """
        return self.predict(parts)[None]

    def pool(self, units: Tensor) -> Tensor:
        """Returns [N] for [N,U]: log of the mean of exp, so that predicted losses average as losses do."""
        if units.shape[1] == 1:
            return units[:, 0]
        return torch.logsumexp(units, 1) - math.log(units.shape[1])

    def forward(self, signals: Signals) -> Tensor:
        """Returns scores [N]."""
        return self.pool(self.predict(self.extract(signals)))
