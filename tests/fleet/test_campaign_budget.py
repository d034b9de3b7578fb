"""One budget for the fleet: thresholds that send it together, and a controller that holds it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from misfire_fleet.campaigns.budget import DAY_S, BudgetKeeper, Control, VehicleLoad, thresholds_of
from misfire_fleet.campaigns.ledger import CampaignLedger
from misfire_fleet.campaigns.spec import parse_spec, tables
from misfire_fleet.campaigns.vehicles import facts
from misfire_fleet.store import Store
from misfire_runtime.messages import Clock, Counters, State, Telemetry
from misfire_runtime.state.statistics import Statistics
from proving_ground.simulated.budget import Plan, simulate


def load(name: str, scores: np.ndarray, *, bundle: str = "b@1", size: float = 10.0) -> VehicleLoad:
    values, counts = np.unique(scores, return_counts=True)
    return VehicleLoad(name, bundle, values, counts.astype(float), size)


def test_the_highest_scores_of_the_fleet_are_sent_whichever_vehicle_has_them() -> None:
    rng = np.random.default_rng(0)
    easy, hard = (load(name, rng.normal(mean, 1, 2000)) for name, mean in (("easy", 0.0), ("hard", 1.0)))
    found = thresholds_of([easy, hard], 2000.0, own_share=1.0)
    assert found["easy"] == found["hard"]
    sent = {each.name: each.bytes_above(found[each.name]) for each in (easy, hard)}
    assert sum(sent.values()) == pytest.approx(2000, rel=0.02) and sum(sent.values()) <= 2000
    assert sent["hard"] > 2 * sent["easy"] > 0


def test_bundles_are_compared_by_level_and_one_vehicle_cannot_take_all() -> None:
    rng = np.random.default_rng(0)
    one, other = load("one", rng.random(2000)), load("other", 100 * rng.random(2000), bundle="b@2")
    found = thresholds_of([one, other], 4000.0, own_share=1.0)
    assert one.bytes_above(found["one"]) == pytest.approx(other.bytes_above(found["other"]), rel=0.05)
    fleet = [load(f"car-{n}", rng.random(2000)) for n in range(40)]
    broken = load("broken", 1000 + rng.random(2000))
    found = thresholds_of([*fleet, broken], 10_000.0)
    assert broken.bytes_above(found["broken"]) <= 2500 < sum(x.bytes_above(found[x.name]) for x in fleet)


def test_what_cannot_be_divided_is_left_out() -> None:
    assert thresholds_of([], 10.0) == {}
    same = load("a", np.zeros(100))
    assert thresholds_of([same], 500.0)["a"] == math.inf, "all frames of one score, or none"
    assert same.bytes_above(thresholds_of([same], 5000.0)["a"]) == 1000
    assert thresholds_of([load("a", np.arange(9.0))], 0.0)["a"] == math.inf


def test_the_controller_learns_what_is_held_back_and_pays_back() -> None:
    control, came = Control(), list[tuple[float, float]]()
    for hour in range(24 * 10):
        now = hour * 3600.0
        planned = control.plan(
            2400.0, arrived=lambda since: sum(size for at, size in came if at >= since), now=now
        )
        came.append((now, 0.5 * planned / 24))
    assert control.gain == pytest.approx(2.0, rel=0.1)
    assert sum(size for at, size in came if at >= 5 * DAY_S) == pytest.approx(5 * 2400, rel=0.1)
    again = Control.from_json(control.to_json())
    assert again == control


@pytest.mark.slow
def test_the_budget_is_held_within_a_tenth() -> None:
    plan = Plan(vehicles=20, days=14, per_hour=120, bytes_per_day=48e6, seed=1)
    outcome = simulate(plan)
    assert outcome.share(plan) == pytest.approx(1.0, abs=0.1)
    assert len(outcome.thresholds) == 20


def test_thresholds_come_from_the_stores_heartbeats(store: Store) -> None:
    rng = np.random.default_rng(0)
    store.vehicles.record_states({f"car-{n}": State(online=True, bundle="b@1") for n in range(2)})
    for number in range(2):
        statistics = Statistics()
        for score in np.exp(rng.normal(number, 1, 2000)):
            statistics.frame({"entropy": float(score)}, latency_s=0.01)
        # The vehicle's clock is wrong by years, which must not matter.
        beat = Telemetry(
            at=Clock(wall=86_400.0, monotonic=0.0, boot_id="b"),
            bundle="b@1",
            counters=Counters(frames=2000),
            sketches=statistics.sketches(),
        )
        store.vehicles.record_telemetry([(f"car-{number}", beat)])
    keeper, ledger = BudgetKeeper(store), CampaignLedger(store)
    vehicles = facts(store)
    assert keeper.refresh(vehicles) == {}
    keeper.set(10**9, actor="anna")
    ledger.create(parse_spec({"name": "hard", "what": {"budget": True}}), actor="anna")
    assert keeper.refresh(vehicles) == {}, "no campaign takes frames by the budget"
    ledger.move("hard", "start", actor="anna")
    found = keeper.refresh(vehicles)
    assert set(found) == {""} and set(found[""]) == {"car-0", "car-1"}
    easy, hard = found[""]["car-0"], found[""]["car-1"]
    assert easy.above == hard.above and easy.rate < hard.rate <= 1
    spec = ledger.get("hard").spec
    kinds = [each["kind"] for each in tables(spec, threshold=easy).values()]
    assert kinds == ["all", "threshold", "target-rate"]
    assert keeper.refresh(vehicles) == found, "within the hour, the plan holds"
    state = keeper.state()
    assert (state["bytes_per_day"], state["vehicles"], state["arrived_last_day"]) == (10**9, 2, 0)
