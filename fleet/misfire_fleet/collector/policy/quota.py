"""What each vehicle may upload per day: samples and bytes.

The day's usage is read from the store from time to time, because other collectors count too, and what this
collector accepted since then is added. Only what is stored can decline an offer for good; with what is still
on its way, or figures that are old, the answer is that the vehicle shall ask again.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass

from misfire_fleet.collector.settings import Quotas
from misfire_runtime.messages import Offer

_STALE_S = 60.0


@dataclass
class _Accepted:
    """A sample that was asked for since the last refresh; `stored`: it is known to be in the store."""

    count: int
    size: int
    stored: bool = False


@dataclass(frozen=True)
class Refusal:
    """The quota does not allow a sample. `final`: what is stored alone uses it up."""

    final: bool
    reason: str


class QuotaBook:
    """Counts per vehicle; thread-safe. Times are monotonic seconds given by the caller."""

    def __init__(self, quotas: Quotas) -> None:
        self._quotas = quotas
        self._lock = threading.Lock()
        self._stored: Mapping[str, tuple[int, int]] = {}
        self._refreshed_at: float | None = None
        self._since: dict[str, dict[str, _Accepted]] = {}

    @property
    def daily(self) -> bool:
        """True where the store's usage is needed at all."""
        return self._quotas.samples_per_day is not None or self._quotas.bytes_per_day is not None

    def refresh(
        self, usage: Mapping[str, tuple[int, int]], *, counted: set[str], now: float, trusted: bool = True
    ) -> None:
        """Takes the day's usage from the store.

        counted: accepted samples that are stored, looked up after `usage`, so that none counts twice.
        trusted: False where the day may be another one than the store's; then nothing is declined.
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
        """Why the day's quota does not allow it, or None."""
        if not self.daily:
            return None
        with self._lock:
            count, size = self._stored.get(offer.vehicle, (0, 0))
            fresh = [each for key, each in self._since.get(offer.vehicle, {}).items() if key != offer.id]
            current = self._refreshed_at is not None and now - self._refreshed_at < _STALE_S
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
                mine.setdefault(offer.id, _Accepted(0 if offer.trigger.random else 1, offer.size))

    def confirm(self, vehicle: str, sample: str) -> None:
        """An accepted sample is stored."""
        with self._lock:
            accepted = self._since.get(vehicle, {}).get(sample)
            if accepted is not None:
                accepted.stored = True

    def accepted(self) -> set[str]:
        """Samples accepted here that the last refresh did not count."""
        with self._lock:
            return {key for mine in self._since.values() for key in mine}

    def give_back(self, vehicle: str, sample: str) -> None:
        """It was asked for and never stored."""
        with self._lock:
            self._since.get(vehicle, {}).pop(sample, None)


def _counted(accepted: list[_Accepted]) -> int:
    return sum(each.count for each in accepted)


def _sized(accepted: list[_Accepted]) -> int:
    return sum(each.size for each in accepted)
