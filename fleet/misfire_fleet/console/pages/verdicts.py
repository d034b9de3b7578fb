"""Shows the verdict screen, whose script asks the API for the queue, and how far people agree."""

from __future__ import annotations

from fastapi import APIRouter, Response
from fastapi.responses import HTMLResponse

from misfire_fleet.console.api.verdicts import Queue, queue_values
from misfire_fleet.console.shared import Shared
from misfire_fleet.labels.verdicts.agreement import VERDICTS
from misfire_fleet.labels.verdicts.counting import VerdictCounts
from misfire_fleet.labels.verdicts.queue import ORDERS


def router(shared: Shared) -> APIRouter:
    """Returns /verdicts and /verdicts/agreement."""
    routes = APIRouter(default_response_class=HTMLResponse, include_in_schema=False)
    counts = VerdictCounts(shared.store)

    @routes.get("/verdicts")
    def judge(query: Queue) -> Response:
        return shared.render.page(
            "verdicts.html", queue=queue_values(query), orders=ORDERS, verdicts=VERDICTS
        )

    @routes.get("/verdicts/agreement")
    def agreement() -> Response:
        return shared.render.page("agreement.html", found=counts.summary(), verdicts=VERDICTS)

    return routes
