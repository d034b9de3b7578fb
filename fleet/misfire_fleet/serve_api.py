"""The console's JSON: the same rows as the pages, for programs; described at /openapi.json."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Response
from pydantic import BaseModel

from misfire_fleet.serve_filters import GalleryQuery, gallery_query
from misfire_fleet.store import Store
from misfire_fleet.store_records import StoredSample
from misfire_runtime.errors import MisfireError


class SampleJson(BaseModel):
    """One stored sample. Times are seconds since 1970; the image is at `blob`."""

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


class SamplePage(BaseModel):
    """Newest first; `next_before` asks for what is older, None at the end."""

    samples: list[SampleJson]
    next_before: int | None


class VehicleJson(BaseModel):
    """One vehicle in numbers."""

    name: str
    online: bool
    bundle: str
    stored: int
    bytes_stored: int
    declined: int
    rejected: int
    pending: int | None
    last_stored_at: float | None


class TotalsJson(BaseModel):
    """The store in numbers."""

    samples: int
    bytes: int
    random: int
    vehicles: int
    online: int
    declined: int
    rejected: int
    deleted: int


def api_router(store: Store) -> APIRouter:
    """/api/samples, /api/samples/{id}, /api/vehicles, /api/totals and /healthz."""
    router = APIRouter()

    @router.get("/api/samples")
    def samples(query: Annotated[GalleryQuery, Depends(gallery_query)]) -> SamplePage:
        rows = store.newest(query.limit, query.filters)
        more = rows[-1].seq if len(rows) == query.limit else None
        return SamplePage(samples=[_json_of(row) for row in rows], next_before=more)

    @router.get("/api/samples/{sample}")
    def sample(sample: str) -> SampleJson:
        return _json_of(store.get(sample))

    @router.get("/api/vehicles")
    def vehicles() -> list[VehicleJson]:
        return [
            VehicleJson(
                name=each.name,
                online=each.online,
                bundle=each.state.bundle if each.state else "",
                stored=each.stored,
                bytes_stored=each.bytes_stored,
                declined=each.declined,
                rejected=each.rejected,
                pending=each.telemetry.counters.pending if each.telemetry else None,
                last_stored_at=each.last_stored_at,
            )
            for each in store.vehicles.summaries()
        ]

    @router.get("/api/totals")
    def totals() -> TotalsJson:
        return TotalsJson.model_validate(store.totals(), from_attributes=True)

    @router.get("/healthz", include_in_schema=False)
    def healthz() -> Response:
        try:
            store.known([])
            store.newest(1)
        except MisfireError as error:
            raise HTTPException(503, str(error)) from error
        return Response("ok\n", media_type="text/plain")

    return router


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
    )
