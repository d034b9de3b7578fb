"""Compares each vehicle's count of stored samples with the rows in the store.

A collector sends `stored` after the row is committed, so the store never has fewer samples than an honest
vehicle counted in an earlier heartbeat. Fewer means forged verdicts or lost rows, for example after an old
backup was restored. More is normal: a verdict is under way, or the vehicle began a new spool, whose counts
start at 0; until such a vehicle has stored as many samples again, a loss is not detected. After `misfire
fleet rebuild` the copies are unknown, so vehicles that had some are reported with missing samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, func, literal, select, true, union_all

from misfire_fleet.store.database import Database
from misfire_fleet.store.rows import message_of
from misfire_fleet.store.schema import copies, samples, tombstones, vehicles
from misfire_runtime.messages import Counters, Telemetry


@dataclass(frozen=True)
class VehicleCounts:
    """Holds a vehicle's counters in its last heartbeat, and the store's counts."""

    vehicle: str
    counters: Counters | None
    """None before the first heartbeat."""
    counted_at: float | None
    """When that heartbeat arrived, in seconds since 1970."""
    stored: int
    """Samples of this vehicle in the store."""
    deleted: int
    """Samples of this vehicle that were deleted from the store."""
    copies: int
    """Samples of another vehicle with the same bytes, for which this vehicle got `stored`, too."""

    @property
    def missing(self) -> int:
        """Returns the number of samples that the vehicle counts as stored and the fleet never had."""
        claimed = 0 if self.counters is None else self.counters.stored
        return max(0, claimed - self.stored - self.deleted - self.copies)


def vehicle_counts(database: Database, names: Sequence[str] | None = None) -> list[VehicleCounts]:
    """Returns the counts of these vehicles, or of all if `names` is None, sorted by name."""
    counted = [
        select(literal(name).label("what"), table.c.vehicle, func.count())
        .where(true() if names is None else table.c.vehicle.in_(names))
        .group_by(table.c.vehicle)
        for name, table in (("stored", samples), ("deleted", tombstones), ("copies", copies))
    ]
    query = select(vehicles.c.name, vehicles.c.telemetry, vehicles.c.telemetry_at)
    query = query.where(vehicles.c.telemetry.is_not(None))
    if names is not None:
        query = query.where(vehicles.c.name.in_(names))
    with database.read() as connection:
        # Heartbeats first: a sample that is stored between the two queries must not be reported as missing.
        beats = {
            row.name: (_counters(row.name, row.telemetry), row.telemetry_at)
            for row in connection.execute(query)
        }
        numbers = {(what, vehicle): int(n) for what, vehicle, n in connection.execute(union_all(*counted))}
    return [
        VehicleCounts(
            name,
            *beats.get(name, (None, None)),
            *(numbers.get((what, name), 0) for what in ("stored", "deleted", "copies")),
        )
        for name in sorted({vehicle for _, vehicle in numbers} | set(beats), key=str)
    ]


def _counters(name: str, telemetry: str) -> Counters | None:
    """Returns None if an earlier version stored values outside of today's bounds."""
    beat, _ = message_of(Telemetry, telemetry, f"vehicle {name}")
    return None if beat is None else beat.counters


def foreign(offered: Iterable[tuple[str, str]], owners: Mapping[str, str]) -> set[tuple[str, str]]:
    """Returns the (sample, vehicle) of `offered` whose sample has another owner; owners: vehicle by id."""
    return {(key, vehicle) for key, vehicle in offered if key in owners and owners[key] != vehicle}


def note_copies(database: Database, connection: Connection, pairs: Iterable[tuple[str, str]]) -> None:
    """Records, in the transaction of `connection`, the vehicles that got `stored` for another one's sample.

    Args:
        pairs: (sample id, vehicle).
    """
    # Sorted: PostgreSQL locks rows in this order, and two transactions with other orders would deadlock.
    rows = [{"id": key, "vehicle": vehicle} for key, vehicle in sorted(pairs)]
    if rows:
        connection.execute(database.insert_statement(copies).on_conflict_do_nothing(), rows)
