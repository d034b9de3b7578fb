"""A collector and a real Mosquitto: what is offered arrives byte-identical, once; what lies is refused."""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.fleet.conftest import CollectorMaker, eventually

from misfire_fleet.collector import committer as collector_committer
from misfire_fleet.store import Store
from misfire_fleet.store.records import SampleFilter
from misfire_runtime.clock import wall_time
from misfire_runtime.messages import (
    Busy,
    Clock,
    Counters,
    Declined,
    Rejected,
    Send,
    State,
    Stored,
    Telemetry,
    Trigger,
    encode,
)
from misfire_runtime.mqtt.client import BrokerConfig
from misfire_runtime.testing import make_offer
from proving_ground.client import Vehicle
from proving_ground.foreign_bytes import SDP, many_scans

VehicleMaker = Callable[..., Vehicle]
Numbered = Callable[[int], bytes]


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_an_upload_arrives_byte_identical_and_is_answered_stored(
    start_collector: CollectorMaker,
    vehicle: VehicleMaker,
    jpeg: Numbered,
    address: BrokerConfig,
    *,
    store: Store,
    protocol: str,
) -> None:
    spoken = address.model_copy(update={"protocol": protocol})
    start_collector(broker=spoken)
    car = vehicle(broker=spoken)
    data = jpeg(1)
    assert car.upload(data) == Stored(id=hashlib.sha256(data).hexdigest())
    (row,) = store.newest()
    assert store.read_blob(row.id) == data
    assert (row.vehicle, row.width, row.height, row.size) == ("car-1", 1280, 720, len(data))
    assert row.scores == {"entropy": 0.7}
    assert row.trigger == "target-rate"
    assert row.embedding is not None
    assert row.embedding.shape == (8,)


def test_png_and_clip_are_taken_too(
    start_collector: CollectorMaker, vehicle: VehicleMaker, store: Store, photo: bytes, tmp_path: Path
) -> None:
    from misfire_runtime.preprocess import decode_image, encode_png
    from proving_ground.pictures import write_clip

    start_collector()
    car = vehicle()
    png = encode_png(decode_image(photo)[:90, :160])
    clip = write_clip(tmp_path / "clip.mp4", frames=38, width=1280, height=720).read_bytes()
    assert isinstance(car.upload(png, media_type="image/png"), Stored)
    assert isinstance(car.upload(clip, media_type="video/mp4"), Stored)
    sizes = {row.media_type: (row.width, row.height) for row in store.newest()}
    assert sizes == {"image/png": (160, 90), "video/mp4": (1280, 720)}


def test_a_known_sample_is_stored_without_a_byte_sent(
    start_collector: CollectorMaker, vehicle: VehicleMaker, store: Store, jpeg: Numbered
) -> None:
    start_collector()
    first, second = vehicle("car-1"), vehicle("car-2")
    assert isinstance(first.upload(jpeg(1)), Stored)
    second.offer(make_offer(jpeg(1), vehicle="car-2"))
    assert isinstance(second.hear(), Stored)
    assert store.totals().samples == 1


def test_chunks_repeated_and_out_of_order_end_in_the_same_bytes(
    start_collector: CollectorMaker, vehicle: VehicleMaker, store: Store, jpeg: Numbered
) -> None:
    start_collector(chunk_bytes=20_000)
    car, data = vehicle(), jpeg(1)
    car.offer(make_offer(data))
    send = car.hear_send()
    pieces = [(at, data[at : at + 20_000]) for at in range(0, len(data), 20_000)]
    for at, piece in [pieces[0], pieces[0], pieces[2], pieces[1], pieces[0]]:
        car.publish(car.topics.data(send.collector, send.id, at), piece)
    again = car.hear_send()
    assert again.offset == 20_000
    car.send(data, Send(id=send.id, collector=send.collector, offset=40_000, chunk_bytes=20_000))
    assert isinstance(car.hear(), Stored)
    assert store.read_blob(send.id) == data


def test_a_repeated_offer_resumes_where_the_transfer_stands(
    start_collector: CollectorMaker, vehicle: VehicleMaker, jpeg: Numbered
) -> None:
    collector = start_collector(chunk_bytes=10_000)
    car, data = vehicle(), jpeg(1)
    car.offer(make_offer(data))
    car.send(data, car.hear_send(), until=30_000)
    assert eventually(lambda: collector.metrics.chunks._value.get() == 3)
    car.offer(make_offer(data))
    send = car.hear_send()
    assert send.offset == 30_000
    car.send(data, send)
    assert isinstance(car.hear(), Stored)


def test_a_stalled_transfer_is_asked_for_again_and_at_last_given_up(
    start_collector: CollectorMaker, vehicle: VehicleMaker, jpeg: Numbered
) -> None:
    collector = start_collector(chunk_bytes=10_000, stall_s=0.2, abandon_s=1.0)
    car, data = vehicle(), jpeg(1)
    car.offer(make_offer(data))
    car.send(data, car.hear_send(), until=20_000)
    assert car.hear_send().offset == 20_000
    assert eventually(lambda: len(collector.transfers) == 0)
    assert collector.transfers.reserved_bytes == 0


def _bomb_png() -> bytes:
    """A few kilobytes that claim 60,000 x 60,000 pixels."""

    def part(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1_000_000), 9)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", header) + part(b"IDAT", pixels) + part(b"IEND", b"")


def _bomb_jpeg(photo: bytes) -> bytes:
    at = photo.index(b"\xff\xc0")
    return photo[: at + 5] + struct.pack(">HH", 65_000, 65_000) + photo[at + 9 :]


def test_a_payload_that_is_no_such_image_is_rejected_with_a_reason(
    start_collector: CollectorMaker, vehicle: VehicleMaker, store: Store, photo: bytes
) -> None:
    start_collector()
    car = vehicle()
    cases = {
        b"no picture at all": ("image/jpeg", "neither JPEG"),
        photo[: len(photo) // 2]: ("image/jpeg", "truncated JPEG"),
        photo + b"": ("image/png", "the offer said image/png"),
        _bomb_png(): ("image/png", "60000x60000 is above the limit"),
        _bomb_jpeg(photo): ("image/jpeg", "65000x65000 is above the limit"),
        b"\xff\xd8\xff\xd9": ("image/jpeg", "no frame header"),
        b"\x00" * 1000: ("video/mp4", "of another format"),
        SDP: ("video/mp4", "of another format"),
        photo[: len(photo) // 2] + b"\xff\xd9": ("image/jpeg", "data is missing"),
        many_scans(2000): ("image/jpeg", "more than 100 scans"),
    }
    for data, (media_type, reason) in cases.items():
        verdict = car.upload(data, media_type=media_type)
        assert isinstance(verdict, Rejected), (media_type, reason, verdict)
        assert reason in verdict.reason
    assert store.totals().samples == 0
    assert list(store.blobs.names()) == []
    assert eventually(lambda: store.totals().rejected == len(cases))


def test_bytes_with_another_hash_are_asked_for_again_and_then_rejected(
    start_collector: CollectorMaker, vehicle: VehicleMaker, store: Store, jpeg: Numbered
) -> None:
    start_collector()
    car = vehicle()
    offered, sent = jpeg(1), jpeg(2)
    car.offer(make_offer(offered))
    car.send(sent, car.hear_send())
    for _ in range(2):
        again = car.hear_send()
        assert again.offset == 0
        car.send(sent, again)
    verdict = car.hear()
    assert isinstance(verdict, Rejected)
    assert "sha256" in verdict.reason
    assert store.totals().samples == 0


def test_a_chunk_damaged_on_the_way_costs_one_repetition_not_the_sample(
    start_collector: CollectorMaker, vehicle: VehicleMaker, store: Store, jpeg: Numbered
) -> None:
    start_collector()
    car, data = vehicle(), jpeg(1)
    car.offer(make_offer(data))
    car.send(data[:5000] + b"\x00" + data[5001:], car.hear_send())
    car.send(data, car.hear_send())
    assert isinstance(car.hear(), Stored)
    assert store.read_blob(store.newest()[0].id) == data


def test_more_bytes_than_offered_are_rejected_after_another_chance(
    start_collector: CollectorMaker, vehicle: VehicleMaker, store: Store, jpeg: Numbered
) -> None:
    start_collector()
    car, data = vehicle(), jpeg(1)
    verdict = car.upload(data, size=1000)
    assert isinstance(verdict, Rejected)
    assert "more bytes" in verdict.reason
    assert store.totals().samples == 0


def test_a_sample_with_noise_behind_it_is_stored_without_the_noise(
    start_collector: CollectorMaker, vehicle: VehicleMaker, store: Store, jpeg: Numbered
) -> None:
    start_collector()
    car, data = vehicle(), jpeg(1)
    car.offer(make_offer(data))
    car.send(data + b"of another sample", car.hear_send())
    assert isinstance(car.hear(), Stored)
    assert store.read_blob(make_offer(data).id) == data


def test_a_flood_of_tiny_chunks_is_put_off(
    start_collector: CollectorMaker, vehicle: VehicleMaker, jpeg: Numbered
) -> None:
    collector = start_collector()
    flooder, car = vehicle("car-1"), vehicle("car-2")
    flooder.offer(make_offer(jpeg(1)))
    send = flooder.hear_send()
    flooder.send(jpeg(1), Send(id=send.id, collector=send.collector, chunk_bytes=2), until=4000)
    assert isinstance(flooder.hear(), Busy)
    assert len(collector.transfers) == 0
    assert isinstance(car.upload(jpeg(2)), Stored)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"size": -1}, "size"),
        ({"scores": {"entropy": "high"}}, "scores.entropy"),
        ({"embedding": "%%%"}, "embedding"),
        ({"bundle": "a\x00b"}, "control characters"),
        ({"media_type": "application/x-executable"}, "media type"),
        ({"size": 200 * 1024 * 1024}, "above the limit"),
    ],
)
def test_an_offer_that_cannot_be_taken_is_rejected_by_name(
    start_collector: CollectorMaker,
    vehicle: VehicleMaker,
    jpeg: Numbered,
    change: dict[str, object],
    reason: str,
) -> None:
    start_collector()
    car = vehicle()
    offer = json.loads(encode(make_offer(jpeg(1)))) | change
    car.publish(car.topics.offer, json.dumps(offer).encode())
    verdict = car.hear()
    assert isinstance(verdict, Rejected)
    assert reason in verdict.reason


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"v": 2}, "protocol version is not 1"),
        ({"vehicle": "car-2"}, "vehicle car-2 offered under the topic of car-1"),
    ],
)
def test_an_offer_that_says_nothing_about_its_sample_is_put_off(
    start_collector: CollectorMaker,
    vehicle: VehicleMaker,
    jpeg: Numbered,
    change: dict[str, object],
    reason: str,
) -> None:
    start_collector()
    car = vehicle()
    offer = json.loads(encode(make_offer(jpeg(1)))) | change
    car.publish(car.topics.offer, json.dumps(offer).encode())
    verdict = car.hear()
    assert isinstance(verdict, Busy)
    assert reason in verdict.reason
    car.publish(car.topics.offer, encode(make_offer(jpeg(1)))[:-1])
    verdict = car.hear()
    assert isinstance(verdict, Busy)
    assert "damaged" in verdict.reason
    assert isinstance(car.upload(jpeg(1)), Stored)


def test_garbage_on_every_topic_harms_nobody(
    start_collector: CollectorMaker, vehicle: VehicleMaker, jpeg: Numbered
) -> None:
    collector = start_collector()
    car = vehicle()
    for payload in (b"", b"\xff\xfe", b"[" * 5000, b'{"id": 5}', b"null", b"x" * 70_000):
        for topic in (car.topics.offer, car.topics.state, car.topics.telemetry):
            car.publish(topic, payload)
        for tail in ("x/y/z", "x/0", f"{collector.name}/a/-1", f"{collector.name}/{'0' * 64}/9999999999999"):
            car.publish(f"{car.topics.base}/data/{tail}", payload)
    car.publish(car.topics.data(collector.name, "0" * 64, 0), b"nobody asked")
    assert isinstance(car.upload(jpeg(1)), Stored)
    assert collector.problems() == []


def test_a_full_collector_says_busy(
    start_collector: CollectorMaker, vehicle: VehicleMaker, jpeg: Numbered
) -> None:
    start_collector(max_transfers=1)
    car, other = vehicle("car-1"), vehicle("car-2")
    car.offer(make_offer(jpeg(1)))
    send = car.hear_send()
    other.offer(make_offer(jpeg(2), vehicle="car-2"))
    verdict = other.hear()
    assert isinstance(verdict, Busy)
    assert verdict.retry_after_s > 0
    car.send(jpeg(1), send)
    assert isinstance(car.hear(), Stored)
    assert isinstance(other.upload(jpeg(2)), Stored)


def test_state_and_telemetry_reach_the_store(
    start_collector: CollectorMaker, vehicle: VehicleMaker, store: Store
) -> None:
    start_collector()
    car = vehicle()
    beat = Telemetry(
        at=Clock(wall=1.0, monotonic=1.0, boot_id="b"),
        bundle="lights@1.0.0",
        counters=Counters(captured=3, pending=3),
    )
    car.publish(car.topics.state, encode(State(online=True, boot_id="b", session=2, bundle="lights@1.0.0")))
    car.publish(car.topics.telemetry, encode(beat))

    def known() -> bool:
        (summary,) = store.vehicles.summaries() or [None]
        return summary is not None and summary.online and summary.telemetry == beat

    assert eventually(known)
    assert len(store.vehicles.heartbeats("car-1")) == 1


def test_the_random_stream_is_marked(
    start_collector: CollectorMaker, vehicle: VehicleMaker, store: Store, jpeg: Numbered
) -> None:
    start_collector()
    vehicle().upload(jpeg(1), trigger=Trigger(name="random", random=True, rate=0.01))
    assert store.newest()[0].random
    assert store.totals().random == 1


@pytest.mark.parametrize("years", [-60, 30])
def test_a_sample_of_an_impossible_time_is_stored_marked_and_found_by_the_time_it_came(
    start_collector: CollectorMaker, vehicle: VehicleMaker, store: Store, jpeg: Numbered, years: int
) -> None:
    collector = start_collector()
    now = wall_time()
    wrong = Clock(wall=max(0.0, now + years * 31_557_600), monotonic=5.0, boot_id="boot")
    assert isinstance(vehicle().upload(jpeg(1), captured_at=wrong), Stored)
    (row,) = store.newest(filters=SampleFilter(captured_from=now - 60, captured_to=now + 60))
    assert row.offer.captured_at == wrong
    assert collector.metrics.implausible_clocks._value.get() == 1


def test_a_deleted_sample_is_declined_and_stays_away(
    start_collector: CollectorMaker, vehicle: VehicleMaker, store: Store, jpeg: Numbered
) -> None:
    start_collector()
    car = vehicle()
    car.upload(jpeg(1))
    assert store.deletion.delete(vehicle="car-1", reason="asked for").deleted == 1
    verdict = car.upload(jpeg(1))
    assert isinstance(verdict, Declined)
    assert "deleted" in verdict.reason
    assert store.totals().samples == 0
    assert list(store.blobs.names()) == []


def test_a_sample_deleted_while_it_was_on_its_way_is_not_stored(
    start_collector: CollectorMaker, vehicle: VehicleMaker, store: Store, jpeg: Numbered
) -> None:
    start_collector()
    first, second = vehicle("car-1"), vehicle("car-2")
    second.offer(make_offer(jpeg(1), vehicle="car-2"))
    send = second.hear_send()
    assert isinstance(first.upload(jpeg(1)), Stored)
    store.deletion.delete(vehicle="car-1", reason="asked for")
    second.send(jpeg(1), send)
    assert isinstance(second.hear(), Declined)
    assert store.totals().samples == 0


def test_a_collector_that_fails_in_an_unforeseen_way_puts_the_sample_off_and_goes_on(
    start_collector: CollectorMaker,
    vehicle: VehicleMaker,
    store: Store,
    jpeg: Numbered,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("unforeseen")

    def run_out(*_: object, **__: object) -> None:
        raise MemoryError

    collector = start_collector()
    car = vehicle()
    with monkeypatch.context() as patch:
        patch.setattr(store.blobs, "stage", fail)
        assert isinstance(car.upload(jpeg(1)), Busy)
    with monkeypatch.context() as patch:
        patch.setattr(collector_committer, "verify", run_out)
        assert isinstance(car.upload(jpeg(1)), Busy)
    assert len(collector.transfers) == 0 and collector.problems() == []
    assert isinstance(car.upload(jpeg(1)), Stored)
