"""A console over a store, as a server on a free port."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import uvicorn
from tests.fleet.conftest import eventually

from misfire_fleet.commands.serve import listen
from misfire_fleet.console.app import create_app
from misfire_fleet.store import Store
from misfire_fleet.store.records import NewSample
from misfire_runtime.testing import make_offer


@contextmanager
def serving(store: Store, *, allowed_hosts: Sequence[str] = ()) -> Iterator[str]:
    """The address of a running console over `store`."""
    listener = listen("127.0.0.1", 0)
    app = create_app(store, allowed_hosts=allowed_hosts)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
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
