"""A score as an expected loss in real units: calibrated on frames that nothing was fitted on."""

from __future__ import annotations

import numpy as np
import pytest

from misfire_train.errors import JudgeError
from misfire_train.metrics import fit_loss_curve, fit_loss_scale, loss_reliability, reliability


def world(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """A score that orders losses, but is no log-loss: its low end is flat, its high end steep."""
    rng = np.random.default_rng(seed)
    score = rng.normal(size=count)
    expected = 0.3 + np.exp(2.0 * score - 1.0)
    return score, expected * rng.gamma(4.0, 0.25, size=count)


def test_every_tenth_of_other_frames_is_within_a_factor_of_a_quarter() -> None:
    curve = fit_loss_curve(*world(0, 1000))
    assert curve is not None
    score, loss = world(1, 20_000)
    found = reliability(curve.predict(score), loss)
    assert found.within() == 10
    assert found.consistent() == 10
    assert found.bias == pytest.approx(1.0, abs=0.1)
    # A single constant is right in the mean, and in few of the tenths.
    plain = loss_reliability(score, loss, scale=fit_loss_scale(*world(0, 1000)))
    assert plain.within() < 5


@pytest.mark.parametrize("count", [20, 60, 100, 130, 500, 5000])
def test_a_curve_rises_and_stays_small(count: int) -> None:
    curve = fit_loss_curve(*world(2, count))
    assert curve is not None
    assert 1 <= len(curve.scores) == len(curve.losses) <= 22
    assert all(a < b for a, b in zip(curve.scores, curve.scores[1:], strict=False))
    assert all(a <= b for a, b in zip(curve.losses, curve.losses[1:], strict=False))
    ends = curve.predict([-1e6, 1e6])
    assert ends.tolist() == pytest.approx([curve.losses[0], curve.losses[-1]])


def test_few_frames_give_a_line_that_is_right_in_the_mean() -> None:
    rng = np.random.default_rng(3)
    score = rng.normal(size=80)
    curve = fit_loss_curve(score, np.exp(1.5 * score + 0.5))
    assert curve is not None
    assert curve.predict([0.0, 1.0]).tolist() == pytest.approx([np.exp(0.5), np.exp(2.0)], rel=0.02)


def test_a_score_that_orders_losses_the_wrong_way_predicts_the_mean() -> None:
    score, loss = world(4, 2000)
    for count in (60, 2000):
        curve = fit_loss_curve(-score[:count], loss[:count])
        assert curve is not None
        assert curve.predict([0.0])[0] == pytest.approx(loss[:count].mean(), rel=0.05)


def test_ties_and_frames_without_any_loss_are_no_trouble() -> None:
    score = np.repeat([0.0, 1.0], 200)
    curve = fit_loss_curve(score, np.repeat([0.0, 2.0], 200))
    assert curve is not None
    assert curve.predict([1.0])[0] == pytest.approx(2.0)
    assert 0 < curve.predict([0.0])[0] < 1e-6
    assert fit_loss_curve(score, np.zeros(400)) is None
    assert fit_loss_curve(np.ones(400), score) is None
    with pytest.raises(JudgeError, match="infinite"):
        fit_loss_curve([1.0, np.inf], [1.0, 2.0])
