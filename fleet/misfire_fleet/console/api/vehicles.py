"""Serves /api/vehicles: every vehicle with its counters and problems, sorted by name."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel

from misfire_fleet.console.reconciliation import concerns
from misfire_fleet.console.rules.cursors import Cursor, after_text, cursor_of
from misfire_fleet.console.shared import Shared
from misfire_fleet.store.counts import VehicleCounts
from misfire_fleet.store.records import VehicleSummary
from misfire_runtime.clock import wall_time

MAX_VEHICLES = 1000
"""Bounds one answer; a client reads a larger fleet in pages with `after`."""


class VehicleJson(BaseModel):
    """Describes one vehicle: connection, counters and problems."""

    name: str
    online: bool
    """True if the vehicle reported itself online and its heartbeats arrive in time."""
    bundle: str
    stored: int
    bytes_stored: int
    declined: int
    rejected: int
    pending: int | None
    last_stored_at: float | None
    missing: int = 0
    """Samples that the vehicle counts as stored and the fleet never had."""
    concerns: list[str] = []
    """Problems that an operator should look at, as sentences."""


class VehiclePage(BaseModel):
    """Holds one page of vehicles, sorted by name. Pass `next` as `cursor` to get the next page."""

    vehicles: list[VehicleJson]
    next: str | None


def vehicles_api(shared: Shared) -> APIRouter:
    """Returns the route /api/vehicles."""
    router, known = APIRouter(), shared.store.vehicles

    @router.get("/api/vehicles")
    def vehicles(
        cursor: Cursor = "", limit: Annotated[int, Query(ge=1, le=MAX_VEHICLES)] = MAX_VEHICLES
    ) -> VehiclePage:
        """Lists vehicles by name."""
        names = known.names(after=after_text("vehicles", cursor), limit=limit + 1)
        found = known.summaries(names[:limit])
        compared = shared.reconciliation.of(found)
        listed = [_vehicle_json(each, compared.get(each.name)) for each in found]
        more = cursor_of("vehicles", names[limit - 1]) if len(names) > limit else None
        return VehiclePage(vehicles=listed, next=more)

    return router


def _vehicle_json(each: VehicleSummary, counts: VehicleCounts | None) -> VehicleJson:
    return VehicleJson(
        name=each.name,
        online=each.online and not each.silent,
        bundle=each.state.bundle if each.state else "",
        stored=each.stored,
        bytes_stored=each.bytes_stored,
        declined=each.declined,
        rejected=each.rejected,
        pending=each.telemetry.counters.pending if each.telemetry else None,
        last_stored_at=each.last_stored_at,
        missing=counts.missing if counts is not None else 0,
        concerns=concerns(each, counts, wall_time()),
    )
