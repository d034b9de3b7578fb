"""Plans a drawn fleet: which vehicles there are, where they are, what they run and when they drive.

SeedPlan --vehicles_of--> SeededVehicle    SeedPlan --Weather--> the weather of each region and slot
Everything follows from the plan's random seed, except the times, which end at `until`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from misfire_runtime.clock import wall_time

SLOT_S = 7200.0
"""Between two heartbeats: a week of them is kept, and a real vehicle's, one a minute, would be gigabytes."""
RANDOM_RATE = 0.001
"""Probability that a frame is in the random stream."""
RANDOM_SHARE = 0.3
"""Share of the random stream in all uploads."""
DRIFT_FROM = 0.55
"""Share of the days after which the drifting vehicles change, over a day."""


@dataclass(frozen=True)
class SeedPlan:
    """Configures a drawn fleet.

    Attributes:
        vehicles, samples: how many.
        days: of heartbeats and uploads, before `until`.
        seed: random seed; the same seed makes the same pictures and scores.
        until: when the last slot ends, seconds since 1970.
        labels: share of the random stream that people labelled.
        verdicts: number of verdicts of people.
    """

    vehicles: int = 200
    samples: int = 100_000
    days: int = 7
    seed: int = 0
    until: float = field(default_factory=wall_time)
    labels: float = 0.05
    verdicts: int = 120

    @property
    def slots(self) -> int:
        """Returns the number of slots of two hours, with one heartbeat each."""
        return self.days * 12

    def end_of(self, slot: int) -> float:
        """Returns when a slot ends, in seconds since 1970."""
        return self.until - (self.slots - 1 - slot) * SLOT_S


@dataclass(frozen=True)
class Region:
    """Names a place where vehicles drive; degrees. `wet`: how often the weather is bad, 0..1."""

    name: str
    lat: float
    lon: float
    wet: float


REGIONS = (
    Region("hamburg", 53.551, 9.994, 0.5),
    Region("munich", 48.137, 11.575, 0.3),
    Region("lyon", 45.764, 4.836, 0.2),
    Region("gothenburg", 57.709, 11.975, 0.6),
    Region("turin", 45.070, 7.687, 0.2),
)
WEATHERS = ("clear", "rain", "fog", "snow")
Task = Literal["boxes", "class"]


@dataclass(frozen=True)
class SeededVehicle:
    """Describes a vehicle.

    Attributes:
        number, name: of the vehicle.
        region: None if it reports none.
        located: whether it reports a position.
        task: what its model answers.
        camera: a key of its context; camera "b2" is the one that drifts.
        switches: slot at which it changed to the newer bundle; None if it did not.
        ends: the slot after which it said nothing; the plan's slots if it is there.
        offline: whether it said that it goes.
        uplink: share of its uploads that get through in time, 0..1.
    """

    number: int
    name: str
    region: Region | None
    located: bool
    task: Task
    camera: str
    switches: int | None
    ends: int
    offline: bool
    uplink: float

    @property
    def drifts(self) -> bool:
        """Returns True if its scores rise in the last days."""
        return self.camera == "b2"

    def bundle(self, slot: int) -> str:
        """Returns the bundle that it runs in a slot."""
        newer = self.switches is not None and slot >= self.switches
        if self.task == "boxes":
            return "street@1.5.0" if newer else "street@1.4.0"
        return "signal@2.2.0" if newer else "signal@2.1.0"


def vehicles_of(plan: SeedPlan) -> list[SeededVehicle]:
    """Returns the vehicles of a plan: most online, some silent, some offline, one in ten drifting."""
    chance = np.random.default_rng((plan.seed, 1))
    made = []
    for number in range(plan.vehicles):
        region = REGIONS[number % len(REGIONS)]
        state = (
            "online" if number == 0 else chance.choice(["online", "silent", "offline"], p=[0.8, 0.07, 0.13])
        )
        # A silent vehicle has missed at least four heartbeats.
        gone = 0 if state == "online" else int(chance.integers(5, max(6, plan.slots // 3)))
        made.append(
            SeededVehicle(
                number=number,
                name=f"{region.name[:3]}-{number // len(REGIONS) + 1:03d}",
                region=None if number % 17 == 16 else region,
                located=number % 5 != 3,
                task="class" if number % 3 == 2 else "boxes",
                camera="b2" if number % 10 == 3 else "b1" if number % 2 else "a4",
                switches=int(plan.slots * chance.uniform(0.35, 0.5)) if chance.random() < 0.6 else None,
                ends=max(1, plan.slots - gone),
                offline=state == "offline",
                uplink=float(chance.choice([1.0, 0.97, 0.85], p=[0.7, 0.2, 0.1])),
            )
        )
    return made


class Weather:
    """Draws the weather of each region; it lasts for hours."""

    def __init__(self, plan: SeedPlan) -> None:
        chance = np.random.default_rng((plan.seed, 2))
        self._plan = plan
        self._drawn: dict[str, NDArray[np.int64]] = {}
        for region in REGIONS:
            bad = region.wet / 3
            now, states = 0, np.zeros(plan.slots, int)
            for slot in range(plan.slots):
                if chance.random() < 0.2:
                    now = int(chance.choice(4, p=[1 - region.wet, 1.6 * bad, 0.9 * bad, 0.5 * bad]))
                states[slot] = now
            self._drawn[region.name] = states

    def of(self, vehicle: SeededVehicle, slot: int) -> int:
        """Returns the number of the weather, of `WEATHERS`."""
        region = vehicle.region or REGIONS[vehicle.number % len(REGIONS)]
        return int(self._drawn[region.name][slot])

    def night(self, slot: int) -> bool:
        """Returns True if it is dark."""
        return not 6 <= day_hour(self._plan, slot) < 19


def day_hour(plan: SeedPlan, slot: int) -> float:
    """Returns the hour of the day in the middle of a slot.

    The last slot is an afternoon, whatever the clock says, so that the same seed draws the same fleet.
    """
    return float((15 - 2 * (plan.slots - 1 - slot)) % 24)


def activity(plan: SeedPlan, vehicle: SeededVehicle) -> NDArray[np.float64]:
    """Returns how much a vehicle drives in each slot, [slots], on average about 1; 0 where it is gone."""
    chance = np.random.default_rng((plan.seed, 3, vehicle.number))
    hours = np.array([day_hour(plan, slot) for slot in range(plan.slots)])
    usual = 0.1 + 1.3 * np.exp(-(((hours - 8.5) / 2.6) ** 2)) + 1.5 * np.exp(-(((hours - 17) / 3.2) ** 2))
    drives = usual * chance.gamma(4, 0.25, plan.slots) * chance.uniform(0.5, 1.6)
    drives[vehicle.ends :] = 0
    return np.asarray(drives)


def drift(plan: SeedPlan, vehicle: SeededVehicle, slot: int) -> float:
    """Returns how far a vehicle has drifted, 0..1."""
    if not vehicle.drifts:
        return 0.0
    return float(np.clip((slot - DRIFT_FROM * plan.slots) / 12, 0, 1))
