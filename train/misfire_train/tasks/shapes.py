"""Recognises what the numbers of an answer are (logits, probabilities, sigmoids), and checks labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from misfire_runtime.errors import ConfigError

Kind = Literal["logits", "probabilities", "sigmoid"]
SUM_TOLERANCE = 0.15
"""Rows of 8-bit probabilities of 128 classes sum to 0.89 to 0.91: what is below half a step becomes zero."""
# Below 1, because a few rows of 8-bit probabilities may miss the tolerance.
_ROWS_THAT_SUM = 0.99
_EDGE = 1e-3
"""Halves and 8-bit numbers round a probability of one to a little above it."""


@dataclass
class Numbers:
    """Recognises what the numbers of an answer are, batch by batch.

    >>> Numbers().add(np.array([[0.1, 0.8], [0.95, 0.0]])).kind, Numbers().add(np.array([[0.9, 0.9]])).kind
    ('probabilities', 'sigmoid')
    >>> Numbers().add(np.array([[-1.0, 0.4]])).kind
    'logits'
    """

    low: float = 0.0
    high: float = 0.0
    rows: int = 0
    sum_to_one: int = 0

    def add(self, values: NDArray[Any]) -> Numbers:
        """Counts the values [n,K,...] of a batch. Returns itself."""
        near = np.abs(values.sum(axis=1, dtype=np.float64) - 1) <= SUM_TOLERANCE
        self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))
        self.rows, self.sum_to_one = self.rows + near.size, self.sum_to_one + int(near.sum())
        return self

    @property
    def kind(self) -> Kind:
        """Returns the kind of all values that were added."""
        if self.low < -_EDGE or self.high > 1 + _EDGE:
            return "logits"
        return "probabilities" if self.sum_to_one >= _ROWS_THAT_SUM * self.rows else "sigmoid"


def require_classes(task: str, outputs: Tensor, labels: Tensor) -> None:
    """Raises ConfigError if labels are not classes of logits [N,K,...], or if those are not logits.

    Probabilities are refused: every score takes a softmax, and that of probabilities is nearly flat.
    """
    if labels.is_floating_point() or (
        labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < outputs.shape[1]
    ):
        raise ConfigError(
            f"{task}: the labels go from {labels.min()} to {labels.max()} ({labels.dtype}), the model has "
            f"{outputs.shape[1]} outputs (0 to {outputs.shape[1] - 1})"
        )
    whole = outputs.detach().float()
    if bool(torch.isfinite(whole).all()) and Numbers().add(whole.cpu().numpy()).kind == "probabilities":
        raise ConfigError(
            f"{task}: the model gives probabilities (rows within 0..1 that sum to about one); scores need "
            "logits: leave its last softmax out, or return their logarithm"
        )
