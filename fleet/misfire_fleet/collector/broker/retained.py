"""Clears retained messages that vehicles left in data topics, before they fill the broker's memory.

broker's count of retained messages --far above that after the last clean sweep--> sweep:
    subscribe to the data topics of all vehicles --retained message--> empty retained message, which clears it
    nothing retained for a while --> unsubscribe; the remaining count is that of honest vehicles
Honest vehicles never retain chunks, but Mosquitto cannot forbid it for some topics, and has no quota per
client. The count is Mosquitto's `$SYS/broker/retained messages/count`. A broker without it is swept only at
each connect.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections import Counter

from misfire_fleet.collector.health.metrics import CollectorMetrics
from misfire_runtime.errors import MisfireError
from misfire_runtime.messages import ROOT
from misfire_runtime.mqtt.client import BrokerConfig
from misfire_runtime.mqtt.connection import Arrived, Connection
from misfire_runtime.service.worker import Worker

log = logging.getLogger(__name__)

COUNT = "$SYS/broker/retained messages/count"
_MARGIN = 250
"""A sweep starts at this many retained messages above the count after the last one: 32 MiB of the largest.
Honest vehicles have three (state, desired, reported), so a growing fleet sometimes causes a useless sweep."""
_QUIET_S = 1.0
"""A sweep ends after this time without a retained message."""
_SHOWN_S = 60.0
"""/healthz names the vehicle for this long after the last cleared message."""
_TICK_S = 0.2
_RECONNECT_S = 5.0
_MAX_NAMES = 1_000
"""Bounds memory: an attacker chooses the names in the topics."""


class RetainedSweep:
    """Clears retained messages in its own thread and connection, so that a flood of them delays no offer."""

    def __init__(self, broker: BrokerConfig, *, fleet: str, name: str, metrics: CollectorMetrics) -> None:
        self._broker, self._name, self._metrics = broker, name, metrics
        self._filter = f"{ROOT}/{fleet}/+/data/+/+/+"
        self._count = 0
        self._limit: int | None = None
        self._round: int | None = None
        """Messages cleared since the last subscription; None if not subscribed."""
        self._last_s = self._shown_s = 0.0
        self._seen: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._worker = Worker("retained", self._run, on_failure=metrics.failures.labels("retained").inc)

    @property
    def alive(self) -> bool:
        """Returns False if the thread has died."""
        return self._worker.alive

    @property
    def watching(self) -> bool:
        """Returns True if the last sweep found nothing and the next one waits for a higher count."""
        return self._limit is not None and self._round is None

    def start(self) -> None:
        """Connects in the background and keeps trying."""
        self._worker.start()

    def close(self) -> None:
        """Disconnects."""
        self._worker.close(timeout_s=5.0)

    def problems(self, now: float) -> list[str]:
        """Names the vehicle that left the most messages, until a minute after the last was cleared."""
        with self._lock:
            if not self._seen or now - self._shown_s > _SHOWN_S:
                return []
            vehicle, most = self._seen.most_common(1)[0]
            total = sum(self._seen.values())
        return [
            f"vehicle {vehicle} leaves retained messages in data topics, which fill the broker's memory: "
            f"{most} of {total} that were cleared; revoke its certificate"
        ]

    def _run(self, stop: threading.Event) -> None:
        while not stop.is_set():
            with self._worker.guard():  # an unforeseen message must not end the sweep
                try:
                    self._session(stop)
                except MisfireError as error:
                    fields = {"collector": self._name, "problem": str(error)}
                    log.debug("retained_not_watched", extra={"fields": fields})
            stop.wait(_RECONNECT_S)

    def _session(self, stop: threading.Event) -> None:
        client_id = f"{self._name}-retained-{secrets.token_hex(3)}"
        connection = Connection(self._broker, client_id=client_id, subscriptions=(COUNT,))
        orderly = False
        self._limit = None
        try:
            connection.open()
            self._begin(connection)
            while not stop.is_set():
                connection.poll(_TICK_S, wake=None)
                connection.receipts.clear()
                arrived = connection.inbox.copy()
                connection.inbox.clear()
                for message in arrived:
                    self._take(connection, message)
                self._judge(connection, time.monotonic())
            orderly = True
        finally:
            connection.close(in_order=orderly)

    def _begin(self, connection: Connection) -> None:
        """Starts a sweep by subscribing to all data topics."""
        self._round, self._last_s = 0, time.monotonic()
        # With retain_as_published, messages that arrive from now on keep their retain flag, too.
        connection.subscribe(self._filter, retain_as_published=True)

    def _take(self, connection: Connection, message: Arrived) -> None:
        if message.topic == COUNT:
            self._counted(connection, message.payload)
        elif message.retained and message.payload:
            # QoS 0 needs no acknowledgement, and the next sweep finds what was lost.
            connection.publish(message.topic, b"", qos=0, retain=True)
            self._cleared(message.topic.split("/")[3])

    def _counted(self, connection: Connection, payload: bytes) -> None:
        self._count = int(payload) if payload.isdigit() else 0
        if self._limit is None:
            return  # the first sweep has not ended
        # The limit falls with the count, so that messages cleared by others leave no room for new ones.
        self._limit = min(self._limit, self._count + _MARGIN)
        if self._count > self._limit and self._round is None:
            self._begin(connection)

    def _judge(self, connection: Connection, now: float) -> None:
        """Ends a sweep that found nothing, and repeats one that found something.

        It is repeated because the broker drops retained messages that do not fit into the client's queue.
        """
        if self._round is None or now - self._last_s < _QUIET_S:
            return
        connection.unsubscribe(self._filter)
        if self._round:
            self._begin(connection)
        else:
            self._round, self._limit = None, self._count + _MARGIN

    def _cleared(self, vehicle: str) -> None:
        self._metrics.retained_cleared.inc()
        self._round = (self._round or 0) + 1
        now = time.monotonic()
        with self._lock:
            if now - self._shown_s > _SHOWN_S:
                self._seen.clear()
            if vehicle in self._seen or len(self._seen) < _MAX_NAMES:
                if vehicle not in self._seen:
                    log.warning("retained_messages_cleared", extra={"fields": {"vehicle": vehicle}})
                self._seen[vehicle] += 1
            self._last_s = self._shown_s = now
