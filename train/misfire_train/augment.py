"""Varies training images at random: mirror images, shifts, zooms, mosaics, corruptions; targets move along.

Examples --batch(positions, generator)--> images [n,C,H,W], targets [n,...]
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from misfire_runtime.errors import ConfigError
from misfire_runtime.preprocess import InputContract, to_tensor
from misfire_train.boxes.mosaic import QUARTERS, draw_mosaics, join_pictures
from misfire_train.data import Examples
from misfire_train.data.corruptions import FAMILIES, corrupt
from misfire_train.tasks import Task, Variation
from misfire_train.tasks.answers.planes import shift_planes, zoom_planes
from misfire_train.train_config import TrainingTable

MOSAICS_UNTIL = 0.8
"""Share of a training with mosaics: at its end the network sees frames as the vehicle does."""


@dataclass(frozen=True)
class Augmentation:
    """Holds the variations.

    shift: largest shift in pixels; flip: mirror half; corrupt: share that is corrupted; zoom: largest change
    of size, 0.5 for a factor of 1/1.5 to 1.5; mosaic: share that is joined with three other images.
    """

    task: Task
    contract: InputContract
    shift: int = 0
    flip: bool = False
    corrupt: float = 0.0
    zoom: float = 0.0
    mosaic: float = 0.0

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
        if table.mosaic and not task.joins:
            raise ConfigError(f"training.mosaic: targets of {task.name} cannot be joined; leave it 0")
        shift = table.shift
        if shift is None:
            # A fourteenth: two pixels of a digit of 28, sixteen of a picture of 224.
            shift = min(contract.height, contract.width) // 14 if task.shifts else 0
        return cls(task, contract, shift, table.flip, table.corrupt, table.zoom, table.mosaic)

    def at(self, progress: float) -> Augmentation:
        """Returns what is varied at this share of a training: no mosaics near its end."""
        return replace(self, mosaic=0.0) if progress >= MOSAICS_UNTIL else self

    def batch(
        self, examples: Examples, positions: NDArray[np.int64], generator: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """Returns images and targets of these positions, varied by the generator."""
        images = examples.batch(positions, self.contract)
        labels = examples.targets[positions]
        if self.corrupt:
            self._corrupt(images, examples, positions, generator)
        joined: NDArray[np.bool_] = np.zeros(len(positions), np.bool_)
        if self.mosaic:
            joined = generator.random(len(positions)) < self.mosaic
            self._join(images, labels, examples, np.flatnonzero(joined), generator)
        variation = self._draw(len(positions), generator, still=torch.from_numpy(joined))
        return self.vary(images, variation), self.task.move(self.task.collate(labels), variation)

    def _join(
        self,
        images: Tensor,
        labels: NDArray[Any],
        examples: Examples,
        rows: NDArray[np.int64],
        generator: np.random.Generator,
    ) -> None:
        """Makes mosaics, in place, of these rows of a batch and three other images each."""
        if not len(rows):
            return
        others = generator.integers(0, len(examples), (len(rows), QUARTERS - 1))
        drawn = draw_mosaics(len(rows), generator, width=self.contract.width, height=self.contract.height)
        more = examples.batch(others.ravel(), self.contract)
        more = more.view(*others.shape, *more.shape[1:])
        images[rows] = join_pictures(torch.cat((images[rows, None], more), 1), drawn)
        labels[rows] = self.task.join(
            np.concatenate((labels[rows, None], examples.targets[others]), 1), drawn
        )

    def _draw(self, count: int, generator: np.random.Generator, *, still: Tensor | None = None) -> Variation:
        """Returns what is done to each picture. still: bool [N], those that are only mirrored."""
        mirrored = torch.zeros(count, dtype=torch.bool)
        moves: NDArray[np.int64] = np.zeros((2, count), np.int64)
        # What is not used is not drawn: a run repeats bit for bit from its seed.
        if self.flip:
            mirrored = torch.from_numpy(generator.random(count) < 0.5)
        if self.shift:
            moves = generator.integers(-self.shift, self.shift + 1, (2, count))
        zoom = self._draw_zoom(count, generator) if self.zoom else None
        down, right = torch.from_numpy(moves)
        if still is not None:
            down, right = down.masked_fill(still, 0), right.masked_fill(still, 0)
            if zoom is not None:
                zoom[still, 0] = 1.0
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
