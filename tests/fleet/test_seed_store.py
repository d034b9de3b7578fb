"""A drawn fleet fills a store: as many samples as asked, books that add up, the same pictures each time."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from misfire_fleet.commands.app import app
from misfire_fleet.errors import StoreError
from misfire_fleet.simulate.seeding.plan import SeedPlan, vehicles_of
from misfire_fleet.simulate.seeding.scores import pack
from misfire_fleet.simulate.seeding.seeding import seed_store
from misfire_fleet.store import Store
from misfire_fleet.store.records import SampleFilter
from misfire_fleet.truth.histogram import Histogram

PLAN = SeedPlan(vehicles=5, samples=60, days=2, labels=0.3, verdicts=2, until=1_700_000_000.0)


def test_a_seeded_store_has_what_was_asked_and_its_books_add_up(anywhere: Store) -> None:
    done = seed_store(anywhere, PLAN)
    assert (done.samples, done.vehicles, anywhere.count()) == (60, 5, 60)
    assert done.verdicts == 2 and done.labels > 0
    assert anywhere.count(SampleFilter(random=True)) == done.random > 0
    books = anywhere.vehicle_counts()
    assert len(books) == 5 and sum(each.stored for each in books) == 60
    for each in books:
        assert each.counters is not None and each.missing == 0
        assert each.counters.captured == each.counters.accounted
    newest = anywhere.newest(1)[0]
    assert newest.stored_at <= PLAN.until and len(anywhere.read_blob(newest.id)) == newest.size
    beat = anywhere.vehicles.heartbeats("ham-001")[0][1]
    assert beat.place is not None and beat.place.region == "hamburg" and beat.pending_bytes is not None
    with pytest.raises(StoreError, match="not empty"):
        seed_store(anywhere, PLAN)


def test_the_same_seed_draws_the_same_fleet(tmp_path: Path) -> None:
    command = ["simulate", "--seed-store", "--vehicles", "2", "--samples", "12", "--days", "1", "--json"]
    ids = []
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        run = CliRunner().invoke(app, [*command, "--fleet-dir", str(tmp_path / name), "--seed", seed])
        assert run.exit_code == 0, run.output
        assert json.loads(run.stdout)["samples"] == 12
        with Store.open_folder(tmp_path / name) as store:
            ids.append({each.id for each in store.newest(20)})
    assert ids[0] == ids[1] and not ids[0] & ids[2]


def test_a_broker_needs_pictures() -> None:
    run = CliRunner().invoke(app, ["simulate", "--seconds", "0"])
    assert run.exit_code != 0 and "--images" in str(run.exception)


def test_a_packed_sketch_has_the_scores() -> None:
    scores = np.array([0.001, 0.2, 0.2, 0.9])
    packed, single = Histogram(), Histogram()
    assert packed.add(pack(scores)) == 4
    single.add_scores(scores)
    for one, other in zip(packed.table(), single.table(), strict=True):
        np.testing.assert_allclose(one, other)


def test_a_fleet_has_vehicles_of_each_state_and_one_drifting_group() -> None:
    made = vehicles_of(SeedPlan(until=0.0))
    assert len({each.name for each in made}) == 200
    assert 10 < sum(each.offline for each in made) < 50
    assert sum(each.drifts for each in made) == 20
