"""The score to trigger on at each share of uploads: the top of the list, not its whole order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from misfire_train.errors import JudgeError
from misfire_train.judge.budget import BUDGETS, choose_at_budgets
from misfire_train.judge.evidence import Evidence
from misfire_train.judge.gate import GateRules, choose_score
from misfire_train.metrics import budget_table

COUNT = 6000


def rows(seed: int = 0, *, count: int = COUNT) -> dict[str, Any]:
    """A head that orders better everywhere but at its top, and one that does only there.

    One failure in five. `msp` finds a third of them with certainty, and nothing else of the rest.
    """
    rng = np.random.default_rng(seed)
    failed = rng.random(count) < 0.2
    plain = np.where(failed, 1.0, 0.0) + rng.normal(size=count)
    # Successes that the head believes to be the worst of all: a twentieth of the frames.
    fooled = ~failed & (rng.random(count) < 0.06)
    head = np.where(failed, 2.0, 0.0) + rng.normal(size=count) + np.where(fooled, 8.0, 0.0)
    return {"scores": {"msp": plain, "head": head}, "failed": failed}


def decide(columns: dict[str, Any], *, budget: float | None = None, **more: Any) -> Any:
    rules = GateRules({"msp"}, replicates=200, budget=budget, **more)
    return choose_score(Evidence.of(**columns), rules)


def test_a_head_that_is_better_at_20_percent_and_worse_at_1_triggers_only_there() -> None:
    result = decide(rows())
    by_budget = {choice.budget: choice for choice in result.budgets}
    assert list(by_budget) == list(BUDGETS)
    assert by_budget[0.01].score == "msp" and by_budget[0.01].score_is_free
    assert by_budget[0.20].score == "head" and not by_budget[0.20].score_is_free
    assert "trigger on the free score msp" in by_budget[0.01].why
    assert by_budget[0.20].why.startswith("trigger on head, +")


def test_recall_and_precision_of_a_choice_are_those_of_its_uploads() -> None:
    columns = rows()
    choice = decide(columns).budgets[2]
    view = choice.views[0]
    for name in ("msp", "head"):
        row = budget_table(columns["scores"][name], columns["failed"], budgets=(0.02,))[0]
        assert view.recall[name] == pytest.approx(row.recall)
        assert view.precision[name] == pytest.approx(row.precision)
    assert view.uploads == 120
    assert view.difference.difference == pytest.approx(view.recall["head"] - view.recall["msp"])
    assert view.difference.low < view.difference.difference < view.difference.high


@pytest.mark.parametrize(("budget", "winner"), [(0.01, "msp"), (0.2, "head"), (0.15, "head")])
def test_a_declared_budget_decides_what_ships(budget: float, winner: str) -> None:
    result = decide(rows(), budget=budget)
    assert result.winner == winner
    assert result.passed == (winner == "head") == (not result.winner_is_free)
    assert result.verdict.startswith(f"At the declared budget of {budget:.3g} of the frames: ")
    assert "By AUROC and AURC:" in result.verdict
    assert budget in [choice.budget for choice in result.budgets]


def test_a_head_that_is_no_better_never_triggers_by_luck() -> None:
    """Twenty draws of two equal scores: at most a few choices fall to the learned one."""
    lucky = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        failed = rng.random(2000) < 0.2
        scores = {name: failed + rng.normal(size=2000) for name in ("msp", "head")}
        evidence = Evidence.of(scores, failed=failed)
        choices = choose_at_budgets(evidence, free=["msp"], learned="head", replicates=100)
        lucky += sum(not choice.score_is_free for choice in choices)
    assert lucky <= 12  # of 120; 2.5 % each would be 3


def test_fewer_failures_under_one_corruption_keep_the_free_score() -> None:
    rng = np.random.default_rng(1)
    failed = rng.random(6000) < 0.2
    shifts = np.repeat(["clean", "fog", "night"], 2000)
    plain = failed + rng.normal(size=6000)
    head = failed + 0.3 * rng.normal(size=6000)
    at_night = np.where(shifts == "night", rng.normal(size=6000), head)
    good = decide({"scores": {"msp": plain, "head": head}, "failed": failed, "shifts": shifts})
    assert {choice.score for choice in good.budgets} == {"head"}
    bad = decide({"scores": {"msp": plain, "head": at_night}, "failed": failed, "shifts": shifts})
    late = bad.budgets[-1]
    assert late.score == "msp"
    assert "fewer failures under night" in late.why
    # A head that was fitted without night is judged there by that fit.
    refitted = {"night": {"head": head}}
    columns = {"scores": {"msp": plain, "head": at_night}, "failed": failed, "shifts": shifts}
    again = decide(columns, refitted=refitted)
    assert again.budgets[-1].score == "head"
    # A corruption that the head was trained on shows nothing, and is no view.
    seen = decide(columns, known=("night",))
    assert {view.name for view in seen.budgets[-1].views} == {"clean", "fog"}


def test_too_few_uploads_are_not_judged_and_a_budget_that_is_no_share_is_refused() -> None:
    columns = rows(count=600)
    assert [choice.budget for choice in decide(columns).budgets] == [0.02, 0.05, 0.1, 0.2]
    with pytest.raises(JudgeError, match="a share of the frames between 0 and 1, got 2"):
        decide(rows(), budget=2.0)


def test_without_a_learned_score_the_best_free_one_of_each_budget_is_named() -> None:
    columns = rows()
    columns["scores"] = {"msp": columns["scores"]["msp"], "entropy": columns["scores"]["head"]}
    result = choose_score(Evidence.of(**columns), GateRules({"msp", "entropy"}, replicates=100))
    by_budget = {choice.budget: choice.score for choice in result.budgets}
    assert by_budget[0.01] == "msp" and by_budget[0.2] == "entropy"
