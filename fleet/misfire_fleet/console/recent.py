"""Numbers that many pages ask for and that are dear to count: counted at most once in a few seconds."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Recent(Generic[T]):
    """A value that is counted anew when it is older than `max_age_s`, by one thread for all."""

    def __init__(self, count: Callable[[], T], *, max_age_s: float) -> None:
        self._count, self._max_age_s = count, max_age_s
        self._lock = threading.Lock()
        self._kept: tuple[float, T] | None = None

    def __call__(self) -> T:
        """Raises what `count` raises; then nothing is kept."""
        with self._lock:
            if self._kept is None or time.monotonic() - self._kept[0] > self._max_age_s:
                self._kept = None
                value = self._count()
                self._kept = (time.monotonic(), value)
            return self._kept[1]
