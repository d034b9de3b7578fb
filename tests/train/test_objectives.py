"""The objectives: worked pairs, gradient identities, odd input, and the pitfalls that concern them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from misfire_train.objectives import (
    OBJECTIVES,
    Pairs,
    check_losses,
    learning_loss,
    learning_loss_pp,
    log_loss_regression,
    loss_share,
    pair_up,
    rank_bce,
    ratio_eps,
)

RANKING = [learning_loss, learning_loss_pp, rank_bce]


def gradient(objective: object, scores: list[float], losses: list[float], **options: object) -> list[float]:
    predicted = torch.tensor(scores, dtype=torch.float64, requires_grad=True)
    objective(predicted, torch.tensor(losses, dtype=torch.float64), **options).backward()  # type: ignore[operator]
    assert predicted.grad is not None
    return [float(value) for value in predicted.grad]


def test_worked_pair_nearly_equal_losses_gets_nearly_no_gradient() -> None:
    pp = gradient(learning_loss_pp, [1.48, 1.51], [0.45, 0.47])
    assert pp[0] == pytest.approx(0.0034, abs=5e-5)
    assert gradient(learning_loss, [1.51, 1.48], [0.45, 0.47])[0] == 1.0, (
        "the margin loss pushes as hard as ever"
    )


def test_worked_pair_far_apart_losses_gets_a_large_gradient() -> None:
    assert gradient(learning_loss_pp, [1.48, 1.63], [0.45, 2.87])[0] == pytest.approx(0.327, abs=5e-4)


@pytest.mark.parametrize("pairs", ["halves", "all"])
def test_gradient_identity_of_the_last_layer_and_of_the_embedding(pairs: Pairs) -> None:
    generator = torch.Generator().manual_seed(0)
    theta = torch.randn(8, 5, dtype=torch.float64, generator=generator, requires_grad=True)
    weight = torch.randn(5, dtype=torch.float64, generator=generator, requires_grad=True)
    losses = torch.rand(8, dtype=torch.float64, generator=generator) * 3
    learning_loss_pp(theta @ weight, losses, pairs=pairs).backward()
    first, second = (
        (range(4), range(4, 8)) if pairs == "halves" else torch.triu_indices(8, 8, offset=1).tolist()
    )
    expected_weight, expected_theta = torch.zeros(5, dtype=torch.float64), torch.zeros_like(theta)
    for i, j in zip(first, second, strict=True):
        q = torch.sigmoid((theta[i] - theta[j]) @ weight).detach()
        p = losses[i] / (losses[i] + losses[j])
        expected_weight += (q - p) * (theta[i] - theta[j]).detach() / len(first)
        expected_theta[i] += (q - p) * weight.detach() / len(first)
        expected_theta[j] -= (q - p) * weight.detach() / len(first)
    torch.testing.assert_close(weight.grad, expected_weight, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(theta.grad, expected_theta.detach(), rtol=1e-9, atol=1e-12)


def test_margin_gradient_is_plus_minus_one_or_zero() -> None:
    assert gradient(learning_loss, [0.0, 0.5], [2.0, 1.0]) == [-1.0, 1.0]
    assert gradient(learning_loss, [3.0, 0.5], [2.0, 1.0]) == [0.0, 0.0], "ordered by more than the margin"


def test_learning_loss_pp_equals_the_kl_divergence_written_out() -> None:
    scores, losses = torch.randn(10, dtype=torch.float64), torch.rand(10, dtype=torch.float64)
    p = losses[:5] / (losses[:5] + losses[5:])
    q = torch.softmax(torch.stack([scores[:5], scores[5:]]), 0)[0]
    kl = p * torch.log(p / q) + (1 - p) * torch.log((1 - p) / (1 - q))
    torch.testing.assert_close(learning_loss_pp(scores, losses), kl.mean(), rtol=1e-12, atol=0)


def test_pitfall_11_kldivloss_needs_batchmean_and_log_q_first() -> None:
    scores, losses = torch.randn(10, dtype=torch.float64), torch.rand(10, dtype=torch.float64)
    log_q = torch.log_softmax(torch.stack([scores[:5], scores[5:]], 1), 1)
    p = torch.stack([losses[:5], losses[5:]], 1) / (losses[:5] + losses[5:])[:, None]
    ours = learning_loss_pp(scores, losses)
    torch.testing.assert_close(nn.KLDivLoss(reduction="batchmean")(log_q, p), ours, rtol=1e-12, atol=0)
    with pytest.warns(UserWarning, match="batchmean"):
        halved = nn.KLDivLoss()(log_q, p)
    torch.testing.assert_close(halved * 2, ours, rtol=1e-12, atol=0)


def test_the_optimum_is_the_log_ratio_and_the_loss_there_is_zero() -> None:
    losses = torch.tensor([0.1, 3.0, 0.7, 0.2], dtype=torch.float64)
    assert float(learning_loss_pp(losses.log() + 5.0, losses, pairs="all")) == pytest.approx(0, abs=1e-12)


def test_learning_loss_pp_does_not_depend_on_the_scale_of_the_loss() -> None:
    scores, losses = torch.randn(6, dtype=torch.float64), torch.rand(6, dtype=torch.float64)
    torch.testing.assert_close(learning_loss_pp(scores, losses), learning_loss_pp(scores, losses * 1e-4))


def test_rank_bce_is_learning_loss_pp_with_hardened_shares() -> None:
    scores, losses = torch.randn(8, dtype=torch.float64), torch.rand(8, dtype=torch.float64)
    hard = (losses[:4] > losses[4:]).double()
    logits = scores[:4] - scores[4:]
    expected = nn.functional.binary_cross_entropy_with_logits(logits, hard)
    torch.testing.assert_close(rank_bce(scores, losses), expected, rtol=1e-12, atol=0)


def test_pitfall_1_constant_scores_give_the_value_of_a_collapsed_head() -> None:
    losses = torch.rand(32, dtype=torch.float64)
    constant = torch.full((32,), 0.3, dtype=torch.float64)
    assert float(learning_loss(constant, losses, margin=1.0)) == 1.0
    assert float(rank_bce(constant, losses)) == pytest.approx(math.log(2), rel=1e-12)
    p = loss_share(losses[:16], losses[16:])
    kl = p * torch.log(2 * p) + (1 - p) * torch.log(2 * (1 - p))
    assert float(learning_loss_pp(constant, losses)) == pytest.approx(float(kl.mean()), rel=1e-9)


def test_pitfall_2_eps_tames_the_ratio_of_vanished_losses() -> None:
    tiny = torch.tensor([1e-6, 1e-4, 0.5, 0.6], dtype=torch.float64)
    eps = ratio_eps(tiny, fraction=1e-3 / float(tiny.median()) * 0.5)
    assert float(loss_share(tiny[:1], tiny[1:2])) < 0.01
    assert 0.4 < float(loss_share(tiny[:1], tiny[1:2], eps=eps)) < 0.5
    assert float(loss_share(tiny[2:3], tiny[3:4], eps=eps)) == pytest.approx(5 / 11, abs=1e-3)


@pytest.mark.parametrize("objective", RANKING)
def test_pitfall_3_odd_batches_are_an_error_in_halves_and_fine_in_all_pairs(objective: object) -> None:
    scores, losses = torch.randn(5), torch.rand(5)
    with pytest.raises(ValueError, match="even batch, got 5"):
        objective(scores, losses)  # type: ignore[operator]
    assert torch.isfinite(objective(scores, losses, pairs="all"))  # type: ignore[operator]


@pytest.mark.parametrize("objective", RANKING)
@pytest.mark.parametrize("count", [0, 1])
@pytest.mark.parametrize("pairs", ["halves", "all"])
def test_pitfall_3_empty_and_single_batches_are_an_error(objective: object, count: int, pairs: str) -> None:
    with pytest.raises(ValueError, match="at least 2 samples"):
        objective(torch.zeros(count), torch.zeros(count), pairs=pairs)  # type: ignore[operator]


def test_pitfall_4_all_pairs_do_not_depend_on_the_order_of_the_batch_and_halves_do() -> None:
    scores, losses = torch.randn(16, dtype=torch.float64), torch.rand(16, dtype=torch.float64).sort().values
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    for objective in RANKING:
        in_order, shuffled = (objective(scores[i], losses[i], pairs="all") for i in (slice(None), order))
        torch.testing.assert_close(in_order, shuffled)
        assert not torch.isclose(objective(scores, losses), objective(scores[order], losses[order]))


def test_pitfall_5_ties_have_one_meaning_each() -> None:
    assert gradient(learning_loss, [2.0, 0.0], [1.0, 1.0]) == [0.0, 0.0]
    assert float(learning_loss(torch.tensor([2.0, 0.0]), torch.ones(2))) == 1.0
    for objective in (learning_loss_pp, rank_bce):
        tied = gradient(objective, [2.0, 0.0], [1.0, 1.0])
        assert tied[0] == pytest.approx(float(torch.sigmoid(torch.tensor(2.0))) - 0.5, abs=1e-6), (
            "pulled together"
        )


@pytest.mark.parametrize("objective", RANKING)
def test_pitfall_6_two_zero_losses_are_a_tie_and_not_nan(objective: object) -> None:
    assert all(math.isfinite(g) for g in gradient(objective, [1.0, -1.0], [0.0, 0.0]))


@pytest.mark.parametrize("objective", list(OBJECTIVES.values()))
def test_pitfall_6_negative_losses_are_an_error(objective: object) -> None:
    with pytest.raises(ValueError, match="negative for #1"):
        objective(torch.zeros(2), torch.tensor([1.0, -0.1]))  # type: ignore[operator]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("objective", list(OBJECTIVES.values()))
def test_losses_that_are_not_finite_are_an_error(objective: object, value: float) -> None:
    with pytest.raises(ValueError, match="not finite for #0"):
        objective(torch.zeros(2), torch.tensor([value, 1.0]))  # type: ignore[operator]


def test_wrong_losses_are_named_by_sample_id() -> None:
    losses = torch.tensor([1.0, float("nan"), 2.0])
    with pytest.raises(ValueError, match="not finite for drive-3/0042"):
        check_losses(losses, ids=["drive-3/0041", "drive-3/0042", "drive-3/0043"])
    with pytest.raises(ValueError, match="and 4 more"):
        check_losses(-torch.ones(9))


def test_shapes_that_differ_are_an_error() -> None:
    with pytest.raises(ValueError, match="one shape"):
        learning_loss_pp(torch.zeros(4), torch.zeros(2))
    with pytest.raises(ValueError, match=r"one per sample, \[N\]"):
        learning_loss_pp(torch.zeros(4, 1), torch.zeros(4, 1))
    with pytest.raises(ValueError, match="expected 'halves' or 'all'"):
        pair_up(torch.zeros(2), torch.zeros(2), pairs="flip")  # type: ignore[arg-type]


def test_all_pairs_is_the_mean_over_every_pair() -> None:
    scores, losses = torch.randn(6, dtype=torch.float64), torch.rand(6, dtype=torch.float64)
    values = [learning_loss_pp(scores[[i, j]], losses[[i, j]]) for i in range(6) for j in range(i + 1, 6)]
    torch.testing.assert_close(learning_loss_pp(scores, losses, pairs="all"), torch.stack(values).mean())


def test_zero_loss_has_no_logarithm_unless_eps_is_given() -> None:
    losses = torch.tensor([0.0, 1.0])
    with pytest.raises(ValueError, match="pass eps > 0"):
        log_loss_regression(torch.zeros(2), losses)
    assert torch.isfinite(log_loss_regression(torch.zeros(2), losses, eps=1e-3))
    with pytest.raises(ValueError, match="N > 0"):
        log_loss_regression(torch.zeros(0), torch.zeros(0))


def test_negative_eps_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least 0"):
        learning_loss_pp(torch.zeros(2), torch.ones(2), eps=-1e-3)


def test_the_target_is_never_differentiated() -> None:
    losses = torch.rand(4, requires_grad=True)
    learning_loss_pp(torch.randn(4, requires_grad=True), losses).backward()
    assert losses.grad is None


@settings(max_examples=60, deadline=None)
@given(
    scores=st.lists(st.floats(-1e4, 1e4), min_size=2, max_size=9),
    scale=st.sampled_from([1e-30, 1e-6, 1.0, 1e6]),
    seed=st.integers(0, 9),
)
def test_every_objective_is_finite_for_extreme_scores_and_losses(
    scores: list[float], scale: float, seed: int
) -> None:
    losses = torch.rand(len(scores), generator=torch.Generator().manual_seed(seed)) * scale
    predicted = torch.tensor(scores, requires_grad=True)
    for objective in RANKING:
        value = objective(predicted, losses, pairs="all")
        value.backward()
        assert torch.isfinite(value)
        assert value.item() >= -1e-6
    assert predicted.grad is not None
    assert torch.isfinite(predicted.grad).all()


def _train_linear_ranker(objective: object, features: Tensor, losses: Tensor, *, steps: int) -> float:
    head = nn.Linear(features.shape[1], 1, dtype=torch.float64)
    nn.init.zeros_(head.weight)
    optimiser = torch.optim.SGD(head.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        batch = torch.randperm(len(losses), generator=generator)[:32]
        optimiser.zero_grad()
        objective(head(features[batch]).flatten(), losses[batch]).backward()  # type: ignore[operator]
        optimiser.step()
    return head.weight.norm().item()


def test_pitfall_9_margin_weights_grow_on_noisy_pairs_and_learning_loss_pp_stays_finite() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(256, 8, dtype=torch.float64, generator=generator)
    noise = torch.randn(256, dtype=torch.float64, generator=generator)
    losses = torch.exp(0.3 * features[:, 0] + 0.3 * noise)
    margin = _train_linear_ranker(learning_loss, features, losses, steps=2000)
    soft = _train_linear_ranker(learning_loss_pp, features, losses, steps=2000)
    hard = _train_linear_ranker(rank_bce, features, losses, steps=2000)
    assert soft == pytest.approx(0.3, abs=0.15), "the slope of the log-loss itself"
    assert margin > 2 * soft
    assert hard > 2 * soft


def test_pitfall_10_direction_every_objective_scores_the_lossier_sample_higher() -> None:
    generator = torch.Generator().manual_seed(0)
    losses = torch.rand(64, generator=generator) + 0.05
    for objective in OBJECTIVES.values():
        scores = torch.zeros(64, requires_grad=True)
        optimiser = torch.optim.Adam([scores], lr=0.05)
        for _ in range(200):
            optimiser.zero_grad()
            objective(scores, losses).backward()
            optimiser.step()
        assert scores[losses.argmax()].item() > scores[losses.argmin()].item()
