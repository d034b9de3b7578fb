"""Scores EGL++: the expected squared last-layer gradient, with labels drawn from the frame's neighbours.

    S(x) = sum_n q_n(x) ||grad l(x, y_n)||^2                                      (Shukla 2022, EGL++)

With l = (1/2)||f - y||^2 and a last linear layer this is ||phi~||^2 [ ||f - ybar||^2 + tr Cov_q(y) ]: "bias"
(the model disagrees with its neighbours) plus "spread" (the neighbours disagree). Heatmaps and label maps
have the same form with pixels summed before the norm. The bank (embeddings and labels) is in the graph.

Values are squared norms over C (and over J P^2 for maps): fp16 holds them. Their scale follows the features:
thresholds are quantiles measured on the deployed engine. `feature_norm=False` leaves ||phi~||^2 out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from misfire_train.errors import ScoreError
from misfire_train.scores.density import k_center
from misfire_train.scores.fitting import FitSet
from misfire_train.scores.last_layer import (
    feature_energy,
    label_maps,
    last_outputs,
    pooled,
    scaled_features,
)
from misfire_train.scores.neighbours import Neighbours
from misfire_train.scores.registry import ALL, Recipe, register, register_variant
from misfire_train.signals import Score, Signals
from misfire_train.tasks.answers.heatmaps import SIGMA, STRIDE, peak_cells, render_gaussians, to_cells

# A vehicle compares every frame with the whole bank.
BANK_ROWS = 1024
MAP_BANK_ROWS = 64
"""Fewer, because label maps are large and part of the graph."""


@dataclass(frozen=True)
class Parts:
    """Holds the two addends of the score and the squared distance to the nearest bank member, [N] each."""

    bias: Tensor
    spread: Tensor
    nearest: Tensor


class _BankScore(Score):
    """Is a score with neighbours; embeddings are pooled features over sqrt(C)."""

    name = "egl_pp"

    def __init__(self, neighbours: Neighbours, *, feature_norm: bool, name: str) -> None:
        super().__init__()
        self.neighbours, self.feature_norm = neighbours, feature_norm
        self.name = name or self.name
        variant = "" if feature_norm else ", without the feature norm"
        compat = ", as the published code" if neighbours.reference_compat else ""
        self.definition = f"sum_n q_n ||grad l(x, y_n)||^2 over {neighbours.kept} neighbours{variant}{compat}"

    def gradients(self, signals: Signals, places: Tensor) -> Tensor:
        """Returns one row per neighbour, whose squared norm is its share of the score: [N,k,D]."""
        raise NotImplementedError

    def forward(self, signals: Signals) -> Tensor:
        """Returns scores [N]."""
        places, weights, _ = self.neighbours(bank_embedding(signals))
        value: Tensor = (weights * self.gradients(signals, places).square().sum(2)).sum(1)
        return value

    def parts(self, signals: Signals) -> Parts:
        """Returns bias and spread.

        They add up to the score if q sums to 1, as it does without reference_compat.
        """
        places, weights, nearest = self.neighbours(bank_embedding(signals))
        rows = self.gradients(signals, places)
        mean = (weights[:, :, None] * rows).sum(1, keepdim=True)
        spread = (weights * (rows - mean).square().sum(2)).sum(1)
        return Parts(mean.square().sum((1, 2)), spread, nearest)


def bank_embedding(signals: Signals) -> Tensor:
    """Returns pooled features over sqrt(C), [N,C].

    The factor leaves q unchanged and keeps distances small.
    """
    features = pooled(signals)
    return features / math.sqrt(features.shape[1])


@register(tasks=ALL, needs="fit", source="Shukla 2022 (EGL++), closed form")
class EglPP(_BankScore):
    """Scores values [N,J] or logits [N,K].

    labels: of the bank, [M,J] values, or class distributions [M,K] that the softmax is compared with.
    """

    labels: Tensor

    def __init__(
        self,
        neighbours: Neighbours,
        labels: Tensor,
        *,
        classification: bool,
        feature_norm: bool = True,
        name: str = "",
    ) -> None:
        super().__init__(neighbours, feature_norm=feature_norm, name=name)
        if labels.ndim != 2 or len(labels) != len(neighbours.bank):
            raise ScoreError(f"labels must be [{len(neighbours.bank)},J], got {tuple(labels.shape)}")
        self.classification = classification
        self.register_buffer("labels", labels.detach().to(neighbours.bank.dtype).clone())

    @classmethod
    def make(cls, recipe: Recipe) -> Score:
        """Builds EGL++ for any task.

        Options: perplexity, sigma, reference_compat, size (rows of the bank), labels: "targets", or
        "predictions", the model's own answers on the bank, as the published code does.
        """
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
        # k-center keeps rare training frames, which a random bank would lose.
        bank = fit.take(k_center(bank_embedding(fit.signals), rows))
        neighbours = Neighbours(bank_embedding(bank.signals), **search)
        score = _BY_FORM[recipe.task.form]
        return score(bank, neighbours, labels == "predictions", {"name": recipe.name, **options})

    def gradients(self, signals: Signals, places: Tensor) -> Tensor:
        """Returns (f - y_n) ||phi~||: [N,k,J]."""
        answer = torch.softmax(signals.outputs, 1) if self.classification else signals.outputs
        residual = answer[:, None] - self.labels[places]
        if not self.feature_norm:
            return residual
        return residual * torch.sqrt(feature_energy(signals))[:, None, None]


register_variant(
    EglPP, "egl_pp_unweighted", tasks=ALL, needs="fit", source="egl_pp without ||phi||^2", feature_norm=False
)


class HeatmapEglPP(_BankScore):
    """Scores heatmaps [N,J,H,W] of a 1x1 last convolution.

    joints: of the bank, [M,J,3] as (x, y, visible) in heatmap cells; an invisible joint adds nothing.
    """

    joints: Tensor

    def __init__(
        self,
        neighbours: Neighbours,
        joints: Tensor,
        *,
        sigma: float = SIGMA,
        peak: float = 1.0,
        feature_norm: bool = True,
        name: str = "",
    ) -> None:
        super().__init__(neighbours, feature_norm=feature_norm, name=name)
        if joints.ndim != 3 or joints.shape[2] != 3 or len(joints) != len(neighbours.bank):
            raise ScoreError(f"joints must be [{len(neighbours.bank)},J,3], got {tuple(joints.shape)}")
        self.sigma, self.peak = sigma, peak
        self.register_buffer("joints", joints.detach().to(neighbours.bank.dtype).clone())

    def gradients(self, signals: Signals, places: Tensor) -> Tensor:
        """Returns (H - Y_n) Phi~^T / P sqrt(J): [N,k,J (C+1)]; pixels are summed before any norm is taken."""
        maps = last_outputs(signals) if self.feature_norm else signals.outputs
        chosen = self.joints[places]
        size = (maps.shape[2], maps.shape[3])
        labels = self.peak * render_gaussians(chosen[..., :2], size=size, sigma=self.sigma)
        visible = (chosen[..., 2] > 0).to(maps.dtype)[..., None]
        residual = (maps[:, None].flatten(3) - labels.flatten(3)) * visible
        joints, pixels = residual.shape[2], residual.shape[3]
        if not self.feature_norm:
            return residual.flatten(2) / math.sqrt(joints * pixels)
        features = scaled_features(signals).transpose(1, 2) / pixels
        product = torch.matmul(residual.flatten(1, 2), features)
        return product.reshape(-1, places.shape[1], joints * features.shape[2]) / math.sqrt(joints)


class SegmentationEglPP(_BankScore):
    """Scores pixel logits [N,K,H,W] of a 1x1 last convolution.

    maps: the bank's label maps at the logits' resolution, integer [M,H,W]; `ignore` marks unlabelled pixels.
    """

    maps: Tensor

    def __init__(
        self,
        neighbours: Neighbours,
        maps: Tensor,
        *,
        ignore: int = 255,
        feature_norm: bool = True,
        name: str = "",
    ) -> None:
        super().__init__(neighbours, feature_norm=feature_norm, name=name)
        if maps.ndim != 3 or len(maps) != len(neighbours.bank):
            raise ScoreError(f"label maps must be [{len(neighbours.bank)},H,W], got {tuple(maps.shape)}")
        self.ignore = ignore
        self.register_buffer("maps", maps.detach().to(torch.int32).clone())

    def gradients(self, signals: Signals, places: Tensor) -> Tensor:
        """Returns (p - onehot(Y_n)) Phi~^T / valid pixels: [N,k,K (C+1)]."""
        logits = last_outputs(signals)
        labels = self.maps[places].flatten(2)
        if labels.shape[2] != logits.shape[2] * logits.shape[3]:
            raise ScoreError(
                f"bank maps {tuple(self.maps.shape[1:])} and logits {tuple(logits.shape[2:])} differ"
            )
        valid = (labels != self.ignore).to(logits.dtype)
        classes = torch.arange(logits.shape[1], device=labels.device, dtype=labels.dtype)
        one_hot = (labels[:, :, None] == classes[:, None]).to(logits.dtype)
        probability = torch.softmax(logits, 1).flatten(2)[:, None]
        residual = (probability - one_hot) * valid[:, :, None]
        # A neighbour without a labelled pixel adds zero, not NaN.
        count = valid.sum(2).clamp_min(1)[:, :, None, None]
        if not self.feature_norm:
            return (residual / torch.sqrt(count)).flatten(2)
        features = scaled_features(signals).transpose(1, 2)
        product = torch.matmul((residual / count).flatten(1, 2), features)
        return product.reshape(-1, places.shape[1], logits.shape[1] * features.shape[2])


def class_labels(targets: Tensor, classes: int) -> Tensor:
    """Returns class indices [M] as one-hot rows [M,K]."""
    if targets.ndim != 1 or bool((targets < 0).any()) or bool((targets >= classes).any()):
        raise ScoreError(f"class targets must be [M] in 0..{classes - 1}")
    return functional.one_hot(targets.long(), classes).float()


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


_BY_FORM: dict[str, Callable[[FitSet, Neighbours, bool, dict[str, Any]], Score]] = {
    "classification": _of_classes,
    "regression": _of_values,
    "keypoints": _of_heatmaps,
    "segmentation": _of_masks,
}
"""By the form of a task's outputs."""


def _joints(bank: FitSet, *, predictions: bool, stride: int) -> Tensor:
    """Returns [M,J,3] in cells; predicted joints all count as visible."""
    if predictions:
        points, _ = peak_cells(bank.signals.outputs)
        return torch.cat([points, torch.ones_like(points[..., :1])], 2)
    joints = bank.targets.float()
    return torch.cat([to_cells(joints[..., :2], stride=stride), joints[..., 2:3]], 2)
