"""S, S_a and error reduction against explicit SGD steps and autograd in float64, and what they warn of."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from misfire_train.scores import FitSet, HoldoutWarning, ScoreError, build
from misfire_train.scores.gradient.wrong_prediction import (
    ErrorReduction,
    WrongPrediction,
    WrongPredictionApprox,
)
from misfire_train.scores.last_layer import exp_minus_one, log_one_plus
from misfire_train.signals import Signals
from misfire_train.tasks.answers.softmax import log_one_plus_sum

CLASSES, CHANNELS, HELD_OUT = 4, 6, 15


def layer() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(CHANNELS, CLASSES, dtype=torch.float64)


def signals_of(model: nn.Linear, phi: Tensor) -> Signals:
    return Signals(model(phi).detach(), phi, {}, model.weight.detach(), model.bias.detach())


def features(count: int, seed: int) -> Tensor:
    return torch.randn(count, CHANNELS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def holdout(model: nn.Linear) -> FitSet:
    labels = torch.arange(HELD_OUT) % CLASSES
    return FitSet(signals_of(model, features(HELD_OUT, 1)), labels, CLASSES)


def stepped(model: nn.Linear, phi: Tensor, *, eta: float, steps: int) -> nn.Linear:
    """The layer after explicit SGD steps on one frame with its first pseudo-label."""
    moved = copy.deepcopy(model)
    optimiser = torch.optim.SGD(moved.parameters(), lr=eta)
    label = model(phi[None]).argmax(1)
    for _ in range(steps):
        optimiser.zero_grad()
        functional.cross_entropy(moved(phi[None]), label).backward()
        optimiser.step()
    return moved


@pytest.mark.slow
@pytest.mark.parametrize("eta", [1e-3, 0.1])
@pytest.mark.parametrize("steps", [1, 3, 10])
def test_s_equals_explicit_sgd_steps(eta: float, steps: int) -> None:
    model, held = layer(), holdout(layer())
    queries = features(7, 2)
    ours = WrongPrediction.fit(held, eta=eta, steps=steps)(signals_of(model, queries))
    before = functional.cross_entropy(held.signals.outputs, held.targets, reduction="sum")
    for n in range(7):
        after_model = stepped(model, queries[n], eta=eta, steps=steps)
        logits = after_model(held.signals.last_input)
        after = functional.cross_entropy(logits, held.targets, reduction="sum").detach()
        assert float(ours[n]) == pytest.approx(float(after - before), rel=1e-9, abs=1e-13)


def test_s_a_is_minus_the_product_of_the_gradients() -> None:
    model, held = layer(), holdout(layer())
    queries = features(7, 2)
    ours = WrongPredictionApprox.fit(held)(signals_of(model, queries)) * HELD_OUT * CHANNELS
    parameters = list(model.parameters())
    total = functional.cross_entropy(model(held.signals.last_input), held.targets, reduction="sum")
    of_holdout = torch.autograd.grad(total, parameters)
    for n in range(7):
        logits = model(queries[n : n + 1])
        own = torch.autograd.grad(functional.cross_entropy(logits, logits.argmax(1)), parameters)
        expected = -sum(float((a * b).sum()) for a, b in zip(of_holdout, own, strict=True))
        assert float(ours[n]) == pytest.approx(expected, rel=1e-9)


def test_s_is_steps_times_eta_times_s_a_to_first_order() -> None:
    model, held = layer(), holdout(layer())
    signals = signals_of(model, features(7, 2))
    exact = WrongPrediction.fit(held, eta=1e-6, steps=3)(signals)
    first_order = WrongPredictionApprox.fit(held)(signals) * HELD_OUT * CHANNELS * 3e-6
    torch.testing.assert_close(exact, first_order, rtol=1e-3, atol=0)


def test_s_keeps_its_digits_in_single_precision() -> None:
    model, held = layer(), holdout(layer())
    signals = signals_of(model, features(50, 2))
    exact = WrongPrediction.fit(held, eta=1e-4)(signals)
    single = WrongPrediction.fit(held, eta=1e-4).float()
    single_signals = Signals(signals.outputs.float(), signals.last_input.float())
    torch.testing.assert_close(single(single_signals).double(), exact, rtol=1e-3, atol=1e-8)


def test_replacements_of_expm1_and_log1p_keep_their_digits() -> None:
    x = torch.cat([torch.linspace(-20, 20, 101), torch.tensor([1e-6, -1e-6, 1e-3, 0.0])])
    torch.testing.assert_close(exp_minus_one(x), torch.expm1(x), rtol=1e-5, atol=0)
    y = torch.cat([torch.linspace(-0.9, 20, 101), torch.tensor([1e-8, -1e-8, 1e-3, 0.0])])
    torch.testing.assert_close(log_one_plus(y), torch.log1p(y), rtol=1e-5, atol=0)
    z = torch.cat([torch.logspace(-30, 6, 500), torch.tensor([0.0])])
    torch.testing.assert_close(log_one_plus_sum(z), torch.log1p(z), rtol=1e-6, atol=0)


def test_error_reduction_is_minus_the_mean_entropy_after_explicit_steps() -> None:
    model, pool = layer(), holdout(layer())
    queries = features(5, 2)
    ours = ErrorReduction.fit(pool, eta=0.05)(signals_of(model, queries))
    for n in range(5):
        p = torch.softmax(stepped(model, queries[n], eta=0.05, steps=3)(pool.signals.last_input), 1)
        entropy = -torch.xlogy(p, p).sum(1).mean()
        assert float(ours[n]) == pytest.approx(-entropy.item(), rel=1e-9)


def test_confident_mistakes_have_no_gradient_and_stay_unseen() -> None:
    model, held = layer(), holdout(layer())
    confident = Signals(torch.tensor([[60.0, 0, 0, 0]], dtype=torch.float64), features(1, 3))
    assert float(WrongPredictionApprox.fit(held)(confident).abs()) < 1e-20
    assert model.weight.grad is None


def test_a_holdout_of_one_class_is_an_error() -> None:
    held = holdout(layer())
    one = FitSet(held.signals, torch.zeros(HELD_OUT, dtype=torch.long), CLASSES)
    for name in ("wrong_prediction", "wrong_prediction_approx"):
        with pytest.raises(ScoreError, match="one class only"):
            build([name], task="classification", holdout=one)


def test_a_holdout_fit_perfectly_is_said_to_give_noise() -> None:
    held = holdout(layer())
    perfect = functional.one_hot(held.targets, CLASSES).double() * 100
    overfit = FitSet(Signals(perfect, held.signals.last_input), held.targets, CLASSES)
    with pytest.warns(HoldoutWarning, match="fit perfectly .* noise"):
        WrongPredictionApprox.fit(overfit)
    with pytest.warns(HoldoutWarning, match="not trained on"):
        WrongPrediction.fit(overfit)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        WrongPredictionApprox.fit(held)


def test_labels_outside_the_classes_and_missing_holdouts_are_errors() -> None:
    held = holdout(layer())
    with pytest.raises(ScoreError, match=r"0\.\.3"):
        WrongPrediction.fit(FitSet(held.signals, held.targets + 1, CLASSES))
    with pytest.raises(ScoreError, match="wrong_prediction is fitted on held-out data"):
        build(["wrong_prediction"], task="classification", fit=held)
    with pytest.raises(ScoreError, match="eta 0"):
        WrongPrediction.fit(held, eta=0)
    with pytest.raises(ScoreError, match="signals of fitting samples \\[3\\] are not finite"):
        broken = held.signals.outputs.clone()
        broken[3, 0] = torch.nan
        WrongPrediction.fit(FitSet(Signals(broken, held.signals.last_input), held.targets, CLASSES))


def test_a_large_holdout_is_thinned_the_same_way_for_the_same_seed() -> None:
    model = layer()
    labels = torch.arange(400) % CLASSES
    large = FitSet(signals_of(model, features(400, 1)), labels, CLASSES)
    query = signals_of(model, features(3, 2))
    first, second = (WrongPrediction.fit(large, size=50, seed=4)(query) for _ in range(2))
    assert torch.equal(first, second)
    assert WrongPrediction.fit(large, size=50).features.shape[0] == 50


def test_segmentation_averages_the_pixels_that_get_worse() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(5, 3, 1, dtype=torch.float64)
    phi = torch.randn(4, 5, 3, 4, dtype=torch.float64)
    logits = conv(phi)
    labels = torch.randint(0, 3, (4, 3, 4))
    labels[0, 0, 0] = 255
    fit = FitSet(Signals(logits.detach(), phi, {}, conv.weight.detach().flatten(1), conv.bias), labels, 3)
    score = WrongPredictionApprox.fit(fit)(fit.signals)
    of_holdout = torch.autograd.grad(
        functional.cross_entropy(logits, labels, ignore_index=255), conv.parameters()
    )
    values = []
    for row in range(3):
        for column in range(4):
            pixel = conv(phi[1:2, :, row : row + 1, column : column + 1])
            own = torch.autograd.grad(functional.cross_entropy(pixel, pixel.argmax(1)), conv.parameters())
            values.append(-sum(float((a * b).sum()) for a, b in zip(of_holdout, own, strict=True)))
    positive = [value for value in values if value > 0]
    assert float(score[1]) * 5 == pytest.approx(sum(positive) / len(positive), rel=1e-5)


def test_segmentation_reads_larger_label_maps_at_the_cells_centres() -> None:
    torch.manual_seed(0)
    phi = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    conv = nn.Conv2d(5, 3, 1, dtype=torch.float64)
    labels = torch.randint(0, 3, (2, 3, 4))
    signals = Signals(conv(phi).detach(), phi, {}, conv.weight.detach().flatten(1), conv.bias)
    small = WrongPredictionApprox.fit(FitSet(signals, labels, 3)).gradient
    doubled = labels.repeat_interleave(2, 1).repeat_interleave(2, 2)
    torch.testing.assert_close(WrongPredictionApprox.fit(FitSet(signals, doubled, 3)).gradient, small)
    with pytest.raises(ScoreError, match="fewer than 2 classes"):
        WrongPredictionApprox.fit(FitSet(signals, torch.full((2, 3, 4), 255), 3))
