"""Limits the samples and bytes that each vehicle may upload per day.

The usage of the last day is read from the store periodically, because other collectors store samples too.
What this collector accepted since then is added. Only stored samples can decline an offer for good. If
samples under way or an outdated usage decide, the vehicle gets `busy` and offers again.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass

from misfire_fleet.collector.settings import Quotas
from misfire_runtime.messages import Offer

STALE_S = 60.0
"""An older usage does not decline: it is read every 5 s, so the store has not answered for a while."""


@dataclass
class _Accepted:
    """Counts a sample that was requested since the last refresh; `stored`: it is in the store."""

    count: int
    size: int
    stored: bool = False


@dataclass(frozen=True)
class Refusal:
    """Reports why a sample is not wanted. `final`: stored samples are enough of a reason.

    retry_s: seconds until the vehicle offers it again, if it is not final; None: when transfers have ended.
    """

    final: bool
    reason: str
    retry_s: float | None = None


class QuotaTracker:
    """Counts the usage per vehicle. Thread-safe. Times are monotonic seconds, passed by the caller."""

    def __init__(self, quotas: Quotas) -> None:
        self._quotas = quotas
        self._lock = threading.Lock()
        self._stored: Mapping[str, tuple[int, int]] = {}
        self._refreshed_at: float | None = None
        self._since: dict[str, dict[str, _Accepted]] = {}

    @property
    def daily(self) -> bool:
        """Returns True if a daily quota is set, so that the store's usage is needed."""
        return self._quotas.samples_per_day is not None or self._quotas.bytes_per_day is not None

    def refresh(
        self, usage: Mapping[str, tuple[int, int]], *, counted: set[str], now: float, trusted: bool = True
    ) -> None:
        """Replaces the usage by that of the store.

        Args:
            usage: (samples, bytes) of the last day by vehicle.
            counted: accepted samples that are stored. Look them up after `usage`, or some count twice.
            now: monotonic seconds.
            trusted: False if this machine's clock is wrong; then nothing is declined.
        """
        with self._lock:
            self._stored = usage
            self._refreshed_at = now if trusted else None
            for vehicle in list(self._since):
                left = {key: value for key, value in self._since[vehicle].items() if key not in counted}
                if left:
                    self._since[vehicle] = left
                else:
                    del self._since[vehicle]

    def refusal(self, offer: Offer, now: float) -> Refusal | None:
        """Returns why the quota does not allow an offer, or None if it does."""
        if not self.daily:
            return None
        with self._lock:
            count, size = self._stored.get(offer.vehicle, (0, 0))
            # Without the offered sample itself: offered again, it must not stand in its own way.
            fresh = [each for key, each in self._since.get(offer.vehicle, {}).items() if key != offer.id]
            current = self._refreshed_at is not None and now - self._refreshed_at < STALE_S
        stored = [each for each in fresh if each.stored]
        reason = self._excess(offer, count + _counted(fresh), size + _sized(fresh))
        if reason is None:
            return None
        alone = self._excess(offer, count + _counted(stored), size + _sized(stored))
        return Refusal(current and alone is not None, reason)

    def _excess(self, offer: Offer, count: int, size: int) -> str | None:
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
                # setdefault: a repeated offer of a sample counts once.
                mine.setdefault(offer.id, _Accepted(0 if offer.trigger.random else 1, offer.size))

    def confirm(self, vehicle: str, sample: str) -> None:
        """Marks an accepted sample as stored."""
        with self._lock:
            accepted = self._since.get(vehicle, {}).get(sample)
            if accepted is not None:
                accepted.stored = True

    def accepted(self) -> set[str]:
        """Returns the ids of accepted samples that the last refresh did not count."""
        with self._lock:
            return {key for mine in self._since.values() for key in mine}

    def give_back(self, vehicle: str, sample: str) -> None:
        """Removes an accepted sample that was not stored."""
        with self._lock:
            self._since.get(vehicle, {}).pop(sample, None)


def _counted(accepted: list[_Accepted]) -> int:
    return sum(each.count for each in accepted)


def _sized(accepted: list[_Accepted]) -> int:
    return sum(each.size for each in accepted)
