"""Scoring a set: one pass for many scores, odd sets, names in errors; densities, stacking, fit sets."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from misfire_runtime.preprocess import InputContract
from misfire_train.data import Examples
from misfire_train.scores import FitSet, ScoreError, build, compute, gather
from misfire_train.scores.density import KnnDistance, Mahalanobis, k_center
from misfire_train.scores.output_only import Entropy, Msp, OutputDeviation
from misfire_train.scores.stacked import Stacked, logistic_regression
from misfire_train.signals import Probe, Score, Signals


class Counting(nn.Module):
    """A small classifier that counts its passes."""

    def __init__(self, *, deep_dropout: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        middle = nn.Dropout(0.2) if deep_dropout else nn.ReLU()
        self.body = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), middle, nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        self.last = nn.Linear(6, 4)
        self.passes = 0

    def forward(self, image: Tensor) -> Tensor:
        self.passes += 1
        out: Tensor = self.last(self.body(image))
        return out


class Broken(Score):
    name = "broken"

    def forward(self, signals: Signals) -> Tensor:
        value = torch.zeros(len(signals.outputs))
        return torch.where(signals.outputs[:, 0] > signals.outputs[:, 0].median(), value, value / 0)


class Wrong(Score):
    name = "wrong_shape"

    def forward(self, signals: Signals) -> Tensor:
        return signals.outputs


def probe(*, deep_dropout: bool = False) -> Probe:
    return Probe(Counting(deep_dropout=deep_dropout), last_layer="last", features=["body.0"])


def images(count: int = 20) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(3))


def examples(count: int = 6) -> Examples:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    ids = tuple(f"drive/{i:03}" for i in range(count))
    return Examples(list(pixels), np.arange(count) % 4, ids, ids)


CONTRACT = InputContract(height=8, width=8)


def test_a_list_of_scores_takes_one_forward_pass_per_batch() -> None:
    source = probe()
    fit = gather(source, images(), torch.arange(20) % 4)
    names = [
        "msp",
        "entropy",
        "margin",
        "energy",
        "max_logit",
        "egl",
        "egl_pp",
        "wrong_prediction",
        "knn_distance",
    ]
    scores = build(names, task="classification", fit=fit, holdout=fit)
    model = source.model
    assert isinstance(model, Counting)
    model.passes = 0
    result = compute(source, images(), scores, batch=8)
    assert model.passes == 3
    assert list(result) == names
    assert all(value.shape == (20,) and value.dtype == np.float32 for value in result.values())


@pytest.mark.parametrize(("deep_dropout", "sampled"), [(True, 10), (False, 1)])
def test_extra_passes_are_shared_by_the_scores_that_want_them(deep_dropout: bool, sampled: int) -> None:
    """Ten samples are ten passes where dropout is in the body, one where it is before the last layer."""
    source = probe(deep_dropout=deep_dropout)
    model = source.model
    assert isinstance(model, Counting)
    compute(source, images(), ["entropy", "mc_dropout", "bald", "epistemic", "flip_consistency"])
    assert model.passes == 1 + sampled + 1


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_scores_do_not_depend_on_the_batch_size(batch: int) -> None:
    reference = compute(probe(), images(), ["entropy", "egl"])
    for name, value in compute(probe(), images(), ["entropy", "egl"], batch=batch).items():
        np.testing.assert_allclose(value, reference[name], rtol=1e-5)


def test_examples_are_scored_through_their_contract_and_named_in_errors() -> None:
    result = compute(probe(), examples(), ["msp"], contract=CONTRACT)
    assert result["msp"].shape == (6,)
    with pytest.raises(ScoreError, match=r"broken is not finite for drive/\d{3}, drive/\d{3}"):
        compute(probe(), examples(), [Broken()], contract=CONTRACT)
    with pytest.raises(ScoreError, match="need contract"):
        compute(probe(), examples(), ["msp"])


def test_a_long_list_of_broken_samples_is_cut_and_positions_count_over_batches() -> None:
    with pytest.raises(ScoreError, match=r"not finite for #\d+.* and 5 more"):
        compute(probe(), images(), [Broken()])
    with pytest.raises(ScoreError, match="for frame-"):
        compute(probe(), images(), [Broken()], ids=[f"frame-{i}" for i in range(20)])


def test_a_run_brings_its_task_contract_and_head() -> None:
    head = Msp()
    head.name = "learning_loss_pp"
    run = SimpleNamespace(
        probe=probe(), record=SimpleNamespace(task="classification", contract=CONTRACT), head=head
    )
    result = compute(run, examples(), ["entropy", "learning_loss_pp"])
    np.testing.assert_array_equal(
        result["learning_loss_pp"], compute(probe(), examples(), ["msp"], contract=CONTRACT)["msp"]
    )


@pytest.mark.parametrize(
    ("source", "pool", "scores", "message"),
    [
        ("probe", 0, ["msp"], "no images"),
        ("probe", 3, [], "no score is asked for"),
        ("probe", 3, ["msp", "msp"], "asked for twice"),
        ("probe", 3, ["egl_pp"], "fitted on training data"),
        ("model", 3, ["msp"], "a Probe or a Run, got Counting"),
    ],
)
def test_odd_calls_say_what_is_wrong(source: str, pool: int, scores: list[str], message: str) -> None:
    with pytest.raises(ScoreError, match=message):
        compute(probe() if source == "probe" else Counting(), images()[:pool], scores)


def test_a_score_of_the_wrong_shape_is_named() -> None:
    with pytest.raises(ScoreError, match=r"wrong_shape gave \(3, 4\) for 3 images"):
        compute(probe(), images(3), [Wrong()])


def test_gather_keeps_feature_maps_only_on_request() -> None:
    targets = torch.zeros(20, dtype=torch.long)
    assert not gather(probe(), images(), targets).signals.features
    kept = gather(probe(), images(), targets, features=True, batch=6)
    assert kept.signals.features["body.0"].shape == (20, 6, 8, 8)
    assert kept.take([3, 4]).signals.features["body.0"].shape[0] == 2
    with pytest.raises(ScoreError, match="20 samples but 3 targets"):
        gather(probe(), images(), targets[:3])


def test_knn_distance_is_zero_on_the_bank_and_grows_away_from_it() -> None:
    phi = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    fit = FitSet(Signals(torch.zeros(50, 2), phi), torch.zeros(50, dtype=torch.long), 2)
    score = KnnDistance.fit(fit, neighbours=1)
    assert float(score(fit.signals).max()) < 1e-3
    opposite = Signals(torch.zeros(1, 2), -phi.mean(0, keepdim=True) * 40)
    assert float(score(opposite)) > 0.3
    with pytest.raises(ScoreError, match="the bank has 50 rows"):
        KnnDistance(phi, neighbours=51)


def test_k_center_covers_better_than_the_first_rows_and_repeats_nothing() -> None:
    points = torch.randn(300, 3, generator=torch.Generator().manual_seed(0))
    chosen = k_center(points, 30)
    assert len(set(chosen.tolist())) == 30
    radius = torch.cdist(points, points[chosen]).amin(1).max()
    assert float(radius) < 0.7 * float(torch.cdist(points, points[:30]).amin(1).max())
    assert k_center(points, 500).tolist() == list(range(300))


def test_mahalanobis_is_the_textbook_distance_to_the_nearest_class_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(300) % 3
    phi = torch.randn(300, 4, generator=generator, dtype=torch.float64) @ torch.randn(
        4, 4, dtype=torch.float64
    )
    phi = phi + 3 * labels[:, None]
    score = Mahalanobis.fit(FitSet(Signals(torch.zeros(300, 3), phi), labels, 3), shrinkage=0.0)
    means = torch.stack([phi[labels == k].mean(0) for k in range(3)])
    centred = phi - means[labels]
    inverse = torch.linalg.inv(centred.T @ centred / 300)
    gaps = phi[:5, None] - means
    expected = torch.einsum("nkc,cd,nkd->nk", gaps, inverse, gaps).amin(1) / 4
    torch.testing.assert_close(score(Signals(torch.zeros(5, 3), phi[:5])), expected)


def test_mahalanobis_bears_constant_features() -> None:
    phi = torch.zeros(30, 4)
    phi[:, 0] = torch.randn(30)
    fit = FitSet(Signals(torch.zeros(30, 2), phi), torch.arange(30) % 2, 2)
    assert torch.isfinite(Mahalanobis.fit(fit)(fit.signals)).all()


def test_output_deviation_flags_answers_unlike_the_training_answers() -> None:
    values = torch.randn(200, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 10.0])
    fit = FitSet(Signals(values, values), values, 2)
    score = OutputDeviation.fit(fit)
    usual, odd = score(Signals(torch.tensor([[0.0, 5.0], [5.0, 0.0]]), torch.zeros(2, 2)))
    assert float(odd) > 5 * float(usual)
    assert score.free


def holdout(count: int = 400) -> tuple[FitSet, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(count, 4, generator=generator) * 2
    probability = 1 - torch.softmax(logits, 1).amax(1)
    failed = torch.rand(count, generator=generator) < probability
    targets = torch.where(failed, (logits.argmax(1) + 1) % 4, logits.argmax(1))
    return FitSet(Signals(logits, torch.randn(count, 6, generator=generator)), targets, 4), failed


def test_stacked_is_calibrated_on_its_holdout_and_orders_as_its_parts() -> None:
    fit, failed = holdout()
    (score,) = build(["stacked"], task="classification", holdout=fit)
    assert isinstance(score, Stacked)
    probability = score.probability(fit.signals)
    assert float(probability.mean()) == pytest.approx(float(failed.float().mean()), abs=0.01)
    high = probability > probability.median()
    assert float(failed[high].float().mean()) > 2 * float(failed[~high].float().mean())
    torch.testing.assert_close(torch.sigmoid(score(fit.signals)), probability)
    assert score.free, "made of free scores"


def test_stacked_clips_a_component_that_runs_away() -> None:
    fit, _ = holdout()
    (score,) = build(["stacked"], task="classification", holdout=fit, stacked={"components": ["energy"]})
    far = score(Signals(torch.full((1, 4), -1e6), torch.zeros(1, 6)))
    near = score(Signals(torch.full((1, 4), -1e3), torch.zeros(1, 6)))
    assert torch.equal(far, near)


def test_stacked_says_how_many_failures_it_needs() -> None:
    fit, _ = holdout()
    right = FitSet(fit.signals, fit.signals.outputs.argmax(1), 4)
    with pytest.raises(ScoreError, match="at least 10 failures and 10 successes, got 0 and 400"):
        build(["stacked"], task="classification", holdout=right)
    with pytest.raises(ScoreError, match="component of itself"):
        build(["stacked"], task="classification", holdout=fit, stacked={"components": ["stacked"]})
    with pytest.raises(ScoreError, match="broken is not finite"):
        build(["stacked"], task="classification", holdout=fit, stacked={"components": [Broken(), Entropy()]})


def test_logistic_regression_equals_scikit_learn() -> None:
    from sklearn.linear_model import LogisticRegression

    fit, failed = holdout()
    design = torch.stack([Entropy()(fit.signals), Msp()(fit.signals)], 1).double()
    ours = logistic_regression(design, failed.double(), penalty=1.0)
    theirs = LogisticRegression(C=1.0, tol=1e-10, max_iter=1000).fit(design.numpy(), failed.numpy())
    np.testing.assert_allclose(ours[:2].numpy(), theirs.coef_[0], rtol=1e-3)
    np.testing.assert_allclose(float(ours[2]), theirs.intercept_[0], rtol=1e-3)


def test_separable_failures_do_not_run_away() -> None:
    design = torch.tensor([[-1.0], [-2.0], [1.0], [2.0]], dtype=torch.float64)
    weight = logistic_regression(design, torch.tensor([0.0, 0, 1, 1], dtype=torch.float64), penalty=1.0)
    assert 0 < float(weight[0]) < 5


def test_every_score_is_known_by_name_in_a_fresh_process() -> None:
    code = "from misfire_train import scores; print(*scores.SCORES)"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert {"egl", "egl_pp", "wrong_prediction_approx", "silence", "expected_errors"} <= set(
        found.stdout.split()
    )
