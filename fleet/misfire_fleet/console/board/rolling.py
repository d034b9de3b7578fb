"""Keeps the histograms by hour up to date while the console runs: a thread that adds what is new."""

from __future__ import annotations

import logging
import threading

from misfire_fleet.store import Store
from misfire_fleet.truth.rollups import BATCH, roll_up
from misfire_runtime.errors import MisfireError

log = logging.getLogger(__name__)

PERIOD_S = 10.0


class Rolling:
    """Runs `roll_up` until nothing is left, and again every 10 s while pages ask."""

    def __init__(self, store: Store, *, period_s: float = PERIOD_S) -> None:
        self._store, self._period_s = store, period_s
        self._stop, self._asked = threading.Event(), threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self.caught_up = threading.Event()

    def ask(self) -> None:
        """Begins to add what is new; returns at once."""
        self._asked.set()
        with self._lock:
            if self._thread is None and not self._stop.is_set():
                self._thread = threading.Thread(target=self._run, name="roll-up", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """Ends after the batch that it is at."""
        self._stop.set()
        self._asked.set()
        if self._thread is not None:
            self._thread.join(10)

    def _run(self) -> None:
        while not self._stop.is_set():
            self._asked.wait()
            self._asked.clear()
            try:
                while not self._stop.is_set() and roll_up(self._store, limit=BATCH):
                    # Between batches others may write: a batch holds the write lock of SQLite.
                    self._stop.wait(0.02)
                self.caught_up.set()
            except MisfireError as error:
                log.warning("scores_not_rolled_up", extra={"fields": {"problem": str(error)}})
            except Exception:
                log.exception("scores_not_rolled_up")
            self._stop.wait(self._period_s)
