"""The collector's slow thread: writes down what vehicles say, reads what other collectors stored, keeps time.

It touches the store at its own pace; a store that is away delays notes, never offers or chunks.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from misfire_fleet.collector.health.metrics import CollectorMetrics
from misfire_fleet.collector.notes import Notebook, Notes
from misfire_fleet.collector.policy.near_duplicates import Novelty
from misfire_fleet.collector.policy.quota import QuotaBook
from misfire_fleet.collector.settings import CollectorSettings
from misfire_fleet.errors import RowRefusedError, StoreError, StoreUnavailableError
from misfire_fleet.store import Store
from misfire_runtime.clock import wall_time
from misfire_runtime.service.logs import Throttle
from misfire_runtime.service.worker import Worker

log = logging.getLogger(__name__)

_TICK_S = 0.1
_NOTES_S = 0.5
_REFRESH_S = 5.0
_FORGET_S = 3600.0
_DAY_S = 86_400.0
_CLOCK_TOLERANCE_S = 300.0
_OVERLAP = 1_000
_PAGE = 20_000
_END_S = 35.0
"""At the end: a store that is away takes 30 s to say so."""


class Housekeeping:
    """A thread that ticks ten times per second."""

    def __init__(
        self,
        store: Store,
        *,
        quotas: QuotaBook,
        novelty: Novelty | None,
        settings: CollectorSettings,
        metrics: CollectorMetrics,
        notebook: Notebook,
        tick: Callable[[float], None],
    ) -> None:
        self._store, self._quotas, self._novelty, self._settings = store, quotas, novelty, settings
        self._metrics, self._notebook, self._tick = metrics, notebook, tick
        self._seen_seq = 0
        self._unwritten = Notes()
        self._often = Throttle(log)
        self._worker = Worker(
            "housekeeping", self._run, on_failure=metrics.failures.labels("housekeeping").inc
        )

    def prepare(self) -> None:
        """Reads what near-duplicates and quotas are judged by, before the first offer."""
        self._guarded(self._refresh)

    def start(self) -> None:
        """Begins to tick."""
        self._worker.start()

    @property
    def alive(self) -> bool:
        """False where the thread died."""
        return self._worker.alive

    def close(self) -> None:
        """Writes the last notes and ends."""
        self._worker.close(timeout_s=_END_S)

    def _run(self, stop: threading.Event) -> None:
        due = {work: time.monotonic() + period for work, period in self._works()}
        while not stop.wait(_TICK_S):
            with self._worker.guard():
                self._tick(time.monotonic())
            for work, period in self._works():
                if time.monotonic() > due[work]:
                    due[work] = time.monotonic() + period
                    self._guarded(work)
        for _ in ("what is left", "the last"):
            self._guarded(self._write_notes)

    def _works(self) -> tuple[tuple[Callable[[], None], float], ...]:
        """What is done, and how many seconds lie between."""
        return (
            (self._write_notes, _NOTES_S),
            (self._refresh, _REFRESH_S),
            (self._forget_vehicles, _FORGET_S),
        )

    def _guarded(self, work: Callable[[], None]) -> None:
        with self._worker.guard():
            try:
                work()
            except (StoreUnavailableError, StoreError) as error:
                self._often.log(logging.WARNING, "housekeeping_put_off", {"problem": str(error)})

    def _write_notes(self) -> None:
        """What the store does not take now is tried again before anything else is taken."""
        if not self._unwritten.vehicles():
            self._unwritten = self._notebook.take()
        notes = self._unwritten = self._admitted(self._unwritten)
        vehicles = self._store.vehicles
        if notes.states:
            self._note("states", lambda: vehicles.record_states(notes.states))
            notes.states.clear()
        if notes.beats:
            self._note("heartbeats", lambda: vehicles.record_telemetry(notes.beats))
            notes.beats.clear()
        if notes.refused:
            self._note("refusals", lambda: vehicles.record_refusals(notes.refused))
            notes.refused.clear()

    def _note(self, what: str, write: Callable[[], None]) -> None:
        """Leaves out what the database refuses for its values: that would be refused for ever."""
        try:
            write()
        except RowRefusedError as error:
            self._metrics.failures.labels("housekeeping").inc()
            fields = {"what": what, "problem": str(error)}
            log.error("notes_not_written", extra={"fields": fields})

    def _admitted(self, notes: Notes) -> Notes:
        names = notes.vehicles()
        limit = self._settings.max_unproven_vehicles
        allowed = self._store.vehicles.admitted(names, max_unproven=limit) if names else set()
        if len(allowed) < len(names):
            self._metrics.strangers.inc(len(names) - len(allowed))
            fields = {"vehicles": len(names) - len(allowed), "max_unproven_vehicles": limit}
            log.warning("vehicles_not_written", extra={"fields": fields})
        return notes.only(allowed)

    def _forget_vehicles(self) -> None:
        days = self._settings.unproven_vehicle_days
        forgotten = self._store.vehicles.forget_unproven(wall_time() - days * _DAY_S)
        if forgotten:
            fields = {"vehicles": forgotten, "silent_for_days": days}
            log.info("vehicles_forgotten", extra={"fields": fields})

    def _refresh(self) -> None:
        if self._quotas.daily:
            self._refresh_quotas()
        if self._novelty is not None:
            # Rows become visible in another order than their numbers, so a little is read twice.
            since = max(0, self._seen_seq - _OVERLAP)
            for seq, sample, bundle, embedding in self._store.embeddings_after(since, limit=_PAGE):
                self._novelty.remember(bundle, sample, embedding)
                self._seen_seq = max(self._seen_seq, seq)

    def _refresh_quotas(self) -> None:
        """The usage first, then what of it this collector accepted: so nothing is counted twice."""
        now = wall_time()
        latest = max((row.stored_at for row in self._store.newest(1)), default=now)
        slow_s = latest - now
        if slow_s > _CLOCK_TOLERANCE_S:
            fields = {"behind_s": round(slow_s), "effect": "quotas decline nothing"}
            log.warning("clock_behind_latest_sample", extra={"fields": fields})
        usage = self._store.usage_since(now - _DAY_S)
        known = self._store.known(sorted(self._quotas.accepted()))
        trusted = slow_s <= _CLOCK_TOLERANCE_S
        self._quotas.refresh(usage, counted=known, now=time.monotonic(), trusted=trusted)
