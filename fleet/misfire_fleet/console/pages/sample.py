"""Shows one sample: its picture with layers, why it was sent, what came of it; and serves its pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse

from misfire_fleet.console.blobs import PRIVATE_MINUTES, blob_response
from misfire_fleet.console.filters import sample_id
from misfire_fleet.console.format import score_rows
from misfire_fleet.console.layers import layers_of, mask_picture, words_of
from misfire_fleet.console.overlay import answer_of
from misfire_fleet.console.recent import Recent
from misfire_fleet.console.shared import Shared
from misfire_fleet.console.thumbs import WIDTHS
from misfire_fleet.datasets.lineage import trace
from misfire_fleet.errors import SampleGoneError, StoreError
from misfire_fleet.gallery.index import context_text
from misfire_fleet.gallery.query import Page, Question
from misfire_fleet.gallery.why import why
from misfire_fleet.labels.content import LabelRecord
from misfire_fleet.labels.ledger import LabelLedger
from misfire_fleet.labels.verdicts.ledger import VerdictLedger
from misfire_fleet.store.labels import PERSON
from misfire_fleet.store.records import StoredSample
from misfire_fleet.store.verdicts import VerdictLine
from misfire_runtime.errors import ConfigError


@dataclass(frozen=True)
class Event:
    """Something that happened to a sample. `at`: seconds since 1970."""

    at: float
    what: str
    who: str


_BUNDLES_S = 10.0
_NEIGHBOURS = 12
_LINEAGE = 8
_HISTORY = 50


def router(shared: Shared) -> APIRouter:
    """Returns /samples/{id} with neighbours and masks, /blobs/{id}, /thumbs/{id} and /crops/{id}/{box}."""
    routes, store = APIRouter(include_in_schema=False), shared.store
    bundles = Recent(shared.losses.refresh, max_age_s=_BUNDLES_S)

    @routes.get("/samples/{sample}", response_class=HTMLResponse)
    def page(sample: str) -> Response:
        row = store.get(sample_id(sample))
        bundles()
        expected = shared.losses.of(row)
        records, said = _records(shared, row.id), VerdictLedger(store).history(row.id)
        withdrawn = {(line.annotator, line.withdraws) for line in said if line.withdraws is not None}
        held = [
            each
            for each in records
            if each.source != PERSON or (each.annotator, each.version) not in withdrawn
        ]
        pinned = shared.collected.pinned_by(row.id)
        return shared.render.page(
            "sample.html",
            sample=row,
            score_rows=score_rows,
            answer=answer_of(row),
            context_text=context_text,
            why=why(row, expected),
            expected={each.score: each for each in expected},
            layers=layers_of(row, held),
            chain=trace(store, row.id, kind="sample", limit=_LINEAGE),
            events=_history(row, records, said, pinned),
            pinned=pinned,
        )

    @routes.get("/samples/{sample}/neighbours", response_class=HTMLResponse)
    def neighbours(sample: str) -> Response:
        """Renders what resembles a sample; the page asks for it after it is shown."""
        row = store.get(sample_id(sample))
        question = Question(similar=row.id, order="similar", fold=False)
        found: Page | None = None
        problem = ""
        try:
            found = shared.gallery.page(question, limit=_NEIGHBOURS + 1)
        except ConfigError:
            problem = "Its offer carries no embedding, so nothing can be compared with it."
        near = shared.gallery.answered(Question(group=row.id)).count - 1
        others = [each for each in found.shown if each.sample.id != row.id] if found is not None else []
        return shared.render.page(
            "neighbours.html", sample=row, page=found, others=others[:_NEIGHBOURS], near=near, problem=problem
        )

    @routes.get("/samples/{sample}/mask/{content}")
    def mask(sample: str, content: str) -> Response:
        """Returns a mask label as a picture to lay over the sample; its address has the label's hash."""
        for record in _records(shared, sample_id(sample)):
            if record.content_hash == content:
                data = mask_picture(record)
                if data is not None:
                    return Response(data, media_type="image/png", headers=PRIVATE_MINUTES)
        raise SampleGoneError(f"sample {sample[:16]}: it has no mask {content[:16]!r}")

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

    @routes.get("/crops/{sample}/{box}")
    async def crop(
        sample: str,
        box: Annotated[int, Path(ge=1, le=64)],
        width: Annotated[int, Query(ge=1, le=WIDTHS[-1])] = WIDTHS[0],
    ) -> Response:
        """Returns a thumbnail of a box of the vehicle's answer, with a margin."""
        row = await run_in_threadpool(store.get, sample_id(sample))
        picture = await shared.thumbnails.of(row, width, box=box)
        return Response(picture.data, media_type=picture.media_type, headers=PRIVATE_MINUTES)

    return routes


def _records(shared: Shared, sample: str) -> list[LabelRecord]:
    """Returns the newest label records of a sample, oldest first; none of a damaged one."""
    try:
        return LabelLedger(shared.store).history(sample, limit=_HISTORY)
    except StoreError:
        return []


def _history(
    row: StoredSample,
    records: Sequence[LabelRecord],
    said: Sequence[VerdictLine],
    pinned: tuple[str, float] | None,
) -> list[Event]:
    """Returns what happened to a sample, the newest first."""
    events = [Event(row.captured_at, "captured", row.vehicle), Event(row.stored_at, "stored", row.collector)]
    for record in records:
        who = f"{record.annotator or 'nobody named'} ({record.source}, version {record.version})"
        events.append(Event(record.at.timestamp(), f"labelled {words_of(record)}", who))
    for line in said:
        words = f"judged {line.verdict}" + (", shared" if line.shared else "")
        if line.undoes:
            words = "verdict taken back" + (f", {line.verdict} again" if line.verdict != "none" else "")
        events.append(Event(line.at, words, line.annotator))
    if pinned is not None:
        events.append(Event(pinned[1], "pinned", pinned[0]))
    return sorted(events, key=lambda event: event.at, reverse=True)
