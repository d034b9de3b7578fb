"""Training images varied at random: shifts, mirror images, corruptions; targets move along.

Examples --batch(positions, generator)--> images [n,C,H,W], targets [n,...]
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from misfire_runtime.errors import ConfigError
from misfire_runtime.preprocess import InputContract, to_tensor
from misfire_train.data import Examples
from misfire_train.data.corruptions import FAMILIES, corrupt
from misfire_train.tasks import IGNORE
from misfire_train.train_config import TrainingTable


@dataclass(frozen=True)
class Augmentation:
    """shift: largest shift in pixels.  flip: mirror half of the images.  corrupt: share made worse."""

    task: str
    contract: InputContract
    shift: int = 0
    flip: bool = False
    corrupt: float = 0.0

    @classmethod
    def of(cls, table: TrainingTable, *, task: str, contract: InputContract) -> Augmentation:
        """As configured. Raises ConfigError where a mirror image would need other targets."""
        if table.flip and task not in ("classification", "segmentation"):
            raise ConfigError(f"training.flip: targets of {task} have a left and a right; leave it false")
        shift = table.shift
        if shift is None:
            # A value may be a place in the picture, so regression is shifted only when asked for.
            shift = 0 if task in ("regression", "custom") else min(contract.height, contract.width) // 14
        return cls(task, contract, shift, table.flip, table.corrupt)

    def batch(
        self, examples: Examples, positions: NDArray[np.int64], generator: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """Images and targets of these positions, varied by the generator."""
        images = examples.batch(positions, self.contract)
        targets = torch.as_tensor(examples.targets[positions])
        if self.corrupt:
            self._corrupt(images, examples, positions, generator)
        if self.flip:
            mirrored = torch.from_numpy(generator.random(len(positions)) < 0.5)
            images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
            if targets.ndim == 3 and self.task == "segmentation":
                targets = torch.where(mirrored[:, None, None], targets.flip(2), targets)
        if self.shift:
            moves = generator.integers(-self.shift, self.shift + 1, (2, len(positions)))
            images, targets = self._move(images, targets, torch.from_numpy(moves))
        return images, targets

    def _corrupt(
        self, images: Tensor, examples: Examples, positions: NDArray[np.int64], generator: np.random.Generator
    ) -> None:
        names = list(FAMILIES)
        chosen = np.flatnonzero(generator.random(len(positions)) < self.corrupt)
        for row in chosen:
            family, severity = names[generator.integers(len(names))], int(generator.integers(1, 6))
            seed = int(generator.integers(2**62))
            worse = corrupt(examples.images[int(positions[row])], family, severity=severity, seed=seed)
            images[row] = torch.from_numpy(to_tensor(worse, self.contract)[0])

    def _move(self, images: Tensor, targets: Tensor, moves: Tensor) -> tuple[Tensor, Tensor]:
        """Moves pictures by (down, right) pixels, repeating the border; what leaves a mask is ignored."""
        moved = shift_planes(images, moves, pad=self.shift, mode="replicate")
        if self.task == "keypoints":
            targets = targets.clone()
            targets[..., 0] += moves[1][:, None]
            targets[..., 1] += moves[0][:, None]
        elif self.task == "segmentation":
            planes = shift_planes(
                targets[:, None].float(), moves, pad=self.shift, mode="constant", value=IGNORE
            )
            targets = planes[:, 0].to(targets.dtype)
        return moved, targets


def shift_planes(planes: Tensor, moves: Tensor, *, pad: int, mode: str, value: float = 0.0) -> Tensor:
    """[N,C,H,W] moved by moves [2,N] (down, right), each at most `pad`."""
    height, width = planes.shape[2:]
    fill = {"value": value} if mode == "constant" else {}
    padded = functional.pad(planes, (pad,) * 4, mode=mode, **fill)
    rows = torch.arange(height)[None] + pad - moves[0][:, None]
    columns = torch.arange(width)[None] + pad - moves[1][:, None]
    which = torch.arange(len(planes))[:, None, None]
    gathered = padded.permute(0, 2, 3, 1)[which, rows[:, :, None], columns[:, None, :]]
    return gathered.permute(0, 3, 1, 2).contiguous()
