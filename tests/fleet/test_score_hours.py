"""Histograms of scores by hour: what heartbeats and the random stream add, once, within bounds."""

from __future__ import annotations

import numpy as np
import pytest
from sqlalchemy import update
from tests.fleet.stores import again, at, sample

from misfire_fleet.simulate.seeding.scores import pack
from misfire_fleet.store import Store
from misfire_fleet.store.schema import telemetry
from misfire_fleet.truth.bins import MIN_FRAMES, PSI_DRIFT, PSI_WATCH, Bins, deciles, psi
from misfire_fleet.truth.histogram import Histogram
from misfire_fleet.truth.rollups import behind, choices, roll_up, steps
from misfire_runtime.messages import Counters, Place, Telemetry, Trigger

HOUR = 1_700_000_000 // 3600 * 3600


def beat(scores: list[float], *, bundle: str = "x@1", region: str = "") -> Telemetry:
    place = Place(region=region) if region else None
    sketches = {"entropy": pack(np.array(scores))}
    return Telemetry(at=at(0), bundle=bundle, counters=Counters(), sketches=sketches, place=place)


def frames(store: Store, **asked: object) -> list[tuple[str, int, float]]:
    found = steps(store, "all", score="entropy", since=0, **asked)  # type: ignore[arg-type]
    return [(step.slice, step.begins - HOUR, step.bins.total) for step in found]


def test_heartbeats_are_added_once_by_hour_vehicle_and_region(anywhere: Store) -> None:
    beats = [("a", beat([0.1, 0.2], region="north")), ("b", beat([0.3])), ("a", beat([0.5], region="north"))]
    anywhere.vehicles.record_telemetry(beats, at=[HOUR + 5, HOUR + 10, HOUR + 3700])
    assert behind(anywhere) == 3
    assert roll_up(anywhere, limit=2) == 2
    with again(anywhere) as other:
        assert roll_up(other, limit=2) == 1
    assert roll_up(anywhere) == 0 and behind(anywhere) == 0
    assert frames(anywhere) == [("", 0, 3.0), ("", 3600, 1.0)]
    assert frames(anywhere, by="vehicle", slice_="a") == [("a", 0, 2.0), ("a", 3600, 1.0)]
    assert frames(anywhere, by="region") == [("north", 0, 2.0), ("north", 3600, 1.0)]
    assert choices(anywhere) == (["x@1"], ["entropy"], ["", "region", "vehicle"])
    # A later heartbeat of the same hour is merged with what is there.
    anywhere.vehicles.record_telemetry([("b", beat([0.3, 0.3]))], at=[HOUR + 50])
    assert roll_up(anywhere) == 1
    assert frames(anywhere)[0] == ("", 0, 5.0)


def test_what_cannot_be_read_is_left_out(store: Store) -> None:
    store.vehicles.record_telemetry([("a", beat([0.1])), ("a", beat([0.2])), ("a", beat([0.4]))])
    with store.database.write() as connection:
        connection.execute(update(telemetry).where(telemetry.c.seq == 1).values(payload="{"))
        broken = '{"bundle": "x@1", "sketches": {"entropy": "AAAA", "other": 5}}'
        connection.execute(update(telemetry).where(telemetry.c.seq == 2).values(payload=broken))
    assert roll_up(store) == 3
    assert sum(step.bins.total for step in steps(store, "all", score="entropy", since=0)) == 1


def test_the_random_stream_is_sliced_by_its_context_within_bounds(store: Store) -> None:
    drawn = Trigger(name="random", random=True, rate=0.01)
    contexts = [{"weather": f"w{n}", "night": n % 2 == 0, "speed": 3.5} for n in range(100)]
    store.add_many(
        [sample(n, trigger=drawn, scores={"entropy": 0.5}, context=c) for n, c in enumerate(contexts)]
    )
    store.add_many([sample(500, scores={"entropy": 9.0})])
    roll_up(store)
    by = {
        key: {
            step.slice: step.bins.total for step in steps(store, "stream", score="entropy", by=key, since=0)
        }
        for key in ("", "weather", "night", "speed")
    }
    assert by[""] == {"": 100} and by["night"] == {"true": 50, "false": 50} and by["speed"] == {}
    assert len(by["weather"]) == 61 and by["weather"]["other"] == 40


def test_bins_agree_with_the_histogram_of_field_truth() -> None:
    scores = [-2.0, -1.0, 0.0, 1e-9, 3.0, 3.0, 500.0]
    bins, histogram = Bins(), Histogram()
    for score in scores:
        bins.add_score(score)
    histogram.add_scores(scores)
    for found in (bins, Bins.unpack(bins.pack())):
        values, counts = found.table()
        np.testing.assert_allclose(values[counts > 0], histogram.table()[0])
        np.testing.assert_allclose(counts[counts > 0], histogram.table()[1])
    assert bins.quantiles([0.0, 1.0]) == pytest.approx([-2.0, 500.0], rel=0.011)
    assert Bins().quantiles([0.5]) is None and Bins.unpack(b"").total == 0
    np.testing.assert_allclose(bins.below([-1.5, 0.0, 600.0]), [1 / 7, 3 / 7, 1.0])
    with pytest.raises(ValueError, match="histogram"):
        Bins.unpack(b"\0\0\0\0" + np.array([np.nan]).tobytes())


def test_the_index_is_small_by_chance_and_large_after_a_shift() -> None:
    chance = np.random.default_rng(0)

    def drawn(mean: float, count: int) -> Bins:
        made = Bins()
        made.add_sketch(pack(np.exp(chance.normal(mean, 1, count))))
        return made

    reference = drawn(0, 20_000)
    edges = reference.quantiles(deciles())
    assert edges is not None
    by_chance = [psi(reference.below(edges), drawn(0, MIN_FRAMES).below(edges)) for _ in range(50)]
    assert np.mean(by_chance) < PSI_WATCH
    assert psi(reference.below(edges), drawn(0.7, 2000).below(edges)) > PSI_DRIFT
