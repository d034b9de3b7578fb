"""Queues work for threads: each vehicle's in order, the vehicles in turn."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Turns(Generic[T]):
    """Queues work. Thread-safe. It has no bound of its own: the transfers' budget bounds it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._of: OrderedDict[str, deque[T]] = OrderedDict()
        self._closed = False

    def put(self, vehicle: str, work: T) -> None:
        """Adds work after the vehicle's other work."""
        with self._changed:
            self._of.setdefault(vehicle, deque()).append(work)
            self._changed.notify()

    def take(self) -> T | None:
        """Waits for the next work and returns it; None once the queue is closed and empty."""
        with self._changed:
            while not self._of:
                if self._closed:
                    return None
                self._changed.wait()
            vehicle, mine = self._of.popitem(last=False)
            work = mine.popleft()
            if mine:
                self._of[vehicle] = mine
            return work

    def close(self) -> None:
        """Ends the waiting of `take`. Work that waits can still be taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
