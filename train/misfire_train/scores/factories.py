"""How each score is made from a `Recipe`: which set it is fitted on, and in which form per task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from misfire_train.errors import ScoreError
from misfire_train.scores.committee import Committee
from misfire_train.scores.density import k_center
from misfire_train.scores.egl import Egl, HeatmapEgl
from misfire_train.scores.egl_pp import (
    EglPP,
    HeatmapEglPP,
    SegmentationEglPP,
    bank_embedding,
    class_labels,
)
from misfire_train.scores.fitting import FitSet
from misfire_train.scores.last_layer import label_maps, last_outputs
from misfire_train.scores.neighbours import Neighbours
from misfire_train.scores.sampling import Aleatoric, Bald, Ensemble, Epistemic, ExpectedEntropy
from misfire_train.scores.stacked import Stacked
from misfire_train.signals import Score
from misfire_train.tasks import Task
from misfire_train.tasks.heatmaps import STRIDE, peak_cells, to_cells

BANK_ROWS = 1024
MAP_BANK_ROWS = 64
"""Label maps are large and lie in the graph."""


@dataclass(frozen=True)
class Recipe:
    """What a factory may use: the task, both fit sets, and the options given to this score."""

    name: str
    task: Task
    fit: FitSet | None
    holdout: FitSet | None
    options: Mapping[str, Any]

    def need_fit(self) -> FitSet:
        """The training set's signals; raises ScoreError without."""
        if self.fit is None:
            raise ScoreError(
                f"{self.name} is fitted on training data: build it with "
                f"scores.build([{self.name!r}], task=..., fit=scores.gather(probe, images, targets))"
            )
        return self.fit

    def need_holdout(self) -> FitSet:
        """The held-out set's signals; raises ScoreError without."""
        if self.holdout is None:
            raise ScoreError(
                f"{self.name} is fitted on held-out data: build it with "
                f"scores.build([{self.name!r}], task=..., holdout=scores.gather(probe, images, targets))"
            )
        return self.holdout


Factory = Callable[[Recipe], Score]


def plain(kind: Callable[..., Score], **fixed: Any) -> Factory:
    """A score that only takes options."""
    return lambda recipe: kind(**{**fixed, **recipe.options})


def egl(**fixed: Any) -> Factory:
    """Expected gradient length: heatmaps have their own form."""

    def make(recipe: Recipe) -> Score:
        kind: Callable[..., Score] = HeatmapEgl if recipe.task.output_kind == "heatmaps" else Egl
        return kind(**{"name": recipe.name, **fixed, **recipe.options})

    return make


def committee(kind: Callable[..., Score]) -> Factory:
    """Scores of a bootstrap committee: options members, ridge, seed; the rest goes to the score."""

    def make(recipe: Recipe) -> Score:
        options = dict(recipe.options)
        fitting = {key: options.pop(key) for key in ("members", "ridge", "seed") if key in options}
        return kind(Committee.fit(recipe.need_fit(), **fitting), **options)

    return make


def egl_pp(*, feature_norm: bool = True) -> Factory:
    """EGL++ for any task. Options: perplexity, sigma, reference_compat, size (rows of the bank), labels.

    labels: "targets", or "predictions": the model's own answers on the bank, as the published code does.
    """

    def make(recipe: Recipe) -> Score:
        options = dict(recipe.options)
        compat = bool(options.get("reference_compat", False))
        labels = options.pop("labels", "predictions" if compat else "targets")
        if labels not in ("targets", "predictions"):
            raise ScoreError(f"{recipe.name}: labels is {labels!r}; expected 'targets' or 'predictions'")
        labels_are_maps = recipe.task.by_class and not recipe.task.by_frame
        rows = options.pop("size", MAP_BANK_ROWS if labels_are_maps else BANK_ROWS)
        search = {
            key: options.pop(key) for key in ("perplexity", "sigma", "reference_compat") if key in options
        }
        fit = recipe.need_fit()
        fit.require(name=recipe.name, least=3)
        bank = fit.take(k_center(bank_embedding(fit.signals), rows))
        neighbours = Neighbours(bank_embedding(bank.signals), **search)
        chosen = {"name": recipe.name, "feature_norm": feature_norm, **options}
        return _EGL_PP[recipe.task.form](bank, neighbours, labels == "predictions", chosen)

    return make


def _of_classes(bank: FitSet, neighbours: Neighbours, predictions: bool, options: dict[str, Any]) -> Score:
    soft = torch.softmax(bank.signals.outputs, 1)
    labels = soft if predictions else class_labels(bank.targets, bank.classes)
    return EglPP(neighbours, labels, classification=True, **options)


def _of_values(bank: FitSet, neighbours: Neighbours, predictions: bool, options: dict[str, Any]) -> Score:
    values = bank.signals.outputs if predictions else bank.targets.reshape(len(bank), -1)
    return EglPP(neighbours, values, classification=False, **options)


def _of_heatmaps(bank: FitSet, neighbours: Neighbours, predictions: bool, options: dict[str, Any]) -> Score:
    stride = options.pop("stride", STRIDE)
    return HeatmapEglPP(neighbours, _joints(bank, predictions=predictions, stride=stride), **options)


def _of_masks(bank: FitSet, neighbours: Neighbours, predictions: bool, options: dict[str, Any]) -> Score:
    logits = last_outputs(bank.signals)
    size = (logits.shape[2], logits.shape[3])
    maps = logits.argmax(1) if predictions else label_maps(bank.targets, size)
    return SegmentationEglPP(neighbours, maps, **options)


_EGL_PP: dict[str, Callable[[FitSet, Neighbours, bool, dict[str, Any]], Score]] = {
    "classification": _of_classes,
    "regression": _of_values,
    "keypoints": _of_heatmaps,
    "segmentation": _of_masks,
}
"""By the form of a task's outputs."""


def _joints(bank: FitSet, *, predictions: bool, stride: int) -> Tensor:
    """[M,J,3] in cells; predicted joints all count as visible."""
    if predictions:
        points, _ = peak_cells(bank.signals.outputs)
        return torch.cat([points, torch.ones_like(points[..., :1])], 2)
    joints = bank.targets.float()
    return torch.cat([to_cells(joints[..., :2], stride=stride), joints[..., 2:3]], 2)


def fitted(kind: Any) -> Factory:
    """A score whose class has fit(training set, **options)."""

    def make(recipe: Recipe) -> Score:
        score: Score = kind.fit(recipe.need_fit(), **recipe.options)
        return score

    return make


def held_out(kind: Any) -> Factory:
    """A score whose class has fit(holdout, **options)."""

    def make(recipe: Recipe) -> Score:
        score: Score = kind.fit(recipe.need_holdout(), **recipe.options)
        return score

    return make


def aleatoric(recipe: Recipe) -> Score:
    """Mean entropy under dropout for classes, a fitted log-variance for values."""
    if not recipe.task.by_class:
        return Aleatoric.fit(recipe.need_holdout(), **recipe.options)
    return ExpectedEntropy(**recipe.options)


def epistemic(recipe: Recipe) -> Score:
    """BALD for classes, variance under dropout for values and heatmaps."""
    if recipe.task.by_class:
        return Bald(name="epistemic", **recipe.options)
    return Epistemic(**recipe.options)


def ensemble(recipe: Recipe) -> Score:
    """Needs members=[other networks]."""
    options = dict(recipe.options)
    members = options.pop("members", None)
    if not members:
        raise ScoreError("ensemble needs other networks: build(..., ensemble={'members': [model, ...]})")
    return Ensemble(members, **{"measure": "entropy" if recipe.task.by_class else "variance", **options})


def with_task(kind: Callable[..., Score]) -> Factory:
    """A score that takes the task."""
    return lambda recipe: kind(task=recipe.task, **recipe.options)


def stacked(components_for: Callable[[Recipe], list[Score]]) -> Factory:
    """Options: components (names or scores), task (a Task, of a run its own), penalty, clip.

    A task that does not say what a failure is fails on the worst fifth of the holdout.
    """

    def make(recipe: Recipe) -> Score:
        options = dict(recipe.options)
        options.pop("components", None)
        task: Task = options.pop("task", None) or recipe.task
        holdout = recipe.need_holdout()
        holdout.require(name="stacked", least=2)
        if not task.knows_failures:
            task = task.with_worst(task.sample_loss(holdout.signals.outputs, holdout.targets))
        failed = task.failed(holdout.signals.outputs, holdout.targets)
        return Stacked.fit(components_for(recipe), holdout.signals, failed, **options)

    return make
