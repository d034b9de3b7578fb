"""Builds the console application: pages over the store, rendered on the server.

create_app(store) -> FastAPI:  the pages of `pages/`,  /blobs/{id} and /thumbs/{id} pictures,  /api/...  JSON
(`api/`),  /metrics,  /healthz
The package contains every asset: a page loads nothing from other servers.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI, Response
from fastapi.responses import PlainTextResponse
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from misfire_fleet.console.access.routes import refuse_open_writes
from misfire_fleet.console.access.settings import AccessSettings
from misfire_fleet.console.api.accounts import accounts_api
from misfire_fleet.console.api.audit import audit_api
from misfire_fleet.console.api.campaigns import campaigns_api
from misfire_fleet.console.api.collected import collected_api
from misfire_fleet.console.api.exports import exports_api
from misfire_fleet.console.api.fleet import fleet_api
from misfire_fleet.console.api.histories import histories_api
from misfire_fleet.console.api.me import me_api
from misfire_fleet.console.api.samples import samples_api
from misfire_fleet.console.api.signing_in import signing_in_api
from misfire_fleet.console.api.vehicles import vehicles_api
from misfire_fleet.console.api.verdicts import verdicts_api
from misfire_fleet.console.entry.access import Access
from misfire_fleet.console.entry.guard import Guard
from misfire_fleet.console.entry.oidc import oidc_app
from misfire_fleet.console.health import Health
from misfire_fleet.console.metrics import FleetMetrics
from misfire_fleet.console.pages import (
    audit,
    campaigns,
    datasets,
    drift,
    fleet,
    sample,
    settings,
    sign_in,
    uploads,
    vehicles,
    verdicts,
)
from misfire_fleet.console.problems import Problems
from misfire_fleet.console.rules.description import describe
from misfire_fleet.console.rules.etags import Etags
from misfire_fleet.console.rules.repeated import Repeated
from misfire_fleet.console.shared import Shared
from misfire_fleet.store import Store
from misfire_runtime import __version__

_STATIC = Path(__file__).parent / "static"
_PAGES = (fleet, drift, uploads, sample, datasets, vehicles, verdicts, campaigns, audit, settings, sign_in)
_API = (
    fleet_api,
    histories_api,
    samples_api,
    collected_api,
    exports_api,
    vehicles_api,
    verdicts_api,
    campaigns_api,
)
_ACCOUNTS_API = (signing_in_api, me_api, accounts_api, audit_api)


def create_app(
    store: Store,
    *,
    allowed_hosts: Sequence[str] = (),
    label_tool: str = "",
    access: AccessSettings | None = None,
) -> FastAPI:
    """Returns the console application for an open store.

    Args:
        store: the open store. The caller closes it, after the application has shut down.
        allowed_hosts: host names that requests may use, besides localhost and every IP address.
        label_tool: origin of a label tool whose pages may show uploads, such as http://127.0.0.1:8080.
        access: who may use the console. Default: accounts of the store.

    Raises:
        ValueError: a route that writes names no role (`requires`).
    """
    shared, health = Shared(store, access=access), Health(store)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        shared.close()
        health.close()

    # FastAPI's documentation pages load their scripts from a CDN, which the Content-Security-Policy forbids.
    app = FastAPI(
        title="misfire fleet", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan
    )
    # The last one is the outermost.
    app.add_middleware(Etags)
    app.add_middleware(Repeated, store=store)
    app.add_middleware(Access, store=store, settings=shared.access, render=shared.render)
    app.add_middleware(Guard, allowed_hosts=allowed_hosts, label_tool=label_tool, url=shared.access.url)
    for kind, answer in Problems(shared.render).answers.items():
        app.add_exception_handler(kind, answer)
    app.mount("/static", StaticFiles(directory=_STATIC), name="static")
    for router in (
        *(page.router(shared) for page in _PAGES),
        *(part(shared) for part in _API + _ACCOUNTS_API),
    ):
        refuse_open_writes(router)
        app.include_router(router)
    if shared.access.oidc is not None:
        app.mount("/oidc", oidc_app(shared, shared.access.oidc), name="oidc")
    describe(app)
    metrics = FleetMetrics(shared.reconciliation.difference, shared.totals)

    @app.get("/metrics", include_in_schema=False)
    def read_metrics() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/healthz", include_in_schema=False)
    def healthz() -> Response:
        problem = health.problem()
        return PlainTextResponse(f"{problem or 'ok'}\n", status_code=503 if problem else 200)

    return app
