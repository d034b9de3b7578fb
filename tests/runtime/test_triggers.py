"""What each trigger fires on, how they compose, and what limits them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from vehicle_support import scored_frame

from misfire_runtime.bundle import Bundle
from misfire_runtime.config.tables import parse_config
from misfire_runtime.engines.scoring import Scorer
from misfire_runtime.errors import ConfigError
from misfire_runtime.triggers import ScoredFrame, Selector, build_triggers
from misfire_runtime.triggers.compose import CoolDown
from misfire_runtime.triggers.novelty import Novelty
from misfire_runtime.triggers.random_stream import RandomStream
from misfire_runtime.triggers.rates import TargetRate, Threshold


def observe(
    count: int = 0, *, time_s: float | None = None, context: Any = None, **scores: float
) -> ScoredFrame:
    embedding = scores.pop("embedding", None)
    scored: Any = SimpleNamespace(
        scores=scores, percentile=lambda name: scores[name], prediction={}, embedding=embedding
    )
    return scored_frame(scored, context=context, time_s=count / 10 if time_s is None else time_s, count=count)


@pytest.fixture(scope="module")
def scorer(bundle: Bundle) -> Scorer:
    return Scorer.load(bundle)


def build(text: str, scorer: Scorer) -> list[Any]:
    return list(build_triggers(parse_config(text).triggers, scorer=scorer))


def test_a_threshold_fires_at_and_above_its_value() -> None:
    trigger = Threshold("t", score="entropy", above=0.5)
    assert trigger.look(observe(entropy=0.499)) is None
    event = trigger.look(observe(entropy=0.5))
    assert event is not None and "entropy 0.5 >= 0.5" in event.reason
    assert trigger.look(observe(msp=0.9)) is None


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.2])
def test_a_target_rate_holds_wherever_the_scores_lie(rate: float) -> None:
    rng = np.random.default_rng(3)
    trigger = TargetRate("t", score="s", rate=rate, prior=0.0, window=2000)
    taken = 0
    scores = np.concatenate([rng.normal(0, 1, 15000), rng.normal(25, 9, 15000), rng.gamma(1e-3, 1e-6, 15000)])
    for count, score in enumerate(scores):
        frame = observe(count, s=float(score))
        if trigger.look(frame) is not None:
            trigger.taken(frame)
            taken += 1
    assert taken / len(scores) == pytest.approx(rate, rel=0.25)


def test_a_target_rate_of_nothing_takes_nothing() -> None:
    trigger = TargetRate("t", score="s", rate=0.0, prior=0.0)
    assert all(trigger.look(observe(count, s=float(count))) is None for count in range(500))


def test_a_target_rate_takes_the_highest_scores() -> None:
    rng = np.random.default_rng(4)
    trigger = TargetRate("t", score="s", rate=0.05, prior=0.0)
    scores = rng.normal(0, 1, 20000)
    taken = []
    for count, score in enumerate(scores):
        frame = observe(count, s=float(score))
        if trigger.look(frame) is not None:
            trigger.taken(frame)
            taken.append(score)
    assert min(taken[200:]) > np.quantile(scores, 0.90)


def test_a_sudden_shift_costs_a_bounded_number_of_frames() -> None:
    trigger = TargetRate("t", score="s", rate=0.02, prior=1.0, window=1000)
    taken = 0
    for count in range(3000):
        frame = observe(count, s=0.1 if count < 1500 else 5.0)
        if trigger.look(frame) is not None:
            trigger.taken(frame)
            taken += 1
    assert 0.01 * 3000 <= taken <= 0.02 * 3000 + 2


def test_the_calibration_stands_in_until_enough_was_seen(scorer: Scorer) -> None:
    trigger: Any = build('[triggers.t]\nkind = "target-rate"\nrate = 0.1\nscore = "msp"', scorer)[0]
    levels, values = scorer.tables["msp"].levels, scorer.tables["msp"].values
    assert trigger.threshold == pytest.approx(float(np.interp(0.9, levels, values)))


def test_a_cool_down_is_measured_in_the_time_of_the_recording() -> None:
    trigger = CoolDown(Threshold("t", score="s", above=0.0), seconds=1.0)
    fired = []
    for count in range(40):
        frame = observe(count, time_s=count * 0.25, s=1.0)
        if trigger.look(frame) is not None:
            trigger.taken(frame)
            fired.append(count)
    assert fired == list(range(0, 40, 4))


def test_a_cool_down_in_frames_and_a_clock_that_goes_back() -> None:
    trigger = CoolDown(Threshold("t", score="s", above=0.0), frames=3)
    fired = []
    for count in range(12):
        frame = observe(count, s=1.0)
        if trigger.look(frame) is not None:
            trigger.taken(frame)
            fired.append(count)
    assert fired == [0, 4, 8]
    pause = CoolDown(Threshold("t", score="s", above=0.0), seconds=100.0)
    pause.taken(observe(1, time_s=500.0, s=1.0))
    assert pause.look(observe(2, time_s=550.0, s=1.0)) is None
    assert pause.look(observe(3, time_s=0.0, s=1.0)) is not None


def test_any_and_all_compose_by_name_and_only_roots_stand_alone(scorer: Scorer) -> None:
    triggers = build(
        """
        [triggers.high]
        kind = "threshold"
        score = "entropy"
        above = 0.5
        [triggers.fast]
        kind = "rule"
        when = "context.speed > 10"
        priority = 8
        [triggers.both]
        kind = "all"
        of = ["high", "fast"]
        [triggers.either]
        kind = "any"
        of = ["high", "fast"]
        cool_down_s = 5.0
        """,
        scorer,
    )
    assert [trigger.name for trigger in triggers] == ["both", "either"]
    both, either = triggers
    assert both.look(observe(entropy=0.9)) is None
    assert both.look(observe(entropy=0.9, context={"speed": 20.0})).priority == 8
    event = either.look(observe(entropy=0.9, context={"speed": 20.0}))
    assert event.priority == 8 and event.reason.startswith("fast:")
    either.taken(observe(entropy=0.9, time_s=0.0))
    assert either.look(observe(entropy=0.9, time_s=1.0)) is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            '[triggers.t]\nkind = "threshold"\nscore = "nope"\nabove = 1',
            r"no score 'nope'; it has entropy, msp",
        ),
        ('[triggers.t]\nkind = "any"\nof = ["x"]', r"triggers.t.of: no trigger 'x'; there are t"),
        ('[triggers.a]\nkind="any"\nof=["b"]\n[triggers.b]\nkind="all"\nof=["a"]', "only name each other"),
        (
            '[triggers.a]\nkind="any"\nof=["b"]\n[triggers.b]\nkind="all"\nof=["c"]\n[triggers.c]\nkind="any"\nof=["b"]',
            "contains itself",
        ),
    ],
)
def test_triggers_that_do_not_fit_are_named(text: str, says: str, scorer: Scorer) -> None:
    with pytest.raises(ConfigError, match=says):
        build(text, scorer)


def test_the_random_stream_is_bernoulli_and_a_function_of_seed_and_frame() -> None:
    stream = RandomStream(rate=0.01, seed=7)
    taken = [index for index in range(50000) if stream.takes(f"front/{index}")]
    assert len(taken) == pytest.approx(500, abs=4 * np.sqrt(500))
    gaps = np.diff(taken)
    assert np.mean(gaps) == pytest.approx(100, rel=0.15)
    assert np.std(gaps) == pytest.approx(100, rel=0.2)
    again = RandomStream(rate=0.01, seed=7)
    assert taken == [index for index in range(50000) if again.takes(f"front/{index}")]
    assert taken != [index for index in range(50000) if stream.takes(f"rear/{index}")]
    assert not any(RandomStream(rate=0.0, seed=1).takes(f"front/{index}") for index in range(100))
    assert all(RandomStream(rate=1.0, seed=1).takes(f"front/{index}") for index in range(100))


@pytest.mark.parametrize("kind", ["any", "all"])
def test_a_group_of_the_lowest_priority_keeps_it(kind: str, scorer: Scorer) -> None:
    text = f"""
        [triggers.part]
        kind = "threshold"
        above = 0.5
        priority = 5
        [triggers.group]
        kind = "{kind}"
        of = ["part"]
        """
    for priority, expected in (("", 5), ("priority = 0", 0), ("priority = 1", 1), ("priority = 9", 9)):
        (group,) = build(text + priority, scorer)
        assert group.look(observe(entropy=0.9)).priority == expected


def test_near_duplicates_are_suppressed_and_forgotten_in_order() -> None:
    novelty = Novelty(similarity=0.95, memory=2)
    axes = np.eye(4, dtype=np.float32)
    assert not novelty.is_duplicate(axes[0])
    novelty.remember(axes[0])
    assert novelty.is_duplicate(axes[0] * 5)
    assert not novelty.is_duplicate(axes[1])
    novelty.remember(axes[1])
    novelty.remember(axes[2])
    assert not novelty.is_duplicate(axes[0])
    assert not novelty.is_duplicate(None)
    novelty.remember(np.ones(3, np.float32))
    assert novelty.is_duplicate(np.ones(3, np.float32))
    assert not novelty.is_duplicate(axes[2])


def test_nothing_touches_the_random_stream() -> None:
    selector = Selector(
        [Threshold("t", score="s", above=0.0)],
        random=RandomStream(rate=0.1, seed=1),
        novelty=Novelty(similarity=0.5),
    )
    same = np.ones(4, np.float32)
    choices = []
    for count in range(2000):
        scored: Any = SimpleNamespace(scores={"s": 1.0}, prediction={}, embedding=same)
        in_stream = selector.random.takes(f"front/{count}")
        choices.append(selector.select(scored_frame(scored, count=count), in_stream=in_stream))
    random = [i for i, choice in enumerate(choices) if choice is not None and choice.trigger.random]
    assert random == [i for i in range(2000) if RandomStream(rate=0.1, seed=1).takes(f"front/{i}")]
    assert all(
        c.trigger.rate == 0.1 and not c.budgeted for c in choices if c is not None and c.trigger.random
    )
    triggered = [choice for choice in choices if choice is not None and not choice.trigger.random]
    assert len(triggered) <= 1
    assert selector.suppressed["near-duplicate"] == 2000 - len(random) - len(triggered)


def test_a_random_frame_that_a_trigger_wanted_says_both() -> None:
    selector = Selector([Threshold("night", score="s", above=0.0)], random=RandomStream(rate=1.0, seed=1))
    choice = selector.select(observe(s=1.0), in_stream=True)
    assert choice is not None
    assert choice.trigger.random and choice.trigger.name == "random" and choice.trigger.rate == 1.0
    assert choice.trigger.reason.startswith("night:")
