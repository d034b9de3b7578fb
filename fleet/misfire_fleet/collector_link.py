"""The collector's connection to the broker, which does not believe that a granted subscription delivers.

connect -> subscribe -> canary offer -> (some collector echoes it on our data topic) -> ready
A canary that does not come back means a broker that grants shared subscriptions without serving them (then
a plain subscription is tried) or a connection that only looks alive (then it is made anew). Sessions are
clean: a dead persistent member of a shared group would keep swallowing its share.
"""

from __future__ import annotations

import json
import logging
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import paho.mqtt.client as paho

from misfire_fleet.collector_settings import CollectorSettings
from misfire_fleet.errors import CollectorError
from misfire_runtime.errors import MessageError
from misfire_runtime.messages import ROOT, Topics
from misfire_runtime.uplink import BrokerConfig, make_client

log = logging.getLogger(__name__)

CANARY = "_canary"
"""The vehicle name that canaries fly under; no vehicle may use it."""
GROUP = "collectors"
_MAX_CANARY_BYTES = 512
_TOPIC_ROOM = 512


@dataclass(frozen=True)
class Handlers:
    """Called on the network thread: they must return at once."""

    chunk: Callable[[str, str, int, bytes], None]
    offer: Callable[[str, bytes], None]
    state: Callable[[str, bytes], None]
    telemetry: Callable[[str, bytes], None]
    acknowledged: Callable[[object], None]
    lost: Callable[[], None]
    malformed: Callable[[str], None]


class Link:
    """One client with its subscriptions; `tick` must be called a few times per second."""

    def __init__(
        self, broker: BrokerConfig, *, fleet: str, name: str, settings: CollectorSettings, handlers: Handlers
    ) -> None:
        Topics(fleet, name)
        self._broker, self._fleet, self._name = broker, fleet, name
        self._settings, self._handlers = settings, handlers
        self._lock = threading.Lock()
        self._client: paho.Client | None = None
        self._epoch = 0
        self._nonce = ""
        self._flown_at: float | None = None
        self._failed = 0
        self._last_back = 0.0
        self._restated_at = 0.0
        self._draining = False
        self.shared = settings.shared != "never"
        self.ready = threading.Event()
        self.packet_limit: int | None = None
        self.stalls = 0
        self.connects = 0
        self.canaries = 0

    def start(self) -> None:
        """Connects in the background and keeps trying."""
        self._open()

    def stop_offers(self) -> None:
        """No new offers come here from now on; chunks still do."""
        self._draining = True
        client = self._client
        if client is not None:
            for topic in self._offer_topics():
                client.unsubscribe(topic)

    def close(self) -> None:
        """Disconnects in order."""
        self._drop(self._client)
        self._client = None

    def publish(self, vehicle: str, reply: bytes) -> object | None:
        """Sends a reply at QoS 1; the ticket comes back through `Handlers.acknowledged`."""
        client, epoch = self._client, self._epoch
        if client is None or not client.is_connected():
            return None
        info = client.publish(Topics(self._fleet, vehicle).reply, reply, qos=1)
        return (epoch, info.mid)

    def tick(self, now: float) -> None:
        """Judges the canary: fall back, connect anew, or fly the next one."""
        client = self._client
        if client is None or not client.is_connected() or self._draining:
            return
        if now - self._restated_at > self._settings.restate_s:
            self._subscribe_states(client, now)
        if self._flown_at is None:
            if self.ready.is_set() and now - self._last_back > self._settings.watchdog_s:
                self._fly(client)
            return
        if now - self._flown_at < self._settings.canary_s:
            return
        self._canary_failed(client)

    def _open(self) -> None:
        self._epoch += 1
        client = make_client(self._broker, client_id=f"{self._name}-{self._epoch}-{secrets.token_hex(3)}")
        client.user_data_set(self._epoch)
        client.reconnect_delay_set(1, 30)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        client.connect_async(self._broker.host, self._broker.port, keepalive=self._broker.keepalive_s)
        self._client = client
        client.loop_start()

    def _drop(self, client: paho.Client | None) -> None:
        if client is not None:
            client.disconnect()
            client.loop_stop()

    def _on_connect(self, client: paho.Client, _data: Any, _flags: Any, reason: Any, properties: Any) -> None:
        if reason.is_failure:
            log.error("broker refuses the collector: %s", reason)
            return
        self.connects += 1
        self.packet_limit = getattr(properties, "MaximumPacketSize", None)
        base = f"{ROOT}/{self._fleet}/+"
        client.subscribe(f"{base}/data/{self._name}/#", qos=1)
        self._subscribe_states(client, time.monotonic())
        self.shared = self._settings.shared != "never"
        self._failed = 0
        self._subscribe_offers(client)

    def _subscribe_states(self, client: paho.Client, now: float) -> None:
        """Has the broker send the retained states of all vehicles: a death that was lost is made good."""
        self._restated_at = now
        client.subscribe(f"{ROOT}/{self._fleet}/+/state", qos=1)

    def _subscribe_offers(self, client: paho.Client) -> None:
        if not self._draining:
            for topic in self._offer_topics():
                client.subscribe(topic, qos=1)
            self._fly(client)

    def _offer_topics(self) -> list[str]:
        prefix = f"$share/{GROUP}/" if self.shared else ""
        return [f"{prefix}{ROOT}/{self._fleet}/+/{kind}" for kind in ("telemetry", "offer")]

    def _on_subscribe(
        self, _client: paho.Client, _data: Any, _mid: int, reasons: Any, _properties: Any
    ) -> None:
        for reason in reasons:
            if reason.is_failure:
                log.error("broker refuses a subscription of collector %s: %s", self._name, reason)

    def _on_disconnect(
        self, _client: paho.Client, _data: Any, _flags: Any, reason: Any, _properties: Any
    ) -> None:
        self.ready.clear()
        with self._lock:
            self._flown_at = None
        if reason.is_failure:
            log.warning("collector %s lost its broker (%s); connecting again", self._name, reason)

    def _on_publish(self, _client: paho.Client, epoch: Any, mid: int, _reason: Any, _properties: Any) -> None:
        self._handlers.acknowledged((epoch, mid))

    def _on_message(self, client: paho.Client, _data: Any, message: paho.MQTTMessage) -> None:
        try:
            parts = message.topic.split("/")
        except UnicodeDecodeError:
            self._handlers.malformed("topic")
            return
        if len(parts) < 5 or (message.retain and parts[4] != "state"):
            self._handlers.malformed("topic")
            return
        vehicle, kind, payload = parts[3], parts[4], bytes(message.payload)
        if kind == "data":
            self._on_data(vehicle, parts, payload)
        elif kind == "offer":
            if vehicle == CANARY:
                self._echo(client, payload)
            else:
                self._handlers.offer(vehicle, payload)
        elif kind == "state":
            self._handlers.state(vehicle, payload)
        elif kind == "telemetry":
            self._handlers.telemetry(vehicle, payload)

    def _on_data(self, vehicle: str, parts: list[str], payload: bytes) -> None:
        if len(parts) != 8 or not (parts[7].isascii() and parts[7].isdigit() and len(parts[7]) <= 12):
            self._handlers.malformed("data")
        elif vehicle == CANARY:
            self._canary_back(payload)
        else:
            self._handlers.chunk(vehicle, parts[6], int(parts[7]), payload)

    def _fly(self, client: paho.Client) -> None:
        with self._lock:
            self._nonce = secrets.token_hex(8)
            self._flown_at = time.monotonic()
        flight = json.dumps({"collector": self._name, "nonce": self._nonce})
        client.publish(f"{ROOT}/{self._fleet}/{CANARY}/offer", flight, qos=1)

    def _echo(self, client: paho.Client, payload: bytes) -> None:
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
        client.publish(Topics(self._fleet, CANARY).data(collector, "canary", 0), nonce, qos=1)

    def _canary_back(self, payload: bytes) -> None:
        with self._lock:
            if payload != self._nonce.encode():
                return
            self.canaries += 1
            self._flown_at, self._last_back, self._failed = None, time.monotonic(), 0
        if not self.ready.is_set():
            log.info(
                "collector %s is ready (%s subscription)", self._name, "shared" if self.shared else "plain"
            )
        self.ready.set()

    def _canary_failed(self, client: paho.Client) -> None:
        self._failed += 1
        if self.ready.is_set() or self._failed > 2 or not self.shared:
            self._reconnect()
        elif self._settings.shared == "auto":
            log.warning(
                "the broker grants shared subscriptions but does not deliver to them; "
                "collector %s subscribes alone: run only one collector with this broker",
                self._name,
            )
            for topic in self._offer_topics():
                client.unsubscribe(topic)
            self.shared = False
            self._subscribe_offers(client)
        else:
            log.error("no canary came back over the shared subscription of collector %s", self._name)
            self._fly(client)

    def _reconnect(self) -> None:
        log.error("collector %s: the broker accepts messages but delivers none; connecting anew", self._name)
        self.stalls += 1
        self.ready.clear()
        old, self._client = self._client, None
        with self._lock:
            self._flown_at = None
        self._drop(old)
        self._handlers.lost()
        self._open()


def chunk_bytes(packet_limit: int | None, largest: int) -> int:
    """The chunk that fits a packet of the broker. Raises CollectorError where none does."""
    if packet_limit is None:
        return largest
    room = packet_limit - _TOPIC_ROOM
    if room < 1024:
        raise CollectorError(f"the broker allows packets of {packet_limit} bytes; at least 2 KiB are needed")
    return min(largest, room)
