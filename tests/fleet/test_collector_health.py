"""A collector that is flooded serves the others, and one that does not serve says so."""

from __future__ import annotations

import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError
from tests.fleet.conftest import CollectorMaker, eventually

from misfire_fleet.collector import Collector
from misfire_fleet.collector import committer as collector_committer
from misfire_fleet.collector.broker.outbox import Outbox
from misfire_fleet.collector.endpoint import MetricsEndpoint
from misfire_fleet.collector.health.health import Answers
from misfire_fleet.collector.health.metrics import CollectorMetrics
from misfire_fleet.collector.housekeeping import Housekeeping
from misfire_fleet.collector.notes import NoteBuffer
from misfire_fleet.collector.policy.campaigns import CampaignGate
from misfire_fleet.collector.policy.quota import QuotaTracker
from misfire_fleet.collector.queue import Incoming, OfferQueue
from misfire_fleet.collector.settings import CollectorSettings
from misfire_fleet.decoding.decoder import Verified
from misfire_fleet.errors import RowRefusedError, StoreUnavailableError
from misfire_fleet.store import Store
from misfire_fleet.store.records import NewSample
from misfire_runtime.messages import (
    MAX_CHUNK_BYTES,
    MIN_CHUNK_BYTES,
    Busy,
    Clock,
    Counters,
    State,
    Stored,
    Telemetry,
    encode,
)
from misfire_runtime.testing import make_offer
from proving_ground.client import Vehicle

VehicleMaker = Callable[..., Vehicle]


def healthz(collector: Collector) -> tuple[int, str]:
    endpoint = MetricsEndpoint(collector, host="127.0.0.1", port=0)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{endpoint.port}/healthz", timeout=10) as answer:
            return int(answer.status), answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    finally:
        endpoint.close()


def metric(collector: Collector, name: str) -> float:
    value = collector.metrics.registry.get_sample_value(name)
    assert value is not None, name
    return value


def test_offers_are_taken_from_each_vehicle_in_turn() -> None:
    queue = OfferQueue(max_waiting=100, max_per_vehicle=5)
    taken = [queue.put(Incoming("flooder", b"%d" % n, float(n))) for n in range(20)]
    assert taken == [True] * 5 + [False] * 15
    assert queue.put(Incoming("car-1", b"a", 50.0))
    assert queue.put(Incoming("car-2", b"b", 51.0))
    assert queue.oldest_at() == 0.0
    assert [incoming.vehicle for incoming in queue.take(4)] == ["flooder", "car-1", "car-2", "flooder"]
    assert [incoming.payload for incoming in queue.take(100)] == [b"2", b"3", b"4"]
    assert queue.oldest_at() is None and len(queue) == 0
    queue.close()
    assert queue.take(10) == []


def test_the_queue_of_offers_is_bounded_for_all_vehicles_together() -> None:
    queue = OfferQueue(max_waiting=10, max_per_vehicle=5)
    assert sum(queue.put(Incoming(f"car-{n}", b"")) for n in range(30)) == 10


def test_one_vehicle_cannot_fill_the_outbox() -> None:
    sent: list[str] = []
    outbox = Outbox(lambda: None, max_verdicts=100, max_per_vehicle=10)
    for number in range(500):
        outbox.put("flooder", Busy(id=f"{number:064x}", retry_after_s=1.0))
    outbox.put("car-1", Stored(id=f"{9999:064x}"))
    outbox.send(lambda vehicle, _reply: sent.append(vehicle) or len(sent))  # type: ignore[func-returns-value]
    assert sent == ["flooder", "car-1"]
    assert outbox.dropped == 490


@pytest.mark.slow
def test_a_flood_of_offers_delays_no_other_vehicle(
    start_collector: CollectorMaker, vehicle: VehicleMaker, jpeg: Callable[[int], bytes]
) -> None:
    collector = start_collector()
    flooder, car = vehicle("flooder"), vehicle("car-1")
    stop = threading.Event()

    def flood() -> None:
        template = encode(make_offer(b"x", vehicle="flooder"))
        known = make_offer(b"x").id.encode()
        for number in range(20_000):
            if stop.is_set():
                return
            flooder.publish(flooder.topics.offer, template.replace(known, b"%064x" % number))

    thread = threading.Thread(target=flood)
    thread.start()
    try:
        assert eventually(lambda: metric_of_drops(collector, "rate") > 100)
        began = time.monotonic()
        assert isinstance(car.upload(jpeg(1)), Stored)
        assert time.monotonic() - began < 5.0
        assert collector.offers.waiting <= 256 + 1
    finally:
        stop.set()
        thread.join()


def metric_of_drops(collector: Collector, kind: str) -> float:
    return collector.metrics.registry.get_sample_value("misfire_dropped_total", {"kind": kind}) or 0.0


def test_large_offers_without_bytes_leave_room_for_an_honest_vehicle(
    start_collector: CollectorMaker, vehicle: VehicleMaker, jpeg: Callable[[int], bytes]
) -> None:
    collector = start_collector()
    hog, car = vehicle("hog"), vehicle("car-1")
    for number in range(8):
        hog.offer(make_offer(b"%d" % number, vehicle="hog", size=32 * 1024 * 1024))
    assert [hog.hear().verdict for _ in range(8)] == ["send"] * 4 + ["busy"] * 4
    assert collector.transfers.reserved_bytes == 128 * 1024 * 1024
    assert isinstance(car.upload(jpeg(1)), Stored)
    assert collector.problems() == []


def test_a_check_that_runs_too_long_is_a_problem(
    start_collector: CollectorMaker,
    vehicle: VehicleMaker,
    jpeg: Callable[[int], bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    release = threading.Event()

    def slow(*_: object, **__: object) -> Verified:
        release.wait(30)
        return Verified(1, 1)

    monkeypatch.setattr(collector_committer, "verify", slow)
    collector = start_collector()
    car = vehicle()
    data = jpeg(1)
    car.offer(make_offer(data))
    car.send(data, car.hear_send())
    try:
        assert eventually(lambda: collector.committer.busy_s("check", time.monotonic()) > 0)
        assert collector.problems() == []
        monkeypatch.setattr(
            collector.committer, "busy_s", lambda stage, _now: 31.0 if stage == "check" else 0.0
        )
        assert healthz(collector) == (503, "the check of a sample has been running for 31 s\n")
        assert eventually(lambda: metric(collector, "misfire_longest_check_seconds") == 31.0)
    finally:
        release.set()
    assert isinstance(car.hear(), Stored)


def test_whole_samples_that_wait_without_end_are_a_problem(
    start_collector: CollectorMaker,
    vehicle: VehicleMaker,
    store: Store,
    jpeg: Callable[[int], bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    collector = start_collector()
    release, real = threading.Event(), store.add_many

    def hang(*arguments: Any, **keywords: Any) -> Any:
        release.wait(30)
        return real(*arguments, **keywords)

    car = vehicle()
    assert isinstance(car.upload(jpeg(0)), Stored)
    with monkeypatch.context() as patch:
        patch.setattr(store, "add_many", hang)
        car.offer(make_offer(jpeg(1)))
        car.send(jpeg(1), car.hear_send())
        try:
            assert eventually(lambda: collector.committer.stuck_s(time.monotonic()) > 0.2)
            later = time.monotonic() + 61.0
            assert collector.committer.stuck_s(later) > 60.0
        finally:
            release.set()
        assert isinstance(car.hear(), Stored)
    assert collector.committer.stuck_s(time.monotonic()) == 0.0


def test_vehicles_that_only_hear_busy_are_a_problem(
    start_collector: CollectorMaker, vehicle: VehicleMaker
) -> None:
    collector = start_collector(max_transfers=1)
    hog, car = vehicle("hog"), vehicle("car-1")
    hog.offer(make_offer(b"0", vehicle="hog"))
    hog.hear_send()
    for number in range(10):
        car.offer(make_offer(b"%d" % number))
        assert isinstance(car.hear(), Busy)
    status, text = healthz(collector)
    assert status == 503
    assert "100% of the answers of the last five minutes were `busy`" in text
    assert eventually(lambda: metric(collector, "misfire_busy_share") == 1.0)
    assert metric(collector, "misfire_transfers_full_seconds") > 0


def test_shares_weigh_each_vehicle_the_same_and_forget_after_five_minutes() -> None:
    answers = Answers()
    for _ in range(1000):
        answers.count("flooder", "rejected", "malformed", 0.0)
        answers.count("flooder", "busy", "rate", 0.0)
    for number in range(9):
        answers.count(f"car-{number}", "send", "", 0.0)
        answers.count(f"car-{number}", "stored", "stored", 0.0)
    assert answers.shares(1.0)[1].share == pytest.approx(0.1)
    assert answers.problems(1.0) == []
    for number in range(9):
        for _ in range(9):
            answers.count(f"car-{number}", "busy", "store", 200.0)
    assert "`busy`" in answers.problems(201.0)[0]
    for number in range(9):
        answers.count(f"car-{number}", "stored", "stored", 210.0)
    assert answers.problems(211.0) == [], "it is over"
    assert answers.shares(211.0)[0].share > 0.5
    assert answers.shares(600.0)[0].answers == 0


def test_a_thread_that_meets_the_unforeseen_goes_on(
    start_collector: CollectorMaker,
    vehicle: VehicleMaker,
    store: Store,
    jpeg: Callable[[int], bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ValueError("unforeseen")

    collector = start_collector()
    car = vehicle()
    with monkeypatch.context() as patch:
        patch.setattr(store, "known_and_tombstoned", fail)
        assert isinstance(car.upload(jpeg(1)), Busy)
    with monkeypatch.context() as patch:
        patch.setattr(collector.transfers, "open", fail)
        assert isinstance(car.upload(jpeg(1)), Busy)
    with monkeypatch.context() as patch:
        patch.setattr(collector.transfers, "stalled", fail)
        patch.setattr(store.vehicles, "admitted", fail)
        car.publish(car.topics.state, encode(State(online=True)))
        assert eventually(
            lambda: (
                (
                    collector.metrics.registry.get_sample_value(
                        "misfire_failures_total", {"part": "housekeeping"}
                    )
                    or 0
                )
                > 5
            )
        )
    assert isinstance(car.upload(jpeg(1)), Stored)
    assert eventually(lambda: [row.name for row in store.vehicles.summaries()] == ["car-1"])
    assert eventually(lambda: store.vehicles.summaries()[0].online)
    assert collector.problems() == []


def beat() -> Telemetry:
    return Telemetry(
        at=Clock(wall=1.0, monotonic=1.0, boot_id="b"), bundle="lights@1.0.0", counters=Counters()
    )


def test_made_up_vehicles_leave_a_bounded_number_of_rows(
    start_collector: CollectorMaker, vehicle: VehicleMaker, store: Store, jpeg: Callable[[int], bytes]
) -> None:
    start_collector(max_unproven_vehicles=5)
    liar = vehicle("liar")
    for number in range(50):
        base = liar.topics.base.replace("/liar", f"/made-up-{number}")
        liar.publish(f"{base}/state", encode(State(online=True)))
        liar.publish(f"{base}/telemetry", encode(beat()))
        liar.publish(f"{base}/offer", b'{"id": "%064x", "vehicle": "made-up-%d"}' % (number, number))
    car = vehicle("car-1")
    assert isinstance(car.upload(jpeg(1)), Stored)
    car.publish(car.topics.state, encode(State(online=True)))
    assert eventually(lambda: any(row.name == "car-1" and row.online for row in store.vehicles.summaries()))
    assert len(store.vehicles.summaries()) == 6


def test_vehicles_without_a_sample_are_forgotten_with_all_that_they_said(store: Store) -> None:
    book = store.vehicles
    data = b"a sample"
    store.add_many([NewSample(make_offer(data, vehicle="proven"), data, 1, 1, "c")])
    book.record_states({name: State(online=True) for name in ("proven", "made-up", "new")})
    book.record_telemetry([("new", beat()), ("made-up", beat())])
    book.record_refusals({("made-up", "rejected", "malformed"): 3})
    assert book.forget_unproven(before=1.0) == 0
    assert book.admitted(["proven", "made-up", "other", "another"], max_unproven=3) == {
        "proven",
        "made-up",
        "other",
    }
    assert book.forget_unproven(before=4e9) == 2
    assert [row.name for row in book.summaries()] == ["proven"]
    assert book.heartbeats("made-up") == [] and book.causes("made-up") == []


def housekeeping_of(store: Store) -> tuple[Housekeeping, NoteBuffer]:
    settings, metrics = CollectorSettings(), CollectorMetrics()
    buffer = NoteBuffer(metrics)
    housekeeping = Housekeeping(
        store,
        quotas=QuotaTracker(settings.quotas),
        novelty=None,
        campaigns=CampaignGate(),
        settings=settings,
        metrics=metrics,
        notes=buffer,
        tick=lambda _now: None,
    )
    return housekeeping, buffer


def test_a_store_that_is_away_does_not_fill_the_log(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    housekeeping, _ = housekeeping_of(store)

    def away() -> None:
        raise StoreUnavailableError("database: it is away")

    for _ in range(20):
        housekeeping._guarded(away)
    assert [record.getMessage() for record in caplog.records] == ["housekeeping_put_off"]
    assert caplog.records[0].__dict__["fields"]["problem"] == "database: it is away"


def test_notes_that_the_database_refuses_for_their_values_hold_up_no_others(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = RowRefusedError("telemetry: value out of range")
    record = store.vehicles.record_telemetry

    def refuse_one(beats: list[tuple[str, Telemetry]]) -> None:
        if any(name == "odd" for name, _ in beats):
            raise refused
        record(beats)

    monkeypatch.setattr(store.vehicles, "record_telemetry", refuse_one)
    housekeeping, buffer = housekeeping_of(store)
    buffer.heartbeat("odd", encode(beat()), now=0.0)
    housekeeping._write_notes()
    buffer.heartbeat("car-1", encode(beat()), now=1.0)
    housekeeping._write_notes()
    assert len(store.vehicles.heartbeats("car-1")) == 1


@pytest.mark.parametrize("size", [0, 1023, MAX_CHUNK_BYTES + 1])
def test_chunks_that_vehicles_would_ignore_cannot_be_asked_for(size: int) -> None:
    with pytest.raises(ValidationError, match="chunk_bytes"):
        CollectorSettings(chunk_bytes=size)
    assert CollectorSettings(chunk_bytes=MIN_CHUNK_BYTES).chunk_bytes == 1024


def test_notes_are_bounded_in_names_bytes_and_rate() -> None:
    buffer = NoteBuffer(CollectorMetrics())
    for number in range(30_000):
        buffer.state(f"car-{number}", encode(State(online=True)))
        buffer.refused(f"car-{number}", "rejected", "malformed")
    for number in range(100):
        buffer.heartbeat("car-1", encode(beat()), now=number / 100)
    notes = buffer.take()
    assert (len(notes.states), len(notes.refused), len(notes.beats)) == (20_000, 20_000, 10)
    for number in range(1000):
        buffer.heartbeat(f"car-{number}", b"x" * 60_000, now=100.0)
    assert buffer.take().beats == []
    assert buffer.take().vehicles() == []
