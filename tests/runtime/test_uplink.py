"""The uplink against a real Mosquitto and the real collector."""

from __future__ import annotations

import logging
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest
from authority import Authority

from misfire_fleet.collector import Collector
from misfire_fleet.collector.settings import CollectorSettings
from misfire_fleet.store import Store
from misfire_runtime.messages import (
    Busy,
    Clock,
    Counters,
    Desired,
    Offer,
    Rejected,
    Reply,
    Reported,
    Send,
    State,
    Stored,
    Telemetry,
    Topics,
    Verdict,
    decode,
    encode,
)
from misfire_runtime.mqtt.client import BrokerConfig, make_client
from misfire_runtime.spool import Spool
from misfire_runtime.spool.ballast import BALLAST_BYTES
from misfire_runtime.testing import make_offer
from misfire_runtime.uplink import Uplink
from misfire_runtime.uplink.bandwidth import Bandwidth
from misfire_runtime.uplink.settings import UplinkSettings
from misfire_runtime.uplink.side import DesiredWorker
from proving_ground.faults.ground import BROKER_OPTIONS, IMPATIENT
from proving_ground.faults.samples import make_payload
from proving_ground.faults.small_disk import small_disk
from proving_ground.services import Mosquitto, free_port, missing, mosquitto, need_root

pytestmark = pytest.mark.slow

FLEET = "uplink-tests"
QUICK = UplinkSettings.model_validate(IMPATIENT)
TOPICS = Topics(FLEET, "car")


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mosquitto]:
    with mosquitto(tmp_path_factory.mktemp("broker"), options=BROKER_OPTIONS) as running:
        yield running


@pytest.fixture
def address(broker: Mosquitto) -> BrokerConfig:
    return BrokerConfig(port=broker.port)


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    with Spool(tmp_path / "spool", reserve_bytes=0) as opened:
        yield opened


@contextmanager
def collecting(folder: Path, broker: BrokerConfig, **settings: Any) -> Iterator[Store]:
    with Store.open_folder(folder) as store:
        chosen = CollectorSettings.model_validate(
            {"drain_s": 0.5, "stall_s": 1.0, "canary_s": 1.0, **settings}
        )
        collector = Collector(store, broker=broker, fleet=FLEET, settings=chosen)
        assert collector.start(wait_s=20)
        try:
            yield store
        finally:
            collector.close()


@contextmanager
def uplinked(spool: Spool, broker: BrokerConfig, *, vehicle: str = "car", **options: Any) -> Iterator[Uplink]:
    uplink = Uplink(spool, fleet=FLEET, vehicle=vehicle, broker=broker, **{"settings": QUICK, **options})
    uplink.start()
    try:
        yield uplink
    finally:
        uplink.close()


@contextmanager
def listening(broker: BrokerConfig, topic: str) -> Iterator[list[paho.MQTTMessage]]:
    heard: list[paho.MQTTMessage] = []
    ready = threading.Event()
    client = make_client(broker, client_id="listener")
    client.on_connect = lambda c, *_: c.subscribe(topic, qos=1)
    client.on_subscribe = lambda *_: ready.set()
    client.on_message = lambda _c, _d, message: heard.append(message)
    client.connect(broker.host, broker.port)
    client.loop_start()
    assert ready.wait(10)
    try:
        yield heard
    finally:
        client.disconnect()
        client.loop_stop()


def eventually(condition: Callable[[], bool], *, timeout_s: float = 20.0) -> bool:
    until = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < until:
        time.sleep(0.02)
    return condition()


def fill(spool: Spool, count: int, *, size: int = 20_000, start: int = 0) -> dict[str, bytes]:
    payloads = {}
    for number in range(start, start + count):
        payload = make_payload("uplink", number, size=size)
        offer = make_offer(payload, number=number, vehicle="car")
        assert spool.add(payload, offer)
        payloads[offer.id] = payload
    return payloads


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_everything_arrives_byte_for_byte(
    tmp_path: Path, broker: Mosquitto, spool: Spool, protocol: str
) -> None:
    address = BrokerConfig(port=broker.port, protocol=protocol)  # type: ignore[arg-type]
    payloads = fill(spool, 40) | fill(spool, 2, size=700_000, start=100)
    with collecting(tmp_path / "fleet", address) as store, uplinked(spool, address) as uplink:
        assert uplink.drain(60)
        assert {s.id for s in store.newest(100)} == set(payloads)
        assert all(store.read_blob(sample) == payload for sample, payload in payloads.items())
    books = spool.counters()
    assert books.stored == 42 and books.bytes_stored == sum(map(len, payloads.values()))
    assert sum(map(len, payloads.values())) <= books.bytes_sent < 1.2 * sum(map(len, payloads.values()))


def test_samples_added_while_it_runs_go_at_once(tmp_path: Path, address: BrokerConfig, spool: Spool) -> None:
    with collecting(tmp_path / "fleet", address) as store, uplinked(spool, address) as uplink:
        assert uplink.wait_online(20)
        for number in range(5):
            fill(spool, 1, start=number)
            assert uplink.drain(20)
        assert store.count() == 5


def test_without_a_broker_it_waits_and_then_delivers(tmp_path: Path, spool: Spool) -> None:
    fill(spool, 3)
    nobody = BrokerConfig(port=free_port())
    with uplinked(spool, nobody) as uplink:
        assert not uplink.drain(1.0) and not uplink.online
        heartbeat = Telemetry(at=Clock(wall=0, monotonic=0, boot_id=""), bundle="", counters=Counters())
        assert not uplink.publish_telemetry(heartbeat)
    assert spool.counters().pending == 3


def test_an_unforeseen_error_ends_the_connection_and_not_the_uplink(
    tmp_path: Path, address: BrokerConfig, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    payloads = fill(spool, 3)
    step, errors = Uplink._step, [KeyError("nobody foresaw it")]

    def failing(uplink: Uplink, connection: Any) -> None:
        if errors:
            raise errors.pop()
        step(uplink, connection)

    monkeypatch.setattr(Uplink, "_step", failing)
    with collecting(tmp_path / "fleet", address) as store, uplinked(spool, address) as uplink:
        assert uplink.drain(30) and uplink.connects >= 2
        assert store.known(list(payloads)) == set(payloads)


def test_a_desired_configuration_that_breaks_what_applies_it_leaves_later_ones_their_thread() -> None:
    reports: list[Reported] = []

    def apply(desired: Desired) -> Reported:
        if desired.version == 1:
            raise KeyError("nobody foresaw it")
        return Reported(version=desired.version, bundle="b@1")

    worker = DesiredWorker(apply, reports.append)
    worker.put(Desired(version=1))
    assert eventually(worker._waiting.empty)
    worker.put(Desired(version=2))
    assert eventually(lambda: [each.version for each in reports] == [2])
    worker.close()


def test_without_a_collector_it_keeps_offering(tmp_path: Path, address: BrokerConfig, spool: Spool) -> None:
    fill(spool, 3)
    with uplinked(spool, address) as uplink:
        assert uplink.wait_online(20) and not uplink.drain(1.5)
        with collecting(tmp_path / "fleet", address) as store:
            assert uplink.drain(30)
            assert store.count() == 3


def test_a_new_sample_is_offered_at_once_beside_a_window_of_resting_ones(
    address: BrokerConfig, spool: Spool
) -> None:
    """Seven of eight places are taken by samples that a busy fleet put off for a minute."""
    settings = QUICK.model_copy(update={"max_samples": 8})
    with listening(address, TOPICS.offer) as heard, uplinked(spool, address, settings=settings) as uplink:
        assert uplink.wait_online(20)
        put_off = set(fill(spool, 7))
        assert eventually(lambda: {decode(Offer, m.payload).id for m in heard} >= put_off)
        fleet = make_client(address, client_id="busy-fleet")
        fleet.connect(address.host, address.port)
        fleet.loop_start()
        busy = [Busy(id=sample, retry_after_s=60.0, reason="full") for sample in put_off]
        fleet.publish(TOPICS.reply, encode(Reply(verdicts=busy)), qos=1).wait_for_publish(10)
        (urgent,) = fill(spool, 1, start=7)
        assert eventually(lambda: any(decode(Offer, m.payload).id == urgent for m in heard))
        fleet.disconnect()
        fleet.loop_stop()


def test_says_birth_and_good_bye(address: BrokerConfig, spool: Spool) -> None:
    with listening(address, Topics(FLEET, "newborn").state) as heard:

        def live() -> list[State]:
            return [decode(State, message.payload) for message in heard if not message.retain]

        with uplinked(spool, address, vehicle="newborn", bundle="lights@1") as uplink:
            assert eventually(lambda: len(live()) == 1)
            uplink.set_bundle("lights@2")
            assert eventually(lambda: len(live()) == 2)
        assert eventually(lambda: len(live()) == 3)
    assert [(s.online, s.bundle) for s in live()] == [
        (True, "lights@1"),
        (True, "lights@2"),
        (False, "lights@2"),
    ]
    assert {s.session for s in live()} == {spool.session}


def test_notices_a_clone_on_both_sides(tmp_path: Path, address: BrokerConfig, spool: Spool) -> None:
    with Spool(tmp_path / "other", reserve_bytes=0) as other:
        seen: list[str] = []
        with uplinked(spool, address, boot_id="boot-one", on_clone=seen.append) as first:
            assert first.wait_online(20)
            with uplinked(other, address, boot_id="boot-two") as second:
                assert eventually(lambda: first.clones == ("boot-two",))
                assert eventually(lambda: second.clones == ("boot-one",))
        assert seen == ["boot-two"]


def test_two_clients_with_one_id_notice_and_go_on(tmp_path: Path, broker: Mosquitto, spool: Spool) -> None:
    address = BrokerConfig(port=broker.port, client_id="the-same")
    with Spool(tmp_path / "other", reserve_bytes=0) as other:
        with uplinked(spool, address, boot_id="a") as first, uplinked(other, address, boot_id="b") as second:
            assert eventually(lambda: "b" in first.clones or "a" in second.clones)
        fill(spool, 2)
    with collecting(tmp_path / "fleet", BrokerConfig(port=broker.port)) as store:
        with uplinked(spool, address) as uplink:
            assert uplink.drain(30)
        assert store.count() == 2


def test_hands_over_wishes_and_reports_what_became_of_them(address: BrokerConfig, spool: Spool) -> None:
    wishes: list[Desired] = []

    def take(desired: Desired) -> Reported:
        wishes.append(desired)
        return Reported(version=desired.version, bundle="b@1", accepted=desired.version < 5, reason="")

    with listening(address, TOPICS.reported) as heard:
        client = make_client(address, client_id="operator")
        client.connect(address.host, address.port)
        client.loop_start()
        client.publish(TOPICS.desired, encode(Desired(version=3)), qos=1, retain=True).wait_for_publish(10)
        with uplinked(spool, address, on_desired=take):
            assert eventually(lambda: len(heard) >= 1)
            client.publish(TOPICS.desired, b"{not json", qos=1).wait_for_publish(10)
            client.publish(TOPICS.desired, encode(Desired(version=7)), qos=1, retain=True).wait_for_publish(
                10
            )
            assert eventually(lambda: len(heard) >= 2)
        client.publish(TOPICS.desired, b"", qos=1, retain=True).wait_for_publish(10)
        client.publish(TOPICS.reported, b"", qos=1, retain=True).wait_for_publish(10)
        client.disconnect()
        client.loop_stop()
        reports = [decode(Reported, m.payload) for m in heard if m.payload]
    assert [w.version for w in wishes] == [3, 7]
    assert [(r.version, r.accepted) for r in reports] == [(3, True), (7, False)]


def test_sends_heartbeats(address: BrokerConfig, spool: Spool) -> None:
    beat = Telemetry(at=Clock(wall=0, monotonic=0, boot_id="b"), bundle="x@1", counters=Counters(frames=3))
    with listening(address, TOPICS.telemetry) as heard, uplinked(spool, address) as uplink:
        assert uplink.wait_online(20) and uplink.publish_telemetry(beat)
        assert eventually(lambda: bool(heard))
        assert decode(Telemetry, heard[0].payload) == beat


def test_gives_back_what_was_declined(tmp_path: Path, address: BrokerConfig, spool: Spool) -> None:
    payloads, declined = fill(spool, 5), []
    quotas = {"samples_per_day": 2}
    with collecting(tmp_path / "fleet", address, quotas=quotas) as store:
        with uplinked(spool, address, on_declined=declined.append) as uplink:
            assert uplink.drain(30)
        assert store.count() == 2
    assert spool.counters().declined == len(declined) == 3 and set(declined) < set(payloads)


def test_samples_that_lie_are_rejected_with_the_reason_and_the_rest_arrives(
    tmp_path: Path, address: BrokerConfig, spool: Spool
) -> None:
    good = fill(spool, 2)
    noise = b"no picture at all " * 100
    spool.add(noise, make_offer(noise, vehicle="car"))
    clip = make_payload("lie", 1)
    spool.add(clip, make_offer(clip, media_type="image/png", vehicle="car"))
    bomb = (
        bytes.fromhex("89504e470d0a1a0a0000000d49484452")
        + (100_000).to_bytes(4, "big") * 2
        + b"\x08\x06" * 20
    )
    bomb += b"\x00\x00\x00\x00IEND\xaeB`\x82"
    spool.add(bomb, make_offer(bomb, media_type="image/png", vehicle="car"))
    large = make_payload("large", 1, size=300_000)
    spool.add(large, make_offer(large, vehicle="car"))
    with collecting(tmp_path / "fleet", address, max_sample_bytes=200_000) as store:
        with uplinked(spool, address) as uplink:
            assert uplink.drain(30)
        assert {s.id for s in store.newest(10)} == set(good)
    assert spool.counters().rejected == 4
    reasons = " ".join(line.reason for line in spool.account())
    assert all(word in reasons for word in ("JPEG", "image/png", "pixels", "limit of 200000"))


@pytest.mark.parametrize("limit", [2600, 20_000])
def test_a_broker_with_a_small_packet_limit_is_respected(tmp_path: Path, spool: Spool, limit: int) -> None:
    payloads = fill(spool, 3, size=30_000)
    options = f"{BROKER_OPTIONS}\nmax_packet_size {limit}"
    with mosquitto(tmp_path / "broker", options=options) as small:
        address = BrokerConfig(port=small.port)
        with collecting(tmp_path / "fleet", address) as store, uplinked(spool, address) as uplink:
            assert uplink.drain(60)
            assert uplink.connects == 1
            assert {s.id for s in store.newest(10)} == set(payloads)


def test_a_limited_link_is_not_exceeded_and_a_closed_one_is_not_used(
    tmp_path: Path, address: BrokerConfig, spool: Spool
) -> None:
    fill(spool, 6, size=20_000)
    slow = Bandwidth(bytes_per_s=30_000, burst_bytes=1024)
    with collecting(tmp_path / "fleet", address) as store, uplinked(spool, address, bandwidth=slow) as uplink:
        began = time.monotonic()
        assert uplink.drain(60)
        assert time.monotonic() - began > 3.0
        uplink.set_bandwidth(Bandwidth(bytes_per_s=0))
        time.sleep(0.2)
        fill(spool, 1, start=50)
        assert not uplink.drain(1.0)
        uplink.set_bandwidth(Bandwidth(metered=False, metered_bytes_per_s=0))
        assert uplink.drain(30)
        uplink.set_metered(True)
        time.sleep(0.2)
        fill(spool, 1, start=60)
        assert not uplink.drain(1.0)
        uplink.set_metered(False)
        assert uplink.drain(30) and store.count() == 8


def test_a_metered_link_carries_what_matters_only(
    tmp_path: Path, address: BrokerConfig, spool: Spool
) -> None:
    low, high = make_payload("low", 0), make_payload("high", 1)
    spool.add(low, make_offer(low, priority=2, vehicle="car"))
    spool.add(high, make_offer(high, priority=8, vehicle="car"))
    frugal = Bandwidth(metered=True, metered_min_priority=5)
    with (
        collecting(tmp_path / "fleet", address) as store,
        uplinked(spool, address, bandwidth=frugal) as uplink,
    ):
        assert eventually(lambda: spool.counters().stored == 1)
        assert not uplink.drain(0.5)
        assert [s.id for s in store.newest(5)] == [make_offer(high, vehicle="car").id]


# paho leaves the socket of a failed TLS handshake to the garbage collector.
@pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <ssl.SSLSocket:pytest.PytestUnraisableExceptionWarning"
)
def test_speaks_tls_with_a_client_certificate_and_refuses_to_without(tmp_path: Path, spool: Spool) -> None:
    authority = Authority(tmp_path / "authority")
    options = f"{BROKER_OPTIONS}\n{authority.listener()}\nrequire_certificate true"
    cert_file, key_file = authority.issue("car")
    payloads = fill(spool, 10, size=150_000)
    with mosquitto(tmp_path / "broker", options=options) as secure:
        address = BrokerConfig.from_url(
            f"mqtts://127.0.0.1:{secure.port}",
            ca_file=authority.ca_file,
            cert_file=cert_file,
            key_file=key_file,
        )
        stranger = address.model_copy(update={"cert_file": None, "key_file": None})
        with uplinked(spool, stranger) as refused:
            assert not refused.wait_online(1.5)
        distrustful = BrokerConfig.from_url(f"mqtts://127.0.0.1:{secure.port}")
        with uplinked(spool, distrustful) as refused:
            assert not refused.wait_online(1.0)
        with collecting(tmp_path / "fleet", address) as store, uplinked(spool, address) as uplink:
            assert uplink.drain(60)
            assert {s.id for s in store.newest(20)} == set(payloads)


class Answering:
    """A collector by hand, in place of one whose store is ill: answers each offer with `answer`."""

    def __init__(self, broker: BrokerConfig, answer: Callable[[Offer], Verdict]) -> None:
        self.answer = answer
        self.offers: list[str] = []
        self.client = make_client(broker, client_id="ill-collector")
        self.client.on_connect = lambda client, *_: client.subscribe(TOPICS.offer, qos=1)
        self.client.on_message = self._on_message
        self.client.connect(broker.host, broker.port)
        self.client.loop_start()

    def _on_message(self, _client: Any, _data: Any, message: paho.MQTTMessage) -> None:
        offer = decode(Offer, message.payload)
        self.offers.append(offer.id)
        self.reply(Reply(verdicts=[self.answer(offer)]))

    def reply(self, reply: Reply) -> None:
        self.client.publish(TOPICS.reply, encode(reply), qos=1)

    def __enter__(self) -> Answering:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.disconnect()
        self.client.loop_stop()


def fields_of(caplog: pytest.LogCaptureFixture, event: str) -> list[dict[str, Any]]:
    return [record.fields for record in caplog.records if record.message == event]  # type: ignore[attr-defined]


def test_a_collector_that_rejects_everything_cannot_empty_a_vehicle(
    tmp_path: Path, address: BrokerConfig, spool: Spool, caplog: pytest.LogCaptureFixture
) -> None:
    """What a fleet does whose database became read-only, and how the samples arrive once it is mended."""
    payloads = fill(spool, 40)
    with caplog.at_level(logging.INFO, "misfire_runtime"):
        with Answering(address, lambda offer: Rejected(id=offer.id, reason="unstorable")) as ill:
            with uplinked(spool, address) as uplink:
                assert eventually(lambda: spool.hold is not None)
                assert not uplink.drain(1.0)
                answered = len(ill.offers)
                assert not uplink.drain(1.5)
                assert len(ill.offers) == answered, "nothing is offered while the spool holds"
            books = spool.counters()
            assert (books.rejected, books.pending) == (10, 30)
        logged = fields_of(caplog, "sample_rejected")
        assert len(logged) == 10 and {entry["sample"] for entry in logged} <= set(payloads)
        assert {(entry["reason"], entry["trigger"]) for entry in logged} == {("unstorable", "target-rate")}
        assert len(fields_of(caplog, "uploads_held")) == 1
    with collecting(tmp_path / "fleet", address) as store, uplinked(spool, address) as uplink:
        assert uplink.wait_online(20) and not uplink.drain(1.0) and store.count() == 0
        fleet = make_client(address, client_id="operator")
        fleet.connect(address.host, address.port)
        fleet.loop_start()
        fleet.publish(TOPICS.reply, encode(Reply(verdicts=[], offer_again=True)), qos=1).wait_for_publish(10)
        assert uplink.drain(60)
        fleet.disconnect()
        fleet.loop_stop()
        assert {sample.id for sample in store.newest(100)} == set(payloads)
    books = spool.counters()
    assert (books.captured, books.stored, books.rejected) == (40, 40, 0)


def test_a_thief_that_asks_for_single_bytes_gets_none_and_is_named(
    address: BrokerConfig, spool: Spool, caplog: pytest.LogCaptureFixture
) -> None:
    fill(spool, 1, size=30_000)
    with (
        caplog.at_level(logging.INFO, "misfire_runtime"),
        listening(address, f"{TOPICS.base}/data/#") as heard,
    ):
        thief = Answering(address, lambda offer: Send(id=offer.id, collector="thief", chunk_bytes=1))
        with thief, uplinked(spool, address):
            assert eventually(lambda: len(thief.offers) >= 3)
        assert heard == []
    assert fields_of(caplog, "send_ignored")


class OtherProgram:
    """Fills the disk to the last byte and, if it is `greedy`, takes again whatever becomes free."""

    def __init__(self, folder: Path, *, greedy: bool) -> None:
        script = "dd if=/dev/zero of=log bs=4096 oflag=append conv=notrunc status=none"
        if greedy:
            script = f"while :; do {script}; done"
        self._process = subprocess.Popen(["sh", "-c", script], cwd=folder, stderr=subprocess.DEVNULL)
        if not greedy:
            self._process.wait(60)
        assert eventually(lambda: not (stat := os.statvfs(folder)).f_bavail or stat.f_bavail < 2)

    def end(self) -> None:
        self._process.kill()
        self._process.wait(10)


@pytest.mark.parametrize("greedy", [False, True])
@pytest.mark.parametrize("reserve", [0, 64 * 1024 * 1024])
def test_a_disk_that_another_program_filled_lets_go_of_what_the_fleet_has(
    tmp_path: Path, address: BrokerConfig, caplog: pytest.LogCaptureFixture, reserve: int, greedy: bool
) -> None:
    with small_disk(tmp_path / "disk", mib=100) as disk:
        if disk is None:
            need_root("a small file system")
            missing("a small file system", "run where mounting is allowed (CAP_SYS_ADMIN)")
        folder = disk.mount / "spool"
        with Spool(folder, reserve_bytes=reserve) as spool, caplog.at_level(logging.INFO, "misfire_runtime"):
            payloads = fill(spool, 40, size=85_000)
            other = OtherProgram(disk.mount, greedy=greedy)
            try:
                with collecting(tmp_path / "fleet", address) as store, uplinked(spool, address) as uplink:
                    assert uplink.drain(30)
                    assert {sample.id for sample in store.newest(100)} == set(payloads)
                assert (spool.counters().stored, spool.counters().pending) == (40, 0)
                assert list((folder / "samples").iterdir()) == []
            finally:
                other.end()
        assert len([r for r in caplog.records if r.levelno >= logging.WARNING]) <= 4
        disk.fill()
        with Spool(folder, reserve_bytes=reserve) as spool:
            assert spool.counters().stored == 40 and spool.session == 2
        disk.free()
        (disk.mount / "log").unlink()
        with Spool(folder, reserve_bytes=reserve) as spool:
            fill(spool, 1, start=50)
            assert (folder / "ballast").stat().st_size == BALLAST_BYTES


def test_a_spool_is_opened_on_a_full_disk_after_a_power_cut(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", mib=8) as disk:
        if disk is None:
            need_root("a small file system")
            missing("a small file system", "run where mounting is allowed (CAP_SYS_ADMIN)")
        folder = disk.mount / "spool"
        with Spool(folder, reserve_bytes=0) as spool:
            payloads = fill(spool, 20)
        disk.fill()
        for _ in range(3):
            with Spool(folder, reserve_bytes=0) as spool:
                assert spool.counters().pending == 20
        disk.fill()
        with Spool(folder, reserve_bytes=0) as spool:
            assert len(spool.settle_many([Stored(id=sample) for sample in payloads])) == 20
            assert spool.counters().pending == 0 and list((folder / "samples").iterdir()) == []
