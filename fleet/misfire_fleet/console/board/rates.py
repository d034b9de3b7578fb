"""Computes the failure rates of bundles and vehicles in the background: it reads the whole random stream.

A page never waits for them: it shows those of the last computation, or that one is under way.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from misfire_fleet.store import Store
from misfire_fleet.truth.report import FieldTruth, Query, SliceRate
from misfire_fleet.truth.stream import bundles
from misfire_runtime.errors import MisfireError

log = logging.getLogger(__name__)

MAX_AGE_S = 600.0
"""Seconds until rates are computed again; labels come by the hundred a day."""
_FIRST_S = 1.0
MIN_LABELS = 30
"""A vehicle's own rate needs as many labels; others have the rate of their bundle."""


@dataclass(frozen=True)
class Rate:
    """Holds a failure rate with its 95 % interval, and what it is of."""

    rate: float
    low: float
    high: float
    labels: int
    failures: int


@dataclass(frozen=True)
class Rates:
    """Holds the rates of all bundles. `problems`: why a bundle has none, by bundle."""

    bundles: Mapping[str, Rate] = field(default_factory=dict)
    vehicles: Mapping[tuple[str, str], Rate] = field(default_factory=dict)
    """By (bundle, vehicle), for those with enough labels."""
    problems: Mapping[str, str] = field(default_factory=dict)
    computed_at: float | None = None
    """Monotonic seconds; None before the first computation."""

    def of(self, bundle: str, vehicle: str) -> tuple[Rate | None, bool]:
        """Returns a vehicle's rate, and whether it is its own; else that of its bundle."""
        own = self.vehicles.get((bundle, vehicle))
        return (own, True) if own is not None else (self.bundles.get(bundle), False)


class FailureRates:
    """Serves the rates of a store; `close` ends the thread after the bundle that it is at."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._rates = Rates()
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()

    def __call__(self) -> Rates:
        """Returns the last rates, and begins to compute new ones if they are old."""
        with self._lock:
            at = self._rates.computed_at
            old = at is None or time.monotonic() - at > MAX_AGE_S
            if old and self._thread is None and not self._stop.is_set():
                self._thread = threading.Thread(target=self._run, name="failure-rates", daemon=True)
                self._thread.start()
            return self._rates

    def close(self) -> None:
        """Ends the computation."""
        self._stop.set()
        thread = self._thread
        if thread is not None:
            thread.join(10)

    def _run(self) -> None:
        # A console that is opened and closed at once, as in a test, computes nothing.
        if self._stop.wait(_FIRST_S):
            return
        try:
            found = self._compute()
        except MisfireError as error:
            log.warning("failure_rates_not_computed", extra={"fields": {"problem": str(error)}})
            found = Rates(problems={"": str(error)}, computed_at=time.monotonic())
        except Exception:
            log.exception("failure_rates_not_computed")
            found = Rates(problems={"": "internal error"}, computed_at=time.monotonic())
        with self._lock:
            self._rates, self._thread = found, None

    def _compute(self) -> Rates:
        whole: dict[str, Rate] = {}
        own: dict[tuple[str, str], Rate] = {}
        problems: dict[str, str] = {}
        for bundle in bundles(self._store):
            if self._stop.is_set():
                break
            try:
                report = FieldTruth(self._store, Query(bundle=bundle, by="vehicle")).report()
            except MisfireError as error:
                problems[bundle] = str(error)
                continue
            rate = _rate(report.whole)
            if rate is None:
                problems[bundle] = "no frame of its random stream is labelled"
            else:
                whole[bundle] = rate
            for part in report.slices:
                found = _rate(part)
                if found is not None and found.labels >= MIN_LABELS:
                    own[bundle, part.name] = found
        return Rates(whole, own, problems, time.monotonic())


def _rate(of: SliceRate) -> Rate | None:
    if of.rate is None or of.low is None or of.high is None:
        return None
    return Rate(of.rate, of.low, of.high, of.labels, of.failures)
