"""Shows the vehicles, and one vehicle with its last heartbeat, refused samples and newest uploads."""

from __future__ import annotations

import shlex
from urllib.parse import quote, urlencode

from fastapi import APIRouter, Response
from fastapi.responses import HTMLResponse

from misfire_fleet.console.api.histories import scores_of
from misfire_fleet.console.filters import Text, readable
from misfire_fleet.console.format import score_rows
from misfire_fleet.console.overlay import answer_of
from misfire_fleet.console.recent import Recent
from misfire_fleet.console.reconciliation import concerns
from misfire_fleet.console.shared import Shared
from misfire_fleet.store.records import SampleFilter
from misfire_runtime.clock import wall_time

_VEHICLES = 100
"""Vehicles on one page."""
_COUNT_S = 10.0


def router(shared: Shared) -> APIRouter:
    """Returns /vehicles, /vehicles/{name} and /vehicle?name=."""
    routes, known = (
        APIRouter(default_response_class=HTMLResponse, include_in_schema=False),
        shared.store.vehicles,
    )
    count = Recent(known.count, max_age_s=_COUNT_S)

    @routes.get("/vehicles")
    def vehicles(after: Text = "") -> Response:
        """Renders one page of vehicles, sorted by name, starting after the name `after`."""
        # One name more than shown, as in the gallery.
        names = known.names(after=readable("after", after), limit=_VEHICLES + 1)
        found, rest = known.summaries(names[:_VEHICLES]), names[_VEHICLES:]
        now, compared = wall_time(), shared.reconciliation.of(found)
        return shared.render.page(
            "vehicles.html",
            vehicles=[(each, concerns(each, compared.get(each.name), now)) for each in found],
            known=count(),
            after=after,
            more="/vehicles?" + urlencode({"after": names[_VEHICLES - 1]}) if rest else None,
            totals=shared.totals(),
            difference=shared.reconciliation.difference(),
        )

    @routes.get("/vehicle")
    def vehicle_asked(name: Text) -> Response:
        """Renders `vehicle` for a name in the query string: some names cannot be part of a path."""
        return vehicle(name)

    @routes.get("/vehicles/{name}")
    def vehicle(name: str) -> Response:
        found = known.summaries([readable("name", name)])
        if not found:
            return shared.render.page("problem.html", status=404, title="No such vehicle", text=name[:64])
        return shared.render.page(
            "vehicle.html",
            vehicle=found[0],
            concerns=concerns(found[0], shared.reconciliation.of(found).get(name), wall_time()),
            scores=scores_of(shared.board),
            history=f"/api/vehicles/{quote(name, safe='')}/history",
            commands=_commands(name),
            causes=known.causes(name),
            samples=shared.store.newest(24, SampleFilter(vehicle=name)),
            score_rows=score_rows,
            answer_of=answer_of,
            more=None,
        )

    return routes


def _commands(name: str) -> list[tuple[str, str]]:
    """Returns (what it does, command) for an operator to copy; the page runs none."""
    vehicle = shlex.quote(name)
    return [
        ("Change its configuration", f"misfire fleet configure {vehicle} --set random.rate=0.002"),
        ("Let it offer rejected samples again", f"misfire fleet offer-again {vehicle}"),
        ("Export its labelled uploads", f"misfire fleet export OUT --to coco --where vehicle={vehicle}"),
        ("Keep its samples from deletion", f"misfire fleet hold NAME --vehicle {vehicle} --reason TEXT"),
        (
            "Count what a deletion would remove",
            f"misfire fleet delete --vehicle {vehicle} --reason TEXT --dry-run",
        ),
    ]
