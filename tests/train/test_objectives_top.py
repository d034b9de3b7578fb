"""Objectives of the top of the list: only what stands high, or should, counts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from misfire_train.heads import ResidualHead, recipe_named
from misfire_train.heads.pairs import top_objective
from misfire_train.objectives import TOP_OBJECTIVES, lambda_loss, partial_auc
from misfire_train.train_config import HeadTable


def test_partial_auc_is_the_logistic_loss_against_the_highest_successes() -> None:
    scores = torch.tensor([1.0, 0.5, 3.0, -2.0, 2.0])
    failed = torch.tensor([1, 1, 0, 0, 0])
    hardest = torch.tensor([3.0, 2.0])
    expected = torch.stack([torch.log1p(torch.exp(hardest - s)).mean() for s in (1.0, 0.5)]).mean()
    assert partial_auc(scores, failed, share=0.6).item() == pytest.approx(expected.item(), rel=1e-6)
    scores.requires_grad_(True)
    partial_auc(scores, failed, share=0.6).backward()
    assert scores.grad is not None
    assert scores.grad[3] == 0, "a success far down does not count"
    assert bool((scores.grad[:2] < 0).all()) and bool((scores.grad[[2, 4]] > 0).all())


def test_lambda_loss_moves_only_pairs_that_touch_the_top() -> None:
    scores = torch.tensor([5.0, 4.0, 0.1, 0.0], requires_grad=True)
    lambda_loss(scores, torch.tensor([0.0, 1.0, 1.0, 0.0]), share=0.25).backward()
    assert scores.grad is not None
    # The top holds one frame, a success: both failures should go up, it should go down.
    assert scores.grad[0] > 0 and scores.grad[1] < 0 and scores.grad[2] < 0
    assert scores.grad[3] == 0


@settings(max_examples=40, deadline=None)
@given(
    scores=st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=12),
    seed=st.integers(0, 5),
    share=st.sampled_from([0.01, 0.2, 1.0]),
)
def test_they_are_finite_whatever_the_batch_holds(scores: list[float], seed: int, share: float) -> None:
    predicted = torch.tensor(scores, requires_grad=True)
    failed = torch.randint(0, 2, (len(scores),), generator=torch.Generator().manual_seed(seed)).float()
    for objective in TOP_OBJECTIVES.values():
        value = objective(predicted, failed, share=share)
        value.backward()
        assert torch.isfinite(value) and value.item() >= 0
    assert predicted.grad is not None and torch.isfinite(predicted.grad).all()


@pytest.mark.parametrize("objective", list(TOP_OBJECTIVES.values()))
def test_batches_of_one_kind_give_no_gradient_and_shares_are_checked(objective: object) -> None:
    scores = torch.randn(6, requires_grad=True)
    value = objective(scores, torch.ones(6))  # type: ignore[operator]
    value.backward()
    assert value.item() == 0.0
    assert scores.grad is not None and not scores.grad.any()
    with pytest.raises(ValueError, match="share"):
        objective(scores, torch.ones(6), share=0.0)  # type: ignore[operator]


def test_clean_rows_and_copies_are_lists_of_their_own() -> None:
    scores = torch.tensor([[3.0, 1.0, 9.0, 8.0]])
    failed = torch.tensor([0, 1, 0, 1])
    clean = torch.tensor([True, True, False, False])
    apart = (partial_auc(scores[0, :2], failed[:2]) + partial_auc(scores[0, 2:], failed[2:])) / 2
    assert top_objective("partial-auc", scores, failed, clean).item() == pytest.approx(apart.item())
    assert top_objective("", scores, failed, clean).item() == 0.0


def test_a_configuration_adds_one_and_the_default_has_none() -> None:
    recipe = recipe_named("learning-loss-pp")
    assert recipe.top == ""
    chosen = recipe.with_table(HeadTable(top="partial-auc"))
    assert chosen.top == "partial-auc"
    assert recipe.spelled_out(HeadTable()).top == ""
    assert replace(recipe, top="lambda") != recipe
    assert ResidualHead.recipe == recipe.name
