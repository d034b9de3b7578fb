"""What every loss-predicting head is: signals -> what can be cached -> a score per unit -> a score per frame.

`extract` holds nothing that is learned, so head training runs it once per image and then works on its result;
`predict` is what the optimiser sees; `pool` joins units (joints, tiles) to the frame. `forward` is all three,
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
    """A learned failure score. A unit's score is its predicted log-loss, up to a constant.

    recipe: by which name it is built.  options: what to build it with again; weights come from its state.
    layers: names of the feature maps that it reads.
    """

    name = NAME
    recipe: str = ""

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments that build a head of the same shapes."""
        raise NotImplementedError

    @property
    def layers(self) -> tuple[str, ...]:
        """Feature maps that it reads, by layer name."""
        return ()

    def extract(self, signals: Signals) -> Parts:
        """Tensors [N,...]: everything of the signals that `predict` needs, nothing learned in it."""
        raise NotImplementedError

    def predict(self, parts: Parts) -> Tensor:
        """[N,U] scores of units; U is 1 where the frame is the unit."""
        raise NotImplementedError

    def predict_members(self, parts: Parts) -> Tensor:
        """[members,N,U]: answers that are trained apart and averaged when used; most heads are one."""
        return self.predict(parts)[None]

    def pool(self, units: Tensor) -> Tensor:
        """[N,U] to [N]: log of the mean of exp, so that predicted losses average as losses do."""
        if units.shape[1] == 1:
            return units[:, 0]
        return torch.logsumexp(units, 1) - math.log(units.shape[1])

    def forward(self, signals: Signals) -> Tensor:
        """[N]."""
        return self.pool(self.predict(self.extract(signals)))
