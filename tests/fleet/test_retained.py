"""A vehicle makes the broker retain messages in data topics: they are cleared, and the vehicle is named."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
from tests.fleet.conftest import CollectorMaker, eventually

from misfire_fleet.collector import Collector
from misfire_runtime.messages import Stored
from misfire_runtime.mqtt.client import make_client
from proving_ground.client import FLEET, Vehicle
from proving_ground.hardened import Hardened, hardened

pytestmark = pytest.mark.slow

MANY = 1_000


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hardened]:
    with hardened(tmp_path_factory.mktemp("retained") / "mosquitto", fleet=FLEET) as running:
        yield running


@pytest.fixture
def vehicle(shipped: Hardened) -> Iterator[Callable[[str], Vehicle]]:
    connected: list[Vehicle] = []

    def connect(name: str) -> Vehicle:
        connected.append(Vehicle(shipped.vehicle(name), name))
        connected[-1].connect()
        return connected[-1]

    yield connect
    for each in connected:
        each.close()


def flood(vehicle: Vehicle, messages: int) -> None:
    assert vehicle.client is not None
    for number in range(messages):
        topic = vehicle.topics.data("nobody", "0" * 64, number)
        sent = vehicle.client.publish(topic, b"kept for ever", qos=1, retain=True)
    sent.wait_for_publish(20)


def retained(shipped: Hardened, kind: str) -> int:
    """How many retained messages of this kind the broker hands to somebody who comes now."""
    found: list[str] = []
    client = make_client(shipped.server(), client_id="auditor")
    client.on_connect = lambda c, *_: c.subscribe(f"misfire/v1/+/+/{kind}", qos=1)
    client.on_message = lambda _c, _d, message: found.append(message.topic) if message.retain else None
    client.connect("127.0.0.1", shipped.inside_port)
    client.loop_start()
    time.sleep(0.5)
    client.disconnect()
    client.loop_stop()
    return len(found)


def cleared(collector: Collector) -> float:
    return collector.metrics.retained_cleared._value.get()


def test_a_flood_of_retained_messages_is_cleared_and_its_vehicle_named(
    shipped: Hardened, start_collector: CollectorMaker, vehicle: Callable[[str], Vehicle], photo: bytes
) -> None:
    collector = start_collector(broker=shipped.server())
    honest, evil = vehicle("car-1"), vehicle("evil")
    assert eventually(lambda: collector.retained.watching)
    assert honest.client is not None
    honest.client.publish(honest.topics.state, b'{"v": 1, "online": true}', qos=1, retain=True)
    flood(evil, MANY)
    assert eventually(lambda: cleared(collector) >= MANY)
    assert isinstance(honest.upload(photo), Stored)
    assert any("vehicle evil" in problem for problem in collector.problems())
    assert eventually(lambda: collector.retained.watching)
    assert retained(shipped, "data/+/+/+") == 0
    assert retained(shipped, "state") == 1


def test_what_was_retained_before_a_collector_came_is_cleared_and_chunks_are_not(
    shipped: Hardened, start_collector: CollectorMaker, vehicle: Callable[[str], Vehicle], photo: bytes
) -> None:
    honest, evil = vehicle("car-1"), vehicle("evil")
    flood(evil, 3)
    assert retained(shipped, "data/+/+/+") == 3
    collector = start_collector(broker=shipped.server())
    assert isinstance(honest.upload(photo), Stored)
    assert eventually(lambda: collector.retained.watching)
    assert retained(shipped, "data/+/+/+") == 0
    assert cleared(collector) == 3
