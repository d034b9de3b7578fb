"""The collector's slow thread: writes down what vehicles say, reads what other collectors stored, keeps time.

It touches the store at its own pace; a store that is away delays notes, never offers or chunks.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping

from misfire_fleet.collector_guard import guarded
from misfire_fleet.collector_metrics import CollectorMetrics
from misfire_fleet.collector_novelty import Novelty
from misfire_fleet.collector_quota import QuotaBook
from misfire_fleet.collector_settings import NearDuplicates
from misfire_fleet.errors import StoreError, StoreUnavailableError
from misfire_fleet.store import Store
from misfire_runtime.clock import wall_time
from misfire_runtime.messages import State, Telemetry

log = logging.getLogger(__name__)

_TICK_S = 0.1
_NOTES_S = 0.5
_REFRESH_S = 5.0
_DAY_S = 86_400.0
_CLOCK_TOLERANCE_S = 300.0
_OVERLAP = 1_000
_PAGE = 20_000
_MAX_BEATS = 20_000

Notes = tuple[dict[str, State], list[tuple[str, Telemetry]], Mapping[tuple[str, str, str], int]]
"""States, heartbeats, and refusals counted, since the last time."""


class Housekeeping:
    """A thread that ticks ten times per second."""

    def __init__(
        self,
        store: Store,
        *,
        quotas: QuotaBook,
        novelty: Novelty | None,
        near: NearDuplicates | None,
        metrics: CollectorMetrics,
        notes: Callable[[], Notes],
        tick: Callable[[float], None],
    ) -> None:
        self._store, self._quotas, self._novelty, self._near = store, quotas, novelty, near
        self._metrics, self._notes, self._tick = metrics, notes, tick
        self._seen_seq = 0
        self._states: dict[str, State] = {}
        self._beats: list[tuple[str, Telemetry]] = []
        self._refused: Counter[tuple[str, str, str]] = Counter()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="housekeeping", daemon=True)

    def prepare(self) -> None:
        """Reads what near-duplicates and quotas are judged by, before the first offer."""
        self._guarded(self._refresh)

    def start(self) -> None:
        """Begins to tick."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """False where the thread died."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Writes the last notes and ends."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(35.0)

    def _run(self) -> None:
        noted = refreshed = time.monotonic()
        while not self._stop.wait(_TICK_S):
            now = time.monotonic()
            with guarded("housekeeping", self._metrics):
                self._tick(now)
            if now - noted > _NOTES_S:
                noted = now
                self._guarded(self._write_notes)
            if now - refreshed > _REFRESH_S:
                refreshed = now
                self._guarded(self._refresh)
        self._guarded(self._write_notes)

    def _guarded(self, work: Callable[[], None]) -> None:
        with guarded("housekeeping", self._metrics):
            try:
                work()
            except (StoreUnavailableError, StoreError) as error:
                log.warning("housekeeping is put off: %s", error)

    def _write_notes(self) -> None:
        """What the store does not take now is kept and written with the next notes."""
        states, beats, refused = self._notes()
        self._states |= states
        self._beats = (self._beats + beats)[-_MAX_BEATS:]
        self._refused.update(refused)
        if self._states:
            self._store.vehicles.record_states(self._states)
            self._states = {}
        if self._beats:
            self._store.vehicles.record_telemetry(self._beats)
            self._beats = []
        if self._refused:
            self._store.vehicles.record_refusals(self._refused)
            self._refused.clear()

    def _refresh(self) -> None:
        if self._quotas.daily:
            self._refresh_quotas()
        if self._novelty is not None and self._near is not None:
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
            log.warning(
                "this machine's clock is %.0f s behind the latest sample: quotas decline nothing", slow_s
            )
        usage = self._store.usage_since(now - _DAY_S)
        known = self._store.known(sorted(self._quotas.accepted()))
        trusted = slow_s <= _CLOCK_TOLERANCE_S
        self._quotas.refresh(usage, counted=known, now=time.monotonic(), trusted=trusted)
