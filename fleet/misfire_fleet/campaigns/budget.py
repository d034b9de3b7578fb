"""Turns one budget for the whole fleet, bytes per day, into a threshold for each vehicle.

heartbeats (sketches, by this machine's clock) --> VehicleLoad: frames per day and scores of each vehicle
budget, bytes that arrived --Control.plan--> bytes to plan --thresholds_of--> one level for all bundles

A byte goes to the highest scores of the fleet, whichever vehicle has them; only the share of one vehicle is
capped, so that a broken camera cannot take all. What arrives is compared with what was planned: a part that
vehicles hold back (near-duplicates, limits, silence) or bring late is made up for within days.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from sqlalchemy import func, select

from misfire_fleet.campaigns.ledger import CampaignLedger
from misfire_fleet.campaigns.recorded import read_beats, score_of, sizes
from misfire_fleet.campaigns.spec import Cut
from misfire_fleet.campaigns.vehicles import VehicleFacts
from misfire_fleet.errors import StoreError
from misfire_fleet.store import Store
from misfire_fleet.store.schema import fleet_budget, samples
from misfire_fleet.truth.intervals import Array
from misfire_runtime.clock import wall_time

DAY_S = 86_400.0
PERIOD_S = 3600.0
"""Between two plans: each is a new configuration for every vehicle."""
WINDOW_S = 2 * DAY_S
"""Over which frames per day are counted: a whole day's ups and downs, twice."""
RECENT_S = DAY_S / 2
"""Over which scores are taken: weather changes them within hours, while the number of frames stays."""
ENOUGH = 200
"""Frames of a vehicle that tell its scores; with fewer, they are those of the whole window."""
_MEMORY_S = 14 * DAY_S
_PAY_BACK_S = 3 * DAY_S
"""Time within which a debt, or what was left over, is made up for."""
_LEARN_S = 3 * DAY_S
"""Over which planned and arrived bytes are compared, and within which half of a difference is believed."""
_LEAST, _MOST = 0.3, 1.7
"""Of the budget, that is planned for while something is made up for."""
_GAIN = (0.2, 5.0)
"""Bounds of planned over arrived bytes that is believed."""
_OWN_SHARE = 0.25
"""Of the budget, that one vehicle may take, or five times its equal share if that is more."""
_MOST_SHARE = 2.0
"""Of the share of a vehicle's frames that is planned for, that it takes at most."""
_SAME = 0.01
"""A threshold that moves by less is left: sketches know scores to 1 %."""


@dataclass(frozen=True)
class VehicleLoad:
    """Holds what a vehicle sees in a day.

    Attributes:
        name: of the vehicle.
        bundle: whose scores these are; those of two bundles are compared by their level alone.
        values: [B] scores, rising.
        frames: [B] frames per day with that score.
        size: bytes of a sample.
    """

    name: str
    bundle: str
    values: Array
    frames: Array
    size: float

    def bytes_above(self, threshold: float) -> float:
        """Returns the bytes per day at or above a score."""
        return float(self.frames[bisect_left(self.values, threshold) :].sum()) * self.size

    def cut(self, threshold: float) -> Cut:
        """Returns a score with the share of its frames that the vehicle takes at most."""
        share = float(self.frames[bisect_left(self.values, threshold) :].sum()) / float(self.frames.sum())
        # JSON has no infinity, and a vehicle needs none: nothing reaches this.
        above = threshold if math.isfinite(threshold) else _NOTHING
        return Cut(above, min(1.0, max(_LEAST_SHARE, _MOST_SHARE * share)))


def scores_of(whole: Array, recent: Array) -> Array:
    """Returns frames by score: as many as in the whole window, distributed as the recent ones.

    Args:
        whole: [B] frames of the window by bin.
        recent: [B] of its last part.
    """
    if recent.sum() < ENOUGH:
        return whole
    return np.asarray(recent * (whole.sum() / recent.sum()), float)


_LEAST_SHARE = 1e-4
"""With less, a vehicle that is expected to take nothing could not show that this has changed."""
_NOTHING = 1e300


def thresholds_of(
    loads: Sequence[VehicleLoad], bytes_per_day: float, *, own_share: float = _OWN_SHARE
) -> dict[str, float]:
    """Returns the score at or above which each vehicle sends, so that all send the budget together.

    Args:
        loads: of the vehicles.
        bytes_per_day: to be sent by all.
        own_share: of it that one vehicle may send, at least five times its equal share.
    """
    if not loads:
        return {}
    merged = {
        bundle: _Merged([x for x in loads if x.bundle == bundle]) for bundle in {x.bundle for x in loads}
    }
    cap = bytes_per_day * min(1.0, max(own_share, 5 / len(loads)))
    least = {load.name: _own(load, cap) for load in loads}

    def at(level: float) -> dict[str, float]:
        common = {bundle: each.at(level) for bundle, each in merged.items()}
        return {load.name: max(common[load.bundle], least[load.name]) for load in loads}

    def cost(found: Mapping[str, float]) -> float:
        return sum(load.bytes_above(found[load.name]) for load in loads)

    low, high = 0.0, 1.0
    if cost(at(1.0)) <= bytes_per_day:
        return at(1.0)
    for _step in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(at(middle)) <= bytes_per_day else (low, middle)
    return at(low)


class _Merged:
    """Holds the scores of all frames of a bundle: the threshold of a level is one of their values."""

    def __init__(self, loads: Sequence[VehicleLoad]) -> None:
        values = np.concatenate([load.values for load in loads])
        frames = np.concatenate([load.frames for load in loads])
        order = np.argsort(values, kind="stable")
        self._values = values[order][::-1]
        shares = frames[order][::-1].cumsum()
        self._shares = shares / max(float(shares[-1]), 1e-300) if len(shares) else shares

    def at(self, level: float) -> float:
        """Returns the score that at most this share of the frames is at or above."""
        taken = int(np.searchsorted(self._shares, level + 1e-12, side="right"))
        if taken == 0:
            return math.inf
        value = float(self._values[taken - 1])
        # All frames of equal score, or none: the rest of this value may be above the level.
        if taken < len(self._values) and self._values[taken] == value:
            above = self._values > value
            return float(self._values[above].min()) if above.any() else math.inf
        return value


def _own(load: VehicleLoad, cap: float) -> float:
    """Returns the score above which a vehicle sends its cap."""
    sent = load.frames[::-1].cumsum() * load.size
    taken = int(np.searchsorted(sent, cap, side="right"))
    return math.inf if taken == 0 else float(load.values[::-1][taken - 1])


@dataclass
class Control:
    """Learns how planned bytes become arrived ones, and makes up for the difference.

    started_at: None before the first plan.  gain: planned over arrived bytes.  plans: (time, planned bytes
    per day, aimed-at bytes per day), oldest first.
    """

    started_at: float | None = None
    gain: float = 1.0
    plans: list[tuple[float, float, float]] = field(default_factory=list)

    def plan(self, bytes_per_day: float, *, arrived: Callable[[float], float], now: float) -> float:
        """Returns the bytes per day to plan thresholds for.

        Args:
            bytes_per_day: the budget.
            arrived: returns the bytes that came since a time.
            now: seconds, by the same clock.
        """
        if self.started_at is None:
            self.started_at = now
        since = max(self.started_at, now - _MEMORY_S)
        self._learn(arrived, now)
        days = (now - since) / DAY_S
        debt = arrived(since) - bytes_per_day * days
        aim = bytes_per_day - debt / (_PAY_BACK_S / DAY_S)
        aim = min(_MOST * bytes_per_day, max(_LEAST * bytes_per_day, aim))
        planned = aim * self.gain
        self.plans = [each for each in self.plans if each[0] >= now - 2 * _MEMORY_S]
        self.plans.append((now, planned, aim))
        return planned

    def _learn(self, arrived: Callable[[float], float], now: float) -> None:
        """Moves the gain towards planned over arrived bytes of the last days."""
        begun = now if self.started_at is None else self.started_at
        since = max(begun, now - _LEARN_S)
        if not self.plans or now - since < DAY_S / 2:
            return
        planned = self._planned(since, now)
        came = arrived(since)
        if planned <= 0:
            return
        ratio = min(_GAIN[1], max(_GAIN[0], planned / came if came > 0 else _GAIN[1]))
        # Slowly: a burst of late samples is no proof that all send more.
        step = 1 - 0.5 ** ((now - self.plans[-1][0]) / _LEARN_S)
        self.gain = min(_GAIN[1], max(_GAIN[0], self.gain * (ratio / self.gain) ** step))

    def _planned(self, since: float, now: float) -> float:
        ends = [each[0] for each in self.plans[1:]] + [now]
        spans = zip(self.plans, ends, strict=True)
        return sum(each[1] * max(0.0, end - max(since, each[0])) / DAY_S for each, end in spans)

    def to_json(self) -> dict[str, Any]:
        """Returns an object for JSON."""
        return {"started_at": self.started_at, "gain": self.gain, "plans": self.plans}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Control:
        """Returns it from `to_json`."""
        plans = [(float(a), float(b), float(c)) for a, b, c in found.get("plans", [])]
        return cls(found.get("started_at"), float(found.get("gain", 1.0)), plans)


class BudgetKeeper:
    """Keeps the budget and its thresholds in the store; every change of the budget is an audit line."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def set(self, bytes_per_day: int | None, *, actor: str) -> None:
        """Sets the budget, or removes it with None; what was learned before is forgotten."""
        now, before = wall_time(), self._row()
        row = {
            "id": 1,
            "bytes_per_day": bytes_per_day,
            "control": "{}",
            "changed_at": now,
            "changed_by": actor[:64],
        }
        database = self._store.database
        with database.write() as connection:
            database.upsert(connection, fleet_budget, [row])
            detail: dict[str, object] = {
                "before": None if before is None else before[0],
                "after": bytes_per_day,
            }
            self._store.deletion.log(connection, actor[:64], "fleet-budget", detail, at=now)

    def state(self) -> dict[str, Any]:
        """Returns the budget, what arrived in the last day, and the present plan."""
        row = self._row()
        if row is None or row[0] is None:
            return {"bytes_per_day": None}
        control, now = Control.from_json(row[1]), wall_time()
        thresholds = row[1].get("thresholds", {})
        return {
            "bytes_per_day": row[0],
            "arrived_last_day": self._arrived(now - DAY_S),
            "planned": control.plans[-1][1] if control.plans else None,
            "gain": round(control.gain, 3),
            "vehicles": len({name for each in thresholds.values() for name in each}),
            "changed_by": row[2],
        }

    def refresh(self, vehicles: Sequence[VehicleFacts]) -> Mapping[str, Mapping[str, Cut]]:
        """Returns thresholds by score ("": the bundle's own) and vehicle; makes a new plan once an hour."""
        row = self._row()
        wanted = {
            each.spec.what.score or ""
            for each in CampaignLedger(self._store).running()
            if each.spec.what.budget
        }
        if row is None or row[0] is None or not wanted:
            return {}
        bytes_per_day, kept = row[0], row[1]
        control, now = Control.from_json(kept), wall_time()
        thresholds = {score: _cuts(found) for score, found in kept.get("thresholds", {}).items()}
        if control.plans and now - control.plans[-1][0] < PERIOD_S and wanted <= set(thresholds):
            return thresholds
        planned = control.plan(float(bytes_per_day), arrived=self._arrived, now=now)
        found = {
            score: self._moved(
                self._thresholds(score, vehicles, planned / len(wanted), now), thresholds.get(score, {})
            )
            for score in sorted(wanted)
        }
        flat = {score: {name: [c.above, c.rate] for name, c in cuts.items()} for score, cuts in found.items()}
        text = json.dumps({**control.to_json(), "thresholds": flat})
        with self._store.database.write() as connection:
            connection.execute(fleet_budget.update().where(fleet_budget.c.id == 1).values(control=text))
        return found

    def thresholds(self, score: str, vehicles: Sequence[VehicleFacts]) -> dict[str, Cut]:
        """Returns what a campaign's thresholds would be now, for a dry run."""
        row = self._row()
        if row is None or row[0] is None:
            return {}
        kept = _cuts(row[1].get("thresholds", {}).get(score, {}))
        return kept or self._thresholds(score, vehicles, float(row[0]), wall_time())

    def _thresholds(
        self, score: str, vehicles: Sequence[VehicleFacts], bytes_per_day: float, now: float
    ) -> dict[str, Cut]:
        loads = self._loads(score, vehicles, now)
        found = thresholds_of(loads, bytes_per_day)
        return {load.name: load.cut(found[load.name]) for load in loads}

    def _loads(self, score: str, vehicles: Sequence[VehicleFacts], now: float) -> list[VehicleLoad]:
        names = [vehicle.name for vehicle in vehicles]
        beats = read_beats(self._store, names, since=now - WINDOW_S, until=now + 1, blocks=1, by_vehicle=True)
        if not beats.read:
            return []
        days = max(1 / 24, (now - beats.first) / DAY_S)
        known = beats.names()
        loads = []
        for vehicle in vehicles:
            try:
                name = score_of(self._store, vehicle.bundle, known.get(vehicle.bundle, set()), score or None)
            except StoreError:
                continue
            histogram = beats.scores.get((vehicle.name, vehicle.bundle, name))
            if histogram is None or not histogram.total:
                continue
            values, counts = histogram.table()
            own = sizes(self._store, [vehicle.name], limit=200)
            loads.append(
                VehicleLoad(
                    vehicle.name,
                    vehicle.bundle,
                    values,
                    counts / (beats.share * days),
                    float(np.mean(own or [0])),
                )
            )
        return _sized(loads)

    def _moved(self, fresh: Mapping[str, Cut], before: Mapping[str, Cut]) -> dict[str, Cut]:
        """Returns the new thresholds; one that hardly moved stays, so that its vehicle is left in peace."""
        return {name: before[name] if _alike(before.get(name), cut) else cut for name, cut in fresh.items()}

    def _arrived(self, since: float) -> float:
        triggers = [
            each.spec.trigger for each in CampaignLedger(self._store).listed() if each.spec.what.budget
        ]
        if not triggers:
            return 0.0
        query = select(func.sum(samples.c.size)).where(
            samples.c.trigger.in_(triggers), samples.c.stored_at >= since
        )
        with self._store.database.read() as connection:
            return float(connection.scalar(query) or 0)

    def _row(self) -> tuple[int | None, dict[str, Any], str] | None:
        with self._store.database.read() as connection:
            row = connection.execute(select(fleet_budget).where(fleet_budget.c.id == 1)).one_or_none()
        return None if row is None else (row.bytes_per_day, json.loads(row.control), row.changed_by)


def _alike(before: Cut | None, after: Cut) -> bool:
    if before is None:
        return False
    # The share is a bound, and need not be exact.
    return (
        abs(before.above - after.above) <= _SAME * abs(after.above)
        and 0.8 * after.rate <= before.rate <= 1.25 * after.rate
    )


def _cuts(found: Mapping[str, Sequence[float]]) -> dict[str, Cut]:
    return {name: Cut(float(above), float(rate)) for name, (above, rate) in found.items()}


def _sized(loads: Iterable[VehicleLoad]) -> list[VehicleLoad]:
    """Gives vehicles that have no stored sample the mean size of the others', or 100 kB."""
    found = list(loads)
    known = [load.size for load in found if load.size > 0]
    mean = float(np.mean(known)) if known else 100_000.0
    return [
        load if load.size > 0 else VehicleLoad(load.name, load.bundle, load.values, load.frames, mean)
        for load in found
    ]
