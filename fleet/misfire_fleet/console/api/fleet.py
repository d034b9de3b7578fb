"""Serves /api/fleet: every vehicle in one line, and /api/fleet/events: what changes, as it changes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, HTTPException, Query
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from misfire_fleet.console.board.board import Board, RegionRow, regions_of
from misfire_fleet.console.board.live import TooManyClientsError
from misfire_fleet.console.board.rates import Rate
from misfire_fleet.console.board.rows import PRESENCES, SORTS, RowQuery, VehicleRow
from misfire_fleet.console.filters import Text, readable
from misfire_fleet.console.shared import Shared

MAX_ROWS = 1000
PAGE = 250


@dataclass(frozen=True)
class FleetQuery:
    """Holds the parsed query and, in `values`, its non-empty fields as received, for links."""

    rows: RowQuery
    offset: int
    limit: int
    values: dict[str, str]


def fleet_query(
    *,
    state: Text = "",
    bundle: Text = "",
    region: Text = "",
    find: Text = "",
    sort: Text = "name",
    offset: Annotated[int, Query(ge=0, le=1_000_000)] = 0,
    limit: Annotated[int, Query(ge=1, le=MAX_ROWS)] = PAGE,
) -> FleetQuery:
    """Parses the fields. Raises HTTPException 422 that names the invalid field."""
    given = {"state": state, "bundle": bundle, "region": region, "find": find, "sort": sort}
    for field, text in given.items():
        readable(field, text)
    if state and state not in PRESENCES:
        raise HTTPException(422, f"state: {state!r} is none of {', '.join(PRESENCES)}")
    if sort.removeprefix("-") not in SORTS:
        raise HTTPException(422, f"sort: {sort!r} is none of {', '.join(SORTS)}, or one of them after a -")
    rows = RowQuery(state=state or None, bundle=bundle or None, region=region or None, find=find, sort=sort)
    values = {name: value for name, value in given.items() if value and (name, value) != ("sort", "name")}
    return FleetQuery(rows, offset, limit, values)


class RateJson(BaseModel):
    """Describes a failure rate with its 95 % interval, from the labelled part of the random stream."""

    rate: float
    low: float
    high: float
    labels: int
    failures: int


class FleetVehicleJson(BaseModel):
    """Describes one vehicle. Times are seconds since 1970; null if the vehicle did not report it."""

    name: str
    state: str
    """online, silent (its heartbeats are missing) or offline."""
    seen_at: float | None
    bundle: str
    region: str
    lat: float | None
    lon: float | None
    pending: int | None
    pending_bytes: int | None
    pending_age_s: float | None
    drops: dict[str, int]
    """Frames and samples that were dropped or refused, by reason."""
    day_samples: int
    """Uploads of the last 24 hours."""
    day_bytes: int
    stored: int
    last_stored_at: float | None
    degradation: int
    hold: str
    unreadable: str
    failure_rate: RateJson | None = None
    """The vehicle's own if it has enough labels, else that of its bundle."""
    failure_rate_is_own: bool = False


class RegionJson(BaseModel):
    """Counts the vehicles of a region."""

    name: str
    vehicles: int
    online: int
    silent: int
    pending: int
    day_samples: int


class FleetJson(BaseModel):
    """Holds one page of vehicles. `matching`: all that match; pass a larger `offset` for the next page."""

    vehicles: list[FleetVehicleJson]
    matching: int
    known: int
    regions: list[RegionJson]
    failure_rates: dict[str, RateJson]
    """By bundle; empty until the first computation, which takes a while after the start."""


def fleet_api(shared: Shared) -> APIRouter:
    """Returns the routes /api/fleet and /api/fleet/events."""
    routes = APIRouter()

    @routes.get("/api/fleet")
    def fleet(query: Annotated[FleetQuery, Depends(fleet_query)]) -> FleetJson:
        """Lists vehicles with state, place, spool, drops, upload rate and failure rate."""
        rows, rates = shared.board.rows(), shared.board.rates()
        found = query.rows.of(rows)
        return FleetJson(
            vehicles=[
                _vehicle(row, *rates.of(row.bundle, row.name))
                for row in found[query.offset : query.offset + query.limit]
            ],
            matching=len(found),
            known=len(rows),
            regions=[_region(each) for each in regions_of(found)],
            failure_rates={name: _rate(rate) for name, rate in rates.bundles.items()},
        )

    @routes.get(
        "/api/fleet/events",
        response_class=StreamingResponse,
        responses={200: {"content": {"text/event-stream": {}}}, 503: {"description": "too many listeners"}},
    )
    async def events(last_event_id: Annotated[str, Header(max_length=64)] = "") -> StreamingResponse:
        """Streams changes as server-sent events: `rows` with what changed, `reset` to read all again."""
        try:
            lines = shared.board.live.listen(last_event_id)
        except TooManyClientsError:
            raise HTTPException(
                503, "too many pages listen; this one shows what it loaded", {"Retry-After": "60"}
            ) from None
        # no-transform: a proxy that compresses would hold events back. X-Accel-Buffering is nginx's.
        headers = {"Cache-Control": "no-store, no-transform", "X-Accel-Buffering": "no"}
        return StreamingResponse(lines, media_type="text/event-stream", headers=headers)

    return routes


def vehicle_json(board: Board, name: str) -> FleetVehicleJson:
    """Returns the line of a vehicle that is known."""
    row = next(row for row in board.rows() if row.name == name)
    return _vehicle(row, *board.rates().of(row.bundle, row.name))


def _vehicle(row: VehicleRow, rate: Rate | None, own: bool) -> FleetVehicleJson:
    values: dict[str, Any] = asdict(row)
    return FleetVehicleJson(
        **values, failure_rate=None if rate is None else _rate(rate), failure_rate_is_own=own
    )


def _rate(rate: Rate) -> RateJson:
    return RateJson(**asdict(rate))


def _region(region: RegionRow) -> RegionJson:
    return RegionJson(**asdict(region))
