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
_STEADY = 0.1
"""Deviation of the rows' sums, over what it would be if the numbers of a row were independent logits."""


@dataclass
class Numbers:
    """Recognises what the numbers of an answer are, batch by batch.

    >>> Numbers().add(np.array([[0.1, 0.8], [0.95, 0.0]])).kind, Numbers().add(np.array([[0.9, 0.9]])).kind
    ('probabilities', 'sigmoid')
    >>> Numbers().add(np.array([[-1.0, 0.4]])).kind
    'logits'
    >>> percent = Numbers().add(np.array([[10.0, 90.0], [95.0, 5.0]]))
    >>> percent.kind, percent.scale
    ('probabilities', 100.0)
    """

    low: float = 0.0
    high: float = 0.0
    rows: int = 0
    sum_to_one: int = 0
    moments: NDArray[np.float64] | None = None

    def add(self, values: NDArray[Any]) -> Numbers:
        """Counts the values [n,K,...] of a batch. Returns itself."""
        sums = values.sum(axis=1, dtype=np.float64)
        near = np.abs(sums - 1) <= SUM_TOLERANCE
        # First and second moments of the rows' sums, then of each class.
        columns = (sums, *(values[:, k] for k in range(values.shape[1])))
        made = np.array([[c.sum(dtype=np.float64), np.square(c, dtype=np.float64).sum()] for c in columns])
        self.moments = made if self.moments is None else self.moments + made
        self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))
        self.rows, self.sum_to_one = self.rows + near.size, self.sum_to_one + int(near.sum())
        return self

    @property
    def kind(self) -> Kind:
        """Returns the kind of all values that were added."""
        if self.scale != 1:
            return "probabilities"
        if self.low < -_EDGE or self.high > 1 + _EDGE:
            return "logits"
        return "probabilities" if self.sum_to_one >= _ROWS_THAT_SUM * self.rows else "sigmoid"

    @property
    def scale(self) -> float:
        """Returns what rows sum to if they are probabilities times a constant (percent, 8 bits), else 1.

        Logits vary independently of each other, so the sums of their rows vary as well.
        """
        if self.moments is None or self.low < 0 or self.high <= 1 + _EDGE or self.rows < 2:
            return 1.0
        means = self.moments[:, 0] / self.rows
        variances = np.maximum(self.moments[:, 1] / self.rows - means**2, 0)
        of_logits = float(variances[1:].sum())
        # Rows that are all alike show nothing.
        steady = of_logits > 0 and variances[0] <= _STEADY**2 * of_logits
        return float(means[0]) if steady else 1.0


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
