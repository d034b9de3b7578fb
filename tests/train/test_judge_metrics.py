"""The judge's numbers: equal to the reference libraries, to the definitions summed out, exact with ties."""

from __future__ import annotations

import math
from itertools import pairwise, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from sklearn import metrics as peer

from misfire_train.errors import JudgeError
from misfire_train.metrics import (
    augrc,
    augrc_references,
    aurc,
    aurc_references,
    auroc,
    average_precision,
    bootstrap_interval,
    budget_table,
    e_aurc,
    fit_loss_scale,
    fpr_at_tpr,
    kendall,
    loss_reliability,
    pair_accuracy,
    paired_difference,
    reliability,
    replicate,
    resample_weights,
    risk_coverage_curve,
    spearman,
)
from misfire_train.metrics.ranking import argsort_scores, rank_scores

Floats = NDArray[np.float64]


def sample(seed: int, count: int, *, decimals: int | None = None) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """(score, loss, failed) that belong together; rounded scores are tied."""
    rng = np.random.default_rng(seed)
    score = rng.normal(size=count)
    loss = np.maximum(0, score + rng.normal(size=count))
    if decimals is not None:
        score, loss = np.round(score, decimals), np.round(loss, decimals)
    failed = loss > 1.0
    failed[:2] = True, False
    return score, loss, failed


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), count=st.integers(3, 300), decimals=st.sampled_from([None, 0, 1]))
def test_detection_and_rank_numbers_equal_those_of_the_reference_libraries(
    seed: int, count: int, decimals: int | None
) -> None:
    score, loss, failed = sample(seed, count, decimals=decimals)
    assert auroc(score, failed) == pytest.approx(peer.roc_auc_score(failed, score), abs=1e-12)
    assert average_precision(score, failed) == pytest.approx(
        peer.average_precision_score(failed, score), abs=1e-12
    )
    false_rates, true_rates, _ = peer.roc_curve(failed, score, drop_intermediate=False)
    assert fpr_at_tpr(score, failed) == pytest.approx(false_rates[np.argmax(true_rates >= 0.95)], abs=1e-12)
    if len(set(score)) > 1 and len(set(loss)) > 1:
        assert spearman(score, loss) == pytest.approx(stats.spearmanr(score, loss)[0], abs=1e-10)
        assert kendall(score, loss) == pytest.approx(stats.kendalltau(score, loss)[0], abs=1e-10)


@settings(max_examples=50, deadline=None)
@given(
    scores=st.lists(st.integers(0, 3), min_size=1, max_size=6),
    data=st.data(),
)
def test_tied_scores_give_the_exact_mean_over_every_order_of_the_tied_samples(
    scores: list[int], data: st.DataObject
) -> None:
    losses = data.draw(st.lists(st.floats(0, 10), min_size=len(scores), max_size=len(scores)))
    count = len(scores)
    by_order, generalised = [], []
    for order in permutations(range(count)):
        if all(scores[a] <= scores[b] for a, b in pairwise(order)):
            summed = np.cumsum([losses[i] for i in order])
            by_order.append((summed / np.arange(1, count + 1)).mean())
            generalised.append((summed - np.array([losses[i] for i in order]) / 2).sum() / count**2)
    assert aurc(scores, losses) == pytest.approx(np.mean(by_order), abs=1e-9)
    assert augrc(scores, losses) == pytest.approx(np.mean(generalised), abs=1e-9)


def test_references_are_what_the_oracle_and_a_constant_score_reach() -> None:
    score, loss, failed = sample(0, 500)
    constant = np.zeros(500)
    assert aurc(constant, loss) == pytest.approx(aurc_references(loss).random)
    assert augrc(constant, loss) == pytest.approx(augrc_references(loss).random)
    assert aurc(loss, loss) == aurc_references(loss).oracle
    assert e_aurc(loss, loss) == 0
    assert aurc_references(loss).oracle < aurc(score, loss) < aurc_references(loss).random
    rate = failed.mean()
    # For 0/1 losses the oracle has a closed form up to O(1/N): e + (1 - e) ln(1 - e).
    assert aurc(failed.astype(float), failed) == pytest.approx(
        rate + (1 - rate) * math.log(1 - rate), abs=2e-3
    )
    assert augrc(score, failed) == pytest.approx(rate * (1 - rate) * (1 - auroc(score, failed)) + rate**2 / 2)


def test_a_rising_transform_of_the_score_changes_nothing() -> None:
    score, loss, failed = sample(1, 200, decimals=1)
    for metric, truth in (
        (aurc, loss),
        (augrc, loss),
        (auroc, failed),
        (spearman, loss),
        (pair_accuracy, loss),
    ):
        assert metric(np.exp(3 * score), truth) == pytest.approx(metric(score, truth), abs=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_fast_sort_is_exact_where_scores_differ_only_in_their_last_bits(dtype: type) -> None:
    rng = np.random.default_rng(0)
    near_one = dtype(1) + np.arange(6000) % 37 * np.finfo(dtype).eps
    values = np.concatenate(
        [near_one, [-0.0, 0.0, np.inf, -np.inf, 5e-324, -5e-324], rng.normal(size=3000), -near_one]
    )
    score = rng.permutation(values.astype(dtype))
    order = argsort_scores(score)
    assert sorted(order.tolist()) == list(range(len(score)))
    assert (score[order] == np.sort(score)).all()
    assert len(rank_scores(score).ends) == len(np.unique(score))


def test_pair_accuracy_counts_a_tied_score_as_half_and_leaves_tied_losses_out() -> None:
    assert pair_accuracy([1, 2, 3], [1, 2, 3]) == 1.0
    assert pair_accuracy([3, 2, 1], [1, 2, 3]) == 0.0
    assert pair_accuracy([0, 0, 0], [1, 2, 3]) == 0.5
    assert pair_accuracy([1, 2, 2], [5, 5, 9]) == pytest.approx((1 + 0.5) / 2)
    assert math.isnan(pair_accuracy([1, 2], [4, 4]))
    assert math.isnan(kendall([1, 1], [2, 3]))
    assert math.isnan(spearman([1, 1], [2, 3]))


def test_budgets_take_the_top_and_split_ties_fairly() -> None:
    score = np.array([5.0, 4, 3, 3, 3, 3, 1, 1, 1, 0])
    failed = np.array([1, 0, 1, 1, 0, 0, 0, 0, 0, 1], bool)
    rows = budget_table(score, failed, budgets=(0.001, 0.2, 0.4, 1.0))
    assert [row.frames for row in rows] == [1, 2, 4, 10]
    assert [row.recall for row in rows] == [0.25, 0.25, pytest.approx(0.5), 1.0]
    assert rows[2].precision == pytest.approx(0.5)
    assert [row.threshold for row in rows] == [5.0, 4.0, 3.0, 0.0]


def test_a_calibrated_loss_predictor_is_reliable_and_a_wrong_scale_shows_as_bias() -> None:
    rng = np.random.default_rng(2)
    score = rng.normal(size=20_000)
    loss = 0.3 * np.exp(score) * rng.exponential(size=20_000)
    scale = fit_loss_scale(score[:10_000], loss[:10_000])
    assert scale == pytest.approx(0.3, rel=0.05)
    good = loss_reliability(score[10_000:], loss[10_000:], scale=scale)
    assert good.relative_error < 0.1
    assert good.bias == pytest.approx(1.0, abs=0.1)
    assert loss_reliability(score, loss, scale=2 * scale).bias == pytest.approx(2.0, abs=0.15)
    assert sum(row.count for row in good.bins) == 10_000
    assert [row.predicted for row in good.bins] == sorted(row.predicted for row in good.bins)


def test_tied_predictions_share_one_bin() -> None:
    result = reliability([0.2] * 50 + [0.9] * 3, [0] * 40 + [1] * 13, bins=10)
    assert [row.count for row in result.bins] == [50, 3]
    assert result.bins[0].observed == 0.2


def test_scores_that_are_no_log_loss_are_refused_not_turned_into_infinity() -> None:
    with pytest.raises(JudgeError, match="no log-loss"):
        fit_loss_scale([-2000.0, -1000.0], [1.0, 2.0])
    assert fit_loss_scale([800.0, 801.0], [1.0, 2.0]) < 1e-300


def test_a_bootstrap_row_equals_the_metric_on_the_resample_written_out() -> None:
    score, loss, failed = sample(3, 120, decimals=1)
    names = ("auroc", "average_precision", "fpr_at_95_tpr", "aurc", "e_aurc", "augrc")
    rows = replicate({"s": score}, failed=failed, loss=loss, metrics=names, replicates=20, seed=5)["s"]
    weights = np.concatenate(list(resample_weights(np.arange(120), replicates=20, seed=5))).astype(int)
    assert (weights.sum(axis=1) == 120).all()
    for index, counts in enumerate(weights):
        drawn = np.repeat(np.arange(120), counts)
        assert rows["auroc"][index] == pytest.approx(auroc(score[drawn], failed[drawn]))
        assert rows["average_precision"][index] == pytest.approx(
            average_precision(score[drawn], failed[drawn])
        )
        assert rows["fpr_at_95_tpr"][index] == pytest.approx(fpr_at_tpr(score[drawn], failed[drawn]))
        assert rows["aurc"][index] == pytest.approx(aurc(score[drawn], loss[drawn]))
        assert rows["e_aurc"][index] == pytest.approx(e_aurc(score[drawn], loss[drawn]), abs=1e-12)
        assert rows["augrc"][index] == pytest.approx(augrc(score[drawn], loss[drawn]))


def test_groups_are_drawn_whole_and_strata_keep_their_number_of_groups() -> None:
    groups = np.array(["a", "b", "b", "c", "c", "c"])
    for weights in resample_weights(groups, replicates=50, seed=0):
        assert (weights[:, 1] == weights[:, 2]).all()
        assert (weights[:, 3] == weights[:, 5]).all()
        assert (weights[:, 0] + weights[:, 1] + weights[:, 3] == 3).all()
    strata = np.array([0, 0, 0, 1, 1, 1])
    for weights in resample_weights(groups, replicates=50, seed=0, strata=strata):
        assert (weights[:, 3] == 1).all()
    with pytest.raises(JudgeError, match="more than one stratum"):
        list(resample_weights(groups, replicates=1, seed=0, strata=np.arange(6)))


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    # AUROC of N(1,1) against N(0,1) is Phi(1/sqrt 2).
    truth = stats.norm.cdf(1 / math.sqrt(2))
    hits = 0
    for seed in range(80):
        rng = np.random.default_rng(seed)
        failed = np.arange(200) < 60
        found = bootstrap_interval(
            "auroc", rng.normal(size=200) + failed, failed=failed, replicates=300, seed=seed
        )
        hits += found.low <= truth <= found.high
    assert 66 <= hits <= 80


def test_frames_of_one_drive_widen_the_interval() -> None:
    rng = np.random.default_rng(7)
    drive = np.repeat(np.arange(30), 40)
    failed = rng.random(1200) < np.repeat(rng.random(30), 40)
    score = failed + np.repeat(rng.normal(size=30), 40) + rng.normal(size=1200)
    by_frame = bootstrap_interval("auroc", score, failed=failed, replicates=300)
    by_drive = bootstrap_interval("auroc", score, failed=failed, groups=drive, replicates=300)
    assert by_drive.high - by_drive.low > 1.5 * (by_frame.high - by_frame.low)


def test_a_paired_difference_is_signed_so_that_above_zero_is_better() -> None:
    rng = np.random.default_rng(8)
    loss = rng.exponential(size=1500)
    failed = loss > 2
    good, bad = loss + rng.normal(size=1500), loss + 2 * rng.normal(size=1500)
    for metric in ("auroc", "aurc", "augrc", "fpr_at_95_tpr"):
        found = paired_difference(metric, good, bad, failed=failed, loss=loss, replicates=300)
        back = paired_difference(metric, bad, good, failed=failed, loss=loss, replicates=300)
        assert found.a_wins
        assert back.b_wins
        assert found.difference == pytest.approx(-back.difference)
    assert paired_difference("auroc", good, good, failed=failed, replicates=50).low == 0


def test_resamples_without_a_failure_are_left_out_and_counted() -> None:
    failed = np.arange(40) == 0
    found = bootstrap_interval("auroc", np.arange(40)[::-1], failed=failed, replicates=500)
    assert found.usable == pytest.approx(1 - (39 / 40) ** 40, abs=0.07)
    assert math.isfinite(found.low)


def test_the_risk_coverage_curve_ends_at_full_coverage_with_the_mean_loss() -> None:
    score, loss, _ = sample(9, 1000, decimals=1)
    coverage, risk = risk_coverage_curve(score, loss)
    assert coverage[-1] == 1.0
    assert risk[-1] == pytest.approx(loss.mean())
    assert (np.diff(coverage) > 0).all()


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: auroc([1.0, np.nan], [True, False]), "NaN for 1 of 2 samples: index 1"),
        (lambda: auroc([1.0, 2.0], [True, True]), "all 2 samples failed"),
        (lambda: auroc([1.0, 2.0], [0, 2]), "only 0 and 1"),
        (lambda: auroc([1.0, 2.0, 3.0], [True, False]), "lengths differ"),
        (lambda: auroc([], []), "empty|one flag per sample"),
        (lambda: aurc([1.0], [-1.0]), "finite and >= 0"),
        (lambda: aurc([1.0, 2.0], [1.0, np.inf]), "finite and >= 0"),
        (lambda: aurc(np.ones((2, 2)), [1.0, 2.0]), "one number per sample"),
        (lambda: budget_table([1.0, 2.0], [True, False], budgets=(0.0,)), "share in"),
        (lambda: fpr_at_tpr([1.0, 2.0], [True, False], tpr=0.0), "tpr must lie"),
        (lambda: replicate({"s": [1.0]}, failed=[True], metrics=("nope",)), "no metric 'nope'"),
        (lambda: reliability([np.inf], [1.0]), "infinite"),
    ],
)
def test_bad_input_says_what_is_wrong(call: object, text: str) -> None:
    with pytest.raises(JudgeError, match=text):
        call()  # type: ignore[operator]
