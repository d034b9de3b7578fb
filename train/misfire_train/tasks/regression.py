"""Implements regression: J numbers for each frame, such as a steering angle or the corners of one box.

outputs: values [N,J].  targets: float32 [N,J].  Loss: half the squared error, mean over values.
A failure is a loss above a threshold, which is stated, or read off held-out losses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from misfire_runtime.preprocess import Image, InputContract
from misfire_train.drawing import SIDE, Drawing, Legend, data_url, enlarged
from misfire_train.tasks.base import Base, Task


class Regression(Task):
    """Predicts values of a frame."""

    name = "regression"
    output_name = "values"
    output_kind = "values"
    form = "regression"
    default_model = "regressor-small"
    ranks, looks = (2, 2), "[N,J] values and [N,J]"
    names_units = True
    # A value may be a place in the picture, so it is shifted only on request.
    shifts = False
    default_scores = ("output_deviation",)
    deviates = True

    def sample_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Returns half the squared error, mean over values, [N]."""
        return self.unit_losses(outputs, targets).mean(1)

    def unit_losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Returns half the squared error of each value, [N,J]."""
        return 0.5 * (outputs - targets).square()

    def training_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Returns the mean over all values of the batch."""
        return self.unit_losses(outputs, targets).mean()

    def accuracy(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Returns R squared, at least 0."""
        spread = (targets - targets.mean(0)).square().sum()
        # A batch of equal targets has no spread.
        return (1 - (outputs - targets).square().sum() / spread.clamp_min(1e-12)).clamp(0, 1)

    def unit_statistics(self, outputs: Tensor) -> Tensor:
        """Returns each value and its size, [N,J,2]."""
        values = outputs.flatten(1)
        return torch.stack((values, values.abs()), 2)

    def bases(self) -> Mapping[str, Base]:
        """Returns zero for each value: a regressor has no free score of a value, only one of the frame."""
        return {"none": torch.zeros_like}

    def unmirror(
        self, outputs: Tensor, *, swap: Sequence[tuple[int, int]] = (), signs: Sequence[float] = ()
    ) -> Tensor:
        """Returns values times their signs under mirroring."""
        return outputs * torch.tensor(signs, dtype=outputs.dtype, device=outputs.device) if signs else outputs

    def draw(
        self,
        image: Image,
        outputs: Tensor,
        target: NDArray[Any],
        *,
        classes: Sequence[str],
        contract: InputContract,
    ) -> Drawing:
        """Returns the picture as it is; the value with the largest error is named under it."""
        answer, truth = outputs[0].double().numpy(), np.asarray(target, np.float64)
        worst = int(np.abs(answer - truth).argmax())
        return Drawing(
            data_url(image), truth=f"{truth[worst]:.3g}", predicted=f"{classes[worst]} {answer[worst]:.3g}"
        )

    def draw_label(
        self,
        image: Image,
        target: NDArray[Any],
        *,
        classes: Sequence[str],
        contract: InputContract,
        side: int = SIDE,
    ) -> tuple[Image, str]:
        """Returns the picture as it is, and its values."""
        values = np.asarray(target, np.float64).reshape(-1)
        words = (f"{name} {value:.3g}" for name, value in zip(classes, values, strict=False))
        return enlarged(image, side)[0], ", ".join(words)

    def legend(self, classes: Sequence[str]) -> Legend | None:
        """Returns what the words under a picture are."""
        return Legend("Below each: the value that is furthest off, in units of the label.", drawn=False)
