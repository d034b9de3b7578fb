"""Samples that this collector failed to check or to store, for reasons that prove nothing about them.

Each failure doubles the time after which the sample is wanted again. The vehicle is told; one that offers
earlier all the same is answered without another look once it has failed a few times.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

from misfire_fleet.collector.transfers import Key

_FIRST_S, _LONGEST_S = 10.0, 3600.0
_LENIENT = 2
_MAX_SAMPLES = 10_000


@dataclass
class _Setback:
    times: int = 0
    until: float = 0.0


class Setbacks:
    """Thread-safe. Times are monotonic seconds given by the caller."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._of: OrderedDict[Key, _Setback] = OrderedDict()

    def add(self, key: Key, now: float) -> float:
        """Counts a failure; returns after how many seconds the sample is wanted again."""
        with self._lock:
            setback = self._of.setdefault(key, _Setback())
            self._of.move_to_end(key)
            if len(self._of) > _MAX_SAMPLES:
                self._of.popitem(last=False)
            wait = float(min(_LONGEST_S, _FIRST_S * 2**setback.times))
            setback.times, setback.until = setback.times + 1, now + wait
            return wait

    def wait_s(self, key: Key, now: float) -> float:
        """How long this sample has to wait; 0 if it may come."""
        with self._lock:
            setback = self._of.get(key)
            if setback is None or setback.times <= _LENIENT:
                return 0.0
            return max(0.0, setback.until - now)

    def forget(self, key: Key) -> None:
        """It was stored, or proven to be at fault."""
        if key in self._of:
            with self._lock:
                self._of.pop(key, None)
