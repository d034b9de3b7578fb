"""Do a network's outputs and the labels fit the task that somebody named?

outputs, targets --shapes, kind of numbers--> nothing, or one sentence that says which task it looks like
"""

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
_ROWS_THAT_SUM = 0.99
_EDGE = 1e-3
"""Halves and 8-bit numbers round a probability of one to a little above it."""
_RANKS = {"classification": (2, 1), "segmentation": (4, 3), "keypoints": (4, 3), "regression": (2, 2)}
_LOOKS = {
    "classification": "[N,K] logits and class numbers [N]",
    "segmentation": "[N,K,H,W] logits and [N,H,W]",
    "keypoints": "[N,J,h,w] heatmaps and [N,J,3]",
    "regression": "[N,J] values and [N,J]",
}


@dataclass
class Numbers:
    """What the numbers of an answer are, told batch by batch.

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
        """values: [n,K,...]. Returns itself."""
        near = np.abs(values.sum(axis=1, dtype=np.float64) - 1) <= SUM_TOLERANCE
        self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))
        self.rows, self.sum_to_one = self.rows + near.size, self.sum_to_one + int(near.sum())
        return self

    @property
    def kind(self) -> Kind:
        """Of all that was added."""
        if self.low < -_EDGE or self.high > 1 + _EDGE:
            return "logits"
        return "probabilities" if self.sum_to_one >= _ROWS_THAT_SUM * self.rows else "sigmoid"


def require_fit(task: str, outputs: Tensor, targets: Tensor) -> None:
    """Raises ConfigError where outputs [N,...] and targets [N,...] are not those of the built-in task.

    Probabilities of a classifier or segmenter are refused: every score takes a softmax, and that of
    probabilities is nearly flat.
    """
    if task not in _RANKS:
        return
    seen = f"outputs {_shape(outputs)}, targets {_shape(targets)}"
    if (outputs.ndim, targets.ndim) != _RANKS[task]:
        guess = next((name for name, ranks in _RANKS.items() if (outputs.ndim, targets.ndim) == ranks), None)
        hint = f"; is it task={guess!r}?" if guess else ""
        if outputs.ndim == 2 and targets.ndim == 2 and task == "classification":
            hint = "; for several labels of one image (multi-label) use custom_task(...)"
        raise ConfigError(f"{task} needs {_LOOKS[task]}, got {seen}{hint}")
    if task not in ("classification", "segmentation") or not len(outputs):
        return
    known = targets[targets != 255] if task == "segmentation" else targets
    if known.is_floating_point() or (
        known.numel() and not 0 <= int(known.min()) <= int(known.max()) < outputs.shape[1]
    ):
        raise ConfigError(
            f"{task}: the labels go from {known.min()} to {known.max()} ({known.dtype}), the model has "
            f"{outputs.shape[1]} outputs (0 to {outputs.shape[1] - 1})"
        )
    whole = outputs.detach().float()
    if bool(torch.isfinite(whole).all()) and Numbers().add(whole.cpu().numpy()).kind == "probabilities":
        raise ConfigError(
            f"{task}: the model gives probabilities (rows within 0..1 that sum to about one); scores need "
            "logits: leave its last softmax out, or return their logarithm"
        )


def _shape(tensor: Tensor) -> str:
    return f"[{','.join(map(str, tensor.shape))}]"
