"""The dry run: its prediction against what a simulated campaign costs, and what it refuses to say."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from misfire_fleet.campaigns.dry_run import DryRun, Horizon, estimate
from misfire_fleet.campaigns.intervals import Range, poisson_rate, predicted, t_quantile
from misfire_fleet.campaigns.spec import CampaignSpec, parse_spec
from misfire_fleet.store import Store
from misfire_runtime.messages import State
from proving_ground.simulated.field import Field, before, collect, make_field, record, since

pytestmark = pytest.mark.slow
BACK, AHEAD = 7, 3


@pytest.fixture(scope="module")
def field() -> Field:
    return make_field(vehicles=4, days=BACK + AHEAD, frames=700, seed=5)


@pytest.fixture(scope="module")
def recorded(field: Field, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with Store.open_folder(tmp_path_factory.mktemp("fleet")) as store:
        record(store, before(field, BACK), share=0.05, labelled=0.6, seed=5)
        yield store


def spec(**fields: Any) -> CampaignSpec:
    return parse_spec({"name": "c", **fields})


def run(store: Store, field: Field, made: CampaignSpec, days: float = AHEAD) -> DryRun:
    return estimate(store, made, Horizon(days=days, back_days=BACK, now=before(field, BACK).now))


@pytest.mark.parametrize(
    ("what", "source"),
    [
        ({"score": "entropy", "above": 2.5}, "sketches"),
        ({"score": "entropy", "top": 0.02}, "sketches"),
        ({"slice": {"weather": "fog"}, "above": 1.5, "score": "entropy"}, "random stream"),
        ({"when": "entropy > 2 and context.weather != 'fog'"}, "random stream"),
    ],
)
def test_the_campaign_costs_what_the_dry_run_says(
    recorded: Store, field: Field, what: dict[str, Any], source: str, tmp_path: Path
) -> None:
    made = spec(what=what)
    found = run(recorded, field, made)
    later = since(field, BACK)
    taken = collect(later, made, tmp_path / "bundle")
    assert found.counted_from == source and found.failures_from == "labels", found.text
    assert found.samples is not None and found.bytes is not None and found.failures is not None
    for each, truth in (
        (found.samples, taken.sum()),
        (found.bytes, later.size[taken].sum()),
        (found.failures, later.failed[taken].sum()),
    ):
        assert each.low <= truth <= each.high, (each, truth, found.text)
        assert each.low < each.value < each.high
    assert found.samples.high < 4 * max(1.0, found.samples.value), "an interval that says something"
    assert f"in {AHEAD} days" in found.text and "failures (by" in found.text


def test_limits_cut_the_estimate(recorded: Store, field: Field) -> None:
    free = run(recorded, field, spec(what={"score": "entropy", "above": 1.0}))
    few = run(recorded, field, spec(what={"score": "entropy", "above": 1.0}, how_much={"samples": 50}))
    assert free.samples is not None and few.samples is not None and few.bytes is not None
    assert (few.samples.value, few.samples.high) == (50, 50)
    assert few.full_after_days == pytest.approx(AHEAD * 50 / free.samples.value)
    assert "full after about" in few.text
    small = run(recorded, field, spec(what={"score": "entropy", "above": 1.0}, how_much={"bytes": 10**6}))
    assert small.bytes is not None and small.bytes.high == 10**6
    past = run(recorded, field, spec(what={"top": 0.1}, until="2020-01-01"))
    assert past.refused == "its time is over" and past.text.startswith("no estimate: its time is over")


def test_what_it_cannot_know_it_does_not_say(store: Store, recorded: Store, field: Field) -> None:
    nobody = estimate(store, spec(what={"top": 0.1}))
    assert "no known vehicle" in nobody.refused and nobody.samples is None
    store.vehicles.record_states({"car-1": State(online=True, bundle="b@1")})
    silent = estimate(store, spec(what={"top": 0.1}))
    assert "no heartbeat and no frame of the random stream" in silent.refused
    unknown = run(recorded, field, spec(what={"score": "msp", "above": 1}))
    assert "has a score msp" in unknown.refused
    unlabelled = run(recorded, field, spec(what={"when": "entropy > 1e9"}))
    assert unlabelled.failures is None and unlabelled.samples is not None
    assert unlabelled.samples.value == 0 < unlabelled.samples.high
    assert any("failures cannot be estimated: 0 labels" in note for note in unlabelled.notes)
    assert any("none of" in note for note in unlabelled.notes)


def test_a_few_hours_are_said_to_be_few(store: Store) -> None:
    field = make_field(vehicles=2, days=1, frames=300, seed=3)
    record(store, field, share=0.2, labelled=0.0, seed=3)
    found = estimate(store, spec(what={"score": "entropy", "above": 1.5}), Horizon(days=1, now=field.now))
    assert found.samples is not None and found.failures is None
    assert any("how much days differ is not known" in note for note in found.notes)


def test_the_prediction_interval_holds_its_confidence() -> None:
    rng = np.random.default_rng(0)
    for mean, spread in ((3.0, 0.0), (200.0, 0.4)):
        held = []
        for _ in range(400):
            days = rng.poisson(mean * np.exp(rng.normal(0, spread, 10) if spread else np.zeros(10)))
            found = predicted([float(day) for day in days[:7]], ahead=3)
            held.append(found.low <= days[7:].sum() <= found.high)
        assert np.mean(held) > 0.93, (mean, spread)


def test_quantiles_and_rates_are_those_of_the_tables() -> None:
    # Student's t and Garwood's interval, as in every table of them.
    for probability, degrees, value in ((0.975, 3, 3.182), (0.975, 6, 2.447), (0.99, 10, 2.764)):
        assert t_quantile(probability, degrees) == pytest.approx(value, rel=0.01)
    for count, low, high in ((0, 0.0, 3.689), (1, 0.025, 5.572), (10, 4.795, 18.39), (100, 81.36, 121.63)):
        found = poisson_rate(count)
        assert found[0] == pytest.approx(low, abs=0.03 + 0.002 * count)
        assert found[1] == pytest.approx(high, rel=0.01)
    assert Range(2, 1, 3).times(Range(2, 1, 3)) == Range(4, 1, 9)
    assert not math.isnan(predicted([0.0, 0.0], ahead=1).high)
