"""Reads one row per vehicle for the fleet's page: state, place, spool, drops and upload rate.

vehicles + samples + refusals --one query each--> VehicleRow --filter, sort--> the page, the API, live events
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field
from sqlalchemy import Row, case, func, select

from misfire_fleet.store import Store
from misfire_fleet.store.presence import present
from misfire_fleet.store.rows import message_of, seconds, whole
from misfire_fleet.store.schema import refusals, samples, vehicles
from misfire_runtime.clock import wall_time
from misfire_runtime.messages import BundleLabel, Count, Counters, Message, Place, State, Text

DAY_S = 86_400.0
Presence = Literal["online", "silent", "offline"]
PRESENCES: tuple[Presence, ...] = ("online", "silent", "offline")
UNPLACED = "unknown"
"""The region of vehicles that report none."""


class Telemetry(Message):
    """Holds the fields of a heartbeat that the page shows; the sketches, its largest part, are not parsed."""

    bundle: BundleLabel
    counters: Counters
    pending_bytes: Count | None = None
    pending_age_s: Annotated[float, Field(ge=0)] | None = None
    degradation: int = 0
    place: Place | None = None
    hold: Text = ""


@dataclass(frozen=True)
class VehicleRow:
    """Describes a vehicle in one line. Times are seconds since 1970; None where nothing was reported.

    Attributes:
        name: of the vehicle.
        state: "silent" if it said that it is online, and its heartbeats are missing.
        seen_at: the last message.
        bundle: that it runs.
        region, lat, lon: where it is.
        pending, pending_bytes, pending_age_s: what waits in its spool.
        drops: counts by reason, of frames and samples that were dropped on the vehicle or refused.
        day_samples, day_bytes: uploads of the last 24 hours.
        stored, last_stored_at: all uploads.
        degradation: step of its ladder, 0 is normal.
        hold: why it offers nothing.
        unreadable: why its state or heartbeat cannot be shown.
    """

    name: str
    state: Presence
    seen_at: float | None = None
    bundle: str = ""
    region: str = UNPLACED
    lat: float | None = None
    lon: float | None = None
    pending: int | None = None
    pending_bytes: int | None = None
    pending_age_s: float | None = None
    drops: Mapping[str, int] = field(default_factory=dict)
    day_samples: int = 0
    day_bytes: int = 0
    stored: int = 0
    last_stored_at: float | None = None
    degradation: int = 0
    hold: str = ""
    unreadable: str = ""

    @property
    def dropped(self) -> int:
        """Returns all drops."""
        return sum(self.drops.values())


_KEYS: dict[str, Callable[[VehicleRow], Any]] = {
    "name": lambda row: row.name,
    "state": lambda row: PRESENCES.index(row.state),
    "seen": lambda row: row.seen_at or 0.0,
    "bundle": lambda row: row.bundle,
    "region": lambda row: row.region,
    "spool": lambda row: row.pending_bytes if row.pending_bytes is not None else (row.pending or 0),
    "age": lambda row: row.pending_age_s or 0.0,
    "drops": lambda row: row.dropped,
    "rate": lambda row: row.day_samples,
}
SORTS = tuple(_KEYS)


@dataclass(frozen=True)
class RowQuery:
    """Says which vehicles, in which order; None is any. `sort` is one of `SORTS`, with - the other way."""

    state: str | None = None
    bundle: str | None = None
    region: str | None = None
    find: str = ""
    sort: str = "name"

    def of(self, rows: Sequence[VehicleRow]) -> list[VehicleRow]:
        """Returns the matching rows, sorted; equal ones by name."""
        asked = self.find.casefold()
        found = [
            row
            for row in rows
            if self.state in (None, row.state)
            and self.bundle in (None, row.bundle)
            and self.region in (None, row.region)
            and asked in row.name.casefold()
        ]
        found.sort(key=lambda row: row.name)
        found.sort(key=_KEYS[self.sort.removeprefix("-")], reverse=self.sort.startswith("-"))
        return found


def read_rows(store: Store) -> list[VehicleRow]:
    """Returns the rows of all vehicles, by name. Raises StoreUnavailableError."""
    now = wall_time()
    today = samples.c.stored_at >= now - DAY_S
    uploads = select(
        samples.c.vehicle,
        func.count().label("stored"),
        func.max(samples.c.stored_at).label("last"),
        func.sum(case((today, 1), else_=0)).label("day"),
        func.sum(case((today, samples.c.size), else_=0)).label("day_bytes"),
    ).group_by(samples.c.vehicle)
    refused = select(refusals.c.vehicle, refusals.c.verdict, refusals.c.cause, refusals.c["count"])
    known = select(vehicles, present(now).label("present"))
    with store.database.read() as connection:
        stored = {row.vehicle: row for row in connection.execute(uploads)}
        heard = {row.name: row for row in connection.execute(known)}
        causes: dict[str, dict[str, int]] = {}
        for vehicle, verdict, cause, count in connection.execute(refused):
            causes.setdefault(vehicle, {})[f"{verdict}: {cause}"] = whole(count)
    names = sorted((name for name in {*stored, *heard, *causes} if isinstance(name, str)), key=str)
    return [_row(name, heard.get(name), stored.get(name), causes.get(name, {})) for name in names]


def _row(name: str, known: Row[Any] | None, uploads: Row[Any] | None, causes: dict[str, int]) -> VehicleRow:
    what = f"vehicle {name}"
    state, bad_state = message_of(State, None if known is None else known.state, what)
    beat, bad_beat = message_of(Telemetry, None if known is None else known.telemetry, what)
    place = None if beat is None else beat.place
    times = [] if known is None else [seconds(known.state_at), seconds(known.telemetry_at)]
    bundle = beat.bundle if beat is not None and beat.bundle else state.bundle if state is not None else ""
    return VehicleRow(
        name=name,
        state=_presence(known),
        seen_at=max((at for at in times if at is not None), default=None),
        bundle=bundle,
        region=place.region if place is not None and place.region else UNPLACED,
        lat=None if place is None else place.lat,
        lon=None if place is None else place.lon,
        pending=None if beat is None else beat.counters.pending,
        pending_bytes=None if beat is None else beat.pending_bytes,
        pending_age_s=None if beat is None else beat.pending_age_s,
        drops=_drops(beat, causes),
        day_samples=0 if uploads is None else whole(uploads.day),
        day_bytes=0 if uploads is None else whole(uploads.day_bytes),
        stored=0 if uploads is None else whole(uploads.stored),
        last_stored_at=None if uploads is None else seconds(uploads.last),
        degradation=0 if beat is None else beat.degradation,
        hold="" if beat is None else beat.hold,
        unreadable="; ".join(bad for bad in (bad_state, bad_beat) if bad),
    )


def _presence(known: Row[Any] | None) -> Presence:
    if known is None or not known.online:
        return "offline"
    return "online" if known.present else "silent"


def _drops(beat: Telemetry | None, causes: dict[str, int]) -> dict[str, int]:
    """Returns counts by reason, the largest first, without zeros."""
    found = dict(causes)
    if beat is not None:
        found |= {
            "frames dropped": beat.counters.frames_dropped,
            "frames unreadable": beat.counters.frames_unreadable,
            "evicted from the spool": beat.counters.evicted,
        }
        for reason, count in beat.counters.lost.items():
            found[f"lost: {reason}"] = count
    return {reason: n for reason, n in sorted(found.items(), key=lambda item: (-item[1], item[0])) if n}
