"""Limits samples and bytes per hour and per day, over a sliding window that survives restarts.

The window slides along the budget's own clock, which goes on by monotonic time while the machine is up and,
across a reboot, by the wall clock as far as that can be trusted (never backwards, never beyond one window).
So no window of an hour or a day ever holds more than its budget, whatever the wall clock does. A sample that
the fleet declines gives back what it cost.

A file that is damaged does not say what was spent, so everything counts as spent: an hour's limits for an
hour, a day's for a day. To assume that nothing was spent would let a vehicle pay twice for its link.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from misfire_runtime.clock import boot_id, wall_time
from misfire_runtime.errors import SpoolError
from misfire_runtime.state.small_files import read_state, write_state
from misfire_runtime.tables import Table

HOUR_S = 3600.0
# The longest window: older entries are forgotten.
DAY_S = 86400.0
_VERSION = 1


class Limits(Table):
    """Budgets of what triggers may choose; None is no limit."""

    samples_per_hour: int | None = Field(default=None, ge=0)
    samples_per_day: int | None = Field(default=None, ge=0)
    bytes_per_hour: int | None = Field(default=None, ge=0)
    bytes_per_day: int | None = Field(default=None, ge=0)

    @property
    def any(self) -> bool:
        """Returns True if there is any limit."""
        return any(value is not None for _name, value in self)


@dataclass(frozen=True, slots=True)
class _Spent:
    at_s: float
    size: int


@dataclass(frozen=True)
class Times:
    """Holds one reading of all clocks."""

    wall: float
    monotonic: float
    boot: str


@dataclass(frozen=True)
class _Record:
    """Holds the content of the file.

    clock_s: the budget's clock at `times`.  lost_at_s: when a damaged file was found, by that clock.
    """

    spent: OrderedDict[str, _Spent]
    clock_s: float
    times: Times
    lost_at_s: float | None = None


def _now() -> Times:
    return Times(wall_time(), time.monotonic(), boot_id())


class Budget:
    """Counts what was taken in the last hour and day. Safe to call from several threads."""

    def __init__(self, path: Path, *, limits: Limits, now: Callable[[], Times] = _now) -> None:
        """path: its file, written at every spending. A damaged one is set aside and counts as spent."""
        self.limits = limits
        self._path = path
        self._now = now
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        """Taken before `_lock`, so that the newer file is not overwritten by an older one."""
        times = now()
        empty, lost = (_Record(OrderedDict(), 0.0, times, lost_at_s) for lost_at_s in (None, 0.0))
        record = read_state(
            path,
            _record,
            # With a damaged file set aside and none in its place, the new one found no room on the disk.
            missing=lost if path.with_suffix(".damaged").exists() else empty,
            damaged=lost,
            assume="the limits of the last hour and day count as spent",
        )
        self._spent = record.spent
        self._clock = record.clock_s
        self._times = record.times
        self._lost_at_s = record.lost_at_s
        self._credited = False
        self._advance()
        if self._lost_at_s is not None:
            with suppress(SpoolError):  # a full disk: the next spending writes it
                self._save()

    def refusal(self, size: int) -> str | None:
        """Returns why a sample of `size` bytes is over budget; None if it fits."""
        with self._lock:
            self._advance()
            return self._refusal(size)

    def spend(self, sample: str, size: int) -> None:
        """Counts a sample that was taken and writes the file."""
        # Without limits there is nothing to keep, and no write per sample.
        if not self.limits.any:
            return
        with self._lock:
            self._advance()
            self._spent[sample] = _Spent(self._clock, size)
        self._save()

    def credit(self, sample: str) -> bool:
        """Gives back what a declined sample cost; returns False if it is not in the file."""
        with self._lock:
            if self._spent.pop(sample, None) is None:
                return False
            self._advance()
            self._credited = True
            return True

    def keep(self) -> None:
        """Writes credits that are not written yet. Raises SpoolError."""
        if self._credited:
            self._save()

    def _refusal(self, size: int) -> str | None:
        limits = self.limits
        for period, samples, size_limit, label in (
            (HOUR_S, limits.samples_per_hour, limits.bytes_per_hour, "hour"),
            (DAY_S, limits.samples_per_day, limits.bytes_per_day, "day"),
        ):
            if samples is None and size_limit is None:
                continue
            if self._lost_at_s is not None and self._clock - self._lost_at_s < period:
                return f"what was spent in the last {label} is not known: its record was damaged"
            recent = [entry.size for entry in self._spent.values() if self._clock - entry.at_s < period]
            if samples is not None and len(recent) + 1 > samples:
                return f"{samples} samples per {label} are spent"
            if size_limit is not None and sum(recent) + size > size_limit:
                return f"{size_limit} bytes per {label} are spent"
        return None

    def _advance(self) -> None:
        """Moves the budget's clock and forgets what is older than a day."""
        now = self._now()
        self._clock += _elapsed(self._times, now)
        self._times = now
        while self._spent:
            sample, entry = next(iter(self._spent.items()))
            if self._clock - entry.at_s < DAY_S:
                break
            del self._spent[sample]
        if self._lost_at_s is not None and self._clock - self._lost_at_s >= DAY_S:
            self._lost_at_s = None

    def _save(self) -> None:
        """Writes the file. The frame path asks for refusals meanwhile, and must not wait for the disk."""
        with self._writing:
            with self._lock:
                # Copied under the lock, written without it.
                state, self._credited = self._state(), False
            try:
                write_state(self._path, json.dumps(state).encode())
            except OSError as error:
                raise SpoolError(f"{self._path}: {error.strerror}; budgets cannot be kept") from error

    def _state(self) -> dict[str, Any]:
        return {
            "version": _VERSION,
            "clock": self._clock,
            "wall": self._times.wall,
            "monotonic": self._times.monotonic,
            "boot": self._times.boot,
            "spent": [[sample, entry.at_s, entry.size] for sample, entry in self._spent.items()],
            "lost_at": self._lost_at_s,
        }


def _record(state: Any) -> _Record:
    """Raises ValueError, KeyError or TypeError if a value makes no sense."""
    times = Times(float(state["wall"]), float(state["monotonic"]), str(state["boot"]))
    spent = OrderedDict((str(sample), _Spent(float(at), int(size))) for sample, at, size in state["spent"])
    lost_at = state.get("lost_at")
    record = _Record(spent, float(state["clock"]), times, None if lost_at is None else float(lost_at))
    if not all(math.isfinite(value) for value in (times.wall, times.monotonic, record.clock_s)):
        raise ValueError("a clock is not finite")
    moments = [record.lost_at_s or 0.0, *(entry.at_s for entry in spent.values())]
    if not all(0 <= at <= record.clock_s for at in moments):
        raise ValueError("a time is not before the time of writing")
    if any(entry.size < 0 for entry in spent.values()):
        raise ValueError("a size is negative")
    return record


def _elapsed(before: Times, now: Times) -> float:
    """Returns seconds between two readings: monotonic within a boot, else wall time, within [0, one day]."""
    # Monotonic times of two boots cannot be compared.
    if before.boot == now.boot and now.monotonic >= before.monotonic:
        return now.monotonic - before.monotonic
    # A clock that was set back counts as 0, one that was set far ahead as one day.
    return min(max(now.wall - before.wall, 0.0), DAY_S)
