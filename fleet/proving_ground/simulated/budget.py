"""Simulates a fleet under one budget, hour by hour: drift, silence, wrong clocks, and samples held back.

every hour: heartbeats of the vehicles that are online --> loads --Control, thresholds_of--> thresholds,
which reach the vehicles that are online;  every vehicle takes frames at its threshold, and uploads them once
it is online

The fleet's part is the product's own (campaigns/budget.py); it knows only what arrives, and when.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from misfire_fleet.campaigns.budget import (
    DAY_S,
    RECENT_S,
    WINDOW_S,
    Control,
    VehicleLoad,
    scores_of,
    thresholds_of,
)
from misfire_fleet.campaigns.spec import Cut
from misfire_runtime.state.statistics import SKETCH_ACCURACY

HOUR_S = 3600.0
_LOG_GAMMA = float(np.log((1 + SKETCH_ACCURACY) / (1 - SKETCH_ACCURACY)))
_BINS = 400
"""On either side of 1, as in a DDSketch of that accuracy: scores from 0.0003 to 3,000."""


@dataclass(frozen=True)
class Plan:
    """Says what is simulated.

    Attributes:
        vehicles: number.
        days: simulated.
        per_hour: frames that a vehicle scores per hour of driving.
        bytes_per_day: the budget.
        drift: standard deviations by which scores rise from the first day to the last.
        silence: share of the hours that a vehicle is offline, in stretches of about a day and a half.
        clock_days: vehicles' clocks are wrong by up to so many days.
        held_back: share of the taken frames that never become a sample (near-duplicates, limits).
        seed: of the random numbers.
    """

    vehicles: int = 60
    days: int = 28
    per_hour: int = 300
    bytes_per_day: float = 360e6
    drift: float = 1.0
    silence: float = 0.2
    clock_days: float = 30.0
    held_back: float = 0.25
    seed: int = 0


@dataclass
class Outcome:
    """Holds what arrived. daily: bytes by day. gain: that the controller learned."""

    daily: NDArray[np.float64]
    gain: float
    thresholds: dict[str, float] = field(default_factory=dict)

    def share(self, plan: Plan, *, first: int = 3) -> float:
        """Returns arrived bytes over the budget, from a day on."""
        return float(self.daily[first:].sum() / (plan.bytes_per_day * (plan.days - first)))

    def weeks(self, plan: Plan, *, first: int = 7) -> list[float]:
        """Returns arrived bytes over the budget for each seven days in a row, from a day on."""
        ends = range(first + 7, plan.days + 1)
        return [float(self.daily[end - 7 : end].sum() / (7 * plan.bytes_per_day)) for end in ends]


class _Car:
    def __init__(self, number: int, plan: Plan, rng: np.random.Generator) -> None:
        self.name = f"car-{number:03d}"
        self.rng = np.random.default_rng([plan.seed, number, 3])
        self.offset = float(rng.normal(0, 0.4))
        self.size = float(rng.uniform(60_000, 180_000))
        self.starts_at = int(rng.integers(0, 24))
        self.weather = 0.0
        self.clock_off_s = float(rng.uniform(-1, 1) * plan.clock_days * DAY_S)
        self.cut = Cut(float("inf"))
        self.recent: deque[NDArray[np.float64]] = deque(maxlen=24)
        """Scores of the last day: what the vehicle's own target rate looks back on."""
        self.online = True
        self.unsent: list[float] = []
        self.waiting_bytes = 0.0
        self.beats: deque[tuple[float, NDArray[np.int64]]] = deque()
        """(time of arrival, frames by bin of the sketch) of the last days, at the fleet."""
        self.known: NDArray[np.int64] = np.zeros(2 * _BINS + 1, np.int64)
        """Their sum."""

    def drive(self, hour: int, plan: Plan, weather: float, drift: float) -> None:
        local = (hour + self.starts_at) % 24
        busy = 1.0 if 6 <= local < 22 else 0.1
        count = int(self.rng.poisson(plan.per_hour * busy))
        if hour % 24 == 0:
            # Spells of a day and a half, each vehicle's own.
            self.weather = 0.5 * self.weather + float(self.rng.normal(0, 0.3))
        level = self.rng.normal(self.offset + self.weather + weather + drift, 1.0, count)
        scores = np.exp(0.6 * level)
        self.unsent.extend(scores.tolist())
        least = self.cut.above
        if self.cut.rate < 1 and self.recent:
            least = max(least, float(np.quantile(np.concatenate(self.recent), 1 - self.cut.rate)))
        self.recent.append(scores)
        taken = int((scores >= least).sum())
        kept = int(self.rng.binomial(taken, 1 - plan.held_back))
        self.waiting_bytes += float(self.size * kept)

    def upload(self, now: float) -> float:
        """Sends what waits; returns its bytes."""
        keys = np.ceil(np.log(np.array(self.unsent)) / _LOG_GAMMA).astype(np.int64)
        sketch = np.bincount(np.clip(keys, -_BINS, _BINS) + _BINS, minlength=2 * _BINS + 1)
        self.unsent.clear()
        self.beats.append((now, sketch))
        self.known += sketch
        while self.beats[0][0] < now - WINDOW_S:
            self.known -= self.beats.popleft()[1]
        sent, self.waiting_bytes = self.waiting_bytes, 0.0
        return sent


def simulate(plan: Plan) -> Outcome:
    """Runs a plan."""
    rng = np.random.default_rng(plan.seed)
    cars = [_Car(number, plan, rng) for number in range(plan.vehicles)]
    control, arrivals = Control(), list[tuple[float, float]]()
    daily = np.zeros(plan.days)
    # Beside each vehicle's own weather, that of the season raises all scores for some days.
    weather, spells = 0.0, []
    for _day in range(plan.days):
        weather = 0.7 * weather + float(rng.normal(0, 0.1))
        spells.append(weather)
    leave = plan.silence / (1 - plan.silence) / 36.0 if plan.silence else 0.0
    for hour in range(plan.days * 24):
        now, day = hour * HOUR_S, hour // 24
        for car in cars:
            car.drive(hour, plan, spells[day], plan.drift * hour / (plan.days * 24))
            if plan.silence:
                car.online = rng.random() > leave if car.online else rng.random() < 1 / 36.0
        came = sum(car.upload(now) for car in cars if car.online)
        arrivals.append((now, came))
        daily[day] += came

        def arrived(since: float) -> float:
            return sum(size for at, size in arrivals if at >= since)

        planned = control.plan(plan.bytes_per_day, arrived=arrived, now=now)
        loads = {load.name: load for load in _loads(cars, now)}
        found = thresholds_of(list(loads.values()), planned)
        for car in cars:
            if car.online and car.name in found:
                car.cut = loads[car.name].cut(found[car.name])
    return Outcome(daily, control.gain, {car.name: car.cut.above for car in cars})


def _loads(cars: list[_Car], now: float) -> list[VehicleLoad]:
    """Returns what the fleet makes of the heartbeats, by the times at which they arrived."""
    first = min((car.beats[0][0] for car in cars if car.beats), default=now)
    days = max(1 / 24, (now - first + HOUR_S) / DAY_S)
    loads = []
    for car in cars:
        filled = np.flatnonzero(car.known)
        if len(filled):
            values = np.exp((filled - _BINS) * _LOG_GAMMA) * 2 / (1 + np.exp(_LOG_GAMMA))
            recent = sum(
                (frames for at, frames in car.beats if at >= now - RECENT_S), np.zeros(len(car.known))
            )
            frames = scores_of(car.known[filled].astype(float), recent[filled])
            loads.append(VehicleLoad(car.name, "b@1", values, frames / days, car.size))
    return loads


def summary(plan: Plan, outcome: Outcome) -> dict[str, Any]:
    """Returns the numbers of a run for JSON."""
    weeks = outcome.weeks(plan)
    return {
        "seed": plan.seed,
        "share": round(outcome.share(plan), 4),
        "worst_week": round(max(weeks, key=lambda each: abs(each - 1)), 4) if weeks else None,
        "gain": round(outcome.gain, 3),
    }
