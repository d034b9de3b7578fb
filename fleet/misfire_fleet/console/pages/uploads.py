"""Shows the uploads: the newest first, with all filters in the address."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import HTMLResponse

from misfire_fleet.console.filters import GalleryQuery, gallery_query
from misfire_fleet.console.format import score_rows
from misfire_fleet.console.overlay import answer_of
from misfire_fleet.console.recent import Recent
from misfire_fleet.console.shared import Shared
from misfire_fleet.labels.ledger import LabelLedger
from misfire_fleet.store.where import where_of

_CHOICES_S = 10.0
"""Seconds that the filters' choices are reused: a new vehicle, trigger or bundle is rare."""

Filters = Annotated[GalleryQuery, Depends(gallery_query)]


def router(shared: Shared) -> APIRouter:
    """Returns /uploads and /fragments/totals."""
    routes, store = APIRouter(default_response_class=HTMLResponse, include_in_schema=False), shared.store
    choices = Recent(store.distinct, max_age_s=_CHOICES_S)
    classes = Recent(lambda: [each.name for each in LabelLedger(store).classes()], max_age_s=_CHOICES_S)

    @routes.get("/uploads")
    def uploads(request: Request, query: Filters) -> Response:
        """Renders the newest uploads; for a request of htmx, only the cards."""
        # One row more than shown: whether it exists decides if the page has a "Show older" link.
        rows = store.newest(query.limit + 1, query.filters)
        more = None
        if len(rows) > query.limit:
            rows = rows[: query.limit]
            more = "/uploads?" + urlencode(query.values | {"before": str(rows[-1].seq)})
        shown: dict[str, Any] = {
            "samples": rows,
            "more": more,
            "query": query,
            "score_rows": score_rows,
            "answer_of": answer_of,
        }
        if request.headers.get("HX-Request"):
            return shared.render.page("cards.html", **shown)
        return shared.render.page(
            "gallery.html",
            choices=choices(),
            classes=classes(),
            judge="/verdicts?" + urlencode({"order": "score", "where": where_of(query.filters)}, doseq=True),
            totals=shared.totals(),
            matching=store.count(query.filters),
            **shown,
        )

    @routes.get("/fragments/totals")
    def totals() -> Response:
        """Renders the totals, which each page reloads every 5 seconds."""
        return shared.render.page("totals.html", totals=shared.totals())

    return routes
