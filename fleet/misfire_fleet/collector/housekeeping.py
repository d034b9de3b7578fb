"""Runs the collector's periodic work: stores vehicles' states, reads what others stored, checks timers.

It has its own thread: a store that does not answer delays this work, but neither offers nor chunks.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from misfire_fleet.collector.health.metrics import CollectorMetrics
from misfire_fleet.collector.notes import NoteBuffer, Notes
from misfire_fleet.collector.policy.campaigns import CampaignGate
from misfire_fleet.collector.policy.near_duplicates import Novelty
from misfire_fleet.collector.policy.quota import QuotaTracker
from misfire_fleet.collector.settings import CollectorSettings
from misfire_fleet.errors import RowRefusedError, StoreError, StoreUnavailableError
from misfire_fleet.store import Store
from misfire_runtime.clock import wall_time
from misfire_runtime.service.logs import Throttle
from misfire_runtime.service.worker import Worker

log = logging.getLogger(__name__)

_TICK_S = 0.1
# One commit holds all notes of half a second: a commit per heartbeat would be an fsync per heartbeat.
_NOTES_S = 0.5
# For this long a collector does not know what others stored, so each may take a scene's copies.
_REFRESH_S = 5.0
# Hourly is often enough: the limit that it applies is in days.
_FORGET_S = 3600.0
_DAY_S = 86_400.0
_CLOCK_TOLERANCE_S = 300.0
"""If the newest sample is dated further in the future, this machine's clock is wrong, and so is its "day"."""
_OVERLAP = 1_000
"""Rows read again at each refresh: a row may be committed after one with a higher number."""
# The default of `near_duplicates.remembered`: one refresh fills the memory of one bundle.
_PAGE = 20_000
_END_S = 35.0
"""Seconds to wait for the thread at the end: a store that is away needs 30 s until it raises an error."""


class Housekeeping:
    """Runs the periodic work in a thread; `tick` is called ten times per second."""

    def __init__(
        self,
        store: Store,
        *,
        quotas: QuotaTracker,
        novelty: Novelty | None,
        campaigns: CampaignGate,
        settings: CollectorSettings,
        metrics: CollectorMetrics,
        notes: NoteBuffer,
        tick: Callable[[float], None],
    ) -> None:
        self._store, self._quotas, self._novelty, self._settings = store, quotas, novelty, settings
        self._metrics, self._notes, self._tick = metrics, notes, tick
        self._campaigns = campaigns
        self._seen_seq = 0
        self._unwritten = Notes()
        self._often = Throttle(log)
        self._worker = Worker(
            "housekeeping", self._run, on_failure=metrics.failures.labels("housekeeping").inc
        )

    def prepare(self) -> None:
        """Reads the embeddings and the usage from the store; call it before the first offer."""
        self._guarded(self._refresh)

    def start(self) -> None:
        """Starts the thread."""
        self._worker.start()

    @property
    def alive(self) -> bool:
        """Returns False if the thread has died."""
        return self._worker.alive

    def close(self) -> None:
        """Writes the last notes and ends the thread."""
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
        # Twice: the first call may only repeat notes that an earlier one could not write.
        for _ in ("what is left", "the last"):
            self._guarded(self._write_notes)

    def _works(self) -> tuple[tuple[Callable[[], None], float], ...]:
        """Returns the periodic jobs and their periods in seconds."""
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
        """Writes the notes to the store. Notes that the store did not take are retried before newer ones."""
        if not self._unwritten.vehicles():
            self._unwritten = self._notes.take()
        notes = self._unwritten = self._admitted(self._unwritten)
        vehicles = self._store.vehicles
        if notes.states:
            self._note("states", lambda: vehicles.record_states(notes.states))
            # Cleared after the write: if the store is away, that raises, and the same notes are tried again.
            notes.states.clear()
        if notes.beats:
            self._note("heartbeats", lambda: vehicles.record_telemetry(notes.beats))
            notes.beats.clear()
        if notes.refused:
            self._note("refusals", lambda: vehicles.record_refusals(notes.refused))
            notes.refused.clear()

    def _note(self, what: str, write: Callable[[], None]) -> None:
        """Drops notes whose values the database refuses: it would refuse them for ever."""
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
        self._campaigns.refresh(self._store, now=time.monotonic())
        if self._quotas.daily:
            self._refresh_quotas()
        if self._novelty is not None:
            # Rows become visible in another order than their numbers, so the newest ones are read twice.
            since = max(0, self._seen_seq - _OVERLAP)
            for seq, sample, bundle, embedding in self._store.embeddings_after(since, limit=_PAGE):
                self._novelty.remember(bundle, sample, embedding)
                self._seen_seq = max(self._seen_seq, seq)

    def _refresh_quotas(self) -> None:
        """Reads the usage of the last day from the store."""
        now = wall_time()
        latest = max((row.stored_at for row in self._store.newest(1)), default=now)
        slow_s = latest - now
        if slow_s > _CLOCK_TOLERANCE_S:
            fields = {"behind_s": round(slow_s), "effect": "quotas decline nothing"}
            log.warning("clock_behind_latest_sample", extra={"fields": fields})
        usage = self._store.usage_since(now - _DAY_S)
        # Looked up after the usage: in the other order, a sample stored in between would count twice.
        known = self._store.known(sorted(self._quotas.accepted()))
        trusted = slow_s <= _CLOCK_TOLERANCE_S
        self._quotas.refresh(usage, counted=known, now=time.monotonic(), trusted=trusted)
