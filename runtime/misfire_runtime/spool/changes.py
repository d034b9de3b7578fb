"""Wakes threads when the spool has changed: the uplink, for new offers, and `wait_empty`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

_LOOK_S = 1.0
"""Seconds after which a waiting thread looks again: samples that are quarantined are not announced."""


class Changes:
    """Counts changes, calls listeners, and wakes waiting threads. Thread-safe."""

    def __init__(self) -> None:
        # A lock of its own: a waiting thread must not hold up those that use the database.
        self._changed = threading.Condition()
        self._listeners: list[Callable[[], None]] = []
        self._version = 0

    @property
    def version(self) -> int:
        """Returns a number that increases with every change."""
        return self._version

    def listen(self, callback: Callable[[], None]) -> None:
        """Registers a function to call, on any thread, after a change; it must return at once."""
        self._listeners.append(callback)

    def announce(self) -> None:
        """Announces a change."""
        with self._changed:
            self._version += 1
            self._changed.notify_all()
        for callback in self._listeners:
            callback()

    def wait_until(self, holds: Callable[[], bool], timeout_s: float) -> bool:
        """Waits for a change after which `holds` returns True; returns False after `timeout_s`."""
        until = time.monotonic() + timeout_s
        with self._changed:
            while not holds():
                left = until - time.monotonic()
                if left <= 0:
                    return False
                self._changed.wait(min(left, _LOOK_S))
        return True
