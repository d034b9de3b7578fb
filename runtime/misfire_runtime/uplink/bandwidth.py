"""Limits the uplink's rate with a token bucket; the rate comes from a schedule and a metered-link flag.

Bandwidth --rate_at(wall clock)--> TokenBucket --take(bytes, monotonic now)--> now, or wait until

The wall clock only selects a line of the schedule. The bucket is filled by the monotonic clock, so a wall
clock that jumps by years can neither stop the link nor cause a burst.
"""

from __future__ import annotations

import math
from datetime import datetime, tzinfo
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
_DAYS: tuple[Day, ...] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_TIME = r"^([01]\d|2[0-3]):[0-5]\d$"
Rate = Annotated[float, Field(ge=0)]


class Window(BaseModel):
    """A time of day, on some days, with its own rate; `until` before `since` goes past midnight."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    since: Annotated[str, Field(pattern=_TIME)]
    until: Annotated[str, Field(pattern=_TIME)]
    days: tuple[Day, ...] = _DAYS
    bytes_per_s: Rate | None = None
    """None is no limit, 0 is closed."""

    def holds(self, moment: datetime) -> bool:
        """Returns True if a moment is within the window; after midnight, the day before must be in `days`."""
        # As text: with leading zeros, the order of texts is the order of times.
        clock = moment.strftime("%H:%M")
        today, before = _DAYS[moment.weekday()], _DAYS[moment.weekday() - 1]
        if self.since <= self.until:
            return today in self.days and self.since <= clock < self.until
        return (today in self.days and clock >= self.since) or (before in self.days and clock < self.until)


class Bandwidth(BaseModel):
    """Limits of a vehicle's uplink. The first window that holds decides, else `bytes_per_s`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bytes_per_s: Rate | None = None
    """None is no limit, 0 is closed."""
    burst_bytes: Annotated[int, Field(ge=1024, le=1024**3)] = 256 * 1024
    windows: Annotated[tuple[Window, ...], Field(max_length=64)] = ()
    metered: bool = False
    """Whether the link is metered until `set_metered` is called."""
    metered_bytes_per_s: Rate | None = None
    """Upper bound on a metered link."""
    metered_min_priority: Annotated[int, Field(ge=0, le=9)] = 0
    """On a metered link, samples below this priority wait."""

    def rate_at(self, wall: float, *, metered: bool, zone: tzinfo | None = None) -> float:
        """Returns the allowed bytes per second; inf if there is no limit.

        Args:
            wall: seconds since 1970.
            metered: whether the link is metered now.
            zone: time zone of the windows; None uses local time.
        """
        rate = self.bytes_per_s
        if self.windows:
            moment = _moment(wall, zone)
            rate = next((window.bytes_per_s for window in self.windows if window.holds(moment)), rate)
        limits = [
            limit for limit in (rate, self.metered_bytes_per_s if metered else None) if limit is not None
        ]
        return min(limits, default=math.inf)


def _moment(wall: float, zone: tzinfo | None) -> datetime:
    try:
        return datetime.fromtimestamp(wall, zone) if zone else datetime.fromtimestamp(wall).astimezone()
    except (OverflowError, OSError, ValueError):
        # A wall clock outside of the calendar must not stop the uplink: any line of the schedule will do.
        return datetime(1970, 1, 1, tzinfo=zone).astimezone()


class TokenBucket:
    """Limits a rate; tokens are bytes.

    A message larger than the burst passes a full bucket and leaves a debt; otherwise it could never be sent.
    """

    def __init__(self, *, rate: float = math.inf, burst: float = 256 * 1024, now: float = 0.0) -> None:
        self._rate = rate
        self._burst = burst
        # Full at the start, so that the first offers go out at once.
        self._level = burst
        self._at = now

    @property
    def rate(self) -> float:
        """Returns the bytes per second; inf if there is no limit."""
        return self._rate

    def set(self, *, rate: float, burst: float, now: float) -> None:
        """Changes the limits; the current level, or debt, remains."""
        self._fill(now)
        self._rate, self._burst = rate, burst
        self._level = min(self._level, burst)

    def take(self, size: int, now: float) -> bool:
        """Takes `size` bytes if available; returns False otherwise."""
        if math.isinf(self._rate):
            return True
        self._fill(now)
        # At most the burst: a larger message only needs a full bucket.
        if self._level < min(size, self._burst):
            return False
        self._level -= size
        return True

    def ready_at(self, size: int, now: float) -> float:
        """Returns when `take(size)` will succeed: `now` or later, inf if the link is closed."""
        if math.isinf(self._rate):
            return now
        self._fill(now)
        missing = min(size, self._burst) - self._level
        if missing <= 0:
            return now
        return now + missing / self._rate if self._rate > 0 else math.inf

    def _fill(self, now: float) -> None:
        # Callers read the clock before they call, so `now` may be older than the last one.
        elapsed = max(0.0, now - self._at)
        self._at = max(self._at, now)
        if not math.isinf(self._rate):
            self._level = min(self._burst, self._level + elapsed * self._rate)
