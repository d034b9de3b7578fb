"""Builds the console application: pages over the store, rendered on the server.

create_app(store) -> FastAPI:  /  gallery with filters,  /samples/{id},  /vehicles,  /vehicles/{name},
/verdicts  what people judge (`verdicts.py`),  /blobs/{id} and /thumbs/{id} pictures,  /api/...  JSON
(`api.py`),  /metrics,  /healthz
The package contains every asset: a page loads nothing from other servers. The console writes verdicts, by
POST from its own pages or from a program; all else only reads. It has no accounts: run it behind a proxy that
authenticates users, or bind it to the loopback address.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from fastapi.staticfiles import StaticFiles
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException as StarletteHTTPException

from misfire_fleet.console.api import api_router
from misfire_fleet.console.blobs import PRIVATE_MINUTES, blob_response
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
from misfire_fleet.console.overlay import answer_of
from misfire_fleet.console.recent import Recent
from misfire_fleet.console.reconciliation import Reconciliation, concerns
from misfire_fleet.console.thumbs import WIDTHS, Thumbnails
from misfire_fleet.console.verdicts import Queue, queue_values, verdict_router
from misfire_fleet.errors import (
    CheckFailedError,
    SampleGoneError,
    StoreError,
    StoreUnavailableError,
    VerdictConflictError,
    VerdictRefusedError,
)
from misfire_fleet.labels.ledger import LabelLedger
from misfire_fleet.labels.verdicts.agreement import VERDICTS, summary
from misfire_fleet.labels.verdicts.ledger import VerdictLedger
from misfire_fleet.labels.verdicts.queue import ORDERS
from misfire_fleet.store import Store
from misfire_fleet.store.records import SampleFilter
from misfire_fleet.store.where import where_of
from misfire_runtime import __version__
from misfire_runtime.clock import wall_time

_HERE = Path(__file__).parent
_VEHICLES = 100
"""Vehicles on one page."""
_TOTALS_S, _CHOICES_S = 2.0, 10.0
"""Seconds that a count is reused. Open galleries ask for the totals every 5 s (totals.html), each of them;
the choices of the filters change only when a new vehicle, trigger or bundle arrives."""

Filters = Annotated[GalleryQuery, Depends(gallery_query)]


def create_app(store: Store, *, allowed_hosts: Sequence[str] = (), label_tool: str = "") -> FastAPI:
    """Returns the console application for an open store.

    Args:
        store: the open store. The caller closes it, after the application has shut down.
        allowed_hosts: host names that requests may use, besides localhost and every IP address.
        label_tool: origin of a label tool whose pages may show uploads, such as http://127.0.0.1:8080.
    """
    thumbnails, health, reconciliation = Thumbnails(store), Health(store), Reconciliation(store)
    pages = Pages(store, thumbnails, reconciliation)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        thumbnails.close()
        health.close()

    # FastAPI's documentation pages load their scripts from a CDN, which the Content-Security-Policy forbids.
    app = FastAPI(
        title="misfire fleet", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan
    )
    app.add_middleware(Guard, allowed_hosts=allowed_hosts, label_tool=label_tool)
    for kind, answer in pages.answers.items():
        app.add_exception_handler(kind, answer)
    app.mount("/static", StaticFiles(directory=_HERE / "static"), name="static")
    app.include_router(api_router(store, reconciliation, pages.count_all))
    app.include_router(verdict_router(store))
    html: dict[str, Callable[..., Any]] = {
        "/": pages.gallery,
        "/fragments/totals": pages.totals,
        "/samples/{sample}": pages.sample,
        "/vehicles": pages.vehicles,
        "/vehicles/{name}": pages.vehicle,
        "/vehicle": pages.vehicle_asked,
        "/verdicts": pages.judge,
        "/verdicts/agreement": pages.agreement,
    }
    for path, page in html.items():
        app.get(path, response_class=HTMLResponse, include_in_schema=False)(page)
    app.get("/blobs/{sample}", include_in_schema=False)(pages.blob)
    app.get("/thumbs/{sample}", include_in_schema=False)(pages.thumbnail)
    metrics = FleetMetrics(reconciliation.difference, pages.count_all)

    @app.get("/metrics", include_in_schema=False)
    def read_metrics() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/healthz", include_in_schema=False)
    def healthz() -> Response:
        problem = health.problem()
        return PlainTextResponse(f"{problem or 'ok'}\n", status_code=503 if problem else 200)

    return app


class Pages:
    """Renders the console's pages, one method per page."""

    def __init__(self, store: Store, thumbnails: Thumbnails, reconciliation: Reconciliation) -> None:
        self._store, self._thumbnails, self._reconciliation = store, thumbnails, reconciliation
        self.count_all = Recent(store.totals, max_age_s=_TOTALS_S)
        self._choices = Recent(store.distinct, max_age_s=_CHOICES_S)
        self._classes = Recent(
            lambda: [each.name for each in LabelLedger(store).classes()], max_age_s=_CHOICES_S
        )
        self._count_vehicles = Recent(store.vehicles.count, max_age_s=_CHOICES_S)
        self._templates = Environment(
            loader=FileSystemLoader(_HERE / "templates"),
            autoescape=True,  # vehicle names, reasons and predictions come from outside
            undefined=StrictUndefined,  # a misspelt name fails in a test instead of leaving a gap on the page
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
        """Returns the handler of each exception type."""
        return {
            SampleGoneError: self.gone,
            VerdictRefusedError: self.not_recorded,
            VerdictConflictError: self.not_recorded,
            StoreUnavailableError: self.unavailable,
            StoreError: self.unavailable,
            CheckFailedError: self.unavailable,
            RequestValidationError: self.unreadable,
            StarletteHTTPException: self.refused,
        }

    def gallery(self, request: Request, query: Filters) -> Response:
        """Renders the newest uploads; for a request of htmx, only the cards."""
        # One row more than shown: whether it exists decides if the page has a "Show older" link.
        rows = self._store.newest(query.limit + 1, query.filters)
        more = None
        if len(rows) > query.limit:
            rows = rows[: query.limit]
            more = "/?" + urlencode(query.values | {"before": str(rows[-1].seq)})
        shown: dict[str, Any] = {
            "samples": rows,
            "more": more,
            "query": query,
            "score_rows": score_rows,
            "answer_of": answer_of,
        }
        if request.headers.get("HX-Request"):
            return self._render("cards.html", **shown)
        return self._render(
            "gallery.html",
            choices=self._choices(),
            classes=self._classes(),
            judge="/verdicts?" + urlencode({"order": "score", "where": where_of(query.filters)}, doseq=True),
            totals=self.count_all(),
            matching=self._store.count(query.filters),
            **shown,
        )

    def totals(self) -> Response:
        """Renders the totals, which each page reloads every 5 seconds."""
        return self._render("totals.html", totals=self.count_all())

    def sample(self, sample: str) -> Response:
        """Renders one sample with every field of its offer."""
        row = self._store.get(sample_id(sample))
        said = VerdictLedger(self._store).history(row.id)
        return self._render("sample.html", sample=row, score_rows=score_rows, answer_of=answer_of, said=said)

    def vehicles(self, after: Text = "") -> Response:
        """Renders one page of vehicles, sorted by name, starting after the name `after`."""
        vehicles = self._store.vehicles
        # One name more than shown, as in the gallery.
        names = vehicles.names(after=readable("after", after), limit=_VEHICLES + 1)
        found, rest = vehicles.summaries(names[:_VEHICLES]), names[_VEHICLES:]
        now, compared = wall_time(), self._reconciliation.of(found)
        return self._render(
            "vehicles.html",
            vehicles=[(each, concerns(each, compared.get(each.name), now)) for each in found],
            known=self._count_vehicles(),
            after=after,
            more="/vehicles?" + urlencode({"after": names[_VEHICLES - 1]}) if rest else None,
            totals=self.count_all(),
            difference=self._reconciliation.difference(),
        )

    def vehicle_asked(self, name: Text) -> Response:
        """Renders `vehicle` for a name in the query string: some names cannot be part of a path."""
        return self.vehicle(name)

    def vehicle(self, name: str) -> Response:
        """Renders one vehicle: its last heartbeat, its refused samples and its newest uploads."""
        found = self._store.vehicles.summaries([readable("name", name)])
        if not found:
            return self._render("problem.html", status=404, title="No such vehicle", text=name[:64])
        return self._render(
            "vehicle.html",
            vehicle=found[0],
            concerns=concerns(found[0], self._reconciliation.of(found).get(name), wall_time()),
            causes=self._store.vehicles.causes(name),
            samples=self._store.newest(24, SampleFilter(vehicle=name)),
            score_rows=score_rows,
            answer_of=answer_of,
            more=None,
        )

    def judge(self, query: Queue) -> Response:
        """Renders the verdict screen; its script asks for the queue of this address."""
        return self._render("verdicts.html", queue=queue_values(query), orders=ORDERS, verdicts=VERDICTS)

    def agreement(self) -> Response:
        """Renders what people said, and how far they agree."""
        return self._render("agreement.html", found=summary(self._store), verdicts=VERDICTS)

    def blob(self, request: Request, sample: str) -> Response:
        """Returns the bytes of an upload as the vehicle wrote them."""
        row = self._store.get(sample_id(sample))
        return blob_response(self._store, row, request.headers.get("range"))

    async def thumbnail(
        self, sample: str, width: Annotated[int, Query(ge=1, le=WIDTHS[-1])] = WIDTHS[1]
    ) -> Response:
        """Returns a thumbnail, at most as wide as the next larger of WIDTHS."""
        row = await run_in_threadpool(self._store.get, sample_id(sample))
        picture = await self._thumbnails.of(row, width)
        return Response(picture.data, media_type=picture.media_type, headers=PRIVATE_MINUTES)

    async def gone(self, request: Request, error: Exception) -> Response:
        """Answers 404 for a sample that is not in the store."""
        return self._refuse(request, 404, "Not here", str(error))

    async def not_recorded(self, request: Request, error: Exception) -> Response:
        """Answers 409 or 422 for a verdict that was not recorded."""
        status = 409 if isinstance(error, VerdictConflictError) else 422
        return self._refuse(request, status, "Not recorded", str(error))

    async def unavailable(self, request: Request, error: Exception) -> Response:
        """Answers 503 if the store or the decoder cannot work now."""
        decoding = isinstance(error, CheckFailedError)
        title = "The picture cannot be decoded now" if decoding else "The store does not answer"
        return self._refuse(request, 503, title, str(error))

    async def refused(self, request: Request, error: HTTPException) -> Response:
        """Answers the HTTP errors that routes raise (404, 405, 422) as a page or as JSON."""
        title = {404: "Not here", 422: "The address cannot be read"}.get(error.status_code, "Not possible")
        answer = self._refuse(request, error.status_code, title, str(error.detail))
        # A 405 has to name the allowed methods, which Starlette passes in the error's headers.
        answer.headers.update(error.headers or {})
        return answer

    async def unreadable(self, request: Request, error: RequestValidationError) -> Response:
        """Answers 422 and names the field; under /api/ in the form that /openapi.json describes."""
        if _for_programs(request):
            # Without what was sent: it may be NaN, which JSON does not have, or large.
            problems = [{key: each[key] for key in ("type", "loc", "msg")} for each in error.errors()]
            return JSONResponse({"detail": problems}, 422)
        text = "; ".join(f"{each['loc'][-1]}: {each['msg']}" for each in error.errors())
        return self._refuse(request, 422, "The address cannot be read", text)

    def _refuse(self, request: Request, status: int, title: str, text: str) -> Response:
        """Returns an error as a page, or as JSON for a path under /api/."""
        if _for_programs(request):
            return JSONResponse({"detail": text}, status)
        return self._render("problem.html", status=status, title=title, text=text)

    def _render(self, template: str, *, status: int = 200, **values: Any) -> HTMLResponse:
        page = self._templates.get_template(template).render(now=wall_time(), version=__version__, **values)
        return HTMLResponse(page, status_code=status)


def _for_programs(request: Request) -> bool:
    return request.url.path.startswith("/api/")
