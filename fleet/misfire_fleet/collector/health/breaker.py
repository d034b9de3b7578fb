"""Refuses new samples while the collector cannot store them, and tests when it can again.

closed --several failures in a row--> open --one success--> closed
While open, offers get `busy`, and /healthz has the reason. Samples in memory are retried continually. If
there are none, one offer is accepted every `probe_s`, and its sample is the test.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Literal

Part = Literal["look-up", "check", "blobs", "rows"]

_PROBLEMS: dict[Part, str] = {
    "look-up": "the store cannot be read",
    "check": "samples cannot be checked",
    "blobs": "the store does not take samples",
    "rows": "the store does not take samples",
}


@dataclass
class _Streak:
    """Counts the failures of a part since its last success."""

    ours: int = 0
    vehicles: set[str] = field(default_factory=set)
    reason: str = ""

    def opens(self, failures: int) -> bool:
        return self.ours >= failures or len(self.vehicles) >= failures


class Breaker:
    """Opens after `failures` consecutive failures of one part. Thread-safe.

    A failure that names a vehicle may be caused by that vehicle's sample. Such failures count once per
    vehicle, so one vehicle cannot stop a collector with samples that make it fail.

    Args:
        failures: number of failures, or of different vehicles, that opens the breaker.
        probe_s: seconds between probes while it is open.
    """

    def __init__(self, *, failures: int = 3, probe_s: float = 10.0) -> None:
        self._failures, self._probe_s = failures, probe_s
        self._lock = threading.Lock()
        self._streaks: dict[Part, _Streak] = {}
        self._tried_at = 0.0

    def failed(self, part: Part, reason: object, *, vehicle: str | None = None) -> None:
        """Counts a failure. Pass the vehicle if its sample may be the cause."""
        with self._lock:
            streak = self._streaks.setdefault(part, _Streak())
            streak.reason = str(reason) or type(reason).__name__
            self._tried_at = time.monotonic()
            if vehicle is None:
                streak.ours += 1
            # More names than open the breaker add nothing but memory.
            elif len(streak.vehicles) < self._failures:
                streak.vehicles.add(vehicle)

    def succeeded(self, part: Part) -> None:
        """Resets the failures of a part."""
        # Looked up without the lock: this runs for every sample, and usually there is nothing to reset.
        if part in self._streaks:
            with self._lock:
                self._streaks.pop(part, None)

    @property
    def is_open(self) -> bool:
        """Returns True while some part has failed several times in a row."""
        return bool(self.problems())

    def problems(self) -> list[str]:
        """Returns a sentence for each failing part, with its last reason."""
        with self._lock:
            return [
                f"{_PROBLEMS[part]}: {streak.reason}"
                for part, streak in self._streaks.items()
                if streak.opens(self._failures)
            ]

    def admits(self, now: float) -> bool:
        """Returns True if another sample may be requested: always while closed, as a probe while open."""
        if not self.is_open:
            return True
        with self._lock:
            if now - self._tried_at < self._probe_s:
                return False
            self._tried_at = now
            return True
