"""The release gate: a learned score passes only where it earns it on what was held out, and says so."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from misfire_train.errors import JudgeError
from misfire_train.judge.evidence import Evidence
from misfire_train.judge.folds import shift_folds
from misfire_train.judge.gate import GateRules, choose_score, failures_needed

FREE = GateRules({"msp"})


def field(
    seed: int, *, drives: int = 40, per_drive: int = 50, shifts: tuple[str, ...] = ("clean", "fog", "night")
) -> dict[str, Any]:
    """Rows of every drive under every shift; a frame and its corrupted copies share a name."""
    rng = np.random.default_rng(seed)
    count = drives * per_drive
    failed = rng.random(count * len(shifts)) < 0.2
    return {
        "failed": failed,
        "frames": np.tile(np.arange(count), len(shifts)),
        "groups": np.tile(np.repeat(np.arange(drives), per_drive), len(shifts)),
        "shifts": np.repeat(np.array(shifts), count),
        "rng": rng,
    }


def noisy(rows: dict[str, Any], noise: float | np.ndarray) -> np.ndarray:
    return rows["failed"] + noise * rows["rng"].normal(size=len(rows["failed"]))


def judge(rows: dict[str, Any], scores: dict[str, np.ndarray], **options: Any) -> Any:
    columns = {key: rows[key] for key in ("failed", "frames", "groups", "shifts")}
    rules = GateRules({"msp", "entropy"}, replicates=200, **options)
    return choose_score(Evidence.of(scores, **columns), rules)


def test_a_score_that_is_better_everywhere_wins() -> None:
    rows = field(0)
    result = judge(rows, {"msp": noisy(rows, 1.2), "entropy": noisy(rows, 1.0), "head": noisy(rows, 0.6)})
    assert result.winner == "head"
    assert result.passed
    assert not result.winner_is_free
    assert result.best_free == "entropy"
    assert {view.kind for view in result.views} == {"groups", "corruptions"}
    assert "beats the best free score (entropy)" in result.verdict
    json.dumps(result.to_dict())


def test_a_score_with_a_trigger_of_its_own_never_becomes_the_default() -> None:
    rows = field(0)
    scores = {"msp": noisy(rows, 1.2), "silence": noisy(rows, 0.3), "head": noisy(rows, 0.6)}
    assert judge(rows, scores).winner == "head"
    # It does not stand in the head's way either, where it is the better one on some folds.
    assert judge(rows, {name: scores[name] for name in ("msp", "silence")}).winner == "msp"


@pytest.mark.slow
def test_a_score_that_is_no_better_loses_to_the_free_one_and_the_verdict_says_so() -> None:
    for seed in range(5):
        rows = field(seed)
        result = judge(rows, {"msp": noisy(rows, 1.0), **{f"head{i}": noisy(rows, 1.0) for i in range(8)}})
        assert result.winner == "msp", seed
        assert result.winner_is_free
        assert "free score msp" in result.verdict
        assert "did not earn its place" in result.verdict


def test_a_score_that_fails_under_one_unseen_corruption_does_not_pass() -> None:
    rows = field(1)
    noise = np.where(rows["shifts"] == "fog", 3.0, 0.5)
    result = judge(rows, {"msp": noisy(rows, 1.0), "head": noisy(rows, noise)})
    assert result.winner == "msp"
    assert "worse on corruptions fog" in result.verdict


def test_the_nominee_of_a_corruption_is_not_chosen_on_that_corruption() -> None:
    rows = field(8, shifts=("clean", "fog"))
    foggy = rows["shifts"] == "fog"
    lucky = noisy(rows, np.where(foggy, 0.3, 1.5))
    result = judge(rows, {"msp": noisy(rows, 1.0), "steady": noisy(rows, 0.8), "lucky": lucky})
    corruptions = next(view for view in result.views if view.kind == "corruptions")
    assert [fold.learned for fold in corruptions.folds] == ["steady"]


def test_a_score_that_fails_on_one_drive_of_few_does_not_pass_and_the_interval_is_qualified() -> None:
    rows = field(2, drives=3, per_drive=600, shifts=("clean",))
    noise = np.where(rows["groups"] == 2, 3.0, 0.3)
    result = judge(rows, {"msp": noisy(rows, 1.0), "head": noisy(rows, noise)})
    assert result.winner == "msp"
    assert "worse on groups 2" in result.verdict
    assert any("3 groups are too few" in note for note in result.notes)


def test_few_failures_without_groups_still_judge_the_clean_frames() -> None:
    rows = field(9, drives=300, per_drive=1, shifts=("clean", "fog"))
    clean = rows["shifts"] == "clean"
    assert 30 <= rows["failed"][clean].sum() < 80  # ten folds of them would say nothing
    head = noisy(rows, np.where(clean, 3.0, 0.3))
    result = judge(rows, {"msp": noisy(rows, 1.0), "head": head})
    groups = next(view for view in result.views if view.kind == "frames")
    assert sum(fold.failures for fold in groups.folds) == rows["failed"][clean].sum()
    assert groups.left_out == ()
    assert not result.passed


def test_frames_of_a_single_drive_are_judged_clean_too() -> None:
    rows = field(10, drives=1, per_drive=800, shifts=("clean", "fog"))
    head = noisy(rows, np.where(rows["shifts"] == "clean", 3.0, 0.3))
    result = judge(rows, {"msp": noisy(rows, 1.0), "head": head})
    assert {view.kind for view in result.views} == {"frames", "corruptions"}
    assert not result.passed
    assert result.winner == "msp"


def test_drives_with_few_failures_each_are_dealt_together_but_never_divided() -> None:
    rows = field(11, drives=8, per_drive=20, shifts=("clean",))
    rows["failed"] = np.arange(160) % 5 == 0  # 4 failures in each of 8 drives
    result = judge(rows, {"msp": noisy(rows, 1.0), "head": noisy(rows, 0.2)})
    (view,) = result.views
    assert [fold.failures for fold in view.folds] == [16, 16]
    assert [fold.samples for fold in view.folds] == [80, 80]
    assert result.passed


def test_no_score_wins_by_what_another_nominee_showed() -> None:
    """One is good on clean frames, one in weather: each is nominated where it shines, neither is shipped."""
    rows = field(12, shifts=("clean", "fog", "night", "rain"))
    clean = rows["shifts"] == "clean"
    scores = {
        "msp": noisy(rows, 1.0),
        "fair weather": noisy(rows, np.where(clean, 0.4, 1.0)),
        "foul weather": noisy(rows, np.where(clean, 1.0, 0.4)),
    }
    result = judge(rows, scores)
    assert all(view.passed for view in result.views)
    assert result.winner == "msp"
    assert not result.passed
    assert "no single learned score" in result.verdict
    both = judge(rows, {**scores, "all weather": noisy(rows, 0.45)})
    assert both.winner == "all weather"


def test_a_head_refitted_without_a_corruption_is_judged_by_that_refit() -> None:
    rows = field(3)
    scores = {"msp": noisy(rows, 1.0), "head": noisy(rows, 0.5)}
    assert judge(rows, scores).passed
    without_fog = {"fog": {"head": noisy(rows, 2.0)}, "night": {"head": noisy(rows, 2.0)}}
    assert not judge(rows, scores, refitted=without_fog).passed


def test_too_few_failures_name_the_number_needed_and_leave_the_free_score() -> None:
    failed = np.arange(500) < 6
    scores = {"msp": np.arange(500.0), "head": failed * 1.0}
    result = choose_score(Evidence.of(scores, failed=failed), FREE)
    assert result.winner == "msp"
    assert result.needed == 30
    assert "6 among 500" in result.verdict
    assert "at least 30" in result.verdict
    one_class = choose_score(Evidence.of({"msp": np.arange(99.0)}, failed=np.zeros(99)), FREE)
    assert "Too few held-out errors" in one_class.verdict
    all_wrong = choose_score(Evidence.of({"msp": np.arange(99.0)}, failed=np.ones(99)), FREE)
    assert "Too few held-out successes" in all_wrong.verdict


def test_an_undecided_gain_names_how_many_failures_would_show_it() -> None:
    rows = field(4, drives=30, per_drive=12, shifts=("clean",))
    result = judge(rows, {"msp": noisy(rows, 1.0), "head": noisy(rows, 0.92)})
    pooled = result.views[0].pooled[0]
    assert pooled.difference > 0 > pooled.low and not result.passed
    assert result.needed is not None and result.needed > result.failures
    assert str(result.needed) in result.verdict


def test_scores_that_are_alike_are_not_promised_a_difference_at_some_huge_number() -> None:
    rows = field(119, drives=30, per_drive=12, shifts=("clean",))
    result = judge(rows, {"msp": noisy(rows, 1.0), "head": noisy(rows, 1.0)})
    assert 0 < result.views[0].pooled[0].difference < 1e-3
    assert result.needed is None and "too much alike" in result.verdict


def test_a_continuous_loss_is_judged_above_a_stated_threshold() -> None:
    rng = np.random.default_rng(5)
    loss = rng.exponential(size=3000)
    scores = {"mean_peak": loss + 2 * rng.normal(size=3000), "per_joint": loss + rng.normal(size=3000)}
    evidence = Evidence.of(scores, loss=loss, failure_threshold=1.5)
    result = choose_score(evidence, GateRules({"mean_peak"}, replicates=200))
    assert result.winner == "per_joint"
    assert result.failures == int((loss > 1.5).sum())
    with pytest.raises(JudgeError, match="failure_threshold"):
        Evidence.of(scores, loss=loss)


def test_only_free_scores_or_none_are_said_plainly() -> None:
    rows = field(6)
    result = judge(rows, {"msp": noisy(rows, 1.0), "entropy": noisy(rows, 0.8)})
    assert result.winner == "entropy"
    assert "No learned score was offered" in result.verdict
    with pytest.raises(JudgeError, match="needs a free score"):
        choose_score(Evidence.of({"head": noisy(rows, 1.0)}, failed=rows["failed"]), FREE)


def test_the_result_is_the_same_for_the_same_seed() -> None:
    rows = field(7)
    scores = {"msp": noisy(rows, 1.0), "head": noisy(rows, 0.9)}
    assert judge(rows, scores, seed=3) == judge(rows, scores, seed=3)


def test_nan_is_named_by_frame() -> None:
    score = np.array([0.0, np.nan, 1.0])
    with pytest.raises(JudgeError, match=r"score 'msp' is NaN.*drive-2/7"):
        Evidence.of({"msp": score}, failed=[0, 1, 0], frames=["a", "drive-2/7", "c"])


def test_another_free_score_that_is_as_good_in_the_view_itself_is_not_passed_over() -> None:
    """The nominee of the other drives is weak here; a head that only beats that one has earned nothing."""
    rows = field(13, drives=2, per_drive=1500, shifts=("clean",))
    first = rows["groups"] == 0
    scores = {
        "msp": noisy(rows, np.where(first, 0.3, 1.1)),
        "entropy": noisy(rows, np.where(first, 1.1, 0.3)),
        "head": noisy(rows, 0.9),
    }
    result = judge(rows, scores)
    (view,) = result.views
    # Each drive nominates the free score that is bad on the other one, so the head beats both nominees.
    assert all(pooled.a_wins for pooled in view.pooled)
    assert not any(pooled.a_wins for pooled in view.against_best) and not view.passed
    assert result.winner_is_free and "does win" not in result.verdict
    assert "is as good there" in result.verdict


def test_what_wins_is_said_of_the_best_free_score_only() -> None:
    rows = field(14, shifts=("clean", "fog"))
    foggy = rows["shifts"] == "fog"
    scores = {"msp": noisy(rows, 1.0), "head": noisy(rows, np.where(foggy, 0.3, 1.3))}
    result = judge(rows, scores)
    assert not result.passed and "does win in auroc on held-out corruptions" in result.verdict
    assert "on held-out groups" not in result.verdict.split("does win in")[1]


def test_frames_without_groups_are_named_as_such() -> None:
    rows = field(15, drives=1500, per_drive=1, shifts=("clean",))
    result = judge(rows, {"msp": noisy(rows, 1.2), "head": noisy(rows, 0.5)})
    assert [view.kind for view in result.views] == ["frames"]
    assert "beats the best free score (msp) on held-out frames" in result.verdict
    assert "No groups are known" in result.verdict


@pytest.mark.parametrize(("rate", "said"), [(1.0, "all 1200 frames fail"), (0.0, "none of 1200 frames fail")])
def test_a_shift_under_which_all_or_none_fail_is_said(rate: float, said: str) -> None:
    rows = field(16, drives=30, per_drive=40, shifts=("clean", "night", "fog"))
    rows["failed"][rows["shifts"] == "night"] = bool(rate)
    result = judge(rows, {"msp": noisy(rows, 1.2), "head": noisy(rows, 0.5)})
    note = next(note for note in result.notes if "night" in note)
    assert said in note and ("lower" if rate else "higher") in note
    # The other corruption is judged.
    assert [fold.name for fold in result.views[1].folds] == ["fog"]
    assert "nan" not in json.dumps(result.to_dict()).lower()


def test_the_least_number_of_failures_and_successes_holds_for_every_view() -> None:
    rows = field(17, drives=30, per_drive=30, shifts=("clean", "fog"))
    fog = np.flatnonzero(rows["shifts"] == "fog")
    rows["failed"][fog] = np.arange(len(fog)) < 12
    result = judge(rows, {"msp": noisy(rows, 1.2), "head": noisy(rows, 0.5)})
    assert not result.passed and result.needed == 30
    assert "Too few errors on held-out corruptions to judge: 12" in result.verdict
    rows["failed"][fog] = np.arange(len(fog)) >= 12
    result = judge(rows, {"msp": noisy(rows, 1.2), "head": noisy(rows, 0.5)})
    assert "Too few successes on held-out corruptions to judge: 12" in result.verdict


def test_verdicts_on_signs_roads_and_joints() -> None:
    """Signs: the head wins everywhere. Roads: it loses on the next drives. Joints: it is level."""
    signs = field(18, drives=60, per_drive=60)
    foul = signs["shifts"] != "clean"
    head = noisy(signs, np.where(foul, 0.7, 0.8))
    assert judge(signs, {"msp": noisy(signs, 1.0), "entropy": noisy(signs, 1.02), "head": head}).passed
    roads = field(19, drives=4, per_drive=150)
    new = np.isin(roads["groups"], (2, 3))
    head = noisy(roads, np.where(new & (roads["shifts"] == "clean"), 3.0, 0.7))
    result = judge(roads, {"entropy": noisy(roads, 0.8), "msp": noisy(roads, 0.9), "head": head})
    assert result.winner == "entropy" and "worse on groups" in result.verdict
    joints = field(20, drives=20, per_drive=60)
    level = noisy(joints, 0.7)
    scores = {"mean_peak": level, "head": level + 0.05 * joints["rng"].normal(size=len(level))}
    result = choose_score(
        Evidence.of(scores, **{k: joints[k] for k in ("failed", "frames", "groups", "shifts")}),
        GateRules({"mean_peak"}, replicates=200),
    )
    assert result.winner == "mean_peak" and not result.passed


def test_failures_needed_follow_the_width_of_the_interval() -> None:
    assert failures_needed(auroc=0.85, half_width=0.05) == 26
    assert failures_needed(auroc=0.85, half_width=0.025) == pytest.approx(4 * 26, abs=4)


def test_a_score_below_chance_never_triggers_even_where_the_free_ones_are_worse() -> None:
    """As where labels are misread: what ranks failures last must not win for ranking them less so."""
    rng = np.random.default_rng(0)
    failed = rng.random(3000) < 0.4
    scores = {
        "msp": -1.5 * failed + rng.normal(size=3000),
        "learned": -0.4 * failed + rng.normal(size=3000),
    }
    result = choose_score(Evidence.of(scores, failed=failed), GateRules({"msp"}, replicates=200))
    assert result.winner == "msp" and not result.passed


def test_shifts_that_a_score_was_trained_on_are_not_held_out() -> None:
    rng = np.random.default_rng(0)
    failed = rng.random(1200) < 0.3
    evidence = Evidence.of(
        {"msp": rng.normal(size=1200)}, failed=failed, shifts=np.repeat(["clean", "fog", "noise"], 400)
    )
    assert [fold.name for fold in shift_folds(evidence)] == ["fog", "noise"]
    assert [fold.name for fold in shift_folds(evidence, known=("fog",))] == ["noise"]


def test_resamples_that_draw_no_frame_of_a_fold_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    failed = rng.random(2000) < 0.2
    scores = {"msp": failed + rng.normal(size=2000), "head": failed + 0.8 * rng.normal(size=2000)}
    evidence = Evidence.of(scores, failed=failed, groups=np.arange(2000) % 20)
    rules = GateRules({"msp"}, replicates=60)
    at_once = choose_score(evidence, rules)
    # Of many frames a block holds a single resample, and some draw none of the two drives of a fold.
    monkeypatch.setattr("misfire_train.metrics.bootstrap._CELLS", 1)
    one_by_one = choose_score(evidence, rules)
    fold = one_by_one.views[0].folds[0].comparisons[0]
    assert 0.5 < fold.usable < 1
    assert one_by_one.winner == at_once.winner
