"""Builds networks of timm, if it is installed: `timm:NAME`. No other module imports it."""

from __future__ import annotations

import importlib
from typing import Any

from misfire_runtime.errors import ConfigError, MissingExtraError
from misfire_train.models.built import BuiltModel
from misfire_train.tasks import Task


def build_timm(name: str, *, task: Task, outputs: int, channels: int, **options: Any) -> BuiltModel:
    """Returns a timm network by `timm:NAME`; options go to timm.create_model.

    Its classifier and its feature stages are those that timm itself names.

    Raises:
        MissingExtraError: timm is not installed.
        ConfigError: timm does not know the name, the task needs more than a vector of outputs, or the
            network's classifier is not one linear layer.
    """
    try:
        timm = importlib.import_module("timm")
    except ImportError as error:
        raise MissingExtraError(
            f"{name} needs timm, which is not installed: pip install 'misfire[timm]'"
        ) from error
    if not task.by_frame:
        raise ConfigError(f"{name} gives one vector per image and cannot do {task.name}")
    try:
        module = timm.create_model(
            name.removeprefix("timm:"), num_classes=outputs, in_chans=channels, **options
        )
    except (RuntimeError, TypeError) as error:
        raise ConfigError(f"{name}: {error}") from error
    last = module.default_cfg.get("classifier")
    if not isinstance(last, str):
        raise ConfigError(
            f"{name} has no single last layer; attach to it with attach(model, layers=...) instead"
        )
    stages = [info["module"] for info in getattr(module, "feature_info", [])]
    known = {layer for layer, _ in module.named_modules()}
    return BuiltModel(module, last, tuple(stage for stage in stages if stage in known), name, dict(options))
