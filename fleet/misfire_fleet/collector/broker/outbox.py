"""Queues verdicts for the vehicles, merges them per vehicle, and limits the replies in flight.

Any thread may call `put`. The link's thread calls everything else: `send`, and `acknowledged` with the
broker's acknowledgements. A vehicle has at most one reply in flight; later verdicts go together into the next
one. A verdict leaves the outbox when the broker has acknowledged it. The outbox is not on disk: its verdicts
are already in the store, and a vehicle without an answer offers again.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable

from misfire_runtime.messages import Reply, Verdict, encode

MAX_IN_FLIGHT = 8
"""Replies without an acknowledgement. Verdicts that come meanwhile merge into fewer replies."""
_MAX_VERDICTS = 100
"""Verdicts per reply, so that a reply stays below the protocol's 64 KiB for JSON."""

Publish = Callable[[str, bytes], int]
"""(vehicle, reply) -> ticket, which is later passed to `acknowledged`."""


class Outbox:
    """Holds verdicts until the broker has acknowledged them.

    Args:
        wake: called after every `put`, so that the link's thread soon calls `send`.
        max_verdicts: waiting verdicts of all vehicles; more are dropped and counted.
        max_per_vehicle: the same for one vehicle.
    """

    def __init__(
        self, wake: Callable[[], None], *, max_verdicts: int = 50_000, max_per_vehicle: int = 2_000
    ) -> None:
        self._wake = wake
        self._max_per_vehicle = max_per_vehicle
        self._max_verdicts = max_verdicts
        # Any thread appends, the link's thread empties: a deque allows that without a lock.
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
        """Returns about the number of verdicts not yet acknowledged; a reply in flight counts as one."""
        return self._count + len(self._new) + len(self._in_flight)

    def wait_empty(self, *, timeout_s: float = 5.0) -> bool:
        """Waits until nothing is pending; returns False after `timeout_s`."""
        waiting = threading.Event()
        for _ in range(int(timeout_s / 0.02)):
            if self.pending == 0:
                return True
            waiting.wait(0.02)
        return self.pending == 0

    def send(self, publish: Publish) -> None:
        """Publishes replies until MAX_IN_FLIGHT are unacknowledged or no vehicle without one has verdicts."""
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
        """Marks the reply of a ticket as delivered. Tickets of other messages are ignored."""
        self._in_flight.pop(ticket, None)

    def lost(self) -> None:
        """Requeues everything in flight, because the connection is lost."""
        for vehicle, verdicts in self._in_flight.values():
            for verdict in verdicts:
                # A newer verdict about the same sample may have been queued meanwhile; it stays.
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
