"""Varies training images at random: mirror images, shifts, zooms, corruptions; targets move along.

Examples --batch(positions, generator)--> images [n,C,H,W], targets [n,...]
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from misfire_runtime.errors import ConfigError
from misfire_runtime.preprocess import InputContract, to_tensor
from misfire_train.data import Examples
from misfire_train.data.corruptions import FAMILIES, corrupt
from misfire_train.tasks import Task, Variation
from misfire_train.tasks.answers.planes import shift_planes, zoom_planes
from misfire_train.train_config import TrainingTable


@dataclass(frozen=True)
class Augmentation:
    """Holds the variations.

    shift: largest shift in pixels; flip: mirror half; corrupt: share that is corrupted; zoom: largest change
    of size, 0.5 for a factor of 1/1.5 to 1.5.
    """

    task: Task
    contract: InputContract
    shift: int = 0
    flip: bool = False
    corrupt: float = 0.0
    zoom: float = 0.0

    @classmethod
    def of(cls, table: TrainingTable, *, task: Task, contract: InputContract) -> Augmentation:
        """Returns the configured augmentation.

        Raises ConfigError if a mirror image would need other targets, or targets cannot follow a zoom.
        """
        if table.flip and not task.mirrors:
            raise ConfigError(
                f"training.flip: targets of {task.name} have a left and a right; leave it false"
            )
        if table.zoom and not task.zooms:
            raise ConfigError(f"training.zoom: targets of {task.name} cannot be enlarged; leave it 0")
        shift = table.shift
        if shift is None:
            # A fourteenth: two pixels of a digit of 28, sixteen of a picture of 224.
            shift = min(contract.height, contract.width) // 14 if task.shifts else 0
        return cls(task, contract, shift, table.flip, table.corrupt, table.zoom)

    def batch(
        self, examples: Examples, positions: NDArray[np.int64], generator: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """Returns images and targets of these positions, varied by the generator."""
        images = examples.batch(positions, self.contract)
        targets = self.task.collate(examples.targets[positions])
        if self.corrupt:
            self._corrupt(images, examples, positions, generator)
        variation = self._draw(len(positions), generator)
        return self.vary(images, variation), self.task.move(targets, variation)

    def _draw(self, count: int, generator: np.random.Generator) -> Variation:
        mirrored = torch.zeros(count, dtype=torch.bool)
        moves: NDArray[np.int64] = np.zeros((2, count), np.int64)
        # What is not used is not drawn: a run repeats bit for bit from its seed.
        if self.flip:
            mirrored = torch.from_numpy(generator.random(count) < 0.5)
        if self.shift:
            moves = generator.integers(-self.shift, self.shift + 1, (2, count))
        down, right = torch.from_numpy(moves)
        zoom = self._draw_zoom(count, generator) if self.zoom else None
        return Variation(mirrored, down, right, self.shift, self.contract.width, self.contract.height, zoom)

    def _draw_zoom(self, count: int, generator: np.random.Generator) -> Tensor:
        # Uniform in the logarithm: as many are halved as are doubled.
        limit = math.log1p(self.zoom)
        factor = np.exp(generator.uniform(-limit, limit, count))
        place = generator.random((count, 2)) * (self.contract.width, self.contract.height)
        return torch.from_numpy(np.concatenate((factor[:, None], place), 1)).float()

    def vary(self, images: Tensor, variation: Variation) -> Tensor:
        """Returns the pictures mirrored, shifted and zoomed; the border is repeated."""
        if self.flip:
            images = torch.where(variation.mirrored[:, None, None, None], images.flip(3), images)
        if self.shift:
            moves = torch.stack((variation.down, variation.right))
            images = shift_planes(images, moves, pad=self.shift, mode="replicate")
        if variation.zoom is not None:
            images = zoom_planes(images, variation.zoom)
        return images

    def _corrupt(
        self, images: Tensor, examples: Examples, positions: NDArray[np.int64], generator: np.random.Generator
    ) -> None:
        names = list(FAMILIES)
        chosen = np.flatnonzero(generator.random(len(positions)) < self.corrupt)
        for row in chosen:
            # Severities are 1 to 5: numpy leaves out the upper end.
            family, severity = names[generator.integers(len(names))], int(generator.integers(1, 6))
            seed = int(generator.integers(2**62))
            worse = corrupt(examples.images[int(positions[row])], family, severity=severity, seed=seed)
            images[row] = torch.from_numpy(to_tensor(worse, self.contract)[0])
