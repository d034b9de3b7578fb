"""What is wrong with a vehicle by its own books and the fleet's: in words, and as numbers for an alarm.

Slack: none for what is missing, because a collector says `stored` after the commit and a heartbeat counts
what was said before it. What the fleet holds beyond the last heartbeat is on its way into the next one.
"""

from __future__ import annotations

from dataclasses import dataclass

from misfire_fleet.console.format import duration, number
from misfire_fleet.console.recent import Recent
from misfire_fleet.store import Store
from misfire_fleet.store.books import VehicleBooks
from misfire_fleet.store.records import VehicleSummary
from misfire_runtime.messages import Counters

_COUNT_S = 30.0
"""20,000 vehicles take half a second."""


@dataclass(frozen=True)
class Difference:
    """The fleet's books in numbers."""

    missing: int
    """Samples that vehicles were told are stored, and that the fleet never had."""
    vehicles_missing: int
    vehicles_unbalanced: int
    lost: int
    """Chosen frames that never became a sample, as the vehicles count them."""


class Books:
    """The comparison of all vehicles, counted at most every few seconds."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.difference = Recent(self._difference, max_age_s=_COUNT_S)

    def of(self, vehicles: list[VehicleSummary]) -> dict[str, VehicleBooks]:
        """The books of these vehicles, by name."""
        names = [each.name for each in vehicles]
        return {book.vehicle: book for book in self._store.vehicle_books(names)} if names else {}

    def _difference(self) -> Difference:
        books = self._store.vehicle_books()
        counted = [book.counters for book in books if book.counters is not None]
        return Difference(
            missing=sum(book.missing for book in books),
            vehicles_missing=sum(book.missing > 0 for book in books),
            vehicles_unbalanced=sum(accounted_for(each) != each.captured for each in counted),
            lost=sum(sum(each.lost.values()) for each in counted),
        )


def accounted_for(counted: Counters) -> int:
    """Returns of how many samples the vehicle says what became of them; `captured` if the books add up."""
    return counted.stored + counted.pending + counted.declined + counted.rejected + counted.evicted


def concerns(vehicle: VehicleSummary, book: VehicleBooks | None, now: float) -> list[str]:
    """Returns what an operator should look at, the worst first; empty if nothing."""
    found = []
    if book is not None and book.missing:
        kept = f"{number(book.stored)} stored, {number(book.deleted)} deleted, {number(book.copies)} copies"
        told = number(book.counters.stored if book.counters is not None else 0)
        found.append(f"{number(book.missing)} missing: vehicle says {told} stored, fleet holds {kept}")
    beat = vehicle.telemetry
    if beat is not None:
        captured, ended = beat.counters.captured, accounted_for(beat.counters)
        if captured != ended:
            found.append(
                f"its books do not add up: {number(captured)} captured, but {number(ended)} stored, pending, "
                "declined, rejected or evicted"
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
