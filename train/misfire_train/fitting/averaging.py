"""Averages the weights of a network over its last training steps.

weights of each step --update--> exponential moving average --after each epoch--> validation, result

The last steps wander around a minimum, each to another side of it; their average lies closer to it
(Polyak & Juditsky 1992). It costs no step and no second pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class AveragedWeights:
    """Holds the moving average of a network's weights; batch norm's running statistics are averaged, too.

    Args:
        model: the network that is trained.
        decay: share of the average that a step keeps; 0 follows the last step.
    """

    def __init__(self, model: nn.Module, *, decay: float) -> None:
        self._model = model
        self._decay = decay
        self._average = {name: value.detach().clone() for name, value in model.state_dict().items()}
        self.steps = 0

    @torch.no_grad()
    def update(self) -> None:
        """Takes in the weights after a step."""
        self.steps += 1
        # The first weights are random: a young average forgets them faster.
        decay = min(self._decay, self.steps / (self.steps + 10))
        for name, value in self._model.state_dict().items():
            if value.is_floating_point():
                self._average[name].lerp_(value, 1 - decay)
            else:
                self._average[name].copy_(value)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Gives the network its averaged weights, and after that its own again."""
        own = {name: value.detach().clone() for name, value in self._model.state_dict().items()}
        self._model.load_state_dict(self._average)
        try:
            yield
        finally:
            self._model.load_state_dict(own)

    def state(self) -> Mapping[str, Tensor]:
        """Returns the averaged weights by name."""
        return self._average

    def restore(self, state: Mapping[str, Tensor], *, steps: int) -> None:
        """Continues from an average that was saved after so many steps."""
        for name, value in state.items():
            self._average[name].copy_(value)
        self.steps = steps
