"""A vehicle's books beside the fleet's: how many samples it was told are stored, and how many the fleet has.

`stored` is said after the row is committed, so the fleet's number is never below what an honest vehicle
counted in an earlier heartbeat. Less than that means verdicts that no collector gave, or rows that were lost,
such as by restoring an old backup. More is no alarm: a verdict may be on its way, or the vehicle began a new
spool, whose counts start at 0. Until such a vehicle has stored as much again, a loss stays unseen. After
`misfire fleet rebuild` the copies are unknown, and vehicles that had some look as if theirs were missing.
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
class VehicleBooks:
    """What one vehicle counted by its last heartbeat, and what the fleet counts."""

    vehicle: str
    counters: Counters | None
    """None before the first heartbeat."""
    counted_at: float | None
    """When that heartbeat came, in seconds since 1970."""
    stored: int
    """Samples of this vehicle that are here."""
    deleted: int
    """Samples of this vehicle that were here and were deleted."""
    copies: int
    """Samples that another vehicle had stored already, for which this one was told `stored` as well."""

    @property
    def missing(self) -> int:
        """How many samples the vehicle was told are stored, and the fleet never had."""
        told = 0 if self.counters is None else self.counters.stored
        return max(0, told - self.stored - self.deleted - self.copies)


def vehicle_books(database: Database, names: Sequence[str] | None = None) -> list[VehicleBooks]:
    """Returns the books of these vehicles, or of all, by name; the fleet's numbers come from one query."""
    counted = [
        select(literal(name).label("book"), table.c.vehicle, func.count())
        .where(true() if names is None else table.c.vehicle.in_(names))
        .group_by(table.c.vehicle)
        for name, table in (("stored", samples), ("deleted", tombstones), ("copies", copies))
    ]
    query = select(vehicles.c.name, vehicles.c.telemetry, vehicles.c.telemetry_at)
    query = query.where(vehicles.c.telemetry.is_not(None))
    if names is not None:
        query = query.where(vehicles.c.name.in_(names))
    with database.read() as connection:
        # Heartbeats first: a sample that is stored between the two must not look as if it were missing.
        beats = {
            row.name: (_counters(row.name, row.telemetry), row.telemetry_at)
            for row in connection.execute(query)
        }
        numbers = {(book, vehicle): int(n) for book, vehicle, n in connection.execute(union_all(*counted))}
    return [
        VehicleBooks(
            name,
            *beats.get(name, (None, None)),
            *(numbers.get((book, name), 0) for book in ("stored", "deleted", "copies")),
        )
        for name in sorted({vehicle for _, vehicle in numbers} | set(beats), key=str)
    ]


def _counters(name: str, telemetry: str) -> Counters | None:
    """None where an earlier version stored what is outside of today's bounds."""
    beat, _ = message_of(Telemetry, telemetry, f"vehicle {name}")
    return None if beat is None else beat.counters


def foreign(told: Iterable[tuple[str, str]], owners: Mapping[str, str]) -> set[tuple[str, str]]:
    """Returns the (sample, vehicle) of `told` whose sample has another owner; owners: sample to vehicle."""
    return {(key, vehicle) for key, vehicle in told if key in owners and owners[key] != vehicle}


def note_copies(database: Database, connection: Connection, pairs: Iterable[tuple[str, str]]) -> None:
    """Notes, in the transaction of `connection`, who was told `stored` of another vehicle's samples."""
    rows = [{"id": key, "vehicle": vehicle} for key, vehicle in sorted(pairs)]
    if rows:
        connection.execute(database.insert_statement(copies).on_conflict_do_nothing(), rows)
