"""Photographs as samples, a real broker, collectors, and vehicles that send exactly what a test wants."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from misfire_fleet.collector import Collector
from misfire_fleet.collector.settings import CollectorSettings
from misfire_fleet.store import Store
from misfire_fleet.store.blobs import DOCUMENTS
from misfire_runtime.mqtt.client import BrokerConfig
from proving_ground import pictures
from proving_ground.client import FLEET, Vehicle
from proving_ground.services import Mosquitto, ObjectStore, Postgres, mosquitto, object_store, postgres


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
