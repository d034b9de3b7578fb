"""Serves /api/samples: stored samples with the gallery's filters and orders; their boxes; deletes some."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException
from pydantic import BaseModel, ConfigDict, Field

from misfire_fleet.console.access.callers import Caller, requires
from misfire_fleet.console.filters import MAX_PAGE, GalleryQuery, gallery_query, sample_id
from misfire_fleet.console.rules.cursors import after_text, cursor_of
from misfire_fleet.console.shared import Shared
from misfire_fleet.store.records import StoredSample, Totals
from misfire_runtime.errors import ConfigError

Id = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


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
    """Holds one page of samples, in the order that was asked for.

    Pass `next` as `cursor` to get the next page; null if there is none.

    Attributes:
        matching: samples that match.
        complete: false while a console that was just started has not read all older samples.
        folded: near-duplicates behind each sample, by id, if they are folded.
        similarity: to the sample that was asked for, by id.
        expected_loss: by id, where the sample's bundle tells it.
    """

    samples: list[SampleJson]
    next: str | None
    matching: int = 0
    complete: bool = True
    folded: dict[str, int] = {}
    similarity: dict[str, float] = {}
    expected_loss: dict[str, float] = {}


class BoxJson(BaseModel):
    """Describes a box of an answer: its number in the offer, and 1 - P(TP) if the bundle tells it."""

    sample: str
    number: int
    name: str
    doubt: float | None
    score: float | None


class BoxListing(BaseModel):
    """Holds one page of boxes, the most doubtful first. Pass `next` as `cursor` for the next one."""

    boxes: list[BoxJson]
    next: str | None
    matching: int


class DeleteIn(BaseModel):
    """Samples to delete for good, and why. `dry_run` only counts."""

    model_config = ConfigDict(extra="forbid")

    samples: Annotated[list[Id], Field(min_length=1, max_length=MAX_PAGE)]
    reason: Annotated[str, Field(min_length=1, max_length=250)]
    dry_run: bool = False


class DeletedJson(BaseModel):
    """Says what a deletion did. held: samples that a legal hold keeps. samples: those that are gone now."""

    deleted: int
    bytes: int
    held: int
    samples: list[str]


def samples_api(shared: Shared) -> APIRouter:
    """Returns the routes /api/samples, /api/samples/{id}, /api/boxes and /api/totals."""
    router, store = APIRouter(), shared.store

    @router.get("/api/samples")
    def samples(query: Annotated[GalleryQuery, Depends(gallery_query)]) -> SamplePage:
        """Lists samples that match, in an order, from a cursor on."""
        try:
            after = after_text("samples", query.cursor)
            page = shared.gallery.page(query.question, limit=query.limit, cursor=after)
        except ConfigError as error:
            raise HTTPException(422, str(error)) from error
        shown = page.shown
        return SamplePage(
            samples=[_json_of(each.sample) for each in shown],
            next=None if page.cursor is None else cursor_of("samples", page.cursor),
            matching=page.matching,
            complete=page.complete,
            folded={each.sample.id: each.folded for each in shown if each.folded},
            similarity={each.sample.id: each.similarity for each in shown if each.similarity is not None},
            expected_loss={each.sample.id: each.loss for each in shown if each.loss is not None},
        )

    @router.get("/api/boxes")
    def boxes(query: Annotated[GalleryQuery, Depends(gallery_query)]) -> BoxListing:
        """Lists the boxes of samples that match, the most doubtful first."""
        try:
            after = after_text("boxes", query.cursor)
            page = shared.gallery.boxes(query.question, limit=query.limit, cursor=after)
        except ConfigError as error:
            raise HTTPException(422, str(error)) from error
        found = [
            BoxJson(
                sample=each.sample, number=each.number, name=each.name, doubt=each.doubt, score=each.score
            )
            for each in page.shown
        ]
        more = None if page.cursor is None else cursor_of("boxes", page.cursor)
        return BoxListing(boxes=found, next=more, matching=page.matching)

    @router.post("/api/samples/delete")
    def delete(body: DeleteIn, caller: Annotated[Caller, Depends(requires("operator"))]) -> DeletedJson:
        """Deletes samples for good; those under a legal hold stay."""
        done = store.deletion.delete(
            ids=body.samples, reason=body.reason, actor=caller.name, dry_run=body.dry_run
        )
        shared.index.recount()
        left = store.known(body.samples)
        gone = [] if body.dry_run else [each for each in body.samples if each not in left]
        return DeletedJson(deleted=done.deleted, bytes=done.bytes, held=done.held, samples=gone)

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
