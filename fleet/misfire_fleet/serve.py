"""The console: pages over the store, rendered on the server, with every asset inside the package.

create_app(store) -> FastAPI:  /  gallery with filters,  /samples/{id},  /vehicles,  /vehicles/{name},
/blobs/{id} and /thumbs/{id} pictures,  /api/...  JSON (`serve_api.py`),  /healthz
It only reads. It has no accounts: put it behind a proxy that has them, or keep it on the loopback address.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from misfire_fleet.errors import SampleGoneError, StoreError, StoreUnavailableError
from misfire_fleet.serve_api import api_router
from misfire_fleet.serve_filters import GalleryQuery, gallery_query
from misfire_fleet.serve_format import age, byte_count, number, percent, score_rows, share, utc
from misfire_fleet.serve_thumbs import Thumbnails
from misfire_fleet.store import Store
from misfire_fleet.store_records import SampleFilter
from misfire_runtime import __version__
from misfire_runtime.clock import wall_time

_HERE = Path(__file__).parent
_CSP = "default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; frame-ancestors 'none'"
_IMMUTABLE = {"Cache-Control": "public, max-age=31536000, immutable"}

Filters = Annotated[GalleryQuery, Depends(gallery_query)]


def create_app(store: Store) -> FastAPI:
    """The console over an open store; the caller closes the store."""
    app = FastAPI(title="misfire fleet", version=__version__, docs_url=None, redoc_url=None)
    pages = Pages(store)
    app.middleware("http")(_secure)
    app.add_exception_handler(SampleGoneError, pages.gone)
    app.add_exception_handler(StoreUnavailableError, pages.unavailable)
    app.add_exception_handler(StoreError, pages.unavailable)
    app.mount("/static", StaticFiles(directory=_HERE / "static"), name="static")
    app.include_router(api_router(store))
    html: dict[str, Callable[..., Response]] = {
        "/": pages.gallery,
        "/fragments/totals": pages.totals,
        "/samples/{sample}": pages.sample,
        "/vehicles": pages.vehicles,
        "/vehicles/{name}": pages.vehicle,
    }
    for path, page in html.items():
        app.get(path, response_class=HTMLResponse, include_in_schema=False)(page)
    app.get("/blobs/{sample}", include_in_schema=False)(pages.blob)
    app.get("/thumbs/{sample}", include_in_schema=False)(pages.thumbnail)
    return app


async def _secure(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    response = await call_next(request)
    response.headers["Content-Security-Policy"] = _CSP
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Referrer-Policy"] = "same-origin"
    return response


class Pages:
    """One method per page."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._thumbnails = Thumbnails(store)
        self._templates = Environment(
            loader=FileSystemLoader(_HERE / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters.update(
            age=age, bytes=byte_count, number=number, percent=percent, share=share, utc=utc
        )

    def gallery(self, request: Request, query: Filters) -> Response:
        """Newest uploads as pictures; asked by htmx, only the cards."""
        rows = self._store.newest(query.limit + 1, query.filters)
        more = None
        if len(rows) > query.limit:
            rows = rows[: query.limit]
            more = "/?" + urlencode(query.values | {"before": str(rows[-1].seq)})
        shown: dict[str, Any] = {"samples": rows, "more": more, "query": query, "score_rows": score_rows}
        if request.headers.get("HX-Request"):
            return self._render("cards.html", **shown)
        return self._render(
            "gallery.html",
            choices=self._store.distinct(),
            totals=self._store.totals(),
            matching=self._store.count(query.filters),
            **shown,
        )

    def totals(self) -> Response:
        """The strip of numbers, which the gallery asks for every few seconds."""
        return self._render("totals.html", totals=self._store.totals())

    def sample(self, sample: str) -> Response:
        """One sample with everything its offer said."""
        return self._render("sample.html", sample=self._store.get(sample), score_rows=score_rows)

    def vehicles(self) -> Response:
        """All vehicles."""
        return self._render(
            "vehicles.html", vehicles=self._store.vehicles.summaries(), totals=self._store.totals()
        )

    def vehicle(self, name: str) -> Response:
        """One vehicle: what it says of itself, what it was refused, its newest uploads."""
        found = [each for each in self._store.vehicles.summaries() if each.name == name]
        if not found:
            return self._render("problem.html", status=404, title="No such vehicle", text=name[:64])
        return self._render(
            "vehicle.html",
            vehicle=found[0],
            causes=self._store.vehicles.causes(name),
            samples=self._store.newest(24, SampleFilter(vehicle=name)),
            score_rows=score_rows,
            more=None,
        )

    def blob(self, sample: str) -> Response:
        """The bytes as the vehicle wrote them."""
        row = self._store.get(sample)
        return Response(self._store.read_blob(sample), media_type=row.media_type, headers=_IMMUTABLE)

    def thumbnail(self, sample: str, width: Annotated[int, Query(ge=16, le=1024)] = 360) -> Response:
        """A small JPEG or PNG of it."""
        picture = self._thumbnails.of(self._store.get(sample), width)
        return Response(picture.data, media_type=picture.media_type, headers=_IMMUTABLE)

    def gone(self, _request: Request, error: Exception) -> Response:
        """404 in words."""
        return self._render("problem.html", status=404, title="Not here", text=str(error))

    def unavailable(self, _request: Request, error: Exception) -> Response:
        """503 in words."""
        return self._render("problem.html", status=503, title="The store does not answer", text=str(error))

    def _render(self, template: str, *, status: int = 200, **values: Any) -> HTMLResponse:
        page = self._templates.get_template(template).render(now=wall_time(), version=__version__, **values)
        return HTMLResponse(page, status_code=status)
