"""Verdicts on their way back to the vehicles: merged per vehicle, few at a time in the client's hands.

Any thread `put`s; one thread owns everything else, because the MQTT client calls back while it holds its own
locks. A verdict leaves the outbox when the broker acknowledged it. The outbox is not on disk: what it says is
already in the store, and a vehicle that hears nothing offers again.
"""

from __future__ import annotations

import queue
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from misfire_runtime.messages import Reply, Verdict, encode

MAX_IN_FLIGHT = 8
_MAX_VERDICTS = 100


@dataclass(frozen=True)
class _Put:
    vehicle: str
    verdict: Verdict


@dataclass(frozen=True)
class _Acked:
    ticket: object


@dataclass(frozen=True)
class _Lost:
    """The client that held unacknowledged messages is gone: everything in flight goes out again."""


Publish = Callable[[str, bytes], object | None]
"""(vehicle, reply) -> a ticket that `acknowledged` brings back, or None where nothing can be sent now."""


class Outbox:
    """Starts its thread at once; `close` ends it after what can still be sent was sent."""

    def __init__(self, publish: Publish, *, max_verdicts: int = 50_000) -> None:
        self._publish = publish
        self._max_verdicts = max_verdicts
        self._events: queue.SimpleQueue[_Put | _Acked | _Lost | None] = queue.SimpleQueue()
        self._waiting: OrderedDict[str, OrderedDict[str, Verdict]] = OrderedDict()
        self._count = 0
        self._in_flight: dict[object, tuple[str, list[Verdict]]] = {}
        self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)
        self.dropped = 0
        self._thread.start()

    def put(self, vehicle: str, verdict: Verdict) -> None:
        """Queues a verdict; a later one about the same sample replaces it."""
        self._events.put(_Put(vehicle, verdict))

    def acknowledged(self, ticket: object) -> None:
        """The broker has the message of this ticket."""
        self._events.put(_Acked(ticket))

    def lost(self) -> None:
        """What is in flight was lost with its client."""
        self._events.put(_Lost())

    @property
    def pending(self) -> int:
        """Verdicts not yet acknowledged by the broker, nearly."""
        return self._count + self._events.qsize() + len(self._in_flight)

    def close(self, *, timeout_s: float = 5.0) -> None:
        """Ends the thread once nothing is in flight, at the latest after `timeout_s`."""
        waiting = threading.Event()
        for _ in range(int(timeout_s / 0.02)):
            if self.pending == 0:
                break
            waiting.wait(0.02)
        self._events.put(None)
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while True:
            try:
                event = self._events.get(timeout=0.5)
            except queue.Empty:
                self._send()
                continue
            while event is not None:
                self._handle(event)
                try:
                    event = self._events.get_nowait()
                except queue.Empty:
                    break
            if event is None:
                return
            self._send()

    def _handle(self, event: _Put | _Acked | _Lost) -> None:
        if isinstance(event, _Put):
            self._add(event.vehicle, event.verdict, replace=True)
        elif isinstance(event, _Acked):
            self._in_flight.pop(event.ticket, None)  # a canary's ticket is not ours
        else:
            for vehicle, verdicts in self._in_flight.values():
                for verdict in verdicts:
                    self._add(vehicle, verdict, replace=False)
            self._in_flight.clear()

    def _add(self, vehicle: str, verdict: Verdict, *, replace: bool) -> None:
        mine = self._waiting.setdefault(vehicle, OrderedDict())
        if verdict.id in mine:
            if replace:
                mine[verdict.id] = verdict
        elif self._count >= self._max_verdicts:
            self.dropped += 1
        else:
            mine[verdict.id] = verdict
            self._count += 1

    def _send(self) -> None:
        while self._waiting and len(self._in_flight) < MAX_IN_FLIGHT:
            vehicle, mine = self._waiting.popitem(last=False)
            verdicts = [mine.popitem(last=False)[1] for _ in range(min(_MAX_VERDICTS, len(mine)))]
            if mine:
                self._waiting[vehicle] = mine
            self._count -= len(verdicts)
            if not verdicts:
                continue
            ticket = self._publish(vehicle, encode(Reply(verdicts=verdicts)))
            if ticket is None:
                for verdict in verdicts:
                    self._add(vehicle, verdict, replace=False)
                return
            self._in_flight[ticket] = (vehicle, verdicts)
