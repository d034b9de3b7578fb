"""Limits how often each vehicle may do something, with a token bucket per vehicle."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

_BURST_S = 10.0
"""A full bucket holds ten seconds' worth: vehicles offer in bursts after they reconnect."""
_MAX_BUCKETS = 100_000
"""Bounds memory: the names are foreign. A dropped bucket starts full."""


@dataclass
class _Bucket:
    tokens: float
    at: float


class Rates:
    """Holds a bucket per vehicle. Thread-safe. Times are monotonic seconds, passed by the caller."""

    def __init__(self, per_s: float) -> None:
        self._per_s = per_s
        self._burst = max(1.0, per_s * _BURST_S)
        self._lock = threading.Lock()
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def wait_s(self, vehicle: str, now: float) -> float:
        """Takes a token and returns 0, or returns the seconds until the next token."""
        with self._lock:
            bucket = self._buckets.setdefault(vehicle, _Bucket(self._burst, now))
            self._buckets.move_to_end(vehicle)
            if len(self._buckets) > _MAX_BUCKETS:
                self._buckets.popitem(last=False)
            bucket.tokens = min(self._burst, bucket.tokens + (now - bucket.at) * self._per_s)
            bucket.at = now
            if bucket.tokens < 1.0:
                return (1.0 - bucket.tokens) / self._per_s
            bucket.tokens -= 1.0
            return 0.0
