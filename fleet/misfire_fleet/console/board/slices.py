"""Computes field truth by slice in the background, one report at a time, and keeps the last ones."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass

from misfire_fleet.store import Store
from misfire_fleet.truth.report import FieldTruth, Query, Report
from misfire_runtime.errors import MisfireError

log = logging.getLogger(__name__)

MAX_AGE_S = 600.0
_KEPT = 32
_WAITING = 8


@dataclass(frozen=True)
class SliceTruth:
    """Holds a report, or why there is none; both are empty while it is computed."""

    report: Report | None = None
    problem: str = ""
    computed_at: float = 0.0
    """Monotonic seconds."""

    @property
    def ready(self) -> bool:
        """Returns False while it is computed."""
        return self.report is not None or bool(self.problem)


class SliceTruths:
    """Answers from what was computed, and computes what is asked for; `close` ends the thread."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._known: OrderedDict[tuple[str, str], SliceTruth] = OrderedDict()
        self._asked: list[tuple[str, str]] = []
        self._thread: threading.Thread | None = None
        self._closed = False

    def __call__(self, bundle: str, by: str) -> SliceTruth:
        """Returns the truth of a bundle by slice; not `ready` while it is computed for the first time."""
        key = bundle, by
        with self._lock:
            known = self._known.get(key, SliceTruth())
            old = not known.ready or time.monotonic() - known.computed_at > MAX_AGE_S
            if old and not self._closed and key not in self._asked and len(self._asked) < _WAITING:
                self._asked.append(key)
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="slice-truth", daemon=True)
                    self._thread.start()
            return known

    def close(self) -> None:
        """Ends after the report that is being computed."""
        with self._lock:
            self._closed = True
            self._asked.clear()
            thread = self._thread
        if thread is not None:
            thread.join(10)

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._asked:
                    self._thread = None
                    return
                bundle, by = self._asked[0]
            found = self._compute(bundle, by)
            with self._lock:
                self._known[bundle, by] = found
                self._known.move_to_end((bundle, by))
                while len(self._known) > _KEPT:
                    self._known.popitem(last=False)
                if self._asked and self._asked[0] == (bundle, by):
                    self._asked.pop(0)

    def _compute(self, bundle: str, by: str) -> SliceTruth:
        try:
            report = FieldTruth(self._store, Query(bundle=bundle, by=by)).report()
        except MisfireError as error:
            return SliceTruth(problem=str(error), computed_at=time.monotonic())
        except Exception:
            log.exception("slice_truth_not_computed")
            return SliceTruth(problem="internal error; see the console's log", computed_at=time.monotonic())
        return SliceTruth(report, computed_at=time.monotonic())
