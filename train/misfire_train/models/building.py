"""Builds a network by name, with the names of the layers that scores and heads use."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from misfire_runtime.errors import ConfigError
from misfire_train.models.built import BuiltModel
from misfire_train.models.detector import detector_small
from misfire_train.models.foreign import build_timm
from misfire_train.models.maps import keypoint_small, unet_small
from misfire_train.models.mobilenet import mobilenet_small
from misfire_train.models.plain import convnet_small
from misfire_train.models.resnet import regressor_small, resnet18, resnet_small
from misfire_train.tasks import Task, as_task


@dataclass(frozen=True)
class Architecture:
    """Describes how to build a network: build(outputs, *, channels, **options).

    tasks: names of the tasks, or of the forms of outputs, that it serves.
    """

    build: Callable[..., nn.Module]
    tasks: tuple[str, ...]
    last_layer: str
    feature_layers: tuple[str, ...]
    about: str


_VECTOR_TASKS = ("classification", "regression", "multi-label", "custom")

MODELS: dict[str, Architecture] = {
    "resnet-small": Architecture(
        resnet_small, _VECTOR_TASKS, "fc", ("layer1", "layer2", "layer3"), "the default; 8x8 images and up"
    ),
    "resnet18": Architecture(
        resnet18, _VECTOR_TASKS, "fc", ("layer1", "layer2", "layer3", "layer4"), "made for 224x224"
    ),
    "mobilenet-small": Architecture(
        mobilenet_small, _VECTOR_TASKS, "classifier", ("stage1", "stage2", "stage3"), "for slow processors"
    ),
    "convnet-small": Architecture(
        convnet_small, _VECTOR_TASKS, "fc", ("stage1", "stage2", "stage3"), "quick to train; 8x8 and up"
    ),
    "regressor-small": Architecture(
        regressor_small, ("regression", "custom"), "fc", ("layer1", "layer2", "layer3"), "values"
    ),
    "unet-small": Architecture(
        unet_small, ("segmentation", "custom"), "head", ("down2", "down3", "up1"), "pixel logits, full size"
    ),
    "keypoint-small": Architecture(
        keypoint_small, ("keypoints", "custom"), "head", ("down2", "down3", "up2"), "heatmaps, quarter size"
    ),
    "detector-small": Architecture(
        detector_small,
        ("detection", "custom"),
        "head",
        ("down2", "down3", "down4", "up2"),
        "boxes; sides that are multiples of 32",
    ),
}


def able_to(architecture: Architecture, task: Task) -> bool:
    """Returns whether the network's outputs have the form that the task needs."""
    return task.name in architecture.tasks or task.form in architecture.tasks


def default_model(task: str | Task) -> str:
    """Returns the name of the small network for a task."""
    return as_task(task).default_model


def build_model(name: str, *, task: str | Task, outputs: int, channels: int, **options: Any) -> BuiltModel:
    """Returns a freshly initialised network; torch's seed decides its weights.

    Args:
        name: a key of MODELS, or timm:NAME.
        task: that the network is for.
        outputs: number of classes, values or joints.
        channels: of the image, 1 or 3.
        options: of the architecture.

    Raises:
        ConfigError: the name or an option is unknown, or the network cannot do the task.
    """
    asked = as_task(task)
    if name.startswith("timm:"):
        return build_timm(name, task=asked, outputs=outputs, channels=channels, **options)
    architecture = MODELS.get(name)
    if architecture is None:
        raise ConfigError(
            f"there is no model {name!r}; there are {', '.join(MODELS)}, and timm:NAME with timm installed"
        )
    if not able_to(architecture, asked):
        able = ", ".join(other for other, known in MODELS.items() if able_to(known, asked))
        raise ConfigError(f"{name} cannot do {asked.name}; able are: {able or 'none'}")
    if outputs < 1 or channels < 1:
        raise ConfigError(f"{name} needs at least one output and one channel, not {outputs} and {channels}")
    # Defaults are recorded with a run: another version may have others.
    defaults = {
        key: parameter.default
        for key, parameter in inspect.signature(architecture.build).parameters.items()
        if key not in ("outputs", "channels")
    }
    unknown = sorted(set(options) - set(defaults))
    if unknown:
        raise ConfigError(f"{name} has no option {unknown[0]!r}; it has {', '.join(defaults) or 'none'}")
    chosen = {**defaults, **options}
    module = architecture.build(outputs, channels=channels, **chosen)
    return BuiltModel(module, architecture.last_layer, architecture.feature_layers, name, chosen)
