"""Closed forms of the gradient scores against autograd, enumeration and the formulas, in float64."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from misfire_train.scores import FitSet, ScoreError, build
from misfire_train.scores.committee import Committee, EglEnsemble, EglRegression
from misfire_train.scores.gradient.egl import Egl, HeatmapEgl
from misfire_train.scores.gradient.egl_pp import EglPP, HeatmapEglPP, SegmentationEglPP, bank_embedding
from misfire_train.scores.neighbours import Neighbours
from misfire_train.signals import Signals
from misfire_train.tasks.answers.heatmaps import render_gaussians
from misfire_train.tasks.answers.peaks import local_maxima

RTOL = 1e-9


def random_layer(outputs: int, channels: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(outputs, channels, generator=generator, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(outputs, generator=generator, dtype=torch.float64, requires_grad=True)
    return weight, bias


def vectors(count: int, channels: int, *, seed: int = 1) -> Tensor:
    return torch.randn(count, channels, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def maps(count: int, channels: int, height: int, width: int, *, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, channels, height, width, generator=generator, dtype=torch.float64)


def squared_gradient(loss: Tensor, parameters: tuple[Tensor, Tensor]) -> float:
    grads = torch.autograd.grad(loss, parameters, retain_graph=True)
    return sum(float(g.square().sum()) for g in grads)


def linear_signals(weight: Tensor, bias: Tensor, phi: Tensor) -> tuple[Tensor, Signals]:
    live = phi @ weight.T + bias
    return live, Signals(live.detach(), phi, {}, weight.detach(), bias.detach())


def conv_signals(weight: Tensor, bias: Tensor, phi: Tensor) -> tuple[Tensor, Signals]:
    live = functional.conv2d(phi, weight[:, :, None, None], bias)
    return live, Signals(live.detach(), phi, {}, weight.detach(), bias.detach())


@pytest.mark.parametrize("squared", [True, False])
def test_egl_of_classes_is_the_expected_autograd_norm(squared: bool) -> None:
    parameters = random_layer(4, 6)
    live, signals = linear_signals(*parameters, vectors(5, 6))
    score = Egl(squared=squared)
    ours = score(signals) * score.unit(signals)
    for n in range(5):
        p = torch.softmax(live[n], 0).detach()
        norms = [
            squared_gradient(functional.cross_entropy(live[n : n + 1], torch.tensor([k])), parameters)
            for k in range(4)
        ]
        expected = sum(float(p[k]) * (g if squared else math.sqrt(g)) for k, g in enumerate(norms))
        assert float(ours[n]) == pytest.approx(expected, rel=RTOL)


def test_egl_with_pseudo_labels_is_the_magnitude_of_badge() -> None:
    parameters = random_layer(4, 6)
    live, signals = linear_signals(*parameters, vectors(5, 6))
    score = Egl(labels="pseudo")
    ours = score(signals) * score.unit(signals)
    for n in range(5):
        loss = functional.cross_entropy(live[n : n + 1], live[n : n + 1].argmax(1))
        assert float(ours[n]) == pytest.approx(squared_gradient(loss, parameters), rel=RTOL)


def test_egl_without_the_feature_norm_is_the_gini_impurity_and_free() -> None:
    _, signals = linear_signals(*random_layer(4, 6), vectors(5, 6))
    p = torch.softmax(signals.outputs, 1)
    score = Egl(feature_norm=False)
    torch.testing.assert_close(score(signals), 1 - p.square().sum(1), rtol=RTOL, atol=0)
    assert score.free
    assert not Egl().free


def test_egl_keeps_its_digits_where_the_model_is_nearly_certain() -> None:
    logits = torch.tensor([[25.0, 0.0, 0.0], [30.0, 0.0, 0.0]])
    signals = Signals(logits, torch.ones(2, 4))
    exact = Egl(feature_norm=False)(Signals(logits.double(), torch.ones(2, 4).double()))
    torch.testing.assert_close(Egl(feature_norm=False)(signals).double(), exact, rtol=1e-5, atol=0)
    assert float(exact[1]) < float(exact[0])


def test_egl_of_segmentation_is_the_expectation_over_all_label_maps() -> None:
    parameters = random_layer(3, 4)
    live, signals = conv_signals(*parameters, maps(1, 4, 2, 3))
    score = Egl()
    ours = float(score(signals)) * score.unit(signals)
    p = torch.softmax(live, 1).detach().flatten(2)[0]
    expected = 0.0
    for labels in itertools.product(range(3), repeat=6):
        weight = math.prod(float(p[k, i]) for i, k in enumerate(labels))
        target = torch.tensor(labels).reshape(1, 2, 3)
        expected += weight * squared_gradient(functional.cross_entropy(live, target), parameters)
    assert ours == pytest.approx(expected, rel=RTOL)


def test_egl_norm_of_label_maps_has_no_closed_form_and_says_so() -> None:
    _, signals = conv_signals(*random_layer(3, 4), maps(1, 4, 2, 3))
    with pytest.raises(ScoreError, match="closed form"):
        Egl(squared=False)(signals)


def test_egl_of_heatmaps_is_the_expected_autograd_norm_over_peak_hypotheses() -> None:
    parameters = random_layer(2, 5)
    live, signals = conv_signals(*parameters, maps(1, 5, 8, 7))
    score = HeatmapEgl(radius=1, peaks=2, sigma=1.0)
    ours = float(score(signals)) * score.unit(signals)
    values, places = local_maxima(live.detach(), radius=1, peaks=2)
    q = torch.softmax(values, 2)
    expected = 0.0
    for choice in itertools.product(range(2), repeat=2):
        where = torch.stack([places[0, j, k] for j, k in enumerate(choice)])
        points = torch.stack([where % 7, where // 7], 1)[None].double()
        label = render_gaussians(points, size=(8, 7), sigma=1.0)
        weight = math.prod(float(q[0, j, k]) for j, k in enumerate(choice))
        expected += weight * squared_gradient((live - label).square().mean(), parameters)
    assert ours == pytest.approx(expected, rel=RTOL)


def test_pitfall_13_pixels_are_summed_before_the_norm() -> None:
    parameters = random_layer(2, 5)
    live, signals = conv_signals(*parameters, maps(1, 5, 8, 7))
    residual = (live.detach() - 0).flatten(2)
    phi = torch.cat([signals.last_input, torch.ones(1, 1, 8, 7, dtype=torch.float64)], 1).flatten(2)
    per_pixel = (residual.square().sum(1) * phi.square().sum(1)).sum() * (2 / (2 * 56)) ** 2
    true = squared_gradient(live.square().mean(), parameters)
    closed = ((residual @ phi.transpose(1, 2)) * 2 / (2 * 56)).square().sum()
    assert float(closed) == pytest.approx(true, rel=RTOL)
    assert abs(float(per_pixel) / true - 1) > 0.2, "the per-pixel shortcut is another quantity"


def committee_of(members: int, outputs: int, channels: int) -> Committee:
    generator = torch.Generator().manual_seed(7)
    return Committee(
        torch.randn(members, outputs, channels, generator=generator, dtype=torch.float64),
        torch.randn(members, outputs, generator=generator, dtype=torch.float64),
        torch.rand(members, outputs, generator=generator, dtype=torch.float64),
    )


def test_egl_regression_is_the_mean_gradient_norm_over_the_committee() -> None:
    parameters = random_layer(2, 6)
    live, signals = linear_signals(*parameters, vectors(4, 6))
    committee = committee_of(3, 2, 6)
    ours = EglRegression(committee)(signals) * math.sqrt(6)
    answers = committee(signals.last_input)
    for n in range(4):
        norms = [
            math.sqrt(squared_gradient(0.5 * (live[n] - answers[n, k]).square().sum(), parameters))
            for k in range(3)
        ]
        assert float(ours[n]) == pytest.approx(sum(norms) / 3, rel=RTOL)


def test_egl_ensemble_is_the_monte_carlo_expectation_of_the_squared_gradient() -> None:
    parameters = random_layer(1, 3)
    live, signals = linear_signals(*parameters, vectors(1, 3))
    committee = committee_of(2, 1, 3)
    ours = float(EglEnsemble(committee)(signals)) * 3
    generator = torch.Generator().manual_seed(0)
    answers, spreads = committee(signals.last_input)[0], committee.variance.sqrt()
    noise = torch.randn(400_000, 2, 1, generator=generator, dtype=torch.float64)
    squares = (live.detach()[0] - (answers + spreads * noise)).square().sum(2).mean()
    energy = float(signals.last_input.square().sum() + 1)
    assert ours == pytest.approx(float(squares) * energy, rel=0.01)


def test_egl_ensemble_around_the_mean_is_the_law_of_total_variance() -> None:
    committee = committee_of(5, 2, 6)
    phi = vectors(4, 6)
    mean = committee(phi).mean(1)
    score = EglEnsemble(committee, feature_norm=False)(Signals(mean, phi))
    between = committee(phi).var(1, correction=0).sum(1)
    torch.testing.assert_close(score, between + committee.variance.sum(1).mean(), rtol=RTOL, atol=0)


def test_a_fitted_committee_agrees_on_data_and_disagrees_far_from_it() -> None:
    phi = vectors(200, 3)
    targets = phi @ torch.tensor([[1.0], [2.0], [-1.0]], dtype=torch.float64) + 0.1 * vectors(200, 1, seed=5)
    committee = Committee.fit(FitSet(Signals(targets, phi), targets, 1), seed=1)
    near, far = committee(phi[:1]), committee(phi[:1] * 50)
    assert float(far.var(1)) > 10 * float(near.var(1))
    assert 0.005 < float(committee.variance.mean()) < 0.02
    with pytest.raises(ScoreError, match="at least 10"):
        Committee.fit(FitSet(Signals(targets[:5], phi[:5]), targets[:5], 1))


def bank(count: int, channels: int) -> Neighbours:
    return Neighbours(vectors(count, channels, seed=3) / math.sqrt(channels), perplexity=4)


@pytest.mark.parametrize("classification", [True, False])
def test_egl_pp_is_the_weighted_autograd_norm_over_neighbours(classification: bool) -> None:
    parameters = random_layer(3, 6)
    live, signals = linear_signals(*parameters, vectors(5, 6))
    near = bank(20, 6)
    labels = torch.softmax(vectors(20, 3, seed=4), 1) if classification else vectors(20, 3, seed=4)
    score = EglPP(near, labels, classification=classification)
    ours = score(signals) * 6
    places, weights, _ = near(bank_embedding(signals))
    for n in range(5):
        expected = 0.0
        for place, q in zip(places[n], weights[n], strict=True):
            if classification:
                loss = functional.cross_entropy(live[n : n + 1], labels[place][None])
            else:
                loss = 0.5 * (live[n] - labels[place]).square().sum()
            expected += float(q) * squared_gradient(loss, parameters)
        assert float(ours[n]) == pytest.approx(expected, rel=RTOL)


def test_egl_pp_is_bias_plus_spread() -> None:
    _, signals = linear_signals(*random_layer(3, 6), vectors(5, 6))
    score = EglPP(bank(20, 6), vectors(20, 3, seed=4), classification=False)
    parts = score.parts(signals)
    torch.testing.assert_close(parts.bias + parts.spread, score(signals), rtol=RTOL, atol=0)
    places, weights, _ = score.neighbours(bank_embedding(signals))
    mean = (weights[:, :, None] * score.labels[places]).sum(1)
    bias = (signals.outputs - mean).square().sum(1) * (signals.last_input.square().sum(1) + 1) / 6
    torch.testing.assert_close(parts.bias, bias, rtol=RTOL, atol=0)


def test_egl_pp_of_heatmaps_is_the_weighted_autograd_norm() -> None:
    parameters = random_layer(2, 5)
    live, signals = conv_signals(*parameters, maps(2, 5, 8, 7))
    near = bank(12, 5)
    generator = torch.Generator().manual_seed(9)
    points = torch.rand(12, 2, 2, generator=generator, dtype=torch.float64) * 7
    joints = torch.cat([points, torch.ones(12, 2, 1, dtype=torch.float64)], 2)
    joints[4, 1, 2] = 0
    score = HeatmapEglPP(near, joints, sigma=1.0)
    ours = score(signals) * 5 * 2 * 56**2 * (2 / (2 * 56)) ** 2
    places, weights, _ = near(bank_embedding(signals))
    for n in range(2):
        expected = 0.0
        for place, q in zip(places[n], weights[n], strict=True):
            label = render_gaussians(joints[place, :, :2], size=(8, 7), sigma=1.0)
            visible = joints[place, :, 2, None, None]
            loss = ((live[n] - label).square() * visible).mean()
            expected += float(q) * squared_gradient(loss, parameters)
        assert float(ours[n]) == pytest.approx(expected, rel=RTOL)


def test_egl_pp_of_segmentation_is_the_weighted_autograd_norm_with_ignored_pixels() -> None:
    parameters = random_layer(3, 5)
    live, signals = conv_signals(*parameters, maps(2, 5, 4, 6))
    near = bank(12, 5)
    labels = torch.randint(0, 3, (12, 4, 6), generator=torch.Generator().manual_seed(2))
    labels[:, 0, :2] = 255
    score = SegmentationEglPP(near, labels)
    ours = score(signals) * 5
    places, weights, _ = near(bank_embedding(signals))
    for n in range(2):
        expected = 0.0
        for place, q in zip(places[n], weights[n], strict=True):
            loss = functional.cross_entropy(live[n : n + 1], labels[place][None], ignore_index=255)
            expected += float(q) * squared_gradient(loss, parameters)
        assert float(ours[n]) == pytest.approx(expected, rel=RTOL)


def test_pitfall_15_labels_are_targets_and_reference_compat_uses_predictions() -> None:
    phi = vectors(120, 6)
    logits = phi @ random_layer(3, 6)[0].detach().T
    targets = torch.randint(0, 3, (120,), generator=torch.Generator().manual_seed(0))
    fit = FitSet(Signals(logits, phi), targets, 3)
    (ours,) = build(["egl_pp"], task="classification", fit=fit)
    (reference,) = build(["egl_pp"], task="classification", fit=fit, egl_pp={"reference_compat": True})
    assert isinstance(ours, EglPP)
    assert isinstance(reference, EglPP)
    assert torch.equal(ours.labels.argmax(1), targets)
    torch.testing.assert_close(reference.labels, torch.softmax(logits, 1))
    assert ours.neighbours.candidates < 120
    assert reference.neighbours.candidates == 120


def test_pitfall_16_scores_scale_with_contrast_and_the_unweighted_variant_does_not() -> None:
    _, signals = linear_signals(*random_layer(3, 6), vectors(5, 6))
    brighter = Signals(signals.outputs, signals.last_input * 4, {}, signals.weight, signals.bias)
    assert bool((Egl()(brighter) > 5 * Egl()(signals)).all())
    plain = Egl(feature_norm=False)
    assert torch.equal(plain(brighter), plain(signals))


def test_pitfall_16_squared_norms_fit_half_precision() -> None:
    phi = torch.full((2, 256), 16.0)
    assert float(phi.square().sum(1).max()) > 65504, "the plain squared norm overflows"
    signals = Signals(torch.tensor([[1.0, 0.0, 0.0], [0.0, 3.0, 0.0]]), phi)
    value = Egl()(signals)
    half = Egl().half()(Signals(signals.outputs.half(), phi.half()))
    torch.testing.assert_close(half.float(), value, rtol=5e-3, atol=0)


def test_pitfall_17_no_score_needs_autograd() -> None:
    _, signals = linear_signals(*random_layer(3, 6), vectors(5, 6))
    with torch.inference_mode():
        assert Egl()(signals).shape == (5,)
        assert EglPP(bank(20, 6), vectors(20, 3), classification=True)(signals).shape == (5,)


def test_resized_logits_are_computed_again_at_the_last_layer() -> None:
    weight, bias = random_layer(3, 4)
    _, signals = conv_signals(weight, bias, maps(2, 4, 4, 4))
    bigger = functional.interpolate(signals.outputs, scale_factor=2, mode="bilinear")
    resized = Signals(bigger, signals.last_input, {}, signals.weight, signals.bias)
    torch.testing.assert_close(Egl()(resized), Egl()(signals), rtol=1e-12, atol=0)
    with pytest.raises(ScoreError, match="larger kernel"):
        Egl()(Signals(bigger, signals.last_input, {}, torch.zeros(3, 36), None))


def test_a_linear_layer_on_nothing_like_its_input_is_an_error() -> None:
    with pytest.raises(ScoreError, match="does not fit outputs"):
        HeatmapEgl()(Signals(torch.zeros(1, 2, 8, 8), torch.zeros(1, 5)))


def test_wrong_options_are_named() -> None:
    with pytest.raises(ScoreError, match="'expected' or 'pseudo'"):
        Egl(labels="mean")
    with pytest.raises(ScoreError, match="do not fit egl"):
        build(["egl"], task="classification", egl={"power": 3})


def test_the_feature_norm_turns_egl_pp_of_heatmaps_upside_down() -> None:
    """Weak evidence means small activations: the worse the peak, the smaller ||phi||, and it wins."""
    strength = torch.linspace(0.1, 0.5, 40, dtype=torch.float64)
    joint = torch.tensor([[3.0, 2.0]], dtype=torch.float64)
    label = render_gaussians(joint[None], size=(6, 7), sigma=1.0)
    pattern = 50.0 * label.expand(1, 4, 6, 7)
    weight = torch.full((1, 4), 1 / 200.0, dtype=torch.float64)
    _, signals = conv_signals(
        weight, torch.zeros(1, dtype=torch.float64), strength[:, None, None, None] * pattern
    )
    loss = (signals.outputs - label).square().sum((1, 2, 3))
    bank_of_joints = torch.cat([joint, torch.ones(1, 1, dtype=torch.float64)], 1).expand(12, 1, 3)
    near = bank(12, 4)
    weighted = HeatmapEglPP(near, bank_of_joints, sigma=1.0)(signals)
    plain = HeatmapEglPP(near, bank_of_joints, sigma=1.0, feature_norm=False)(signals)
    assert torch.equal(loss.argsort(), plain.argsort())
    assert torch.equal(loss.argsort(), weighted.argsort(descending=True))
