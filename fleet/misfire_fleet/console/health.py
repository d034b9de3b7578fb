"""Checks for /healthz whether the console works: it runs the queries of the pages, with a time limit."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, TimeoutError

from misfire_fleet.store import Store
from misfire_runtime.errors import MisfireError

log = logging.getLogger(__name__)

LIMIT_S = 5.0
"""Seconds until /healthz reports that the store does not answer."""


class Health:
    """Runs at most one check at a time, so that a database that hangs does not use up all threads.

    Requests that arrive during a check wait for its result.
    """

    def __init__(self, store: Store, *, limit_s: float = LIMIT_S) -> None:
        self._store, self._limit_s = store, limit_s
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="health")
        self._lock = threading.Lock()
        self._running: Future[str] | None = None

    def problem(self) -> str:
        """Returns the first problem found, as a sentence; empty if there is none."""
        with self._lock:
            if self._running is None or self._running.done():
                self._running = self._threads.submit(self._check)
            running = self._running
        try:
            return running.result(self._limit_s)
        except TimeoutError:
            return f"the store does not answer within {self._limit_s:g} s"

    def close(self) -> None:
        """Ends the thread without waiting for a check that hangs."""
        self._threads.shutdown(wait=False)

    def _check(self) -> str:
        vehicles = self._store.vehicles
        questions: dict[str, Callable[[], object]] = {
            "newest uploads": lambda: self._store.newest(1),
            "totals": self._store.totals,
            "vehicles": lambda: vehicles.summaries(vehicles.names(limit=1)),
        }
        for what, ask in questions.items():
            try:
                ask()
            except MisfireError as error:
                return f"{what}: {error}"
            except Exception as error:
                log.exception("health_check_failed", extra={"fields": {"check": what}})
                return f"{what}: {type(error).__name__}"
        return ""
