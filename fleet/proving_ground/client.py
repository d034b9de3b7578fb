"""Implements a bare MQTT vehicle: it sends exactly what its caller wants and returns every verdict."""

from __future__ import annotations

import queue
from dataclasses import dataclass, field

import paho.mqtt.client as paho

from misfire_runtime.messages import Offer, Reply, Send, Topics, Verdict, decode, encode
from misfire_runtime.mqtt.client import BrokerConfig, make_client
from misfire_runtime.testing import make_offer

FLEET = "proving-ground"


@dataclass
class Vehicle:
    """Offers what it is given; `hear` returns the verdicts in their order."""

    broker: BrokerConfig
    name: str
    fleet: str = FLEET
    verdicts: queue.Queue[Verdict] = field(default_factory=queue.Queue)
    client: paho.Client | None = None

    @property
    def topics(self) -> Topics:
        return Topics(self.fleet, self.name)

    def connect(self) -> None:
        ready: queue.Queue[bool] = queue.Queue()
        client = make_client(self.broker, client_id=self.name)
        client.on_connect = lambda c, *_: c.subscribe(self.topics.reply, qos=1)
        client.on_subscribe = lambda *_: ready.put(True)
        client.on_message = lambda _c, _d, message: [
            self.verdicts.put(verdict) for verdict in decode(Reply, message.payload).verdicts
        ]
        client.connect(self.broker.host, self.broker.port)
        client.loop_start()
        self.client = client
        assert ready.get(timeout=10)

    def close(self) -> None:
        if self.client is not None:
            self.client.disconnect()
            self.client.loop_stop()

    def publish(self, topic: str, payload: bytes) -> None:
        assert self.client is not None
        self.client.publish(topic, payload, qos=1)

    def offer(self, offer: Offer) -> None:
        self.publish(self.topics.offer, encode(offer))

    def send(self, data: bytes, send: Send, *, until: int | None = None) -> None:
        for at in range(send.offset, len(data) if until is None else until, send.chunk_bytes):
            self.publish(self.topics.data(send.collector, send.id, at), data[at : at + send.chunk_bytes])

    def hear(self, *, timeout_s: float = 20.0) -> Verdict:
        return self.verdicts.get(timeout=timeout_s)

    def hear_send(self) -> Send:
        verdict = self.hear()
        assert isinstance(verdict, Send), verdict
        return verdict

    def silent(self, *, for_s: float = 0.5) -> bool:
        try:
            self.verdicts.get(timeout=for_s)
        except queue.Empty:
            return True
        return False

    def upload(self, data: bytes, **fields: object) -> Verdict:
        """Offers, sends what is asked for, and returns the last word."""
        self.offer(make_offer(data, vehicle=self.name, **fields))
        while isinstance(verdict := self.hear(), Send):
            self.send(data, verdict)
        return verdict
