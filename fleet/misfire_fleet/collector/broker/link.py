"""Connects the collector to the broker, and tests that a granted subscription delivers.

connect -> subscribe -> canary offer -> (some collector echoes it on our data topic) -> ready
A missing canary has two causes. The broker grants shared subscriptions without serving them: then a plain
subscription is tried. Or the connection only looks alive: then the link reconnects. Sessions are clean: a
dead member of a shared group with a persistent session would keep receiving its share of the offers.

One thread reads, writes and waits. Handlers run on it, so they must return at once.
"""

from __future__ import annotations

import json
import logging
import random
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from misfire_fleet.collector.broker.outbox import Outbox
from misfire_fleet.collector.settings import CollectorSettings
from misfire_fleet.errors import CollectorError
from misfire_runtime.errors import MessageError, MisfireError
from misfire_runtime.messages import MIN_CHUNK_BYTES, ROOT, Topics
from misfire_runtime.mqtt.backoff import full_jitter
from misfire_runtime.mqtt.client import BrokerConfig
from misfire_runtime.mqtt.connection import Arrived, Connection, LinkError
from misfire_runtime.mqtt.waking import Waking
from misfire_runtime.service.worker import Worker

log = logging.getLogger(__name__)

CANARY = "_canary"
"""The vehicle name of canary offers; no vehicle may use it."""
_MAX_CANARY_BYTES = 512
"""A canary has two short fields; anybody can publish under its topic, so longer payloads are not parsed."""
_TOPIC_ROOM = 512
"""Bytes of a packet that are not payload: the MQTT header and a topic of three names and a hash."""
# Bounds how late the timers are; messages and new verdicts end the wait at once.
_TICK_S = 0.2
_RECONNECT_S, _RECONNECT_MAX_S = 1.0, 30.0


@dataclass(frozen=True)
class Handlers:
    """Holds the functions that receive messages. The link's thread calls them: they must return at once."""

    chunk: Callable[[str, str, int, bytes], None]
    offer: Callable[[str, bytes], None]
    state: Callable[[str, bytes], None]
    telemetry: Callable[[str, bytes], None]
    malformed: Callable[[str], None]


class Link:
    """Keeps a connection to the broker: reconnects, subscribes, and sends canaries.

    Args:
        broker: address and credentials.
        fleet: name of the fleet, part of all topics.
        name: name of the collector, part of its data topic; unique among running collectors.
        settings: timers, and the group of the shared subscription.
    """

    def __init__(self, broker: BrokerConfig, *, fleet: str, name: str, settings: CollectorSettings) -> None:
        Topics(fleet, name)  # raises if one of the names cannot be part of a topic
        self._broker, self._fleet, self._name = broker, fleet, name
        self._settings = settings
        self._handlers: Handlers
        self._waking = Waking()
        self.outbox = Outbox(self._waking.wake)
        self._canary = _Canary(settings)
        self._stop = threading.Event()
        self._draining = threading.Event()
        self._failures = 0
        self._restated_at = 0.0
        self._worker = Worker("link", self._run, stop=self._stop, wake=self._waking.wake)
        self.shared = settings.shared != "never"
        self.ready = threading.Event()
        self.packet_limit: int | None = None
        self.stalls = 0
        self.connects = 0

    @property
    def alive(self) -> bool:
        """Returns False if the thread has died."""
        return self._worker.alive

    @property
    def canaries(self) -> int:
        """Returns the number of canaries that came back."""
        return self._canary.home

    def start(self, handlers: Handlers) -> None:
        """Connects in the background and keeps trying; messages go to `handlers`."""
        self._handlers = handlers
        self._worker.start()

    def stop_offers(self) -> None:
        """Unsubscribes from offers; chunks still arrive."""
        self._draining.set()
        self._waking.wake()

    def close(self) -> None:
        """Disconnects and ends the thread."""
        self._worker.close(timeout_s=10.0)
        self._waking.close()

    def publish(self, connection: Connection, vehicle: str, reply: bytes) -> int:
        """Publishes a reply at QoS 1; returns the ticket of the broker's acknowledgement."""
        return connection.publish(Topics(self._fleet, vehicle).reply, reply)

    def _run(self, stop: threading.Event) -> None:
        while not stop.is_set():
            with self._worker.guard():  # an unforeseen message must not end the collector
                try:
                    self._session()
                except MisfireError as error:
                    fields = {"collector": self._name, "problem": str(error)}
                    log.warning("broker_lost", extra={"fields": fields})
            wait_s = full_jitter(
                self._failures, base_s=_RECONNECT_S, cap_s=_RECONNECT_MAX_S, rng=random.Random()
            )
            self._failures += 1
            stop.wait(wait_s)

    def _session(self) -> None:
        base = f"{ROOT}/{self._fleet}/+"
        connection = Connection(
            self._broker,
            # A new id for each connection: with the old one the broker would first end the old connection.
            client_id=f"{self._name}-{self.connects}-{secrets.token_hex(3)}",
            subscriptions=(f"{base}/data/{self._name}/#", f"{base}/state"),
        )
        orderly = False
        try:
            connection.open()
            self.connects += 1
            self.packet_limit = connection.packet_limit
            self.shared = self._settings.shared != "never"
            self._canary.reset()
            self._restated_at = time.monotonic()
            offers = self._subscribe_offers(connection)
            while not self._stop.is_set():
                if offers and self._draining.is_set():
                    connection.unsubscribe(*offers)
                    offers = ()
                self._step(connection)
                self._watch(connection)
            orderly = True
        finally:
            self.ready.clear()
            connection.close(in_order=orderly)
            # After the close: from here on no acknowledgement can come, so what is in flight is sent again.
            self.outbox.lost()

    def _step(self, connection: Connection) -> None:
        self.outbox.send(lambda vehicle, reply: self.publish(connection, vehicle, reply))
        connection.poll(_TICK_S, wake=self._waking.handle)
        self._waking.clear()
        for receipt in connection.receipts:
            self.outbox.acknowledged(receipt.mid)
        connection.receipts.clear()
        arrived = connection.inbox.copy()
        connection.inbox.clear()
        for message in arrived:
            self._take(connection, message)

    def _subscribe_offers(self, connection: Connection) -> tuple[str, ...]:
        if self._draining.is_set():
            return ()
        topics = self._offer_topics()
        connection.subscribe(*topics)
        self._fly(connection)
        return topics

    def _offer_topics(self) -> tuple[str, ...]:
        prefix = f"$share/{self._settings.group}/" if self.shared else ""
        return tuple(f"{prefix}{ROOT}/{self._fleet}/+/{kind}" for kind in ("telemetry", "offer"))

    def _take(self, connection: Connection, message: Arrived) -> None:
        parts = message.topic.split("/")
        # Only states are retained on purpose: a retained offer or chunk would come back at each connect.
        if len(parts) < 5 or (message.retained and parts[4] != "state"):
            self._handlers.malformed("topic")
            return
        vehicle, kind, payload = parts[3], parts[4], message.payload
        if kind == "data":
            self._on_data(vehicle, parts, payload)
        elif kind == "offer":
            if vehicle == CANARY:
                self._echo(connection, payload)
            else:
                self._handlers.offer(vehicle, payload)
        elif kind == "state":
            self._handlers.state(vehicle, payload)
        elif kind == "telemetry":
            self._handlers.telemetry(vehicle, payload)

    def _on_data(self, vehicle: str, parts: list[str], payload: bytes) -> None:
        # isascii: isdigit accepts superscripts, on which int() raises. 12 digits exceed every sample's size.
        if len(parts) != 8 or not (parts[7].isascii() and parts[7].isdigit() and len(parts[7]) <= 12):
            self._handlers.malformed("data")
        elif vehicle != CANARY:
            self._handlers.chunk(vehicle, parts[6], int(parts[7]), payload)
        elif self._canary.back(payload, time.monotonic()):
            # Only a canary proves that the link works: without one, the waits must keep growing.
            self._failures = 0
            if not self.ready.is_set():
                kind = "shared" if self.shared else "plain"
                fields = {"collector": self._name, "subscription": kind}
                log.info("collector_ready", extra={"fields": fields})
            self.ready.set()

    def _fly(self, connection: Connection) -> None:
        flight = {"collector": self._name, "nonce": self._canary.fly(time.monotonic())}
        connection.publish(f"{ROOT}/{self._fleet}/{CANARY}/offer", json.dumps(flight).encode())

    def _echo(self, connection: Connection, payload: bytes) -> None:
        """Returns a canary, of this or another collector, to the data topic of its sender."""
        try:
            if len(payload) > _MAX_CANARY_BYTES:
                raise ValueError("too long")
            flight = json.loads(payload)
            collector = Topics(self._fleet, str(flight["collector"])).base.rsplit("/", 1)[1]
            nonce = str(flight["nonce"])
        except (MessageError, ValueError, KeyError, TypeError, RecursionError):
            self._handlers.malformed("canary")
            return
        connection.publish(Topics(self._fleet, CANARY).data(collector, "canary", 0), nonce.encode())

    def _watch(self, connection: Connection) -> None:
        """Sends the next canary if it is due, and reacts to one that is overdue."""
        if self._draining.is_set():
            return
        now = time.monotonic()
        if now - self._restated_at > self._settings.restate_s:
            # Subscribing again makes the broker send all retained states. This corrects the state of a
            # vehicle whose last will was lost.
            self._restated_at = now
            connection.subscribe(f"{ROOT}/{self._fleet}/+/state")
        if self._canary.due(now):
            self._fly(connection)
        elif self._canary.overdue(now):
            self._canary_failed(connection)

    def _canary_failed(self, connection: Connection) -> None:
        failed = self._canary.missing()
        # A link that worked before has a dead connection; shared subscriptions do not stop being served.
        if self.ready.is_set() or failed > 2 or not self.shared:
            self.stalls += 1
            raise LinkError("it accepts messages but delivers none")
        if self._settings.shared == "auto":
            # The broker grants shared subscriptions but does not deliver to them.
            fields = {"collector": self._name, "effect": "run only one collector with this broker"}
            log.warning("shared_subscription_not_served", extra={"fields": fields})
            connection.unsubscribe(*self._offer_topics())
            self.shared = False
            self._subscribe_offers(connection)
        else:
            log.error("canary_lost", extra={"fields": {"collector": self._name}})
            self._fly(connection)


class _Canary:
    """Tracks whether the current canary is under way, back, or missing."""

    def __init__(self, settings: CollectorSettings) -> None:
        self._settings = settings
        self.home = 0
        self.reset()

    def reset(self) -> None:
        """Forgets the canaries of the previous connection."""
        self._nonce = ""
        self._flown_at: float | None = None
        self._last_back: float | None = None
        self._failed = 0

    def fly(self, now: float) -> str:
        """Starts a canary and returns its nonce."""
        self._nonce, self._flown_at = secrets.token_hex(8), now
        return self._nonce

    def back(self, payload: bytes, now: float) -> bool:
        """Returns True, and counts it, if the payload is the nonce of the last canary."""
        if not self._nonce or payload != self._nonce.encode():
            return False
        self.home += 1
        self._flown_at, self._last_back, self._failed = None, now, 0
        return True

    def due(self, now: float) -> bool:
        """Returns True if no canary is under way and the last one came back long enough ago."""
        well = self._flown_at is None and self._last_back is not None
        return well and now - (self._last_back or 0.0) > self._settings.watchdog_s

    def overdue(self, now: float) -> bool:
        """Returns True if the canary under way should be back by now."""
        return self._flown_at is not None and now - self._flown_at >= self._settings.canary_s

    def missing(self) -> int:
        """Gives up the canary; returns the number of canaries missing in a row."""
        self._flown_at = None
        self._failed += 1
        return self._failed


def chunk_bytes(packet_limit: int | None, largest: int) -> int:
    """Returns the chunk size that fits into the broker's packets.

    Args:
        packet_limit: maximum packet size in bytes, None if the broker announced none.
        largest: upper bound in bytes.

    Raises:
        CollectorError: not even the smallest chunk fits.
    """
    if packet_limit is None:
        return largest
    room = packet_limit - _TOPIC_ROOM
    if room < MIN_CHUNK_BYTES:
        raise CollectorError(f"the broker allows packets of {packet_limit} bytes; at least 2 KiB are needed")
    return min(largest, room)
