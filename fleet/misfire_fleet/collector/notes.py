"""Buffers vehicles' states, heartbeats and refused samples until housekeeping stores them.

The network thread only adds bytes; they are parsed when they are taken. Names and bytes are bounded.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from misfire_fleet.collector.health.metrics import CollectorMetrics
from misfire_fleet.collector.policy.rates import Rates
from misfire_runtime.errors import MessageError
from misfire_runtime.messages import Message, State, Telemetry, decode

_MAX_NAMES = 20_000
_MAX_BYTES = 16 * 1024 * 1024
"""Bounds for a store that is away for hours; anything beyond is dropped and counted."""
_BEATS_PER_S = 1.0
"""Heartbeats per vehicle and second; above it a vehicle is broken or hostile."""

M = TypeVar("M", bound=Message)


@dataclass
class Notes:
    """Holds vehicles' last states, heartbeats in order, and refusals by (vehicle, verdict, cause)."""

    states: dict[str, State] = field(default_factory=dict)
    beats: list[tuple[str, Telemetry]] = field(default_factory=list)
    refused: Counter[tuple[str, str, str]] = field(default_factory=Counter)

    def vehicles(self) -> list[str]:
        """Returns the names of all vehicles, each once."""
        names = [*self.states, *(name for name, _ in self.beats), *(name for name, _, _ in self.refused)]
        return list(dict.fromkeys(names))

    def only(self, vehicles: set[str]) -> Notes:
        """Returns the notes about these vehicles."""
        return Notes(
            {name: state for name, state in self.states.items() if name in vehicles},
            [(name, beat) for name, beat in self.beats if name in vehicles],
            Counter({key: count for key, count in self.refused.items() if key[0] in vehicles}),
        )


class NoteBuffer:
    """Collects notes. Thread-safe. Notes that do not fit are dropped and counted: vehicles repeat them."""

    def __init__(self, metrics: CollectorMetrics) -> None:
        self._metrics = metrics
        self._lock = threading.Lock()
        self._rates = Rates(_BEATS_PER_S)
        self._states: dict[str, bytes] = {}
        self._beats: deque[tuple[str, bytes]] = deque()
        self._bytes = 0
        self._refused: Counter[tuple[str, str, str]] = Counter()

    def state(self, vehicle: str, payload: bytes) -> None:
        """Adds a vehicle's state. An empty payload is ignored: it only clears the retained message."""
        with self._lock:
            old = self._states.get(vehicle)
            few = old is not None or len(self._states) < _MAX_NAMES
            if payload and few and self._fits("state", len(payload) - len(old or b"")):
                # Only the newest state counts, so a long failure of the store costs one payload per vehicle.
                self._states[vehicle] = payload

    def heartbeat(self, vehicle: str, payload: bytes, now: float) -> None:
        """Adds telemetry. More than one per second, after a burst of ten, is dropped."""
        if self._rates.wait_s(vehicle, now) > 0:
            self._metrics.dropped.labels("telemetry").inc()
            return
        with self._lock:
            if len(self._beats) < _MAX_NAMES and self._fits("telemetry", len(payload)):
                self._beats.append((vehicle, payload))

    def refused(self, vehicle: str, verdict: str, cause: str) -> None:
        """Counts a final refusal."""
        key = (vehicle, verdict, cause)
        with self._lock:
            if key in self._refused or len(self._refused) < _MAX_NAMES:
                self._refused[key] += 1

    def take(self) -> Notes:
        """Returns all notes, parsed, and empties the buffer. Payloads that cannot be parsed are counted."""
        with self._lock:
            states, self._states = self._states, {}
            beats, self._beats = self._beats, deque()
            refused, self._refused = self._refused, Counter()
            self._bytes = 0
        return Notes(
            dict(self._parsed(State, "state", states.items())),
            list(self._parsed(Telemetry, "telemetry", beats)),
            refused,
        )

    def _fits(self, kind: str, size: int) -> bool:
        if self._bytes + size > _MAX_BYTES:
            self._metrics.dropped.labels(kind).inc()
            return False
        self._bytes += size
        return True

    def _parsed(
        self, kind: type[M], name: str, payloads: Iterable[tuple[str, bytes]]
    ) -> Iterator[tuple[str, M]]:
        for vehicle, payload in payloads:
            try:
                yield vehicle, decode(kind, payload)
            except MessageError:
                self._metrics.malformed.labels(name).inc()
