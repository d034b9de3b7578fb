"""Campaigns on a real Mosquitto: delivered, reported, refused by the vehicle, and collected by a real one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.fleet.conftest import eventually
from tests.fleet.test_configure import Wishes

from misfire_fleet.campaigns.delivery import Deliverer
from misfire_fleet.campaigns.documents import Documents
from misfire_fleet.campaigns.ledger import CampaignLedger
from misfire_fleet.campaigns.spec import parse_spec
from misfire_fleet.collector import Collector
from misfire_fleet.store import Store
from misfire_fleet.store.records import SampleFilter
from misfire_runtime.config.tables import VehicleConfig
from misfire_runtime.messages import Desired, Reported, State, Topics, decode, encode
from misfire_runtime.mqtt.client import BrokerConfig
from misfire_runtime.mqtt.connection import Connection
from misfire_runtime.preprocess import encode_png
from misfire_runtime.spool import Spool
from misfire_runtime.uplink import Uplink
from misfire_runtime.vehicle.session import run_vehicle
from proving_ground.bundles import write_bundle

pytestmark = pytest.mark.slow


class Wishing:
    """Makes running campaigns in a store, delivers them, and remembers what a vehicle was told."""

    def __init__(self, store: Store, broker: BrokerConfig, fleet: str) -> None:
        self.store, self.fleet, self.broker = store, fleet, broker
        self.ledger, self.documents = CampaignLedger(store), Documents(store)

    def run(self, name: str, **fields: Any) -> None:
        self.ledger.create(parse_spec({"name": name, **fields}), actor="anna")
        self.ledger.move(name, "start", actor="anna")

    def deliver(self, wait_s: float = 0.0) -> int:
        with Deliverer(self.store, broker=self.broker, fleet=self.fleet) as deliverer:
            done = deliverer.step()
            if wait_s:
                deliverer.wait_for_answers(wait_s)
            return done.published


@pytest.fixture
def wishing(store: Store, address: BrokerConfig, request: pytest.FixtureRequest) -> Wishing:
    # A fleet of its own: the broker is shared, and retains what the test before desired.
    return Wishing(store, address, f"fleet-{abs(hash(request.node.name)) % 10**9}")


@contextmanager
def car(wishing: Wishing, wishes: Callable[[Desired], Reported], folder: Path) -> Iterator[Uplink]:
    """A real uplink that hands wishes on."""
    spool = Spool(folder / "spool", reserve_bytes=0)
    uplink = Uplink(spool, fleet=wishing.fleet, vehicle="car-1", broker=wishing.broker, on_desired=wishes)
    uplink.start()
    try:
        assert uplink.wait_online(20.0)
        yield uplink
    finally:
        uplink.close()
        spool.close()


@contextmanager
def asking(wishing: Wishing, kind: str) -> Iterator[list[bytes]]:
    """What the broker retains for the car."""
    topic = f"{Topics(wishing.fleet, 'car-1').base}/{kind}"
    connection = Connection(wishing.broker, client_id="asking", subscriptions=(topic,))
    connection.open()
    until = time.monotonic() + 0.5
    while time.monotonic() < until:
        connection.poll(0.1, wake=None)
    yield [message.payload for message in connection.inbox]
    connection.close(in_order=True)


def retained(wishing: Wishing) -> Desired:
    with asking(wishing, "desired") as payloads:
        return decode(Desired, payloads[-1])


def put(wishing: Wishing, desired: Desired) -> None:
    """What `misfire fleet configure` does."""
    connection = Connection(wishing.broker, client_id="operator", subscriptions=("operator",))
    connection.open()
    connection.publish(Topics(wishing.fleet, "car-1").desired, encode(desired), retain=True)
    until = time.monotonic() + 5
    while not connection.receipts and time.monotonic() < until:
        connection.poll(0.1, wake=None)
    connection.close(in_order=True)


def test_versions_rise_and_the_operators_tables_stay(wishing: Wishing, tmp_path: Path) -> None:
    wishing.store.vehicles.record_states({"car-1": State(online=True, bundle="b@1")})
    wishes = Wishes()
    with car(wishing, wishes, tmp_path):
        assert wishing.deliver() == 0, "without a campaign there is nothing to say"
        put(wishing, Desired(version=5, bundle="b@1", config={"limits": {"samples_per_day": 7}}))
        wishing.run("low", what={"above": 1}, priority=1)
        wishing.run("high", what={"above": 2}, priority=9)
        assert wishing.deliver(wait_s=10) == 1
        first = wishing.documents.of("car-1")
        assert first is not None and first.state == "accepted" and first.campaigns == ("high", "low")
        assert first.version > 5
        assert wishes.config.limits.samples_per_day == 7
        assert list(wishes.config.campaigns) == ["campaign.high", "campaign.low"]
        assert wishing.deliver() == 0, "the same is not said twice"
        wishing.ledger.move("high", "end", actor="anna")
        assert wishing.deliver(wait_s=10) == 1
        assert list(wishes.config.campaigns) == ["campaign.low"]
        wishing.ledger.move("low", "pause", actor="anna")
        assert wishing.deliver(wait_s=10) == 1
        last = wishing.documents.of("car-1")
        assert last is not None and last.version > first.version and last.campaigns == ()
    desired = retained(wishing)
    assert desired.config == {"limits": {"samples_per_day": 7}} and desired.bundle == "b@1"


def test_a_vehicle_that_took_a_higher_version_gets_the_next_one(wishing: Wishing, tmp_path: Path) -> None:
    wishing.store.vehicles.record_states({"car-1": State(online=True, bundle="b@1")})
    wishing.run("low", what={"above": 1})
    wishes = Wishes(highest=2**40)
    with car(wishing, wishes, tmp_path):
        wishing.deliver(wait_s=2)
        row = wishing.documents.of("car-1")
        assert row is not None and row.reported_version == 2**40 and row.accepted is False
        assert wishing.deliver(wait_s=10) == 1
    row = wishing.documents.of("car-1")
    assert row is not None and (row.version, row.state) == (2**40 + 1, "accepted")


def test_a_campaign_that_a_vehicle_refuses_does_not_keep_the_others_out(
    wishing: Wishing, tmp_path: Path
) -> None:
    class Choosy(Wishes):
        def __call__(self, desired: Desired) -> Reported:
            if "campaign.bad" in desired.config.get("campaigns", {}):
                self.highest = desired.version
                reason = "triggers.campaign.bad.score: b@1 has no score 'x'; it has entropy"
                return Reported(version=desired.version, bundle="b@1", accepted=False, reason=reason)
            return super().__call__(desired)

    wishing.store.vehicles.record_states({"car-1": State(online=True, bundle="b@1")})
    wishing.run("bad", what={"score": "x", "above": 1})
    wishing.run("good", what={"above": 1})
    wishes = Choosy()
    with car(wishing, wishes, tmp_path):
        wishing.deliver(wait_s=10)
        assert wishing.deliver(wait_s=10) == 1
        assert wishing.deliver(wait_s=10) == 0
    row = wishing.documents.of("car-1")
    assert row is not None and row.campaigns == ("good",) and row.state == "accepted"
    assert row.left_out["bad"].startswith("the vehicle refuses it: triggers.campaign.bad.score: b@1 has no")
    assert list(wishes.config.campaigns) == ["campaign.good"]
    wishing.store.vehicles.record_states({"car-1": State(online=True, bundle="b@2")})
    assert wishing.deliver() == 1, "another bundle may have the score"


def test_the_highest_version_of_a_hostile_vehicle_ends_nothing(wishing: Wishing) -> None:
    wishing.store.vehicles.record_states(
        {"car-1": State(online=True, bundle="b@1"), "car-2": State(online=True, bundle="b@1")}
    )
    wishing.run("low", what={"above": 1})
    connection = Connection(wishing.broker, client_id="hostile", subscriptions=("hostile",))
    connection.open()
    topic = Topics(wishing.fleet, "car-1").reported
    lie = Reported(version=2**63 - 1, bundle="b@1", accepted=False, reason="campaign.low campaign.none")
    connection.publish(topic, encode(lie), retain=True)
    connection.publish(f"{topic}/more", b"x", retain=False)
    until = time.monotonic() + 1
    while time.monotonic() < until:
        connection.poll(0.1, wake=None)
    connection.close(in_order=True)
    assert wishing.deliver() == 1, "the other vehicle gets its campaign"
    assert wishing.documents.of("car-2") is not None


def test_a_real_vehicle_collects_what_a_campaign_wants(wishing: Wishing, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    rng = np.random.default_rng(0)

    def drive(name: str, frames: int) -> dict[str, Any]:
        folder = tmp_path / name
        folder.mkdir()
        for number in range(frames):
            picture = encode_png(rng.integers(0, 255, (8, 8, 3)).astype(np.uint8).repeat(8, 0).repeat(8, 1))
            (folder / f"{number:04d}.png").write_bytes(picture)
        return {
            "vehicle": "car-1",
            "fleet": wishing.fleet,
            "bundle": str(bundle.path),
            "source": [{"input": str(folder)}],
            "spool": {"path": str(tmp_path / "spool")},
            "broker": {"url": f"mqtt://127.0.0.1:{wishing.broker.port}"},
            "random": {"rate": 0.0},
            "triggers": {"own": {"kind": "threshold", "score": "msp", "above": 2.0}},
        }

    def go(name: str, frames: int) -> Any:
        return run_vehicle(VehicleConfig.model_validate(drive(name, frames)), until_empty=True)

    collector = Collector(wishing.store, broker=wishing.broker, fleet=wishing.fleet, name="collector-1")
    collector.start()
    try:
        go("first", 3)
        assert eventually(lambda: bool(wishing.store.vehicles.names(limit=9)))
        wishing.run(
            "unsure",
            what={"score": "entropy", "above": 0.0},
            how_much={"samples": 20},
            who={"vehicles": ["car-*"]},
        )
        assert wishing.deliver() == 1
        go("second", 3)
        assert wishing.deliver(wait_s=10) == 0
        row = wishing.documents.of("car-1")
        assert row is not None and row.state == "accepted", row
        go("third", 25)
        assert eventually(lambda: wishing.ledger.get("unsure").state == "ended")
        go("fourth", 10)
    finally:
        collector.close()
    stored = wishing.store.count(SampleFilter(trigger="campaign.unsure"))
    assert stored == 20, "the rest was declined"
    assert wishing.ledger.get("unsure").reason == "full: 20 samples are stored"
    assert wishing.store.count() == stored
    assert ("declined", "campaign") in {row[:2] for row in wishing.store.vehicles.causes("car-1")}


def test_the_daemon_delivers_until_it_is_stopped(wishing: Wishing, tmp_path: Path) -> None:
    wishing.store.vehicles.record_states({"car-1": State(online=True, bundle="b@1")})
    wishes, stop = Wishes(), threading.Event()
    deliverer = Deliverer(wishing.store, broker=wishing.broker, fleet=wishing.fleet, period_s=0.2)
    thread = threading.Thread(target=deliverer.run, args=(stop,))
    with car(wishing, wishes, tmp_path):
        thread.start()
        wishing.run("low", what={"above": 1})
        try:
            assert eventually(lambda: "campaign.low" in wishes.config.campaigns)
            assert eventually(lambda: (wishing.documents.of("car-1") or Missing).state == "accepted")
        finally:
            stop.set()
            thread.join(20)
    assert not thread.is_alive()


class Missing:
    state = "missing"
