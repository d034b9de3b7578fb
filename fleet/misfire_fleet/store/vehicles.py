"""Stores the vehicles' states, heartbeats and refused samples, and summarizes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import Row, Subquery, delete, exists, func, select, union

from misfire_fleet.store.database import Database
from misfire_fleet.store.presence import present
from misfire_fleet.store.records import VehicleSummary
from misfire_fleet.store.rows import message_of, seconds, whole
from misfire_fleet.store.schema import refusals, samples, telemetry, vehicles
from misfire_runtime.clock import wall_time
from misfire_runtime.messages import State, Telemetry, encode

_UNPROVEN = ~exists().where(samples.c.vehicle == vehicles.c.name)
# Names per statement: SQLite before 3.32 allows 999 parameters.
_SLICE = 500


class VehicleRegistry:
    """Reads and writes the rows of vehicles, heartbeats and refusals."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def record_states(self, states: Mapping[str, State], *, at: float | None = None) -> None:
        """Stores the latest state by vehicle name. Several collectors may record the same state.

        Args:
            states: state by vehicle.
            at: when they arrived, seconds since 1970; None for now.
        """
        now = wall_time() if at is None else at
        rows = [
            {
                "name": name,
                "first_seen": now,
                "online": state.online,
                "state": encode(state).decode(),
                "state_at": now,
            }
            # Sorted: PostgreSQL locks rows in this order; two collectors with other orders would deadlock.
            for name, state in sorted(states.items())
        ]
        with self._database.write() as connection:
            self._database.upsert(connection, vehicles, rows, keep=("first_seen",))

    def record_telemetry(
        self, beats: Sequence[tuple[str, Telemetry]], *, at: Sequence[float] | None = None
    ) -> None:
        """Adds heartbeats, in order of arrival, to the log, and the last one to the vehicle's row.

        Args:
            beats: (vehicle, heartbeat).
            at: when each arrived, seconds since 1970; None for now.
        """
        now = wall_time()
        rows = [
            {"vehicle": name, "received_at": received, "payload": encode(beat).decode()}
            for (name, beat), received in zip(beats, at or [now] * len(beats), strict=True)
        ]
        last = {row["vehicle"]: row for row in rows}
        with self._database.write() as connection:
            connection.execute(telemetry.insert(), rows)
            self._database.upsert(
                connection,
                vehicles,
                [
                    {
                        "name": name,
                        "first_seen": row["received_at"],
                        "online": True,
                        "telemetry": row["payload"],
                        "telemetry_at": row["received_at"],
                    }
                    for name, row in sorted(last.items(), key=lambda item: str(item[0]))
                ],
                # Only a state changes `online`: a heartbeat may be recorded after the state that ends it.
                keep=("first_seen", "online"),
            )

    def record_refusals(self, counts: Mapping[tuple[str, str, str], int]) -> None:
        """Adds to the counts of refusals, by (vehicle, "declined" or "rejected", cause)."""
        now = wall_time()
        make = self._database.insert_statement
        with self._database.write() as connection:
            for (vehicle, verdict, cause), count in sorted(counts.items()):
                statement = make(refusals).values(
                    vehicle=vehicle, verdict=verdict, cause=cause, count=count, last_at=now
                )
                connection.execute(
                    statement.on_conflict_do_update(
                        index_elements=["vehicle", "verdict", "cause"],
                        set_={"count": refusals.c["count"] + statement.excluded["count"], "last_at": now},
                    )
                )

    def admitted(self, names: Sequence[str], *, max_unproven: int) -> set[str]:
        """Returns the names that may have rows.

        These are all vehicles that have a row or a stored sample, and others as long as at most
        `max_unproven` vehicles have a row without a sample. The limit is needed because a sender can invent
        any number of names.
        """
        allowed: set[str] = set()
        with self._database.read() as connection:
            for some in _slices(names):
                known = select(vehicles.c.name).where(vehicles.c.name.in_(some))
                proven = select(samples.c.vehicle).where(samples.c.vehicle.in_(some)).distinct()
                allowed |= set(connection.scalars(known)) | set(connection.scalars(proven))
            strangers = [name for name in names if name not in allowed]
            if strangers:
                unproven = select(func.count()).select_from(vehicles).where(_UNPROVEN)
                room = max(0, max_unproven - int(connection.scalar(unproven) or 0))
                allowed |= set(strangers[:room])
        return allowed

    def forget_unproven(self, before: float) -> int:
        """Deletes vehicles without a sample, first seen before `before` and silent since; counts them."""
        idle = func.coalesce(vehicles.c.telemetry_at, 0.0) < before
        query = select(vehicles.c.name).where(_UNPROVEN, vehicles.c.first_seen < before, idle)
        with self._database.write() as connection:
            names = list(connection.scalars(query))
            for some in _slices(names):
                for column in (vehicles.c.name, telemetry.c.vehicle, refusals.c.vehicle):
                    connection.execute(delete(column.table).where(column.in_(some)))
        return len(names)

    def names(self, *, after: str = "", limit: int) -> list[str]:
        """Returns the names of all known vehicles after the name `after`, in the database's order."""
        heard = _heard(after)
        with self._database.read() as connection:
            found = connection.scalars(select(heard.c.name).order_by(heard.c.name).limit(limit))
            return [name for name in found if isinstance(name, str)]

    def count(self) -> int:
        """Returns the number of all known vehicles."""
        with self._database.read() as connection:
            return int(connection.scalar(select(func.count()).select_from(_heard(""))) or 0)

    def summaries(self, names: Sequence[str] | None = None) -> list[VehicleSummary]:
        """Returns summaries of the known vehicles among `names`, in the same order; None: all, by name."""
        stored = select(
            samples.c.vehicle,
            func.count().label("stored"),
            func.sum(samples.c.size).label("bytes"),
            func.max(samples.c.stored_at).label("last"),
        ).group_by(samples.c.vehicle)
        refused = select(refusals.c.vehicle, refusals.c.verdict, func.sum(refusals.c["count"])).group_by(
            refusals.c.vehicle, refusals.c.verdict
        )
        known = select(vehicles, present(wall_time()).label("present"))
        if names is not None:
            stored = stored.where(samples.c.vehicle.in_(names))
            refused = refused.where(refusals.c.vehicle.in_(names))
            known = known.where(vehicles.c.name.in_(names))
        with self._database.read() as connection:
            uploads = {row.vehicle: row for row in connection.execute(stored)}
            refusal = {(name, verdict): whole(n) for name, verdict, n in connection.execute(refused)}
            rows = {row.name: row for row in connection.execute(known)}
        heard = set(uploads) | set(rows) | {name for name, _ in refusal}
        ordered = sorted(heard, key=str) if names is None else [name for name in names if name in heard]
        return [_summary(name, rows.get(name), uploads.get(name), refusal) for name in ordered]

    def causes(self, vehicle: str) -> list[tuple[str, str, int]]:
        """Returns a vehicle's refusals as (verdict, cause, count), the most frequent first."""
        columns = refusals.c
        count = columns["count"]
        query = select(columns.verdict, columns.cause, count).where(columns.vehicle == vehicle)
        with self._database.read() as connection:
            return [
                (row[0], row[1], whole(row[2])) for row in connection.execute(query.order_by(count.desc()))
            ]

    def heartbeats(self, vehicle: str, *, limit: int = 200) -> list[tuple[float, Telemetry]]:
        """Returns a vehicle's readable heartbeats as (seconds since 1970, heartbeat), newest first."""
        query = (
            select(telemetry.c.received_at, telemetry.c.payload)
            .where(telemetry.c.vehicle == vehicle)
            .order_by(telemetry.c.seq.desc())
            .limit(limit)
        )
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        beats = [(row.received_at, message_of(Telemetry, row.payload, f"vehicle {vehicle}")) for row in rows]
        return [(received_at, beat) for received_at, (beat, _) in beats if beat is not None]

    def forget_telemetry(self, before: float) -> int:
        """Deletes heartbeats received before that time; returns their number."""
        with self._database.write() as connection:
            return int(connection.execute(delete(telemetry).where(telemetry.c.received_at < before)).rowcount)


def _heard(after: str) -> Subquery:
    """Returns a subquery for the names after `after` of all vehicles that have any row."""
    columns = (vehicles.c.name, samples.c.vehicle, refusals.c.vehicle)
    return union(*(select(each.label("name")).where(each > after).distinct() for each in columns)).subquery()


def _summary(
    name: str, known: Row[Any] | None, uploads: Row[Any] | None, refusal: Mapping[tuple[str, str], int]
) -> VehicleSummary:
    state, bad_state = message_of(State, None if known is None else known.state, f"vehicle {name}")
    beat, bad_beat = message_of(Telemetry, None if known is None else known.telemetry, f"vehicle {name}")
    online = bool(known.online) if known is not None else False
    return VehicleSummary(
        name=name,
        online=online,
        silent=online and known is not None and not known.present,
        first_seen=seconds(known.first_seen) or 0.0 if known is not None else 0.0,
        state=state,
        state_at=seconds(known.state_at) if known is not None else None,
        telemetry=beat,
        telemetry_at=seconds(known.telemetry_at) if known is not None else None,
        stored=whole(uploads.stored) if uploads is not None else 0,
        bytes_stored=whole(uploads.bytes) if uploads is not None else 0,
        last_stored_at=seconds(uploads.last) if uploads is not None else None,
        declined=refusal.get((name, "declined"), 0),
        rejected=refusal.get((name, "rejected"), 0),
        unreadable="; ".join(bad for bad in (bad_state, bad_beat) if bad),
    )


def _slices(names: Sequence[str]) -> Iterator[Sequence[str]]:
    """Yields slices of names, because databases limit the number of parameters of a statement."""
    return (names[at : at + _SLICE] for at in range(0, len(names), _SLICE))
