"""Offers that wait to be answered: each vehicle's in order, the vehicles in turn.

So an offer waits for one of each other vehicle at most, however many one of them sends.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from dataclasses import dataclass


@dataclass(frozen=True)
class Incoming:
    """An offer as it came: the topic's vehicle, the bytes, and when (monotonic seconds)."""

    vehicle: str
    payload: bytes
    arrived_at: float = 0.0


class OfferQueue:
    """Thread-safe. Bounded for each vehicle and for all."""

    def __init__(self, *, max_waiting: int, max_per_vehicle: int) -> None:
        self._max_waiting, self._max_per_vehicle = max_waiting, max_per_vehicle
        self._changed = threading.Condition()
        self._of: OrderedDict[str, deque[Incoming]] = OrderedDict()
        self._count = 0
        self._closed = False

    def __len__(self) -> int:
        return self._count

    def put(self, incoming: Incoming) -> bool:
        """False if there is no room for it."""
        with self._changed:
            mine = self._of.get(incoming.vehicle)
            if self._count >= self._max_waiting or (mine and len(mine) >= self._max_per_vehicle):
                return False
            if mine is None:
                mine = self._of[incoming.vehicle] = deque()
            mine.append(incoming)
            self._count += 1
            self._changed.notify()
            return True

    def take(self, limit: int) -> list[Incoming]:
        """Up to `limit` offers, one of each vehicle in turn; waits for the first. Empty at the end."""
        taken: list[Incoming] = []
        with self._changed:
            while not self._of and not self._closed:
                self._changed.wait()
            while self._of and len(taken) < limit:
                vehicle, mine = self._of.popitem(last=False)
                taken.append(mine.popleft())
                if mine:
                    self._of[vehicle] = mine
            self._count -= len(taken)
        return taken

    def oldest_at(self) -> float | None:
        """When the offer that has waited longest arrived; None if none waits."""
        with self._changed:
            return min((mine[0].arrived_at for mine in self._of.values()), default=None)

    def close(self) -> None:
        """What waits can still be taken; then `take` returns nothing."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
