"""Shows drift: a bundle's scores over time and by group, against what they should be, and field truth."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Response
from fastapi.responses import HTMLResponse

from misfire_fleet.console.api.histories import drift_json, drift_of
from misfire_fleet.console.board.history import MAX_DAYS
from misfire_fleet.console.filters import Text, readable
from misfire_fleet.console.shared import Shared
from misfire_fleet.truth.bins import MIN_FRAMES, PSI_DRIFT, PSI_WATCH


def router(shared: Shared) -> APIRouter:
    """Returns /drift and /fragments/field-truth."""
    routes = APIRouter(default_response_class=HTMLResponse, include_in_schema=False)

    @routes.get("/drift")
    def drift(
        bundle: Text = "",
        score: Text = "",
        by: Text = "region",
        days: Annotated[int, Query(ge=1, le=MAX_DAYS)] = 7,
    ) -> Response:
        """Renders the drift of a bundle and a score, grouped by `by`."""
        shared.board.rolling.ask()
        found = drift_json(shared, drift_of(shared, bundle=bundle, score=score, by=by, days=days))
        asked = {"bundle": found.bundle, "score": found.score, "by": found.by, "days": str(found.days)}
        truth = shared.board.slices(found.bundle, found.by) if found.bundle else None
        return shared.render.page(
            "drift.html",
            found=found,
            truth=truth,
            truth_link="/fragments/field-truth?" + urlencode({"bundle": found.bundle, "by": found.by}),
            data="/api/drift?" + urlencode(asked),
            watch=PSI_WATCH,
            limit=PSI_DRIFT,
            min_frames=MIN_FRAMES,
        )

    @routes.get("/fragments/field-truth")
    def field_truth(bundle: Text = "", by: Text = "") -> Response:
        """Renders field truth by slice; it asks again while that is computed."""
        found = shared.board.slices(readable("bundle", bundle), readable("by", by))
        return shared.render.page(
            "field_truth.html",
            truth=found,
            truth_link="/fragments/field-truth?" + urlencode({"bundle": bundle, "by": by}),
        )

    return routes
