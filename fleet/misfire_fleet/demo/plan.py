"""What the demo does with each data set: how much is trained on and driven, and which weather comes.

The model is small and trained on little on purpose: a demo of failure detection needs a model that fails.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from misfire_runtime.errors import ConfigError

DemoDataset = Literal["digits", "traffic-lights", "fashion-mnist"]


@dataclass(frozen=True)
class Plan:
    """Settings for one data set.

    limit: examples of its training half that are used; field: the share of them that only vehicles see.
    The test half stays frozen. severity: the worst of the bad weather, 1 to 5.
    """

    field: float
    frames_per_vehicle: int
    epochs: int
    severity: int
    limit: int | None = None
    weather: tuple[str, ...] = ("noise", "blur", "night", "fog", "glare")
    upload_rate: float = 0.10


PLANS = {
    "digits": Plan(field=0.45, frames_per_vehicle=400, epochs=25, severity=2),
    "traffic-lights": Plan(field=0.45, frames_per_vehicle=320, epochs=12, severity=3),
    "fashion-mnist": Plan(
        field=0.35, frames_per_vehicle=600, epochs=8, severity=2, limit=9000, upload_rate=0.06
    ),
}


def plan_for(dataset: str) -> Plan:
    """Raises ConfigError naming the data sets that the demo knows."""
    if dataset not in PLANS:
        raise ConfigError(f"the demo has no plan for {dataset!r}; it knows {', '.join(PLANS)}")
    return PLANS[dataset]
