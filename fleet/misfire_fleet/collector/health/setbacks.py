"""Counts, per sample, failures to check or store it that prove nothing about the sample.

Each failure doubles the time until the sample may be offered again; the verdict tells the vehicle this time.
After a few failures, an earlier offer gets `busy` without another attempt.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

from misfire_fleet.collector.transfers import Key

# Doubled from 10 s to an hour, the longest wait that a `busy` may ask for.
_FIRST_S, _LONGEST_S = 10.0, 3600.0
_LENIENT = 2
"""So many failures may be chance: an early offer is then tried all the same."""
_MAX_SAMPLES = 10_000
"""Bounds memory; the oldest are forgotten and start again at _FIRST_S."""


@dataclass
class _Setback:
    times: int = 0
    until: float = 0.0


class Setbacks:
    """Counts failures per sample. Thread-safe. Times are monotonic seconds, passed by the caller."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._of: OrderedDict[Key, _Setback] = OrderedDict()

    def add(self, key: Key, now: float) -> float:
        """Counts a failure; returns the seconds until the sample may be offered again."""
        with self._lock:
            setback = self._of.setdefault(key, _Setback())
            self._of.move_to_end(key)
            if len(self._of) > _MAX_SAMPLES:
                self._of.popitem(last=False)
            wait = float(min(_LONGEST_S, _FIRST_S * 2**setback.times))
            setback.times, setback.until = setback.times + 1, now + wait
            return wait

    def wait_s(self, key: Key, now: float) -> float:
        """Returns the seconds that an offer of this sample is still refused; 0 if it is not."""
        with self._lock:
            setback = self._of.get(key)
            if setback is None or setback.times <= _LENIENT:
                return 0.0
            return max(0.0, setback.until - now)

    def forget(self, key: Key) -> None:
        """Forgets a sample that was stored or rejected."""
        # Looked up without the lock: this runs for every sample, and few have failed before.
        if key in self._of:
            with self._lock:
                self._of.pop(key, None)
