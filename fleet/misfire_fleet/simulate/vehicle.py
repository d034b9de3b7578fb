"""Simulates one vehicle: a real MQTT client with pending samples and the rules of a real uplink.

captured -> waiting (bounded, the oldest is evicted) -> offered (a window) -> settled by a terminal verdict
The bytes of a sample are generated each time they are sent, so pending samples cost little memory.
"""

from __future__ import annotations

import random
import time
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import paho.mqtt.client as paho

from misfire_fleet.simulate.samples import SampleFactory
from misfire_runtime.errors import MessageError
from misfire_runtime.messages import Busy, Offer, Reply, Send, State, Topics, Verdict, decode, encode
from misfire_runtime.mqtt.client import BrokerConfig, make_client

_MAX_LATENCIES = 200_000
"""Bounds memory in runs of hours: percentiles are those of the last 200,000 stored samples."""
_MAX_TIMEOUT_S = 60.0
"""Upper bound of the growing reply timeout."""


@dataclass(frozen=True)
class Faults:
    """Holds probabilities of faults per published message; `reconnect_per_s` is per vehicle and second."""

    drop: float = 0.0
    repeat: float = 0.0
    reorder: float = 0.0
    corrupt: float = 0.0
    reconnect_per_s: float = 0.0


@dataclass(frozen=True)
class Plan:
    """Configures a simulation. `rate` is samples per second of all vehicles together."""

    fleet: str
    vehicles: int
    rate: float
    duration_s: float
    window: int = 4
    max_pending: int = 64
    reoffer_s: float = 10.0
    drain_s: float = 30.0
    seed: int = 0
    faults: Faults = Faults()


@dataclass
class Counts:
    """Counts the events of a run; captured = stored + declined + rejected + evicted + pending."""

    captured: int = 0
    offers: int = 0
    stored: int = 0
    declined: int = 0
    rejected: int = 0
    evicted: int = 0
    busy: int = 0
    bytes_sent: int = 0
    faults: int = 0
    reconnects: int = 0
    latencies: deque[float] = field(default_factory=lambda: deque(maxlen=_MAX_LATENCIES))

    def percentile_s(self, percent: float) -> float | None:
        """Returns a percentile, `percent` in 0..100, of the seconds from first offer to `stored`."""
        return float(np.percentile(self.latencies, percent)) if self.latencies else None


@dataclass
class _Pending:
    number: int
    offer: Offer
    first_at: float | None = None
    due_at: float = 0.0
    reply_timeout_s: float = 0.0


class SimulatedVehicle:
    """Simulates one vehicle without a thread: its owner calls the client's `loop_*` methods and `overdue`."""

    def __init__(
        self,
        name: str,
        *,
        broker: BrokerConfig,
        plan: Plan,
        samples: SampleFactory,
        counts: Counts,
        chance: random.Random,
    ) -> None:
        self._broker, self._plan, self._samples = broker, plan, samples
        self._counts, self._chance = counts, chance
        self._topics = Topics(plan.fleet, name)
        self._name = name
        self._waiting: deque[_Pending] = deque()
        self._offered: OrderedDict[str, _Pending] = OrderedDict()
        self._late: list[tuple[str, bytes]] = []
        self.subscribed = False
        self.client = make_client(broker, client_id=name)
        self.client.on_connect = self._on_connect
        self.client.on_subscribe = self._on_subscribe
        self.client.on_message = self._on_message
        # Before the connection: the will is part of MQTT's CONNECT.
        self.client.will_set(self._topics.state, encode(State(online=False)), qos=1, retain=True)

    @property
    def pending(self) -> int:
        """Returns the number of captured samples without a final verdict."""
        return len(self._waiting) + len(self._offered)

    def connect(self) -> None:
        """Connects to the broker. Raises OSError if the broker cannot be reached."""
        self.subscribed = False
        self.client.connect(self._broker.host, self._broker.port, keepalive=60)

    def capture(self, number: int, now: float) -> None:
        """Captures sample `number`; evicts the oldest waiting one if the queue is full."""
        self._counts.captured += 1
        if len(self._waiting) >= self._plan.max_pending:
            self._waiting.popleft()
            self._counts.evicted += 1
        offer = self._samples.offer(number, vehicle=self._name, monotonic=now)
        self._waiting.append(_Pending(number, offer))
        self._work(now)

    def overdue(self, now: float) -> None:
        """Repeats the offers whose reply timeout has passed, with a timeout that grows by half each time."""
        if not self.subscribed:
            return
        for pending in self._offered.values():
            if now >= pending.due_at:
                pending.reply_timeout_s = min(_MAX_TIMEOUT_S, pending.reply_timeout_s * 1.5)
                self._offer(pending, now)

    def _work(self, now: float) -> None:
        while self.subscribed and self._waiting and len(self._offered) < self._plan.window:
            pending = self._waiting.popleft()
            pending.reply_timeout_s = self._plan.reoffer_s
            self._offered[pending.offer.id] = pending
            self._offer(pending, now)

    def _offer(self, pending: _Pending, now: float) -> None:
        if pending.first_at is None:
            pending.first_at = now
        # Jitter: after an outage the vehicles must not repeat all their offers in the same moment.
        pending.due_at = now + pending.reply_timeout_s * self._chance.uniform(0.8, 1.2)
        self._counts.offers += 1
        self._publish(self._topics.offer, encode(pending.offer))

    def _on_connect(self, client: paho.Client, _data: Any, _flags: Any, reason: Any, _props: Any) -> None:
        if not reason.is_failure:
            client.subscribe(self._topics.reply, qos=1)

    def _on_subscribe(self, client: paho.Client, *_: Any) -> None:
        # Offers wait for the subscription: a reply to an earlier one would be lost in a clean session.
        self.subscribed = True
        birth = State(online=True, boot_id="simulated", session=1, software="simulation")
        client.publish(self._topics.state, encode(birth), qos=1, retain=True)
        now = time.monotonic()
        # The session is clean: replies to offers of the previous connection are lost.
        for pending in self._offered.values():
            self._offer(pending, now)
        self._work(now)

    def _on_message(self, _client: paho.Client, _data: Any, message: paho.MQTTMessage) -> None:
        now = time.monotonic()
        try:
            verdicts = decode(Reply, bytes(message.payload)).verdicts
        except MessageError:
            self._counts.faults += 1
            return
        for verdict in verdicts:
            self._take(verdict, now)
        self._work(now)

    def _take(self, verdict: Verdict, now: float) -> None:
        pending = self._offered.get(verdict.id)
        if pending is None:  # a repeated reply, or one to an offer that is settled already
            return
        if isinstance(verdict, Send):
            # `send` is an answer: the timeout starts again for the upload.
            pending.due_at = now + pending.reply_timeout_s
            self._send(pending, verdict)
        elif isinstance(verdict, Busy):
            self._counts.busy += 1
            pending.due_at = now + verdict.retry_after_s
        else:
            del self._offered[verdict.id]
            self._settle(verdict.verdict, now - (now if pending.first_at is None else pending.first_at))

    def _settle(self, verdict: str, took_s: float) -> None:
        if verdict == "stored":
            self._counts.stored += 1
            self._counts.latencies.append(took_s)
        elif verdict == "declined":
            self._counts.declined += 1
        else:
            self._counts.rejected += 1

    def _send(self, pending: _Pending, send: Send) -> None:
        data = self._samples.bytes_of(pending.number)
        for at in range(send.offset, len(data), send.chunk_bytes):
            chunk = data[at : at + send.chunk_bytes]
            self._counts.bytes_sent += len(chunk)
            self._publish(self._topics.data(send.collector, send.id, at), chunk)

    def _publish(self, topic: str, payload: bytes) -> None:
        """Publishes a message, after applying the configured faults to it."""
        faults, happens = self._plan.faults, self._happens
        if happens(faults.drop):
            return
        if "/data/" in topic and happens(faults.corrupt):
            at = self._chance.randrange(len(payload))
            payload = payload[:at] + bytes([payload[at] ^ 0xFF]) + payload[at + 1 :]
        if happens(faults.reorder):
            self._late.append((topic, payload))  # published after the next message
            return
        self.client.publish(topic, payload, qos=1)
        if happens(faults.repeat):
            self.client.publish(topic, payload, qos=1)
        late, self._late = self._late, []
        for held in late:
            self.client.publish(*held, qos=1)

    def _happens(self, probability: float) -> bool:
        if probability and self._chance.random() < probability:
            self._counts.faults += 1
            return True
        return False
