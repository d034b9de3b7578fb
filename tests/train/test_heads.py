"""Heads and their training: they start as the free score, leave the network alone, and name how they fail."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from misfire_runtime.errors import ConfigError
from misfire_runtime.preprocess import InputContract
from misfire_train.attaching import attach, find_last_layer
from misfire_train.data import load_dataset
from misfire_train.heads import RECIPES, ConvHead, GapHead, ResidualHead, build_head_from_state, recipe_named
from misfire_train.heads.base import LossHead, Parts
from misfire_train.heads.data import LossSet, TensorSet, collect, corrupted_copies
from misfire_train.heads.fitted import name_collapse
from misfire_train.heads.pairs import paired_objective, row_weights
from misfire_train.heads.training import candidate_heads, check_head, fit_head, fit_on_losses, optimise
from misfire_train.metrics import aurc, spearman
from misfire_train.models import build_model, count_flops, count_parameters
from misfire_train.signals import Probe, ScoredModel, Signals
from misfire_train.tasks import custom_task, get_task
from misfire_train.tasks.answers.statistics import log_odds

CONTRACT = InputContract(height=16, width=16, color="gray")
TASKS = {
    "classification": ("resnet-small", 5),
    "regression": ("regressor-small", 2),
    "keypoints": ("keypoint-small", 3),
    "segmentation": ("unet-small", 4),
}


def targets_for(task: str, outputs: int, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    if task == "classification":
        return torch.randint(0, outputs, (count,), generator=generator)
    if task == "regression":
        return torch.randn(count, outputs, generator=generator)
    if task == "keypoints":
        points = torch.rand(count, outputs, 3, generator=generator) * 15
        points[..., 2] = (torch.rand(count, outputs, generator=generator) > 0.3).float()
        return points
    return torch.randint(0, outputs, (count, 16, 16), generator=generator).to(torch.uint8)


def small_probe(task: str) -> Probe:
    torch.manual_seed(0)
    name, outputs = TASKS[task]
    built = build_model(name, task=task, outputs=outputs, channels=1, width=4)
    probe = Probe(built.module, last_layer=built.last_layer, features=built.feature_layers)
    with torch.no_grad():  # a fresh network has unused batch-norm statistics: give it some
        probe.train()
        probe(torch.randn(64, 1, 16, 16))
    return probe.eval()


def small_sets(task: str, count: int = 60) -> tuple[TensorSet, TensorSet]:
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(2 * count, 1, 16, 16, generator=generator)
    targets = targets_for(task, TASKS[task][1], 2 * count)
    return TensorSet.of(images[:count], targets[:count]), TensorSet.of(images[count:], targets[count:])


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_serves_every_task_and_leaves_the_network_bit_identical(task: str, name: str) -> None:
    probe = small_probe(task)
    before = {key: value.clone() for key, value in probe.model.state_dict().items()}
    images = torch.randn(3, 1, 16, 16)
    answer = probe.model(images)
    train, holdout = small_sets(task)
    recipe = replace(recipe_named(name), steps=8, batch=16, joint=False)
    fitted = fit_head(
        probe, task=get_task(task), recipe=recipe, train=train, holdout=holdout, contract=CONTRACT
    )
    assert all(torch.equal(before[key], value) for key, value in probe.model.state_dict().items())
    assert torch.equal(answer, probe.model(images))
    with torch.no_grad():
        scores = fitted.head(probe(images))
        assert torch.isfinite(scores).all() and scores.shape == (3,)
        assert fitted.head(probe(images[:1])).shape == (1,)
    again = build_head_from_state(fitted.head.recipe, fitted.head.options, fitted.head.state_dict()).eval()
    assert torch.equal(again(probe(images)), scores)


def test_training_mode_and_running_statistics_survive_a_fit() -> None:
    probe = small_probe("classification").train()
    before = {key: value.clone() for key, value in probe.state_dict().items()}
    train, holdout = small_sets("classification")
    recipe = replace(recipe_named("learning-loss-pp"), steps=2)
    fit_head(
        probe, task=get_task("classification"), recipe=recipe, train=train, holdout=holdout, contract=CONTRACT
    )
    assert all(module.training for module in probe.modules())
    assert all(torch.equal(before[key], value) for key, value in probe.state_dict().items())


def test_the_residual_head_starts_as_the_free_score() -> None:
    probe = small_probe("classification")
    train, holdout = small_sets("classification")
    task = get_task("classification")
    head = candidate_heads(
        probe, recipe_named("learning-loss-pp"), contract=CONTRACT, task=task, train=train
    )[0]
    assert isinstance(head, ResidualHead)
    data = collect(probe, head, holdout, task=task, contract=CONTRACT)
    head.standardise(data.parts, data.losses, eps=1e-3)
    score = head.pool(head.predict(data.parts)).detach().double().numpy()
    free = log_odds(probe(holdout.images).outputs)[:, 0].detach().double().numpy()
    assert spearman(score, free) == pytest.approx(1.0, abs=1e-6)
    assert aurc(score, data.frame_losses.double().numpy()) == pytest.approx(
        aurc(free, data.frame_losses.double().numpy()), abs=1e-6
    )


def test_gap_head_has_the_published_number_of_parameters() -> None:
    head = GapHead(channels={"1": 64, "2": 128, "3": 256, "4": 512})
    assert count_parameters(head) == 123_905
    maps = {"1": torch.randn(2, 64, 32, 32), "2": torch.randn(2, 128, 16, 16)}
    maps |= {"3": torch.randn(2, 256, 8, 8), "4": torch.randn(2, 512, 4, 4)}
    signals = Signals(torch.zeros(2, 10), torch.zeros(2, 512), maps)
    assert head(signals).shape == (2,)
    # Without the ReLU the head would be linear in pooled features.
    doubled = Signals(signals.outputs, signals.last_input, {k: -v for k, v in maps.items()})
    bias = head(Signals(signals.outputs, signals.last_input, {k: 0 * v for k, v in maps.items()}))
    assert not torch.allclose(head(signals) + head(doubled), 2 * bias, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "task", "outputs", "side"),
    [
        ("resnet18", "classification", 10, 224),
        ("resnet-small", "classification", 10, 28),
        ("keypoint-small", "keypoints", 14, 96),
        ("unet-small", "segmentation", 11, 128),
    ],
)
def test_conv_head_costs_at_most_a_twentieth_of_the_network(
    name: str, task: str, outputs: int, side: int
) -> None:
    built = build_model(name, task=task, outputs=outputs, channels=3)
    probe = Probe(built.module, last_layer=built.last_layer, features=built.feature_layers).eval()
    image = torch.zeros(1, 3, side, side)
    with torch.no_grad():
        signals = probe(image)
    head = ConvHead(channels={key: maps.shape[1] for key, maps in signals.features.items()}).eval()
    network = count_flops(built.module, image)
    assert count_flops(lambda x: head(signals), image) <= 0.05 * network


def test_a_head_never_reaches_into_the_network_unless_it_trains_along() -> None:
    probe = small_probe("classification").train()
    head = GapHead(channels={"layer1": 8, "layer2": 16, "layer3": 32})
    recipe = replace(recipe_named("learning-loss"), detach_epoch=1)
    from misfire_train.fitting.joint import JointHead

    joint = JointHead(head, recipe, weight=1.0, detach_epoch=1)
    images, losses = torch.randn(8, 1, 16, 16), torch.rand(8)
    weight = next(probe.model.parameters())
    for epoch, reaches in ((0, True), (1, True), (2, False)):  # detached where epoch > detach_epoch
        probe.zero_grad()
        joint.loss(probe(images), losses, epoch=epoch).backward()
        assert (weight.grad is not None and bool(weight.grad.abs().sum() > 0)) is reaches


@pytest.mark.parametrize(
    "objective", ["learning-loss", "learning-loss-pp", "rank-bce", "log-loss-regression"]
)
def test_every_objective_ranks_what_can_be_ranked(objective: str) -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(400, 6, 2, 2, generator=generator)
    losses = torch.exp(2 * maps[:, 0].mean((1, 2)))
    head = GapHead(channels={"x": 6}, hidden=16)
    data = LossSet(
        parts=(maps.mean((2, 3)),),
        losses=losses[:, None],
        frame_losses=losses,
        failed=losses > 1,
        image=torch.arange(400),
        clean=torch.ones(400, dtype=torch.bool),
    )
    recipe = replace(recipe_named("rank-bce"), objective=objective, steps=200, learning_rate=5e-3)
    report = fit_on_losses(head, data, recipe=recipe).report
    # The direction too: a reversed sign would give a pair accuracy near 0.
    assert report.pair_accuracy > 0.9 and report.collapsed is None
    assert report.auroc is not None and report.auroc > 0.9


def test_collapse_is_detected_and_named() -> None:
    assert name_collapse(0.0, 0.9) == "collapsed: the score is a constant"
    assert name_collapse(math.nan, 0.9) == "collapsed: the score is a constant"
    assert "no better than chance" in (name_collapse(1.0, 0.5) or "")
    assert name_collapse(1.0, 0.51) is None

    class Constant(LossHead):
        def extract(self, signals: Signals) -> Parts:
            return (signals.outputs,)

        def predict(self, parts: Parts) -> Tensor:
            return torch.zeros(len(parts[0]), 1)

    losses = torch.rand(50)
    data = LossSet(
        (torch.zeros(50, 1),),
        losses[:, None],
        losses,
        losses > 0.5,
        torch.arange(50),
        torch.ones(50, dtype=torch.bool),
    )
    report = check_head(Constant(), data, recipe_named("rank-bce"), samples=50, steps=0)
    assert report.collapsed == "collapsed: the score is a constant"


@pytest.mark.parametrize(
    ("objective", "expected"),
    [("learning-loss", 1.0), ("rank-bce", math.log(2))],
)
def test_a_constant_score_costs_what_the_papers_say(objective: str, expected: float) -> None:
    losses = torch.rand(64)
    generator = torch.Generator().manual_seed(0)
    value = paired_objective(objective, torch.zeros(1, 64), losses, eps=0.0, generator=generator)
    assert float(value) == pytest.approx(expected, abs=1e-6)


@pytest.mark.slow
def test_noise_explodes_margin_weights_but_not_learning_loss_pp() -> None:
    norms = {}
    for objective in ("learning-loss", "learning-loss-pp"):
        torch.manual_seed(0)
        head = GapHead(channels={"x": 4}, hidden=8)
        losses = 1 + 0.1 * torch.rand(64)  # hardly different, and unrelated to the features
        data = LossSet(
            (torch.randn(64, 4),),
            losses[:, None],
            losses,
            None,
            torch.arange(64),
            torch.ones(64, dtype=torch.bool),
        )
        recipe = replace(
            recipe_named("rank-bce"), objective=objective, steps=2000, weight_decay=0.0, batch=32
        )
        optimise(head, data, recipe=recipe, eps=1e-3, generator=torch.Generator().manual_seed(0))
        norms[objective] = float(head.last.weight.detach().norm())
    assert norms["learning-loss"] > 2 * norms["learning-loss-pp"]


def test_odd_and_single_batches_do_no_harm() -> None:
    generator = torch.Generator().manual_seed(0)
    for count in (1, 3):
        predicted = torch.zeros(2, count, requires_grad=True)
        value = paired_objective(
            "learning-loss-pp", predicted, torch.ones(count), eps=0.1, generator=generator
        )
        value.backward()
        assert torch.isfinite(value)


def test_pairs_are_random_not_neighbours() -> None:
    generator = torch.Generator().manual_seed(0)
    predicted = torch.zeros(1, 100, requires_grad=True)
    losses = torch.arange(100.0)  # in file order: halves of it would always pair low with high
    paired_objective("rank-bce", predicted, losses, eps=0.0, generator=generator).backward()
    assert predicted.grad is not None
    assert bool((predicted.grad[0, :50] < 0).any()) or bool((predicted.grad[0, 50:] > 0).any())


def test_bad_losses_are_named_by_sample() -> None:
    probe = small_probe("regression")
    train, holdout = small_sets("regression")
    targets = holdout.targets.clone()
    targets[7] = math.nan
    broken = TensorSet(holdout.images, targets, holdout.ids)
    recipe = replace(recipe_named("learning-loss-pp"), steps=2)
    with pytest.raises(ConfigError, match="not finite for #7"):
        fit_head(
            probe, task=get_task("regression"), recipe=recipe, train=train, holdout=broken, contract=CONTRACT
        )
    negative = custom_task(lambda out, true: -(out - true).abs().mean(1), failure_threshold=1.0)
    with pytest.raises(ConfigError, match="below zero"):
        fit_head(probe, task=negative, recipe=recipe, train=train, holdout=holdout, contract=CONTRACT)


@pytest.mark.parametrize("task", TASKS)
def test_a_training_image_that_the_network_makes_no_numbers_of_is_named(task: str) -> None:
    probe = small_probe(task)
    train, holdout = small_sets(task)
    images = train.images.clone()
    images[5] = math.nan
    recipe = replace(recipe_named("learning-loss-pp"), steps=2)
    with pytest.raises(ConfigError, match="1 training images are not finite: #5"):
        fit_head(
            probe,
            task=get_task(task),
            recipe=recipe,
            train=replace(train, images=images),
            holdout=holdout,
            contract=CONTRACT,
        )


def test_too_few_held_out_images_are_refused() -> None:
    probe = small_probe("classification")
    train, holdout = small_sets("classification")
    with pytest.raises(ConfigError, match="at least 20 held-out images"):
        fit_head(
            probe,
            task=get_task("classification"),
            recipe=recipe_named("learning-loss-pp"),
            train=train,
            holdout=holdout.take(range(5)),
            contract=CONTRACT,
        )


def test_custom_tasks_and_perfect_holdouts_work() -> None:
    probe = small_probe("regression")
    train, holdout = small_sets("regression")
    task = custom_task(lambda out, true: (out - true).abs().mean(1), failure_threshold=1e9)
    recipe = replace(recipe_named("learning-loss-pp"), steps=5)
    report = fit_head(probe, task=task, recipe=recipe, train=train, holdout=holdout, contract=CONTRACT).report
    assert report.auroc is None and "too few failures" in report.notes[0]
    zero = custom_task(lambda out, true: 0 * (out - true).abs().mean(1), failure_threshold=1.0)
    report = fit_head(probe, task=zero, recipe=recipe, train=train, holdout=holdout, contract=CONTRACT).report
    assert math.isnan(report.pair_accuracy)


def test_corrupted_copies_repeat_and_differ() -> None:
    digits = load_dataset("digits")
    recipe = replace(recipe_named("learning-loss-pp"), copies=2, families=("noise", "fog"))
    first, second = (corrupted_copies(digits.test, recipe, seed=3) for _ in range(2))
    pixels = [copy.batch(range(20), digits.contract) for copy in (*first, *second)]
    assert torch.equal(pixels[0], pixels[2]) and torch.equal(pixels[1], pixels[3])
    assert not torch.equal(pixels[0], pixels[1])
    assert corrupted_copies(digits.test, replace(recipe, families=()), seed=3) == []
    with pytest.raises(ConfigError, match="no corruption 'hail'"):
        corrupted_copies(digits.test, replace(recipe, families=("hail",)), seed=3)


def test_clean_rows_are_drawn_as_often_as_asked() -> None:
    clean = torch.tensor([True] * 10 + [False] * 90)
    weights = row_weights(clean, share=0.5)
    assert float(weights[clean].sum()) == pytest.approx(0.5)
    assert torch.equal(row_weights(clean[:10], share=0.5), torch.ones(10))


def test_unknown_shifts_cannot_drive_the_correction_without_bound() -> None:
    probe = small_probe("classification")
    train, holdout = small_sets("classification")
    recipe = replace(recipe_named("learning-loss-pp"), steps=30)
    head = fit_head(
        probe, task=get_task("classification"), recipe=recipe, train=train, holdout=holdout, contract=CONTRACT
    ).head
    assert isinstance(head, ResidualHead)
    base, x = head.extract(probe(holdout.images))
    far, farther = (head.predict((base, x + offset)) for offset in (1e6, 1e9))
    assert torch.allclose(far, farther)


@pytest.mark.parametrize("task", TASKS)
def test_heads_trace_with_a_batch_of_any_size(task: str) -> None:
    probe = small_probe(task)
    train, holdout = small_sets(task)
    recipe = replace(recipe_named("learning-loss-pp"), steps=5)
    head = fit_head(
        probe, task=get_task(task), recipe=recipe, train=train, holdout=holdout, contract=CONTRACT
    ).head
    model = ScoredModel(probe, [head], output_name=get_task(task).output_name).eval()
    program = torch.export.export(
        model, (holdout.images[:2],), dynamic_shapes={"image": {0: torch.export.Dim.DYNAMIC}}
    )
    for count in (1, 5):
        images = holdout.images[:count]
        traced = program.module()(images)["score.learning_loss_pp"]
        assert torch.allclose(traced, model(images)["score.learning_loss_pp"], atol=1e-5)


def test_attach_finds_the_last_layer_and_explains_itself() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )
    assert find_last_layer(model) == "4"
    with pytest.raises(ConfigError, match="no layer 'nope'"):
        attach(model, layers=["nope"])
    with pytest.raises(ConfigError, match="no head recipe"):
        attach(model, layers=["1"], objective="magic")
    with pytest.raises(ConfigError, match="no Linear"):
        attach(nn.Sequential(nn.ReLU()), layers=["0"])
    attached = attach(model, layers=["1"], steps=5)
    with pytest.raises(ConfigError, match="not fitted yet"):
        attached(torch.zeros(1, 1, 8, 8))
    images, labels = torch.randn(80, 1, 8, 8), torch.randint(0, 2, (80,))
    with pytest.raises(ConfigError, match="80 images but 3 targets"):
        attached.fit(train=(images, labels[:3]), holdout=(images, labels))
    worse = attached.fit(
        train=(images[:40], labels[:40]),
        holdout=(images[40:], labels[40:]),
        augment=lambda batch: batch + torch.randn_like(batch),
        copies=2,
    )
    assert worse.samples == 120
    assert set(attached.scored_model()(images[:2])) == {"logits", "score.learning_loss_pp", "embedding"}


def test_attached_heads_work_on_examples() -> None:
    digits = load_dataset("digits")
    built = build_model("resnet-small", task="classification", outputs=10, channels=1, width=4)
    attached = attach(built.module.eval(), layers=built.feature_layers, steps=5)
    train, holdout = digits.train.take(range(100)), digits.train.take(range(100, 200))
    with pytest.raises(ConfigError, match="contract"):
        attached.fit(train=train, holdout=holdout)
    report = attached.fit(train=train, holdout=holdout, contract=digits.contract, copies=1)
    assert report.samples == 200 and report.base in ("msp", "entropy")
    assert np.isfinite(report.aurc)
