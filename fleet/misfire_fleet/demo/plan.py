"""What the demo does with each data set: how it is divided, how much is driven, which weather comes.

The model is small and trained on little on purpose: a demo of failure detection needs a model that fails.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from misfire_runtime.errors import ConfigError


@dataclass(frozen=True)
class Plan:
    """Settings for one data set. `split` gives shares of its training half; the test half stays frozen."""

    split: dict[str, float]
    frames_per_vehicle: int
    epochs: int
    retrain_epochs: int
    weather: tuple[str, ...] = ("noise", "blur", "night", "fog", "glare")
    severity: int = 3
    upload_rate: float = 0.10
    vehicles: int = 3
    options: dict[str, object] = field(default_factory=dict)


PLANS = {
    "digits": Plan(
        split={"train": 0.30, "holdout": 0.20, "calibration": 0.12, "field": 0.38},
        frames_per_vehicle=340,
        epochs=30,
        retrain_epochs=15,
        severity=2,
    ),
    "traffic-lights": Plan(
        split={"train": 0.30, "holdout": 0.20, "calibration": 0.12, "field": 0.38},
        frames_per_vehicle=300,
        epochs=12,
        retrain_epochs=8,
    ),
    "fashion-mnist": Plan(
        split={"train": 0.05, "holdout": 0.03, "calibration": 0.02, "field": 0.10},
        frames_per_vehicle=600,
        epochs=8,
        retrain_epochs=5,
        severity=2,
    ),
}


def plan_for(dataset: str) -> Plan:
    """Raises ConfigError naming the data sets that the demo knows."""
    if dataset not in PLANS:
        raise ConfigError(f"the demo has no plan for {dataset!r}; it knows {', '.join(PLANS)}")
    return PLANS[dataset]
