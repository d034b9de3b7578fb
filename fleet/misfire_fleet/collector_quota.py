"""What each vehicle may: samples and bytes per day, offers per second.

The day's usage is read from the store from time to time, because other collectors count too, and what this
collector accepted since then is added.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass

from misfire_fleet.collector_settings import Quotas
from misfire_runtime.messages import Offer

_BURST_S = 10.0
_MAX_BUCKETS = 100_000


@dataclass
class _Bucket:
    tokens: float
    at: float


class QuotaBook:
    """Counts per vehicle; thread-safe. Times are monotonic seconds given by the caller."""

    def __init__(self, quotas: Quotas) -> None:
        self._quotas = quotas
        self._lock = threading.Lock()
        self._stored: Mapping[str, tuple[int, int]] = {}
        self._since: dict[str, dict[str, tuple[int, int]]] = {}
        self._buckets: dict[str, _Bucket] = {}

    @property
    def daily(self) -> bool:
        """True where the store's usage is needed at all."""
        return self._quotas.samples_per_day is not None or self._quotas.bytes_per_day is not None

    def refresh(self, usage: Mapping[str, tuple[int, int]], *, counted: set[str]) -> None:
        """Takes the day's usage from the store; `counted` are accepted samples that it now includes."""
        with self._lock:
            self._stored = usage
            for vehicle in list(self._since):
                left = {key: value for key, value in self._since[vehicle].items() if key not in counted}
                if left:
                    self._since[vehicle] = left
                else:
                    del self._since[vehicle]

    def wait_s(self, vehicle: str, now: float) -> float:
        """0 where this offer is within the rate, else how long to wait."""
        rate = self._quotas.offers_per_s
        if rate is None:
            return 0.0
        burst = max(1.0, rate * _BURST_S)
        with self._lock:
            if len(self._buckets) > _MAX_BUCKETS:
                self._buckets.clear()
            bucket = self._buckets.setdefault(vehicle, _Bucket(burst, now))
            bucket.tokens = min(burst, bucket.tokens + (now - bucket.at) * rate)
            bucket.at = now
            if bucket.tokens < 1.0:
                return (1.0 - bucket.tokens) / rate
            bucket.tokens -= 1.0
            return 0.0

    def refusal(self, offer: Offer) -> str | None:
        """Why the day's quota does not allow it, or None."""
        if not self.daily:
            return None
        with self._lock:
            count, size = self._stored.get(offer.vehicle, (0, 0))
            fresh = self._since.get(offer.vehicle, {})
        count += sum(each[0] for key, each in fresh.items() if key != offer.id)
        size += sum(each[1] for key, each in fresh.items() if key != offer.id)
        samples, volume = self._quotas.samples_per_day, self._quotas.bytes_per_day
        if samples is not None and not offer.trigger.random and count >= samples:
            return f"quota of {samples} samples per day is used up"
        if volume is not None and size + offer.size > volume:
            return f"quota of {volume} bytes per day is used up"
        return None

    def accept(self, offer: Offer) -> None:
        """Counts an accepted offer."""
        if self.daily:
            with self._lock:
                mine = self._since.setdefault(offer.vehicle, {})
                mine[offer.id] = (0 if offer.trigger.random else 1, offer.size)

    def accepted(self) -> set[str]:
        """Samples accepted here that the last refresh did not count."""
        with self._lock:
            return {key for mine in self._since.values() for key in mine}

    def give_back(self, vehicle: str, sample: str) -> None:
        """It was asked for and never stored."""
        with self._lock:
            self._since.get(vehicle, {}).pop(sample, None)
