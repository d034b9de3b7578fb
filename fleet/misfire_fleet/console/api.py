"""Serves the console's JSON API: the same rows as the pages, for programs. /openapi.json describes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel

from misfire_fleet.console.filters import GalleryQuery, Text, gallery_query, readable, sample_id
from misfire_fleet.console.reconciliation import Reconciliation, concerns
from misfire_fleet.store import Store
from misfire_fleet.store.counts import VehicleCounts
from misfire_fleet.store.records import StoredSample, Totals, VehicleSummary
from misfire_runtime.clock import wall_time

MAX_VEHICLES = 1000
"""Bounds one answer; a client reads a larger fleet in pages with `after`."""


class SampleJson(BaseModel):
    """Describes one stored sample. Times are seconds since 1970; `blob` is the path of the image."""

    seq: int
    id: str
    vehicle: str
    captured_at: float
    stored_at: float
    bundle: str
    trigger: str
    random: bool
    scores: dict[str, float]
    percentiles: dict[str, float]
    prediction: dict[str, Any]
    context: dict[str, str | float | bool]
    media_type: str
    size: int
    width: int
    height: int
    blob: str
    unreadable: str = ""
    """Why the row cannot be shown; if set, the other fields are empty."""


class SamplePage(BaseModel):
    """Holds one page of samples, newest first.

    Pass `next_before` as `before` to get the next page; None if there is none.
    """

    samples: list[SampleJson]
    next_before: int | None


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


def api_router(store: Store, reconciliation: Reconciliation, totals: Callable[[], Totals]) -> APIRouter:
    """Returns the routes /api/samples, /api/samples/{id}, /api/vehicles and /api/totals.

    Args:
        store: the open store to read from.
        reconciliation: compares the vehicles' counters with the store.
        totals: returns the store's totals; the console passes a cached count.
    """
    router = APIRouter()

    @router.get("/api/samples")
    def samples(query: Annotated[GalleryQuery, Depends(gallery_query)]) -> SamplePage:
        rows = store.newest(query.limit, query.filters)
        # A full page may be the last one; the client then gets one empty page.
        more = rows[-1].seq if len(rows) == query.limit else None
        return SamplePage(samples=[_json_of(row) for row in rows], next_before=more)

    @router.get("/api/samples/{sample}")
    def sample(sample: str) -> SampleJson:
        return _json_of(store.get(sample_id(sample)))

    @router.get("/api/vehicles")
    def vehicles(
        after: Text = "", limit: Annotated[int, Query(ge=1, le=MAX_VEHICLES)] = MAX_VEHICLES
    ) -> list[VehicleJson]:
        """Lists vehicles by name; `after` is the last name of the previous answer."""
        found = store.vehicles.summaries(store.vehicles.names(after=readable("after", after), limit=limit))
        compared = reconciliation.of(found)
        return [_vehicle_json(each, compared.get(each.name)) for each in found]

    @router.get("/api/totals")
    def totals_() -> Totals:
        return totals()

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


def _json_of(row: StoredSample) -> SampleJson:
    return SampleJson(
        seq=row.seq,
        id=row.id,
        vehicle=row.vehicle,
        captured_at=row.captured_at,
        stored_at=row.stored_at,
        bundle=row.bundle,
        trigger=row.trigger,
        random=row.random,
        scores=row.scores,
        percentiles=row.percentiles,
        prediction=dict(row.prediction),
        context=row.offer.context,
        media_type=row.media_type,
        size=row.size,
        width=row.width,
        height=row.height,
        blob=f"/blobs/{row.id}",
        unreadable=row.unreadable,
    )
