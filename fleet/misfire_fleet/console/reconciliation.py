"""Compares a vehicle's counters with the fleet's store, in sentences for pages and in numbers for alerts.

A missing sample is reported without any tolerance: a collector sends `stored` after the commit, so no
heartbeat counts a sample that is not yet in the store. The other direction is normal: samples stored since
the last heartbeat appear in the next one.
"""

from __future__ import annotations

from dataclasses import dataclass

from misfire_fleet.console.format import duration, number
from misfire_fleet.console.recent import Recent
from misfire_fleet.store import Store
from misfire_fleet.store.counts import VehicleCounts
from misfire_fleet.store.records import VehicleSummary

_COUNT_S = 30.0
"""Seconds that a comparison is reused. Comparing 20,000 vehicles takes half a second."""


@dataclass(frozen=True)
class Difference:
    """Holds the differences between all vehicles' counters and the store."""

    missing: int
    """Samples that vehicles count as stored and the fleet never had."""
    vehicles_missing: int
    vehicles_unbalanced: int
    lost: int
    """Selected frames that never became a sample, as counted by the vehicles."""


class Reconciliation:
    """Compares vehicles with the store; `difference` covers all of them, and is reused for 30 s."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.difference = Recent(self._difference, max_age_s=_COUNT_S)

    def of(self, vehicles: list[VehicleSummary]) -> dict[str, VehicleCounts]:
        """Returns the stored counts of these vehicles by name."""
        names = [each.name for each in vehicles]
        return {each.vehicle: each for each in self._store.vehicle_counts(names)} if names else {}

    def _difference(self) -> Difference:
        found = self._store.vehicle_counts()
        counted = [each.counters for each in found if each.counters is not None]
        return Difference(
            missing=sum(each.missing for each in found),
            vehicles_missing=sum(each.missing > 0 for each in found),
            vehicles_unbalanced=sum(each.accounted != each.captured for each in counted),
            lost=sum(sum(each.lost.values()) for each in counted),
        )


def concerns(vehicle: VehicleSummary, counts: VehicleCounts | None, now: float) -> list[str]:
    """Returns the problems that an operator should look at, the worst first.

    Args:
        vehicle: the vehicle's row.
        counts: its comparison with the store, None if there is none.
        now: seconds since 1970.
    """
    found = []
    if counts is not None and counts.missing:
        kept = (
            f"{number(counts.stored)} stored, {number(counts.deleted)} deleted, "
            f"{number(counts.copies)} copies"
        )
        claimed = number(counts.counters.stored if counts.counters is not None else 0)
        found.append(f"{number(counts.missing)} missing: vehicle says {claimed} stored, fleet holds {kept}")
    beat = vehicle.telemetry
    if beat is not None:
        captured, ended = beat.counters.captured, beat.counters.accounted
        if captured != ended:
            found.append(
                f"its counters do not add up: {number(captured)} captured, but {number(ended)} stored, "
                "pending, declined, rejected or evicted"
            )
        if beat.hold:
            found.append(f"uploads are held: {beat.hold}")
        for reason, count in sorted(beat.counters.lost.items()):
            if count:
                found.append(f"{number(count)} frames lost: {reason}")
    if vehicle.silent:
        last = max(vehicle.telemetry_at or 0.0, vehicle.state_at or 0.0)
        found.append(f"no heartbeat for {duration(now - last)}, but it did not report going offline")
    if vehicle.unreadable:
        found.append(f"cannot be shown: {vehicle.unreadable}")
    return found
