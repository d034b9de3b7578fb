"""Photographs as samples, a real broker, and a vehicle that says exactly what a test wants it to say."""

from __future__ import annotations

import hashlib
import queue
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import paho.mqtt.client as paho
import pytest
from tests import pictures
from tests.services import Mosquitto, ObjectStore, Postgres, mosquitto, object_store, postgres

from misfire_fleet.collector import Collector
from misfire_fleet.collector.settings import CollectorSettings
from misfire_fleet.store import Store
from misfire_fleet.store.blobs import DOCUMENTS
from misfire_runtime.messages import (
    Clock,
    Offer,
    Reply,
    Send,
    Topics,
    Trigger,
    Verdict,
    decode,
    encode,
    pack_embedding,
)
from misfire_runtime.mqtt.client import BrokerConfig, make_client

FLEET = "proving-ground"


@pytest.fixture(scope="session")
def photo() -> bytes:
    """A photograph, 1280x720 JPEG."""
    return pictures.jpeg()


@pytest.fixture(scope="session")
def jpeg(photo: bytes) -> Callable[[int], bytes]:
    """The still with a comment of its own: as many different valid samples as a test wants."""

    def numbered(number: int) -> bytes:
        comment = f"sample {number}".encode()
        return photo[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + photo[2:]

    return numbered


def make_offer(data: bytes, *, vehicle: str = "car-1", **fields: object) -> Offer:
    """A complete offer of `data`; `fields` replace its own."""
    values: dict[str, object] = {
        "id": hashlib.sha256(data).hexdigest(),
        "vehicle": vehicle,
        "size": len(data),
        "captured_at": Clock(wall=1_700_000_000.0, monotonic=5.0, boot_id="boot"),
        "bundle": "lights@1.0.0",
        "scores": {"entropy": 0.7},
        "percentiles": {"entropy": 0.97},
        "trigger": Trigger(name="target-rate", reason="above its quantile"),
        "prediction": {"class": "red", "confidence": 0.6},
        "embedding": pack_embedding(np.ones(8) / np.sqrt(8)),
        "source": "front",
    }
    return Offer.model_validate(values | fields)


@dataclass
class Vehicle:
    """A bare client: offers what it is given, and hands every verdict to the test."""

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


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mosquitto]:
    """A real Mosquitto that drops nothing."""
    options = "max_queued_messages 0\nmax_inflight_messages 0"
    with mosquitto(tmp_path_factory.mktemp("mosquitto"), options=options) as running:
        yield running


@pytest.fixture
def address(broker: Mosquitto) -> BrokerConfig:
    return BrokerConfig(port=broker.port)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open_folder(tmp_path / "fleet") as opened:
        yield opened


CollectorMaker = Callable[..., Collector]


@pytest.fixture
def start_collector(store: Store, address: BrokerConfig) -> Iterator[CollectorMaker]:
    """Starts collectors with the given settings and closes them at the end."""
    running: list[Collector] = []

    def start(
        *, broker: BrokerConfig = address, into: Store = store, name: str | None = None, **settings: object
    ) -> Collector:
        values = {"drain_s": 1.0} | settings
        collector = Collector(
            into, broker=broker, fleet=FLEET, name=name, settings=CollectorSettings.model_validate(values)
        )
        running.append(collector)
        assert collector.start(wait_s=20.0)
        return collector

    yield start
    for collector in running:
        collector.close()


@pytest.fixture
def vehicle(address: BrokerConfig) -> Iterator[Callable[[str], Vehicle]]:
    """Connects vehicles by name."""
    connected: list[Vehicle] = []

    def connect(name: str = "car-1", *, broker: BrokerConfig = address) -> Vehicle:
        made = Vehicle(broker, name)
        made.connect()
        connected.append(made)
        return made

    yield connect
    for made in connected:
        made.close()


def eventually(condition: Callable[[], bool], *, timeout_s: float = 20.0) -> bool:
    """Polls until the condition holds; False where it never does."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return condition()


@pytest.fixture(scope="session")
def database() -> Iterator[Postgres]:
    with postgres() as running:
        yield running


@pytest.fixture(scope="session")
def bucket() -> Iterator[ObjectStore]:
    with object_store() as running:
        yield running


@pytest.fixture(params=["sqlite", "postgresql"])
def anywhere(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """A fresh store on each backend."""
    if request.param == "sqlite":
        with Store.open_folder(tmp_path / "fleet") as store:
            yield store
        return
    from tests.fleet import stores

    database, bucket = request.getfixturevalue("database"), request.getfixturevalue("bucket")
    stores.without_tables(database)
    with stores.open_postgres(database, bucket) as store:
        store.blobs.delete_many(list(store.blobs.names()))
        for kind in DOCUMENTS:
            for name in list(store.blobs.documents(kind)):
                store.blobs.drop(kind, name)
        yield store
