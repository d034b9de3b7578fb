"""Verdicts on their way back to the vehicles: merged per vehicle, few at a time in the client's hands.

Any thread `put`s; the rest belongs to the thread of the link, which calls `send` and brings acknowledgements.
A vehicle has one reply under way at a time: what comes up meanwhile goes together in the next one. A verdict
leaves the outbox when the broker acknowledged it. The outbox is not on disk: what it says is already in the
store, and a vehicle that hears nothing offers again.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable

from misfire_runtime.messages import Reply, Verdict, encode

MAX_IN_FLIGHT = 8
_MAX_VERDICTS = 100

Publish = Callable[[str, bytes], int]
"""(vehicle, reply) -> a ticket that `acknowledged` brings back."""


class Outbox:
    """`wake` is called after every `put`: whoever calls `send` then does so soon."""

    def __init__(
        self, wake: Callable[[], None], *, max_verdicts: int = 50_000, max_per_vehicle: int = 2_000
    ) -> None:
        self._wake = wake
        self._max_per_vehicle = max_per_vehicle
        self._max_verdicts = max_verdicts
        self._new: deque[tuple[str, Verdict]] = deque()
        self._waiting: OrderedDict[str, OrderedDict[str, Verdict]] = OrderedDict()
        self._count = 0
        self._in_flight: dict[int, tuple[str, list[Verdict]]] = {}
        self.dropped = 0

    def put(self, vehicle: str, verdict: Verdict) -> None:
        """Queues a verdict; a later one about the same sample replaces it."""
        self._new.append((vehicle, verdict))
        self._wake()

    @property
    def pending(self) -> int:
        """Verdicts not yet acknowledged by the broker, nearly."""
        return self._count + len(self._new) + len(self._in_flight)

    def wait_empty(self, *, timeout_s: float = 5.0) -> bool:
        """Waits until nothing is pending; False after `timeout_s`."""
        waiting = threading.Event()
        for _ in range(int(timeout_s / 0.02)):
            if self.pending == 0:
                return True
            waiting.wait(0.02)
        return self.pending == 0

    def send(self, publish: Publish) -> None:
        """Hands over what may go now."""
        while self._new:
            self._add(*self._new.popleft(), replace=True)
        while len(self._in_flight) < MAX_IN_FLIGHT:
            busy = {vehicle for vehicle, _ in self._in_flight.values()}
            vehicle = next((name for name in self._waiting if name not in busy), None)
            if vehicle is None:
                return
            mine = self._waiting.pop(vehicle)
            verdicts = [mine.popitem(last=False)[1] for _ in range(min(_MAX_VERDICTS, len(mine)))]
            if mine:
                self._waiting[vehicle] = mine
            self._count -= len(verdicts)
            ticket = publish(vehicle, encode(Reply(verdicts=verdicts)))
            self._in_flight[ticket] = (vehicle, verdicts)

    def acknowledged(self, ticket: int) -> None:
        """The broker has the message of this ticket; one that is not the outbox's is ignored."""
        self._in_flight.pop(ticket, None)

    def lost(self) -> None:
        """The connection is gone: everything in flight goes out again."""
        for vehicle, verdicts in self._in_flight.values():
            for verdict in verdicts:
                self._add(vehicle, verdict, replace=False)
        self._in_flight.clear()

    def _add(self, vehicle: str, verdict: Verdict, *, replace: bool) -> None:
        mine = self._waiting.setdefault(vehicle, OrderedDict())
        if verdict.id in mine:
            if replace:
                mine[verdict.id] = verdict
        elif self._count >= self._max_verdicts or len(mine) >= self._max_per_vehicle:
            self.dropped += 1
            if not mine:
                del self._waiting[vehicle]
        else:
            mine[verdict.id] = verdict
            self._count += 1
