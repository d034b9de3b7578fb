"""Shows the fleet: a table of vehicles that updates itself, regions, and a map where positions are known."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse

from misfire_fleet.console.api.fleet import FleetQuery, fleet_query
from misfire_fleet.console.board.board import cells, regions_of
from misfire_fleet.console.board.rows import PRESENCES, VehicleRow
from misfire_fleet.console.shared import Shared

COLUMNS = (
    ("name", "vehicle", ""),
    ("state", "state", ""),
    ("seen", "last seen", ""),
    ("bundle", "bundle", ""),
    ("region", "region", ""),
    ("spool", "spool", "num"),
    ("age", "oldest", "num"),
    ("drops", "drops", "num"),
    ("rate", "uploads", "num"),
)
_LARGEST_FIRST = frozenset({"seen", "spool", "age", "drops", "rate"})


def router(shared: Shared) -> APIRouter:
    """Returns /."""
    routes = APIRouter(default_response_class=HTMLResponse, include_in_schema=False)

    @routes.get("/")
    def fleet(request: Request, query: Annotated[FleetQuery, Depends(fleet_query)]) -> Response:
        """Renders the vehicles that match, one page of them."""
        # The uploads were at / before, and people keep such addresses.
        if set(request.query_params) & {"vehicle", "trigger", "stream", "percentile", "before"}:
            return RedirectResponse(f"/uploads?{request.url.query}", 307)
        rows, rates = shared.board.rows(), shared.board.rates()
        found = query.rows.of(rows)
        shown = found[query.offset : query.offset + query.limit]
        return shared.render.page(
            "fleet.html",
            lines=[_line(row, rates) for row in shown],
            query=query,
            columns=[_column(query, *each) for each in COLUMNS],
            choices={
                "state": list(PRESENCES),
                "bundle": sorted({row.bundle for row in rows if row.bundle}),
                "region": sorted({row.region for row in rows}),
            },
            known=len(rows),
            matching=len(found),
            regions=regions_of(found),
            located=any(row.lat is not None for row in found),
            states=[(name, sum(row.state == name for row in rows)) for name in PRESENCES],
            pending=sum(row.pending or 0 for row in rows),
            day=sum(row.day_samples for row in rows),
            day_bytes=sum(row.day_bytes for row in rows),
            rates=rates,
            difference=shared.reconciliation.difference(),
            older=_link(query, offset=query.offset + query.limit)
            if len(found) > query.offset + query.limit
            else None,
        )

    return routes


def _line(row: VehicleRow, rates: Any) -> dict[str, Any]:
    rate, own = rates.of(row.bundle, row.name)
    return {"row": row, "cells": cells(row), "rate": rate, "own": own}


def _column(query: FleetQuery, key: str, title: str, kind: str) -> dict[str, str]:
    """Returns a header: a click sorts names upwards and numbers downwards, a second one the other way."""
    sort = query.rows.sort
    direction = "" if sort.removeprefix("-") != key else "descending" if sort.startswith("-") else "ascending"
    first, other = (f"-{key}", key) if key in _LARGEST_FIRST else (key, f"-{key}")
    return {
        "title": title,
        "kind": kind,
        "aria": direction,
        "link": _link(query, sort=other if sort == first else first),
    }


def _link(query: FleetQuery, **changed: Any) -> str:
    values = {**query.values, **changed}
    return "/?" + urlencode({key: value for key, value in values.items() if value not in ("", None, 0)})
