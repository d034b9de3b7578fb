"""Caches counts that many pages request and that are expensive to compute."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Recent(Generic[T]):
    """Caches the result of `count` for `max_age_s` seconds.

    The lock is held during a count: other threads wait for its result instead of counting too.
    """

    def __init__(self, count: Callable[[], T], *, max_age_s: float) -> None:
        self._count, self._max_age_s = count, max_age_s
        self._lock = threading.Lock()
        self._kept: tuple[float, T] | None = None

    def __call__(self) -> T:
        """Returns the cached or a new value. Raises what `count` raises; then nothing is cached."""
        with self._lock:
            if self._kept is None or time.monotonic() - self._kept[0] > self._max_age_s:
                # Cleared first: if `count` raises, the outdated value must not be returned later.
                self._kept = None
                value = self._count()
                self._kept = (time.monotonic(), value)
            return self._kept[1]
