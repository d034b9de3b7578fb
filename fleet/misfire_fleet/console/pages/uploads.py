"""Shows the uploads as a gallery, as their boxes, or as a map of embeddings; the address has all filters."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, HTTPException, Request, Response
from fastapi.responses import HTMLResponse

from misfire_fleet.console.access.callers import Caller, requires
from misfire_fleet.console.filters import GalleryQuery, gallery_query
from misfire_fleet.console.format import score_rows
from misfire_fleet.console.overlay import answer_of
from misfire_fleet.console.recent import Recent
from misfire_fleet.console.shared import Shared
from misfire_fleet.gallery.query import Page
from misfire_fleet.labels.ledger import LabelLedger
from misfire_fleet.store.where import where_of
from misfire_runtime.errors import ConfigError

_CLASSES_S = 10.0
_JUDGED_AT_ONCE = 200
"""Ids in the address of the verdict screen, for filters that it does not have."""
_SHARED_FILTERS = ("similar", "group", "context")
"""Filters that commands and the verdict screen do not have."""

Filters = Annotated[GalleryQuery, Depends(gallery_query)]
Viewer = Annotated[Caller, Depends(requires("viewer"))]


def router(shared: Shared) -> APIRouter:
    """Returns /uploads and /fragments/totals."""
    routes = APIRouter(default_response_class=HTMLResponse, include_in_schema=False)
    gallery, store = shared.gallery, shared.store
    classes = Recent(lambda: [each.name for each in LabelLedger(store).classes()], max_age_s=_CLASSES_S)
    bundles = Recent(shared.losses.refresh, max_age_s=_CLASSES_S)

    @routes.get("/uploads")
    def uploads(request: Request, query: Filters, caller: Viewer) -> Response:
        """Renders uploads; for a request of htmx, only the cards."""
        bundles()
        try:
            if query.show == "boxes":
                page: Any = gallery.boxes(query.question, limit=query.limit, cursor=query.cursor)
            elif query.show == "map":
                page = None
            else:
                page = gallery.page(query.question, limit=query.limit, cursor=query.cursor)
        except ConfigError as error:
            raise HTTPException(422, str(error)) from error
        more = None if page is None or page.cursor is None else query.link(cursor=page.cursor)
        shown: dict[str, Any] = {
            "page": page,
            "more": more,
            "query": query,
            "score_rows": score_rows,
            "answer_of": answer_of,
        }
        if request.headers.get("HX-Request"):
            part = "box_cards.html" if query.show == "boxes" else "upload_cards.html"
            return shared.render.page(part, **shown)
        view = shared.index.view()
        counted = gallery.answered(query.question).count if page is None else page.matching
        return shared.render.page(
            "gallery.html",
            choices={name: view.used(name) for name in ("vehicle", "trigger", "bundle")},
            scores=view.scores,
            keys=view.context_keys,
            classes=classes(),
            box_classes=_box_classes(shared) if query.show == "boxes" else [],
            judge=_judge_link(query, page),
            totals=shared.totals(),
            matching=counted,
            views=shared.collected.views(caller.name),
            selections=[each.name for each in shared.collected.selections()],
            person="" if shared.access.open_to_all else caller.name,
            indexed=None if view.complete else len(view),
            **shown,
        )

    @routes.get("/fragments/totals")
    def totals() -> Response:
        """Renders the totals, which each page reloads every 5 seconds."""
        return shared.render.page("totals.html", totals=shared.totals())

    return routes


def _box_classes(shared: Shared) -> list[str]:
    view = shared.index.view()
    names = view.names["class"].names
    numbers = {int(number) for number in set(view.boxes["name"].tolist()) if number >= 0}
    return sorted(names[number] for number in numbers)[:500]


def _judge_link(query: GalleryQuery, page: Any) -> str:
    """Returns the address of the verdict screen for what is shown."""
    where = where_of(query.filters)
    if isinstance(page, Page) and any(query.values.get(name) for name in _SHARED_FILTERS):
        shown = ",".join(each.sample.id for each in page.shown[:_JUDGED_AT_ONCE])
        where = [each for each in where if not each.startswith("ids=")] + ([f"ids={shown}"] if shown else [])
    return "/verdicts?" + urlencode({"order": "score", "where": where}, doseq=True)
