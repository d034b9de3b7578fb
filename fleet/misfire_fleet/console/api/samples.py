"""Serves /api/samples: stored samples, newest first, with the gallery's filters."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from pydantic import BaseModel

from misfire_fleet.console.filters import GalleryQuery, gallery_query, sample_id
from misfire_fleet.console.rules.cursors import Cursor, after_number, cursor_of
from misfire_fleet.console.shared import Shared
from misfire_fleet.store.records import StoredSample, Totals


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
    """Holds one page of samples, newest first. Pass `next` as `cursor` to get the next page."""

    samples: list[SampleJson]
    next: str | None


def samples_api(shared: Shared) -> APIRouter:
    """Returns the routes /api/samples, /api/samples/{id} and /api/totals."""
    router, store = APIRouter(), shared.store

    @router.get("/api/samples")
    def samples(query: Annotated[GalleryQuery, Depends(gallery_query)], cursor: Cursor = "") -> SamplePage:
        """Lists samples, newest first."""
        filters = query.filters
        if cursor:
            filters = replace(filters, before_seq=after_number("samples", cursor))
        rows = store.newest(query.limit + 1, filters)
        more = cursor_of("samples", rows[query.limit - 1].seq) if len(rows) > query.limit else None
        return SamplePage(samples=[_json_of(row) for row in rows[: query.limit]], next=more)

    @router.get("/api/samples/{sample}")
    def sample(sample: str) -> SampleJson:
        return _json_of(store.get(sample_id(sample)))

    @router.get("/api/totals")
    def totals() -> Totals:
        return shared.totals()

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
        unreadable=row.unreadable,
    )
