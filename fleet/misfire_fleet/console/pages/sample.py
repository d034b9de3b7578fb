"""Shows one sample with every field of its offer, and serves its picture."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse

from misfire_fleet.console.blobs import PRIVATE_MINUTES, blob_response
from misfire_fleet.console.filters import sample_id
from misfire_fleet.console.format import score_rows
from misfire_fleet.console.overlay import answer_of
from misfire_fleet.console.shared import Shared
from misfire_fleet.console.thumbs import WIDTHS
from misfire_fleet.labels.verdicts.ledger import VerdictLedger


def router(shared: Shared) -> APIRouter:
    """Returns /samples/{id}, /blobs/{id} and /thumbs/{id}."""
    routes, store = APIRouter(include_in_schema=False), shared.store

    @routes.get("/samples/{sample}", response_class=HTMLResponse)
    def page(sample: str) -> Response:
        row = store.get(sample_id(sample))
        said = VerdictLedger(store).history(row.id)
        return shared.render.page(
            "sample.html", sample=row, score_rows=score_rows, answer_of=answer_of, said=said
        )

    @routes.get("/blobs/{sample}")
    def blob(request: Request, sample: str) -> Response:
        """Returns the bytes of an upload as the vehicle wrote them."""
        return blob_response(store, store.get(sample_id(sample)), request.headers.get("range"))

    @routes.get("/thumbs/{sample}")
    async def thumbnail(
        sample: str, width: Annotated[int, Query(ge=1, le=WIDTHS[-1])] = WIDTHS[1]
    ) -> Response:
        """Returns a thumbnail, at most as wide as the next larger of WIDTHS."""
        row = await run_in_threadpool(store.get, sample_id(sample))
        picture = await shared.thumbnails.of(row, width)
        return Response(picture.data, media_type=picture.media_type, headers=PRIVATE_MINUTES)

    return routes
