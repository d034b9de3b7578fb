"""Configures the demo for each data set: the amount of training, the length of drives and the weather.

The model is small and trained on little data on purpose: the demo needs a model that fails.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from misfire_runtime.errors import ConfigError

DemoDataset = Literal["digits", "traffic-lights", "fashion-mnist", "street"]


@dataclass(frozen=True)
class Plan:
    """Configures the demo for one data set. The test half is only used to measure accuracy.

    Args:
        field: share of the training half that only vehicles see, 0..1.
        frames_per_vehicle: length of each drive.
        epochs: maximum number of epochs.
        severity: the highest corruption severity, 1 to 5.
        limit: number of examples of the training half that are used; None uses all.
        weather: corruptions of the second half of each drive.
        upload_rate: share of the frames that each vehicle selects, 0..1.
        training: further keys of the training configuration, with dots.
        triggers: sets of scores, of which held-out frames choose one; () leaves the choice to the bundle.
    """

    field: float
    frames_per_vehicle: int
    epochs: int
    severity: int
    limit: int | None = None
    weather: tuple[str, ...] = ("noise", "blur", "night", "fog", "glare")
    upload_rate: float = 0.10
    training: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    triggers: tuple[tuple[str, ...], ...] = ()


_ONE_FIT: Mapping[str, Any] = {"head.strength": 1.0, "head.columns": "all"}
"""Choosing them takes a dozen fits of the head, longer than the rest of the demo. The gate still judges
whether the head triggers."""

PLANS = {
    "digits": Plan(field=0.45, frames_per_vehicle=400, epochs=25, severity=2, training=_ONE_FIT),
    "traffic-lights": Plan(field=0.45, frames_per_vehicle=320, epochs=12, severity=3, training=_ONE_FIT),
    "fashion-mnist": Plan(
        field=0.35,
        frames_per_vehicle=600,
        epochs=8,
        severity=2,
        limit=9000,
        upload_rate=0.06,
        training=_ONE_FIT,
    ),
    "street": Plan(
        field=0.4,
        frames_per_vehicle=300,
        epochs=18,
        severity=2,
        training={
            "model.options": {"width": 8, "tower": 32},
            "split.validation": 0.12,
            "training.batch": 16,
            "training.learning_rate": 4e-3,
            "training.patience": 18,
            "training.shift": 2,
            "training.flip": True,
            # A few hundred steps, the last of them small: there is nothing to average.
            "training.ema": 0.0,
            # So small a network finds nothing that is smaller, and every frame would be a failure.
            "detection.min_side": 12,
            "detection.alarm": 0.6,
            # Enough for so small a network, and quick.
            "head.copies": 4,
            "head.strength": 0.5,
        },
        # Where a detector sees nothing, no score of boxes knows: `silence` may take half of the uploads.
        triggers=(
            ("default",),
            ("learning_loss_pp",),
            ("silence",),
            ("default", "silence"),
            ("learning_loss_pp", "silence"),
        ),
    ),
}


def plan_for(dataset: str) -> Plan:
    """Returns the plan for a data set. Raises ConfigError if the demo has none for it."""
    if dataset not in PLANS:
        raise ConfigError(f"the demo has no plan for {dataset!r}; it knows {', '.join(PLANS)}")
    return PLANS[dataset]
