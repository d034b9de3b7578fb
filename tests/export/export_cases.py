"""Small models and images that the export tests build their cases from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from misfire_runtime.bundle import Lineage
from misfire_runtime.preprocess import InputContract
from misfire_train.data import Examples
from misfire_train.data.images import ImageArray

CONTRACT = InputContract(height=16, width=16)


def examples_of(
    images: NDArray[Any], targets: NDArray[Any], *, prefix: str = "image", groups: Sequence[str] | None = None
) -> Examples:
    """Examples from uint8 [N,H,W,3] and targets."""
    ids = tuple(f"{prefix}-{i}" for i in range(len(images)))
    return Examples(ImageArray(images), targets, ids, tuple(groups) if groups is not None else ids)


def tiny_classifier(*, classes: int = 3, channels: int = 3, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, classes),
    ).eval()


def lineage() -> Lineage:
    return Lineage(run_id="test", dataset="digits", dataset_sha256="0" * 64)


def seeded_images(count: int, *, size: int = 16, seed: int = 0) -> NDArray[Any]:
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3)).astype(np.uint8)
