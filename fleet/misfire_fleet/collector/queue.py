"""Queues offers: each vehicle's in order, the vehicles in turn.

Before a vehicle's next offer, at most one offer of each other vehicle is answered, however many it sends.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from dataclasses import dataclass


@dataclass(frozen=True)
class Incoming:
    """Holds an offer as received: the vehicle in the topic, the payload, and the time (monotonic seconds)."""

    vehicle: str
    payload: bytes
    arrived_at: float = 0.0


class OfferQueue:
    """Queues offers with a bound per vehicle and one for all. Thread-safe."""

    def __init__(self, *, max_waiting: int, max_per_vehicle: int) -> None:
        self._max_waiting, self._max_per_vehicle = max_waiting, max_per_vehicle
        self._changed = threading.Condition()
        self._of: OrderedDict[str, deque[Incoming]] = OrderedDict()
        self._count = 0
        self._closed = False

    def __len__(self) -> int:
        return self._count

    def put(self, incoming: Incoming) -> bool:
        """Adds an offer; returns False if the queue is full."""
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
        """Waits for an offer and returns up to `limit`, one of each vehicle in turn; empty after `close`."""
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
        """Returns the arrival time of the oldest waiting offer; None if there is none."""
        with self._changed:
            return min((mine[0].arrived_at for mine in self._of.values()), default=None)

    def close(self) -> None:
        """Ends the waiting of `take`. Offers that wait can still be taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
