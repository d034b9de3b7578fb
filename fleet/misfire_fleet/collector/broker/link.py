"""The collector's connection to the broker, which does not believe that a granted subscription delivers.

connect -> subscribe -> canary offer -> (some collector echoes it on our data topic) -> ready
A canary that does not come back means a broker that grants shared subscriptions without serving them (then
a plain subscription is tried) or a connection that only looks alive (then it is made anew). Sessions are
clean: a dead persistent member of a shared group would keep swallowing its share.

One thread reads, writes and waits; what it hands out must return at once.
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
"""The vehicle name that canaries fly under; no vehicle may use it."""
_MAX_CANARY_BYTES = 512
_TOPIC_ROOM = 512
_TICK_S = 0.2
_RECONNECT_S, _RECONNECT_MAX_S = 1.0, 30.0


@dataclass(frozen=True)
class Handlers:
    """Called on the link's thread: they must return at once."""

    chunk: Callable[[str, str, int, bytes], None]
    offer: Callable[[str, bytes], None]
    state: Callable[[str, bytes], None]
    telemetry: Callable[[str, bytes], None]
    malformed: Callable[[str], None]


class Link:
    """One connection after the other, each with its subscriptions and its canary."""

    def __init__(self, broker: BrokerConfig, *, fleet: str, name: str, settings: CollectorSettings) -> None:
        Topics(fleet, name)
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
        """False where the thread died."""
        return self._worker.alive

    @property
    def canaries(self) -> int:
        """How many came home."""
        return self._canary.home

    def start(self, handlers: Handlers) -> None:
        """Connects in the background and keeps trying; what arrives goes to the handlers."""
        self._handlers = handlers
        self._worker.start()

    def stop_offers(self) -> None:
        """No new offers come here from now on; chunks still do."""
        self._draining.set()
        self._waking.wake()

    def close(self) -> None:
        """Disconnects in order."""
        self._worker.close(timeout_s=10.0)
        self._waking.close()

    def publish(self, connection: Connection, vehicle: str, reply: bytes) -> int:
        """Sends a reply at QoS 1; the ticket comes back to the outbox when the broker has it."""
        return connection.publish(Topics(self._fleet, vehicle).reply, reply)

    def _run(self, stop: threading.Event) -> None:
        while not stop.is_set():
            with self._worker.guard():  # a message that nobody foresaw must not end the collector
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
        if len(parts) != 8 or not (parts[7].isascii() and parts[7].isdigit() and len(parts[7]) <= 12):
            self._handlers.malformed("data")
        elif vehicle != CANARY:
            self._handlers.chunk(vehicle, parts[6], int(parts[7]), payload)
        elif self._canary.back(payload, time.monotonic()):
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
        """Any collector's canary, ours or another's, goes home by the data topic of who sent it."""
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
        """Judges the canary: fall back, connect anew, or fly the next one."""
        if self._draining.is_set():
            return
        now = time.monotonic()
        if now - self._restated_at > self._settings.restate_s:
            # The broker answers with the retained states: a vehicle's death that was lost is made good.
            self._restated_at = now
            connection.subscribe(f"{ROOT}/{self._fleet}/+/state")
        if self._canary.due(now):
            self._fly(connection)
        elif self._canary.overdue(now):
            self._canary_failed(connection)

    def _canary_failed(self, connection: Connection) -> None:
        failed = self._canary.missing()
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
    """Whether the present canary is on its way, home, or missing."""

    def __init__(self, settings: CollectorSettings) -> None:
        self._settings = settings
        self.home = 0
        self.reset()

    def reset(self) -> None:
        """A new connection: no canary flies, none has come back."""
        self._nonce = ""
        self._flown_at: float | None = None
        self._last_back: float | None = None
        self._failed = 0

    def fly(self, now: float) -> str:
        """What the next one carries."""
        self._nonce, self._flown_at = secrets.token_hex(8), now
        return self._nonce

    def back(self, payload: bytes, now: float) -> bool:
        """True where this is the one that flew last."""
        if not self._nonce or payload != self._nonce.encode():
            return False
        self.home += 1
        self._flown_at, self._last_back, self._failed = None, now, 0
        return True

    def due(self, now: float) -> bool:
        """True where all is well and the next one should fly."""
        well = self._flown_at is None and self._last_back is not None
        return well and now - (self._last_back or 0.0) > self._settings.watchdog_s

    def overdue(self, now: float) -> bool:
        """True where it should be home by now."""
        return self._flown_at is not None and now - self._flown_at >= self._settings.canary_s

    def missing(self) -> int:
        """Gives it up; how many in a row that makes."""
        self._flown_at = None
        self._failed += 1
        return self._failed


def chunk_bytes(packet_limit: int | None, largest: int) -> int:
    """The chunk that fits a packet of the broker. Raises CollectorError where none does."""
    if packet_limit is None:
        return largest
    room = packet_limit - _TOPIC_ROOM
    if room < MIN_CHUNK_BYTES:
        raise CollectorError(f"the broker allows packets of {packet_limit} bytes; at least 2 KiB are needed")
    return min(largest, room)
