"""The collector believes no broker: amqtt, restarts, dead connections, several collectors at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.fleet.conftest import CollectorMaker, eventually

from misfire_fleet.demo.broker import embedded_broker
from misfire_fleet.store import Store
from misfire_runtime.messages import Busy, Stored
from misfire_runtime.mqtt.client import BrokerConfig
from misfire_runtime.mqtt.connection import Arrived, Connection
from misfire_runtime.testing import make_offer
from proving_ground.client import Vehicle
from proving_ground.services import mosquitto

VehicleMaker = Callable[..., Vehicle]
Numbered = Callable[[int], bytes]


@pytest.fixture
def amqtt(tmp_path: Path) -> Iterator[BrokerConfig]:
    with embedded_broker(tmp_path / "amqtt", mosquitto=None) as running:
        yield BrokerConfig(port=running.port, protocol="3.1.1")


def test_a_broker_that_grants_shared_subscriptions_and_delivers_nothing_is_found_out(
    start_collector: CollectorMaker, vehicle: VehicleMaker, store: Store, jpeg: Numbered, amqtt: BrokerConfig
) -> None:
    collector = start_collector(broker=amqtt, canary_s=1.0)
    assert not collector.link.shared
    car = vehicle(broker=amqtt)
    for number in range(5):
        assert isinstance(car.upload(jpeg(number)), Stored)
    assert {store.read_blob(row.id) for row in store.newest()} == {jpeg(number) for number in range(5)}


def test_uploads_go_on_after_the_broker_was_killed(
    tmp_path: Path, start_collector: CollectorMaker, vehicle: VehicleMaker, store: Store, jpeg: Numbered
) -> None:
    with mosquitto(tmp_path / "broker") as broker:
        address = BrokerConfig(port=broker.port)
        collector = start_collector(broker=address)
        car = vehicle(broker=address)
        assert isinstance(car.upload(jpeg(1)), Stored)
        broker.kill()
        assert eventually(lambda: not collector.link.ready.is_set())
        assert collector.problems() == ["the broker does not deliver to this collector"]
        broker.start()
        assert collector.link.ready.wait(20)
        again = vehicle("car-2", broker=address)
        assert isinstance(again.upload(jpeg(2)), Stored)
        collector.close()
        car.close()
        again.close()
    assert store.totals().samples == 2


def test_a_connection_that_delivers_nothing_any_more_is_made_anew(
    start_collector: CollectorMaker, vehicle: VehicleMaker, jpeg: Numbered, monkeypatch: pytest.MonkeyPatch
) -> None:
    collector = start_collector(watchdog_s=0.3, canary_s=0.5)
    take = collector.link._take

    def deaf(connection: Connection, message: Arrived) -> None:
        """As a half-dead connection looks from inside: alive, and silent."""
        if collector.link.connects > 1:
            take(connection, message)

    monkeypatch.setattr(collector.link, "_take", deaf)
    assert eventually(lambda: collector.link.stalls == 1)
    assert collector.link.ready.wait(20)
    assert isinstance(vehicle().upload(jpeg(1)), Stored)


def test_a_canary_flies_again_and_again_and_comes_home(start_collector: CollectorMaker) -> None:
    collector = start_collector(watchdog_s=0.1)
    before = collector.link.canaries
    assert eventually(lambda: collector.link.canaries >= before + 3)
    assert collector.link.stalls == 0


def test_collectors_share_offers_and_a_sample_reaches_the_one_that_answered(
    start_collector: CollectorMaker, vehicle: VehicleMaker, store: Store, jpeg: Numbered
) -> None:
    collectors = [start_collector(name=f"collector-{number}") for number in range(3)]
    car = vehicle()
    for number in range(30):
        assert isinstance(car.upload(jpeg(number)), Stored)
    counts = [collector.metrics.offers._value.get() for collector in collectors]
    assert sum(counts) == 30
    assert min(counts) > 0
    assert store.totals().samples == 30


def test_two_collectors_finishing_the_same_sample_store_it_once_and_both_say_stored(
    start_collector: CollectorMaker, vehicle: VehicleMaker, store: Store, jpeg: Numbered
) -> None:
    for number in range(2):
        start_collector(name=f"collector-{number}")
    cars = [vehicle(f"car-{number}") for number in range(8)]
    data = jpeg(1)
    for car in cars:
        car.offer(make_offer(data, vehicle=car.name))
    sends = [car.hear_send() for car in cars]
    assert len({send.collector for send in sends}) == 2
    for car, send in zip(cars, sends, strict=True):
        car.send(data, send)
    assert all(isinstance(car.hear(), Stored) for car in cars)
    assert store.totals().samples == 1
    assert store.read_blob(sends[0].id) == data


def test_a_collector_that_ends_lets_running_transfers_complete(
    start_collector: CollectorMaker, vehicle: VehicleMaker, store: Store, jpeg: Numbered
) -> None:
    import threading

    collector = start_collector(drain_s=20.0)
    car = vehicle()
    car.offer(make_offer(jpeg(1)))
    send = car.hear_send()
    ending = threading.Thread(target=collector.close)
    ending.start()
    assert eventually(collector._draining.is_set)
    car.offer(make_offer(jpeg(2)))  # nobody listens to offers any more, or says `busy`
    car.send(jpeg(1), send)
    while isinstance(verdict := car.hear(), Busy):
        assert verdict.id != send.id
    assert isinstance(verdict, Stored)
    ending.join(20)
    assert not ending.is_alive()
    assert store.totals().samples == 1


def test_a_small_packet_limit_makes_small_chunks(
    tmp_path: Path, start_collector: CollectorMaker, vehicle: VehicleMaker, store: Store, jpeg: Numbered
) -> None:
    with mosquitto(tmp_path / "broker", options="max_packet_size 8192") as broker:
        address = BrokerConfig(port=broker.port)
        collector = start_collector(broker=address)
        car = vehicle(broker=address)
        car.offer(make_offer(jpeg(1)))
        send = car.hear_send()
        assert send.chunk_bytes < 8192
        car.send(jpeg(1), send)
        assert isinstance(car.hear(), Stored)
        collector.close()
        car.close()
    assert store.read_blob(send.id) == jpeg(1)
