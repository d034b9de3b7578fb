"""Holds a network with the names of its layers that scores and heads use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class BuiltModel:
    """Holds a network ready for a `Probe`.

    Attributes:
        last_layer: its last nn.Linear or 1x1 nn.Conv2d.
        feature_layers: where heads may attach, in order.
        options: what it was built with beyond outputs and channels, defaults included; enough to rebuild it.
    """

    module: nn.Module
    last_layer: str
    feature_layers: tuple[str, ...]
    name: str
    options: dict[str, Any]
