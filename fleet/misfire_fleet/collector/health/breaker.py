"""Stops new samples while the collector cannot keep them, and finds out by itself when it can again.

closed --several failures in a row--> open --one success--> closed
While open, offers are answered `busy` and /healthz says why. Samples that are held are tried again all the
time; where none is held, one offer is let through every `probe_s`, and its sample shows how things stand.
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
    """Failures of a part since its last success."""

    ours: int = 0
    vehicles: set[str] = field(default_factory=set)
    reason: str = ""

    def opens(self, failures: int) -> bool:
        return self.ours >= failures or len(self.vehicles) >= failures


class Breaker:
    """Thread-safe. Opens after `failures` in a row of one part.

    A failure that names a vehicle may be due to that vehicle's sample: only failures with as many different
    vehicles count, so that nobody can stop a collector with samples that it stumbles over.
    """

    def __init__(self, *, failures: int = 3, probe_s: float = 10.0) -> None:
        self._failures, self._probe_s = failures, probe_s
        self._lock = threading.Lock()
        self._streaks: dict[Part, _Streak] = {}
        self._tried_at = 0.0

    def failed(self, part: Part, reason: object, *, vehicle: str | None = None) -> None:
        """Counts a failure; `vehicle`: whose sample it was, where it may have to do with the sample."""
        with self._lock:
            streak = self._streaks.setdefault(part, _Streak())
            streak.reason = str(reason) or type(reason).__name__
            self._tried_at = time.monotonic()
            if vehicle is None:
                streak.ours += 1
            elif len(streak.vehicles) < self._failures:
                streak.vehicles.add(vehicle)

    def succeeded(self, part: Part) -> None:
        """This part works."""
        if part in self._streaks:
            with self._lock:
                self._streaks.pop(part, None)

    @property
    def is_open(self) -> bool:
        """True while some part failed several times in a row."""
        return bool(self.problems())

    def problems(self) -> list[str]:
        """What fails, and the last reason of each."""
        with self._lock:
            return [
                f"{_PROBLEMS[part]}: {streak.reason}"
                for part, streak in self._streaks.items()
                if streak.opens(self._failures)
            ]

    def admits(self, now: float) -> bool:
        """True if another sample may be asked for: always while closed, as a probe while open."""
        if not self.is_open:
            return True
        with self._lock:
            if now - self._tried_at < self._probe_s:
                return False
            self._tried_at = now
            return True
