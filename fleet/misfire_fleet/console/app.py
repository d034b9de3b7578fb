"""The console: pages over the store, rendered on the server, with every asset inside the package.

create_app(store) -> FastAPI:  /  gallery with filters,  /samples/{id},  /vehicles,  /vehicles/{name},
/blobs/{id} and /thumbs/{id} pictures,  /api/...  JSON (`api.py`),  /metrics,  /healthz
It only reads. It has no accounts: put it behind a proxy that has them, or keep it on the loopback address.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exception_handlers import request_validation_exception_handler
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from fastapi.staticfiles import StaticFiles
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException as StarletteHTTPException

from misfire_fleet.console.api import api_router
from misfire_fleet.console.blobs import PRIVATE_MINUTES, blob_response
from misfire_fleet.console.books import Books, accounted_for, concerns
from misfire_fleet.console.filters import GalleryQuery, Text, gallery_query, readable, sample_id
from misfire_fleet.console.format import (
    age,
    brief,
    byte_count,
    number,
    percent,
    score_rows,
    share,
    utc,
    vehicle_link,
    visible,
)
from misfire_fleet.console.guard import Guard
from misfire_fleet.console.health import Health
from misfire_fleet.console.metrics import FleetMetrics
from misfire_fleet.console.recent import Recent
from misfire_fleet.console.thumbs import WIDTHS, Thumbnails
from misfire_fleet.errors import CheckFailedError, SampleGoneError, StoreError, StoreUnavailableError
from misfire_fleet.store import Store
from misfire_fleet.store.records import SampleFilter
from misfire_runtime import __version__
from misfire_runtime.clock import wall_time

_HERE = Path(__file__).parent
_VEHICLES = 100
"""On one page."""
_TOTALS_S, _CHOICES_S = 2.0, 10.0

Filters = Annotated[GalleryQuery, Depends(gallery_query)]


def create_app(store: Store, *, allowed_hosts: Sequence[str] = ()) -> FastAPI:
    """The console over an open store; the caller closes the store.

    allowed_hosts: names, beside localhost and any address, by which browsers may ask for it.
    """
    thumbnails, health, books = Thumbnails(store), Health(store), Books(store)
    pages = Pages(store, thumbnails, books)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        thumbnails.close()
        health.close()

    app = FastAPI(
        title="misfire fleet", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan
    )
    app.add_middleware(Guard, allowed_hosts=allowed_hosts)
    for kind, answer in pages.answers.items():
        app.add_exception_handler(kind, answer)
    app.mount("/static", StaticFiles(directory=_HERE / "static"), name="static")
    app.include_router(api_router(store, books, pages.count_all))
    html: dict[str, Callable[..., Any]] = {
        "/": pages.gallery,
        "/fragments/totals": pages.totals,
        "/samples/{sample}": pages.sample,
        "/vehicles": pages.vehicles,
        "/vehicles/{name}": pages.vehicle,
        "/vehicle": pages.vehicle_asked,
    }
    for path, page in html.items():
        app.get(path, response_class=HTMLResponse, include_in_schema=False)(page)
    app.get("/blobs/{sample}", include_in_schema=False)(pages.blob)
    app.get("/thumbs/{sample}", include_in_schema=False)(pages.thumbnail)
    metrics = FleetMetrics(books.difference, pages.count_all)

    @app.get("/metrics", include_in_schema=False)
    def read_metrics() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/healthz", include_in_schema=False)
    def healthz() -> Response:
        problem = health.problem()
        return PlainTextResponse(f"{problem or 'ok'}\n", status_code=503 if problem else 200)

    return app


class Pages:
    """One method per page."""

    def __init__(self, store: Store, thumbnails: Thumbnails, books: Books) -> None:
        self._store, self._thumbnails, self._books = store, thumbnails, books
        self.count_all = Recent(store.totals, max_age_s=_TOTALS_S)
        self._choices = Recent(store.distinct, max_age_s=_CHOICES_S)
        self._count_vehicles = Recent(store.vehicles.count, max_age_s=_CHOICES_S)
        self._templates = Environment(
            loader=FileSystemLoader(_HERE / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            finalize=visible,
        )
        self._templates.filters.update(
            age=age,
            brief=brief,
            bytes=byte_count,
            number=number,
            percent=percent,
            share=share,
            utc=utc,
            vehicle_link=vehicle_link,
        )

    @property
    def answers(self) -> dict[type[Exception], Callable[..., Any]]:
        """What is answered to errors."""
        return {
            SampleGoneError: self.gone,
            StoreUnavailableError: self.unavailable,
            StoreError: self.unavailable,
            CheckFailedError: self.unavailable,
            RequestValidationError: self.unreadable,
            StarletteHTTPException: self.refused,
        }

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
            choices=self._choices(),
            totals=self.count_all(),
            matching=self._store.count(query.filters),
            **shown,
        )

    def totals(self) -> Response:
        """The strip of numbers, which the gallery asks for every few seconds."""
        return self._render("totals.html", totals=self.count_all())

    def sample(self, sample: str) -> Response:
        """One sample with everything its offer said."""
        row = self._store.get(sample_id(sample))
        return self._render("sample.html", sample=row, score_rows=score_rows)

    def vehicles(self, after: Text = "") -> Response:
        """Vehicles by name, from behind `after` on."""
        book = self._store.vehicles
        names = book.names(after=readable("after", after), limit=_VEHICLES + 1)
        found, rest = book.summaries(names[:_VEHICLES]), names[_VEHICLES:]
        now, compared = wall_time(), self._books.of(found)
        return self._render(
            "vehicles.html",
            vehicles=[(each, concerns(each, compared.get(each.name), now)) for each in found],
            known=self._count_vehicles(),
            after=after,
            more="/vehicles?" + urlencode({"after": names[_VEHICLES - 1]}) if rest else None,
            totals=self.count_all(),
            difference=self._books.difference(),
        )

    def vehicle_asked(self, name: Text) -> Response:
        """As `vehicle`, for names that no path can have."""
        return self.vehicle(name)

    def vehicle(self, name: str) -> Response:
        """One vehicle: what it says of itself, what it was refused, its newest uploads."""
        found = self._store.vehicles.summaries([readable("name", name)])
        if not found:
            return self._render("problem.html", status=404, title="No such vehicle", text=name[:64])
        return self._render(
            "vehicle.html",
            vehicle=found[0],
            concerns=concerns(found[0], self._books.of(found).get(name), wall_time()),
            accounted_for=accounted_for,
            causes=self._store.vehicles.causes(name),
            samples=self._store.newest(24, SampleFilter(vehicle=name)),
            score_rows=score_rows,
            more=None,
        )

    def blob(self, request: Request, sample: str) -> Response:
        """The bytes as the vehicle wrote them."""
        row = self._store.get(sample_id(sample))
        return blob_response(self._store, row, request.headers.get("range"))

    async def thumbnail(
        self, sample: str, width: Annotated[int, Query(ge=1, le=WIDTHS[-1])] = WIDTHS[1]
    ) -> Response:
        """A small JPEG or PNG of it, as wide as the next of a few widths."""
        row = await run_in_threadpool(self._store.get, sample_id(sample))
        picture = await self._thumbnails.of(row, width)
        return Response(picture.data, media_type=picture.media_type, headers=PRIVATE_MINUTES)

    async def gone(self, request: Request, error: Exception) -> Response:
        """404 in words."""
        return self._refuse(request, 404, "Not here", str(error))

    async def unavailable(self, request: Request, error: Exception) -> Response:
        """503 in words."""
        decoding = isinstance(error, CheckFailedError)
        title = "The picture cannot be decoded now" if decoding else "The store does not answer"
        return self._refuse(request, 503, title, str(error))

    async def refused(self, request: Request, error: HTTPException) -> Response:
        """404, 405 and 422 in words."""
        title = {404: "Not here", 422: "The address cannot be read"}.get(error.status_code, "Not possible")
        answer = self._refuse(request, error.status_code, title, str(error.detail))
        answer.headers.update(error.headers or {})
        return answer

    async def unreadable(self, request: Request, error: RequestValidationError) -> Response:
        """422 that names the field; for programs as /openapi.json describes it."""
        if _for_programs(request):
            return await request_validation_exception_handler(request, error)
        text = "; ".join(f"{each['loc'][-1]}: {each['msg']}" for each in error.errors())
        return self._refuse(request, 422, "The address cannot be read", text)

    def _refuse(self, request: Request, status: int, title: str, text: str) -> Response:
        """A page for people, JSON for programs."""
        if _for_programs(request):
            return JSONResponse({"detail": text}, status)
        return self._render("problem.html", status=status, title=title, text=text)

    def _render(self, template: str, *, status: int = 200, **values: Any) -> HTMLResponse:
        page = self._templates.get_template(template).render(now=wall_time(), version=__version__, **values)
        return HTMLResponse(page, status_code=status)


def _for_programs(request: Request) -> bool:
    return request.url.path.startswith("/api/")
