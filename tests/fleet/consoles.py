"""A console over a store, as a server on a free port, and a browser to look at it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import uvicorn
from playwright.sync_api import Page, Request, sync_playwright
from tests.fleet.conftest import eventually

from misfire_fleet.commands.serve import listen
from misfire_fleet.console.access.settings import AccessSettings
from misfire_fleet.console.app import create_app
from misfire_fleet.store import Store
from misfire_fleet.store.records import NewSample
from misfire_runtime.testing import make_offer
from proving_ground.services import CHROMIUM_FLAGS, chromium

OPEN = AccessSettings(open_to_all=True)


@contextmanager
def serving(
    store: Store,
    *,
    allowed_hosts: Sequence[str] = (),
    label_tool: str = "",
    access: AccessSettings = OPEN,
) -> Iterator[str]:
    """The address of a running console over `store`, without accounts unless `access` says otherwise."""
    listener = listen("127.0.0.1", 0)
    app = create_app(store, allowed_hosts=allowed_hosts, label_tool=label_tool, access=access)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", proxy_headers=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        assert eventually(lambda: server.started)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()


def add(store: Store, data: bytes, *, width: int = 1280, height: int = 720, **fields: object) -> str:
    """Stores a sample as a collector does; returns its id."""
    offer = make_offer(data, **fields)
    assert store.add_many([NewSample(offer, data, width, height, "collector-1")]) == ["stored"]
    return offer.id


@contextmanager
def browsing() -> Iterator[Page]:
    """A blank page in a real Chromium; anything the browser complains of fails the test."""
    complaints: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=CHROMIUM_FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.on(
            "console", lambda message: complaints.append(message.text) if message.type == "error" else None
        )
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("requestfailed", lambda request: complaints.extend(_unanswered(request)))
        yield page
        browser.close()
    assert complaints == []


def _unanswered(request: Request) -> list[str]:
    """The request, unless the browser dropped it itself: on leaving a page it aborts what still loads."""
    return [] if request.failure == "net::ERR_ABORTED" else [f"{request.url}: {request.failure}"]
