"""The doubles for users' own tests keep the protocols that they implement, and fail when told to."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vehicle_support import EVERY, make, run

from misfire_runtime.config.tables import parse_config
from misfire_runtime.engines.base import Engine
from misfire_runtime.engines.load import load_engine
from misfire_runtime.engines.scoring import Scorer
from misfire_runtime.errors import DiskFullError, EngineError, MisfireError, SourceError
from misfire_runtime.messages import Offer, decode, encode
from misfire_runtime.samples.writer import SampleStore
from misfire_runtime.sources import Source
from misfire_runtime.testing import FakeEngine, ListSource, MemoryStore, make_bundle, make_offer
from misfire_runtime.vehicle.pipeline import Vehicle

GREY = np.full((8, 8, 3), 128, np.uint8)


def test_each_double_is_what_its_protocol_asks_for() -> None:
    engine: Engine = FakeEngine({"entropy": 0.5})
    source: Source = ListSource([GREY])
    store: SampleStore = MemoryStore()
    assert (engine.name, source.live, store.counters().captured) == ("fake", False, 0)


def test_scores_of_a_fake_engine_come_with_the_percentile_that_equals_them(tmp_path: Path) -> None:
    scorer = Scorer(make_bundle(tmp_path / "b", scores=("a", "b")), FakeEngine({"a": 0.25, "b": 0.75}))
    scored = scorer.score(GREY)
    assert scored.scores == {"a": 0.25, "b": 0.75}
    assert scored.percentiles == pytest.approx(scored.scores)
    assert scorer.calibration_differs is None
    scorer.close()


def test_a_fake_bundle_is_no_model_and_loading_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(MisfireError):
        load_engine(make_bundle(tmp_path / "b"))


def test_an_engine_that_fails_for_good_ends_the_run_as_a_real_one_does(tmp_path: Path) -> None:
    engine = FakeEngine({"entropy": 0.5})
    engine.failure = "the GPU fell off the bus"
    vehicle = Vehicle(
        parse_config(EVERY),
        scorer=Scorer(make_bundle(tmp_path / "b"), engine),
        store=MemoryStore(),
        sources=[ListSource([GREY] * 20)],
        state_dir=tmp_path / "state",
    )
    with pytest.raises(EngineError, match="fell off the bus"):
        vehicle.run(threading.Event())
    vehicle.close()


def test_a_list_goes_on_where_it_is_told_to_and_ends_with_its_failure() -> None:
    source = ListSource([GREY] * 5, name="rear", failure=SourceError("rear: unplugged"))
    frames = source.frames(threading.Event(), start=3)
    assert [next(frames).index, next(frames).index] == [3, 4]
    with pytest.raises(SourceError, match="unplugged"):
        next(frames)
    assert source.exhausted.is_set()


def test_a_store_that_is_full_loses_samples_as_a_full_disk_does(bundle: Any, tmp_path: Path) -> None:
    store = MemoryStore()
    store.full = True
    with pytest.raises(DiskFullError):
        store.add(b"x", make_offer(b"x"), priority=5)
    report = run(make(bundle, store, tmp_path, [ListSource([GREY])]))
    assert report.lost == {"disk full": 1} and not store.samples


def test_offers_are_valid_and_equal_for_equal_arguments_and_numbers_tell_them_apart() -> None:
    first = make_offer(b"x", number=1)
    assert decode(Offer, encode(first)) == first == make_offer(b"x", number=1)
    second = make_offer(b"x", number=2)
    assert (first.frame, second.frame) == (1, 2) and first.embedding != second.embedding
    assert make_offer(b"x").embedding == make_offer(b"y").embedding
