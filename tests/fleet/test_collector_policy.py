"""What a collector lets in: quotas, rates, near-duplicates across the fleet, and a store that is away."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.fleet.conftest import CollectorMaker, eventually

from misfire_fleet.collector.policy.near_duplicates import Novelty
from misfire_fleet.collector.policy.quota import QuotaTracker, Refusal
from misfire_fleet.collector.policy.rates import Rates
from misfire_fleet.collector.settings import CollectorSettings, NearDuplicates, Quotas
from misfire_fleet.commands.collect import read_settings
from misfire_fleet.errors import RowRefusedError, StoreUnavailableError
from misfire_fleet.store import Store
from misfire_fleet.store.records import NewSample, Outcome
from misfire_runtime.clock import wall_time
from misfire_runtime.errors import ConfigError
from misfire_runtime.messages import (
    Busy,
    Declined,
    Offer,
    Rejected,
    Send,
    Stored,
    Trigger,
    Verdict,
    pack_embedding,
)
from misfire_runtime.testing import make_offer
from proving_ground.client import Vehicle

VehicleMaker = Callable[..., Vehicle]
Numbered = Callable[[int], bytes]
RANDOM = Trigger(name="random", random=True, rate=0.01)


def scene(angle: float) -> str:
    """A unit vector in the plane: the cosine of two scenes is that of their angle's difference."""
    return pack_embedding(np.array([np.cos(angle), np.sin(angle)]))


def verdict_of(verdict: Verdict) -> str:
    return verdict.verdict


def test_the_quota_of_samples_declines_what_is_chosen_and_spares_the_random_stream(
    start_collector: CollectorMaker, vehicle: VehicleMaker, store: Store, jpeg: Numbered
) -> None:
    start_collector(quotas={"samples_per_day": 2})
    car, other = vehicle("car-1"), vehicle("car-2")
    assert [verdict_of(car.upload(jpeg(n))) for n in range(3)] == ["stored", "stored", "declined"]
    assert isinstance(car.upload(jpeg(3), trigger=RANDOM), Stored)
    assert isinstance(other.upload(jpeg(4)), Stored)
    assert eventually(lambda: store.vehicles.causes("car-1") == [("declined", "quota", 1)])


def test_a_quota_counts_what_other_collectors_stored_before(
    start_collector: CollectorMaker, vehicle: VehicleMaker, store: Store, jpeg: Numbered
) -> None:
    store.add_many([NewSample(make_offer(jpeg(0)), jpeg(0), 1280, 720, "another-collector")])
    start_collector(quotas={"bytes_per_day": len(jpeg(0)) + len(jpeg(1))})
    car = vehicle()
    assert isinstance(car.upload(jpeg(1)), Stored)
    verdict = car.upload(jpeg(2), trigger=RANDOM)
    assert isinstance(verdict, Declined)
    assert "bytes per day" in verdict.reason


def test_of_a_flood_of_offers_only_some_are_answered(
    start_collector: CollectorMaker, vehicle: VehicleMaker, jpeg: Numbered
) -> None:
    collector = start_collector(quotas={"offers_per_s": 1.0})
    flooder, offers = vehicle("flooder"), 100
    for number in range(offers):
        flooder.offer(make_offer(jpeg(number), vehicle="flooder"))
    dropped = collector.metrics.dropped.labels("rate")._value
    assert eventually(lambda: dropped.get() > offers / 2)
    time.sleep(0.5)
    assert flooder.verdicts.qsize() < offers / 2


def test_offers_above_the_rate_are_put_off_not_refused(
    start_collector: CollectorMaker, vehicle: VehicleMaker, jpeg: Numbered
) -> None:
    start_collector(quotas={"offers_per_s": 0.2})
    car = vehicle()
    for number in range(2):
        assert isinstance(car.upload(jpeg(number)), Stored)
    verdict = car.upload(jpeg(2))
    assert isinstance(verdict, Busy)
    assert verdict.retry_after_s > 1


def test_a_scene_that_the_fleet_has_enough_of_is_declined_whichever_vehicle_offers_it(
    start_collector: CollectorMaker, vehicle: VehicleMaker, jpeg: Numbered
) -> None:
    start_collector(near_duplicates={"similarity": 0.99, "copies": 2})
    cars = [vehicle(f"car-{number}") for number in range(4)]
    fog = [car.upload(jpeg(n), embedding=scene(0.01 * n)) for n, car in enumerate(cars)]
    assert [verdict_of(verdict) for verdict in fog] == ["stored", "stored", "declined", "declined"]
    assert isinstance(cars[0].upload(jpeg(10), embedding=scene(1.5)), Stored)
    assert isinstance(cars[0].upload(jpeg(11), embedding=scene(0.0), bundle="other@1.0.0"), Stored)
    assert isinstance(cars[0].upload(jpeg(12), embedding=scene(0.0), trigger=RANDOM), Stored)
    assert isinstance(cars[0].upload(jpeg(13), embedding=None), Stored)


def test_scenes_offered_at_the_same_moment_wait_until_it_is_known_what_is_stored(
    start_collector: CollectorMaker, vehicle: VehicleMaker, jpeg: Numbered
) -> None:
    start_collector(near_duplicates={"similarity": 0.99, "copies": 2})
    cars = [vehicle(f"car-{number}") for number in range(8)]
    for number, car in enumerate(cars):
        car.offer(make_offer(jpeg(number), vehicle=car.name, embedding=scene(0.0)))
    verdicts = {number: car.hear() for number, car in enumerate(cars)}
    assert sorted(map(verdict_of, verdicts.values())) == ["busy"] * 6 + ["send"] * 2
    for number, verdict in verdicts.items():
        if isinstance(verdict, Send):
            cars[number].send(jpeg(number), verdict)
            assert isinstance(cars[number].hear(), Stored)
    late = [number for number, verdict in verdicts.items() if isinstance(verdict, Busy)]
    assert {verdict_of(cars[n].upload(jpeg(n), embedding=scene(0.0))) for n in late} == {"declined"}


@pytest.mark.slow
def test_a_scene_whose_copies_were_deleted_is_wanted_again(
    start_collector: CollectorMaker, vehicle: VehicleMaker, store: Store, jpeg: Numbered
) -> None:
    start_collector(near_duplicates={"similarity": 0.99, "copies": 1})
    car = vehicle()
    assert isinstance(car.upload(jpeg(1), embedding=scene(0.0)), Stored)
    assert isinstance(car.upload(jpeg(2), embedding=scene(0.0)), Declined)
    store.deletion.delete(vehicle="car-1", reason="asked for")
    assert isinstance(car.upload(jpeg(3), embedding=scene(0.0)), Stored)


def test_a_quota_that_is_used_up_by_samples_on_their_way_declines_nothing(
    start_collector: CollectorMaker, vehicle: VehicleMaker, jpeg: Numbered
) -> None:
    start_collector(quotas={"samples_per_day": 1})
    car = vehicle()
    car.offer(make_offer(jpeg(1)))
    send = car.hear_send()
    assert isinstance(car.upload(jpeg(2)), Busy)
    car.send(jpeg(1), send)
    assert isinstance(car.hear(), Stored)
    assert isinstance(car.upload(jpeg(2)), Declined)


def test_a_clock_that_is_behind_the_store_declines_nothing_by_quota(
    start_collector: CollectorMaker, vehicle: VehicleMaker, store: Store, jpeg: Numbered
) -> None:
    ahead = NewSample(make_offer(jpeg(0)), jpeg(0), 1280, 720, "another", stored_at=wall_time() + 86_400)
    store.add_many([ahead])
    start_collector(quotas={"samples_per_day": 1})
    assert isinstance(vehicle().upload(jpeg(1)), Busy)


def test_scenes_stored_before_a_start_are_remembered_after_it(
    start_collector: CollectorMaker, vehicle: VehicleMaker, store: Store, jpeg: Numbered
) -> None:
    store.add_many([NewSample(make_offer(jpeg(0), embedding=scene(0.0)), jpeg(0), 1280, 720, "earlier")])
    start_collector(near_duplicates={"similarity": 0.99, "copies": 1})
    assert isinstance(vehicle().upload(jpeg(1), embedding=scene(0.0)), Declined)


def test_a_scene_that_never_came_makes_room_for_another(
    start_collector: CollectorMaker, vehicle: VehicleMaker, jpeg: Numbered
) -> None:
    collector = start_collector(near_duplicates={"similarity": 0.99, "copies": 1}, abandon_s=0.3)
    car, other = vehicle("car-1"), vehicle("car-2")
    car.offer(make_offer(jpeg(1), embedding=scene(0.0)))
    car.hear_send()
    assert isinstance(other.upload(jpeg(2), embedding=scene(0.0)), Busy)
    assert eventually(lambda: len(collector.transfers) == 0)
    assert isinstance(other.upload(jpeg(3), embedding=scene(0.0)), Stored)


class Failing:
    """A store whose commits fail while `error` is set."""

    def __init__(self, store: Store) -> None:
        self.error: Exception | None = None
        self._add = store.add_many
        store.add_many = self.add_many  # type: ignore[method-assign]

    def add_many(self, new: list[NewSample], **options: bool) -> list[Outcome]:
        if self.error is not None:
            raise self.error
        return self._add(new, **options)


@pytest.mark.slow
def test_a_store_that_is_away_makes_busy_and_loses_nothing(
    start_collector: CollectorMaker, vehicle: VehicleMaker, store: Store, jpeg: Numbered
) -> None:
    failing = Failing(store)
    collector = start_collector()
    car = vehicle()
    failing.error = StoreUnavailableError("no space left on device")
    car.offer(make_offer(jpeg(1)))
    car.send(jpeg(1), car.hear_send())
    assert eventually(lambda: collector.breaker.is_open)
    assert collector.problems() == ["the store does not take samples: no space left on device"]
    assert isinstance(car.upload(jpeg(2)), Busy)
    failing.error = None
    assert isinstance(car.hear(), Stored)
    assert isinstance(car.upload(jpeg(2)), Stored)
    assert collector.problems() == []


def test_one_sample_that_the_database_does_not_take_keeps_no_other_out(
    start_collector: CollectorMaker, vehicle: VehicleMaker, store: Store, jpeg: Numbered
) -> None:
    real = store.add_many
    bad = make_offer(jpeg(3)).id

    def picky(new: list[NewSample], **options: bool) -> list[Outcome]:
        if any(sample.offer.id == bad for sample in new):
            raise RowRefusedError("value out of range")
        return real(new, **options)

    store.add_many = picky  # type: ignore[method-assign, assignment]
    start_collector()
    car = vehicle()
    for number in range(6):
        car.offer(make_offer(jpeg(number)))
    sends = {send.id: send for send in (car.hear_send() for _ in range(6))}
    for number in range(6):
        car.send(jpeg(number), sends[make_offer(jpeg(number)).id])
    verdicts = [car.hear() for _ in range(6)]
    assert [verdict.id for verdict in verdicts if isinstance(verdict, Rejected)] == [bad]
    assert sum(isinstance(verdict, Stored) for verdict in verdicts) == 5


def test_novelty_forgets_the_oldest_and_never_compares_bundles() -> None:
    novelty = Novelty(NearDuplicates(similarity=0.9, copies=1, remembered=3))
    directions = np.eye(5, dtype=np.float32)
    for number, direction in enumerate(directions):
        novelty.remember("a@1.0.0", f"{number}", direction)
    found = [len(novelty.neighbours("a@1.0.0", direction, besides="")) for direction in directions]
    assert found == [0, 0, 1, 1, 1]
    assert novelty.neighbours("b@1.0.0", directions[4], besides="") == []
    assert novelty.neighbours("a@1.0.0", directions[4], besides="4") == []
    novelty.forget("3")
    novelty.forget("never heard of")
    assert novelty.neighbours("a@1.0.0", directions[3], besides="") == []
    novelty.remember("a@1.0.0", "zero", np.zeros(5, np.float32))
    assert novelty.neighbours("a@1.0.0", np.zeros(5, np.float32), besides="") == []


@pytest.mark.parametrize("remembered", [1, 7, 300, 1000])
def test_novelty_agrees_with_a_search_through_everything(remembered: int) -> None:
    rng = np.random.default_rng(remembered)
    vectors = rng.normal(size=(600, 4)).astype(np.float32)
    novelty = Novelty(NearDuplicates(similarity=0.8, copies=1, remembered=remembered))
    for number, vector in enumerate(vectors):
        novelty.remember("a@1.0.0", str(number), vector)
    kept = vectors[-remembered:] / np.linalg.norm(vectors[-remembered:], axis=1, keepdims=True)
    for query in rng.normal(size=(20, 4)).astype(np.float32):
        expected = int(np.count_nonzero(kept @ (query / np.linalg.norm(query)) >= 0.8))
        assert len(novelty.neighbours("a@1.0.0", query, besides="")) == expected


def test_the_quota_book_counts_a_sample_once_between_store_and_memory() -> None:
    book = QuotaTracker(Quotas(samples_per_day=2))
    first, second, third = (make_offer(bytes([n])) for n in range(3))
    book.refresh({}, counted=set(), now=0.0)
    book.accept(first)
    assert book.refusal(second, 0.0) is None
    book.accept(second)
    assert book.refusal(second, 0.0) is None, "a repeated offer of an accepted sample is not refused"
    assert not refused(book, third, 0.0).final
    book.confirm("car-1", first.id)
    book.refresh({"car-1": (1, 1)}, counted={first.id}, now=1.0)
    assert book.accepted() == {second.id}
    assert not refused(book, third, 1.0).final
    book.confirm("car-1", second.id)
    assert refused(book, third, 1.0).final
    assert not refused(book, third, 100.0).final, "old figures decline nothing"
    book.give_back("car-1", second.id)
    assert book.refusal(third, 1.0) is None


def refused(book: QuotaTracker, offer: Offer, now: float) -> Refusal:
    refusal = book.refusal(offer, now)
    assert refusal is not None
    return refusal


def test_the_rate_has_a_burst_and_then_its_pace() -> None:
    rates = Rates(2.0)
    now = time.monotonic()
    assert [rates.wait_s("car-1", now) for _ in range(20)] == [0.0] * 20
    assert rates.wait_s("car-1", now) == pytest.approx(0.5)
    assert rates.wait_s("car-2", now) == 0.0
    assert rates.wait_s("car-1", now + 0.6) == 0.0


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("max_transfers = 0", ":1: max_transfers: "),
        ("unknown = 1", ":1: unknown: "),
        ("[quotas]\nsamples_per_day = 'many'", ":2: quotas.samples_per_day: "),
        ("max_transfers", ": not valid TOML: Expected '='"),
    ],
)
def test_wrong_settings_are_named_with_file_and_key(tmp_path: Path, text: str, problem: str) -> None:
    file = tmp_path / "collector.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_settings(file)
    assert f"collector.toml{problem}" in str(caught.value)
    with pytest.raises(ConfigError, match="No such file"):
        read_settings(tmp_path / "absent.toml")
    file.write_text("stall_s = 3.0\n[near_duplicates]\ncopies = 5")
    expected = CollectorSettings(stall_s=3.0, near_duplicates=NearDuplicates(copies=5))
    assert read_settings(file) == expected
