"""A worker's thread does its job until it is told to end, and survives what nobody foresaw."""

from __future__ import annotations

import logging
import queue
import threading
import urllib.error
import urllib.request

import pytest

from misfire_runtime.errors import ConfigError
from misfire_runtime.service import worker as worker_module
from misfire_runtime.service.endpoint import Endpoint, Page
from misfire_runtime.service.worker import Worker


def test_it_works_until_it_is_closed() -> None:
    began = threading.Event()

    def work(stop: threading.Event) -> None:
        began.set()
        stop.wait()

    worker = Worker("test", work)
    assert not worker.alive
    worker.start()
    assert began.wait(10) and worker.alive
    assert worker.close() and worker.close() and not worker.alive


def test_close_wakes_work_that_waits_elsewhere_and_lets_it_end_what_it_has() -> None:
    items: queue.SimpleQueue[int | None] = queue.SimpleQueue()
    done: list[int] = []

    def work(_stop: threading.Event) -> None:
        while (item := items.get()) is not None:
            done.append(item)

    worker = Worker("test", work, wake=lambda: items.put(None))
    for item in range(3):
        items.put(item)
    worker.start()
    assert worker.close() and done == [0, 1, 2]


def test_an_unforeseen_error_is_logged_and_counted_and_the_work_begins_anew(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "_PAUSE_S", 0.01)
    attempts, counted, well = [], [], threading.Event()

    def work(stop: threading.Event) -> None:
        attempts.append(1)
        if len(attempts) < 3:
            raise KeyError("unforeseen")
        well.set()
        stop.wait()

    worker = Worker("reader", work, on_failure=lambda: counted.append(1))
    with caplog.at_level(logging.ERROR):
        worker.start()
        assert well.wait(10) and worker.alive
        assert worker.close()
    assert worker.failures == len(counted) == 2
    assert [record.message for record in caplog.records] == ["worker_failed"] * 2
    assert caplog.records[0].__dict__["fields"] == {"worker": "reader"} and caplog.records[0].exc_info


def test_work_that_fails_while_it_is_closed_ends() -> None:
    def work(stop: threading.Event) -> None:
        stop.wait()
        raise ValueError("unforeseen")

    worker = Worker("test", work)
    worker.start()
    assert worker.close() and worker.failures == 1


def test_a_guarded_item_leaves_the_next_its_turn() -> None:
    worker = Worker("test", lambda _stop: None)
    for _ in range(2):
        with worker.guard():
            raise ValueError("unforeseen")
    assert worker.failures == 2


def test_an_endpoint_answers_by_path_and_frees_its_port() -> None:
    pages = {"/a": lambda: Page(b"first"), "/b": lambda: Page(b"{}", "application/json", 503)}
    endpoint = Endpoint(pages, host="127.0.0.1", port=0)
    base = f"http://127.0.0.1:{endpoint.port}"
    with urllib.request.urlopen(f"{base}/a", timeout=10) as answer:
        assert answer.read() == b"first" and answer.headers["Content-Length"] == "5"
    for path, status, body in (("/b", 503, b"{}"), ("/c", 404, b"there are /a and /b\n")):
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(base + path, timeout=10)
        with caught.value as error:
            assert error.code == status and error.read() == body
    with pytest.raises(ConfigError, match="metrics: cannot listen"):
        Endpoint(pages, host="127.0.0.1", port=endpoint.port)
    endpoint.close()
    Endpoint(pages, host="127.0.0.1", port=endpoint.port).close()
