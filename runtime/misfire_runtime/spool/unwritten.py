"""Holds counters in memory until the next commit: a commit per frame would sync the disk for each one.

count, lose -> `due` after seconds -> write, in a transaction -> written, once it is committed
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping

from misfire_runtime.errors import SpoolError
from misfire_runtime.messages import MAX_KEY
from misfire_runtime.spool.ledger import Ledger

FREE_COUNTERS = ("frames", "frames_dropped", "frames_unreadable", "bytes_sent")
"""The counters that do not follow from samples, so that others may add to them."""
_FLUSH_S = 2.0
"""Seconds that counters may stay in memory, and are lost in a crash."""
_MAX_LOST_REASONS = 32
"""Bounds a heartbeat's size: it contains the count of every reason."""


class UnwrittenCounters:
    """Adds to counters in memory. Not thread-safe: the spool calls it under its lock."""

    def __init__(self) -> None:
        self._increments: dict[str, int] = {}
        self._lost: Counter[str] = Counter()
        self._lost_unwritten: Counter[str] = Counter()
        self._tried_at = time.monotonic()

    @property
    def lost(self) -> dict[str, int]:
        """Returns the number of lost frames by reason, with those that are written."""
        return dict(self._lost)

    def restore_lost(self, lost: Mapping[str, int]) -> None:
        """Sets the lost frames to those that are written."""
        self._lost = Counter(lost)

    def count(self, increments: Mapping[str, int]) -> None:
        """Adds to counters. Raises SpoolError if a name is not in FREE_COUNTERS."""
        for name, value in increments.items():
            if name not in FREE_COUNTERS:
                raise SpoolError(
                    f"counter {name!r} cannot be set from outside; allowed: {', '.join(FREE_COUNTERS)}"
                )
            self._increments[name] = self._increments.get(name, 0) + value

    def lose(self, reason: str, samples: int) -> None:
        """Counts lost frames; reasons beyond a maximum number are counted as `other`."""
        known = reason in self._lost or len(self._lost) < _MAX_LOST_REASONS - 1
        name = reason[:MAX_KEY] if known else "other"
        self._lost[name] += samples
        self._lost_unwritten[name] += samples

    def added_to(self, written: Mapping[str, int]) -> dict[str, int]:
        """Returns the written counters plus those in memory."""
        return {**written, **{name: written.get(name, 0) + n for name, n in self._increments.items()}}

    @property
    def any(self) -> bool:
        """Returns True if there is something to write."""
        return bool(self._increments or self._lost_unwritten)

    @property
    def due(self) -> bool:
        """Returns True if the last attempt to write was seconds ago."""
        return time.monotonic() - self._tried_at > _FLUSH_S

    def tried(self) -> None:
        """Notes an attempt to write: on a full disk, each frame would try again otherwise."""
        self._tried_at = time.monotonic()

    def write(self, ledger: Ledger) -> None:
        """Writes the counters in the running transaction."""
        if self._increments:
            ledger.increase(self._increments)
        if self._lost_unwritten:
            ledger.lose(self._lost_unwritten)

    def written(self) -> None:
        """Forgets what was written; called after the commit, because a failed one keeps it for the next."""
        self._increments, self._lost_unwritten = {}, Counter()
        self.tried()
