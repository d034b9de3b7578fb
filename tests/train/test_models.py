"""Networks: the sizes they claim, ready for a probe, trainable, and counted right."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import nn

from misfire_runtime.errors import ConfigError, MissingExtraError
from misfire_train.data import load_dataset
from misfire_train.models import MODELS, build_model, count_flops, count_parameters, default_model
from misfire_train.signals import Probe
from misfire_train.tasks import get_task

CASES = [
    ("resnet-small", "classification", 10, (1, 8, 8), 0.4),
    ("resnet-small", "classification", 10, (1, 28, 28), 0.4),
    ("resnet-small", "regression", 2, (3, 48, 24), 0.4),
    ("resnet18", "classification", 7, (3, 224, 224), 11.2),
    ("mobilenet-small", "classification", 10, (1, 8, 8), 0.2),
    ("mobilenet-small", "classification", 43, (3, 48, 48), 0.2),
    ("convnet-small", "classification", 10, (1, 8, 8), 0.3),
    ("convnet-small", "classification", 3, (3, 48, 25), 0.3),
    ("regressor-small", "regression", 3, (3, 36, 64), 0.4),
    ("unet-small", "segmentation", 11, (3, 96, 160), 0.37),
    ("unet-small", "segmentation", 2, (3, 61, 37), 0.37),
    ("keypoint-small", "keypoints", 14, (3, 96, 96), 0.3),
    ("keypoint-small", "keypoints", 17, (3, 50, 70), 0.3),
]


@pytest.mark.parametrize(("name", "task", "outputs", "image", "millions"), CASES)
def test_a_network_answers_in_its_shape_and_shows_its_layers(
    name: str, task: str, outputs: int, image: tuple[int, int, int], millions: float
) -> None:
    built = build_model(name, task=task, outputs=outputs, channels=image[0])
    probe = Probe(built.module, last_layer=built.last_layer, features=built.feature_layers).eval()
    with torch.no_grad():
        signals = probe(torch.randn(2, *image))
    wanted = {
        "segmentation": (2, outputs, *image[1:]),
        "keypoints": (2, outputs, -(-image[1] // 4), -(-image[2] // 4)),
    }.get(task, (2, outputs))
    assert tuple(signals.outputs.shape) == wanted
    assert set(signals.features) == set(built.feature_layers)
    assert signals.weight is not None
    assert signals.weight.shape[0] == outputs
    again = torch.einsum("kc,nc...->nk...", signals.weight, signals.last_input)
    assert signals.bias is not None
    again = again + signals.bias.reshape(1, -1, *[1] * (again.ndim - 2))
    assert torch.allclose(again, signals.outputs, atol=1e-4)
    assert count_parameters(built.module) == pytest.approx(millions * 1e6, rel=0.2)


def test_the_same_seed_builds_the_same_weights_and_options_build_them_again() -> None:
    def weights(seed: int, **options: float) -> torch.Tensor:
        torch.manual_seed(seed)
        built = build_model("resnet-small", task="classification", outputs=3, channels=1, **options)
        assert built.options == {"width": 16, "dropout": 0.1} | options
        return torch.cat([p.flatten() for p in built.module.parameters()])

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))
    assert len(weights(0, width=8)) < len(weights(0)) / 3


def test_resnet18_is_resnet18() -> None:
    module = build_model("resnet18", task="classification", outputs=1000, channels=3).module
    assert count_parameters(module) == 11_689_512
    assert count_flops(module, (1, 3, 224, 224)) == 2 * 1_814_073_344


@pytest.mark.parametrize("name", ["resnet-small", "mobilenet-small", "convnet-small"])
def test_a_network_learns_real_digits(name: str) -> None:
    torch.manual_seed(0)
    digits, task = load_dataset("digits"), get_task("classification")
    module = build_model(name, task="classification", outputs=10, channels=1).module
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3)
    images, labels = (
        digits.train.batch(range(64), digits.contract),
        torch.as_tensor(digits.train.targets[:64]),
    )
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = task.training_loss(module(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.35 * losses[0]


def test_flops_are_two_per_multiply_add() -> None:
    conv = nn.Conv2d(3, 8, 3, padding=1)
    assert count_flops(conv, (1, 3, 10, 12)) == 2 * 3 * 8 * 9 * 120
    assert count_flops(nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 2)), (4, 5)) == 2 * 4 * (
        35 + 14
    )
    assert count_flops(lambda a, b: a @ b, torch.zeros(3, 4), (4, 5)) == 2 * 60
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    count_flops(model, (1, 2))
    assert model.training


def test_defaults_fit_their_tasks() -> None:
    for task in ("classification", "regression", "keypoints", "segmentation", "custom"):
        assert task in MODELS[default_model(task)].tasks


@pytest.mark.parametrize(
    ("name", "task", "options", "match"),
    [
        ("resnet-99", "classification", {}, "there is no model 'resnet-99'"),
        ("resnet18", "segmentation", {}, "able are: unet-small"),
        ("resnet18", "classification", {"depth": 3}, "no option 'depth'"),
        ("resnet18", "guessing", {}, "there is no task 'guessing'"),
    ],
)
def test_what_cannot_be_built_is_refused(name: str, task: str, options: dict[str, int], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        build_model(name, task=task, outputs=2, channels=3, **options)
    with pytest.raises(ConfigError, match="at least one output"):
        build_model("resnet-small", task="classification", outputs=0, channels=3)


@pytest.mark.skipif(importlib.util.find_spec("timm") is not None, reason="timm is installed here")
def test_without_timm_its_networks_name_the_extra() -> None:
    with pytest.raises(MissingExtraError, match=r"misfire\[timm\]"):
        build_model("timm:resnet18", task="classification", outputs=2, channels=3)
