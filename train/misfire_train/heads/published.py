"""Implements the papers' own heads: they see only features, and are kept for comparison.

GapHead    global average pooling of each map, a small layer each, one linear layer    (Yoo & Kweon 2019)
ConvHead   maps merged from fine to coarse by strided convolutions, then an MLP        (Shukla & Ahmed 2021)
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from misfire_train.heads.base import LossHead, Parts
from misfire_train.signals import Signals


class GapHead(LossHead):
    """Is the head of Learning Loss: mean over pixels -> Linear(C_i, hidden) -> ReLU, joined -> Linear(., 1).

    channels: of each feature map, by layer name. 123,905 parameters on ResNet-18's 64, 128, 256, 512.
    """

    recipe = "learning-loss"
    definition = "loss predicted from pooled features (Yoo & Kweon 2019)"

    def __init__(self, *, channels: Mapping[str, int], hidden: int = 128) -> None:
        super().__init__()
        self.channels, self.hidden = dict(channels), hidden
        self.lateral = nn.ModuleList(nn.Linear(count, hidden) for count in self.channels.values())
        self.last = nn.Linear(hidden * len(self.channels), 1)

    @property
    def options(self) -> dict[str, Any]:
        """Returns keyword arguments that build a head of the same shapes."""
        return {"channels": self.channels, "hidden": self.hidden}

    @property
    def layers(self) -> tuple[str, ...]:
        """Returns the feature maps that it reads."""
        return tuple(self.channels)

    def extract(self, signals: Signals) -> Parts:
        """Returns one [N,C_i] per layer."""
        maps = [signals.features[name] for name in self.channels]
        return tuple(m.flatten(2).mean(2) if m.ndim > 2 else m for m in maps)

    def predict(self, parts: Parts) -> Tensor:
        """Returns scores [N,1]."""
        joined = [functional.relu(layer(part)) for layer, part in zip(self.lateral, parts, strict=True)]
        return self.last(torch.cat(joined, 1))  # type: ignore[no-any-return]


class ConvHead(LossHead):
    """Is the head of LearningLoss++, slimmed.

    From the finest map down, it halves by a strided convolution and adds the next map. Maps finer than `side`
    are first averaged to it, and every map is reduced to `width` channels by a 1x1 convolution, so that it
    costs a few per cent of the network; the published one costs more than many networks. The skip is added
    after the ReLU, as in the reference.
    """

    recipe = "learning-loss-pp-paper"
    definition = "log-loss predicted from feature maps (LearningLoss++, Shukla & Ahmed 2021)"

    def __init__(self, *, channels: Mapping[str, int], width: int = 8, side: int = 16) -> None:
        super().__init__()
        self.channels, self.width, self.side = dict(channels), width, side
        self.lateral = nn.ModuleList(nn.Conv2d(count, width, 1) for count in self.channels.values())
        self.down = nn.ModuleList(nn.Conv2d(width, width, 2, stride=2) for _ in list(self.channels)[1:])
        sizes = (2 * width, 64, 32, 16)
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        self.mlp = nn.Sequential(*layers, nn.Linear(sizes[-1], 1))

    @property
    def options(self) -> dict[str, Any]:
        """Returns keyword arguments that build a head of the same shapes."""
        return {"channels": self.channels, "width": self.width, "side": self.side}

    @property
    def layers(self) -> tuple[str, ...]:
        """Returns the feature maps that it reads."""
        return tuple(self.channels)

    def extract(self, signals: Signals) -> Parts:
        """Returns one [N,C_i,h_i,w_i] per layer, none larger than `side`."""
        parts = []
        for name in self.channels:
            maps = signals.features[name]
            if maps.ndim == 2:
                maps = maps[:, :, None, None]
            height, width = maps.shape[2:]
            if max(height, width) > self.side:
                maps = functional.adaptive_avg_pool2d(maps, (min(height, self.side), min(width, self.side)))
            parts.append(maps)
        return tuple(parts)

    def predict(self, parts: Parts) -> Tensor:
        """Returns scores [N,1]."""
        x = self.lateral[0](parts[0])
        for down, lateral, part in zip(self.down, self.lateral[1:], parts[1:], strict=True):
            size = (part.shape[2], part.shape[3])
            if min(x.shape[2:]) >= 2:
                x = functional.relu(down(x))
            if (x.shape[2], x.shape[3]) != size:
                x = functional.interpolate(x, size, mode="nearest")
            x = lateral(part) + x
        flat = functional.relu(x).flatten(2)
        return self.mlp(torch.cat((flat.mean(2), flat.amax(2)), 1))  # type: ignore[no-any-return]
