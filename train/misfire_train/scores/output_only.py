"""Defines scores of the task's outputs: free, exportable, and the baselines that others must beat.

Class scores take logits [N,K] or pixel logits [N,K,H,W]; per-pixel values are averaged over the frame.
Heatmap scores take [N,J,H,W]. Each is one expression from `Signals.outputs` to [N], higher = likelier wrong.
"""

from __future__ import annotations

import torch
from torch import Tensor

from misfire_train.scores.fitting import FitSet
from misfire_train.scores.last_layer import pseudo_residual
from misfire_train.scores.registry import CLASSES, Recipe, register
from misfire_train.signals import Score, Signals
from misfire_train.tasks.answers.heatmaps import SIGMA, render_gaussians
from misfire_train.tasks.answers.peaks import cells, local_maxima, scaled_peaks
from misfire_train.tasks.answers.softmax import softmax_entropy


class OutputScore(Score):
    """Is a free score: `value` maps outputs to [N] or to a map [N,H,W], whose mean is the frame's score."""

    free = True

    def value(self, outputs: Tensor) -> Tensor:
        """Returns [N] or [N,H,W] from the task's outputs."""
        raise NotImplementedError

    def forward(self, signals: Signals) -> Tensor:
        """Returns scores [N]; pixel maps are averaged."""
        # Half precision would round away what separates confident frames.
        value = self.value(
            signals.outputs.float() if signals.outputs.dtype == torch.half else signals.outputs
        )
        return value if value.ndim == 1 else value.flatten(1).mean(1)


@register(tasks=CLASSES, source="Hendrycks & Gimpel 2017")
class Msp(OutputScore):
    """Scores 1 - max softmax probability (least confidence)."""

    name = "msp"
    definition = "1 - max_k p_k"

    def value(self, outputs: Tensor) -> Tensor:
        """Returns 1 - max_k p_k, [N] or [N,H,W]."""
        return rest_probability(outputs)


@register(tasks=CLASSES, source="Shannon 1948; Settles 2009")
class Entropy(OutputScore):
    """Scores the softmax entropy in nats, from log-probabilities: p = 0 gives 0 and never NaN."""

    name = "entropy"
    definition = "-sum_k p_k log p_k"

    def value(self, outputs: Tensor) -> Tensor:
        """Returns -sum_k p_k log p_k, [N] or [N,H,W]."""
        return softmax_entropy(outputs)


@register(tasks=CLASSES, source="Scheffer et al. 2001")
class Margin(OutputScore):
    """Scores the negative gap between the two largest probabilities: 0 is a tie, -1 is certain."""

    name = "margin"
    definition = "p_(2) - p_(1), the two largest probabilities"

    def value(self, outputs: Tensor) -> Tensor:
        """Returns p_(2) - p_(1), [N] or [N,H,W]; raises ValueError on a single class."""
        if outputs.shape[1] < 2:
            raise ValueError("margin needs at least two classes")
        top = torch.softmax(outputs, 1).topk(2, dim=1).values
        return top[:, 1] - top[:, 0]


@register(tasks=CLASSES, source="Liu et al. 2020")
class Energy(OutputScore):
    """Scores the negative log-sum-exp of the logits (Liu et al. 2020): high if no class is supported."""

    name = "energy"
    definition = "-log sum_k exp(z_k)"

    def value(self, outputs: Tensor) -> Tensor:
        """Returns -logsumexp_k z_k, [N] or [N,H,W]."""
        return -torch.logsumexp(outputs, 1)


@register(tasks=CLASSES, source="Hendrycks et al. 2022")
class MaxLogit(OutputScore):
    """Scores the negative largest logit: MSP without the normalisation."""

    name = "max_logit"
    definition = "-max_k z_k"

    def value(self, outputs: Tensor) -> Tensor:
        """Returns -max_k z_k, [N] or [N,H,W]."""
        return -outputs.amax(1)


@register(tasks=("keypoints",), source="heatmap confidence")
class MeanPeak(OutputScore):
    """Scores the negative mean over joints of the heatmap's maximum: weak peaks are uncertain joints."""

    name = "mean_peak"
    definition = "-mean_j max_p H_jp"

    def value(self, outputs: Tensor) -> Tensor:
        """Returns -mean_j max_p H_jp of heatmaps [N,J,H,W]: [N]."""
        return -_maps(outputs).flatten(2).amax(2).mean(1)


@register(tasks=("keypoints",), source="a heatmap as a distribution")
class HeatmapEntropy(OutputScore):
    """Scores the mean entropy of heatmaps' positive parts as distributions over pixels."""

    name = "heatmap_entropy"
    definition = "mean_j entropy(relu(H_j) / sum relu(H_j))"

    def value(self, outputs: Tensor) -> Tensor:
        """Returns [N] from heatmaps [N,J,H,W]; an all-zero map counts as uniform, log(H W)."""
        # A floor, not a sum: the exporter's optimiser drops an added constant below 1e-8.
        mass = _maps(outputs).flatten(2).clamp_min(1e-9)
        # A map as a distribution over its pixels.
        share = mass / mass.sum(2, keepdim=True)
        return -(share * torch.log(share)).sum(2).mean(1)


@register(tasks=("keypoints",), source="Liu & Ferrari 2017")
class MultiPeakEntropy(OutputScore):
    """Scores the entropy of the softmax over a heatmap's local maxima, summed over joints.

    A peak equals the maximum of its (2r+1)^2 neighbourhood. The `peaks` highest enter a softmax after
    scaling by `peak_scale` (the reference renders peaks at 30, so its softmax is nearly one-hot).
    Absent peaks have weight zero; a flat map has none at all (its entropy is that of equal weights).
    It uses only MaxPool, TopK and Softmax, so it exports; every pixel of a plateau counts.
    """

    name = "multi_peak_entropy"
    definition = "sum_j entropy(softmax(scale * local maxima of H_j))"

    def __init__(self, *, radius: int = 5, peaks: int = 5, peak_scale: float = 1.0) -> None:
        super().__init__()
        if radius < 1 or peaks < 1 or peak_scale <= 0:
            raise ValueError(f"radius {radius}, peaks {peaks} and peak_scale {peak_scale} must be above zero")
        self.radius, self.peaks, self.peak_scale = radius, peaks, peak_scale

    def value(self, outputs: Tensor) -> Tensor:
        """Returns [N] from heatmaps [N,J,H,W]."""
        values, _ = local_maxima(_maps(outputs), radius=self.radius, peaks=self.peaks)
        scaled = scaled_peaks(values, scale=self.peak_scale)
        return softmax_entropy(scaled.transpose(1, 2)).sum(1)


@register(tasks=("keypoints",), source="this project")
class SelfResidual(OutputScore):
    """Scores the mean squared difference between heatmaps and Gaussians at their own decoded joints.

    It is what the training loss would be if the decoded joints were the truth: a map that is no clean peak
    has a residual whatever the truth is. Two separable exponentials per joint, so it exports as plain
    arithmetic.
    sigma: of the rendered Gaussian, in heatmap cells. peak: its height. `rescale` renders it at the map's
    own maximum instead, so that a merely low peak is not counted.
    """

    name = "self_residual"
    definition = "mean_jp (H_jp - gaussian(argmax H_j))^2"

    def __init__(self, *, sigma: float = SIGMA, peak: float = 1.0, rescale: bool = False) -> None:
        super().__init__()
        if sigma <= 0 or peak <= 0:
            raise ValueError(f"sigma {sigma} and peak {peak} must be above zero")
        self.sigma, self.peak, self.rescale = sigma, peak, rescale

    def value(self, outputs: Tensor) -> Tensor:
        """Returns [N] from heatmaps [N,J,H,W]."""
        maps = _maps(outputs)
        size = (maps.shape[2], maps.shape[3])
        decoded = cells(maps.flatten(2).argmax(2), width=size[1], like=maps)
        rendered = self.peak * render_gaussians(decoded, size=size, sigma=self.sigma)
        if self.rescale:
            rendered = rendered * (maps.amax((2, 3), keepdim=True) / self.peak)
        return (maps - rendered).square().mean((1, 2, 3))


@register(tasks=("regression",), needs="fit", source="this project")
class OutputDeviation(Score):
    """Scores the squared Mahalanobis distance of values [N,J] from the values of the training set, over J."""

    name = "output_deviation"
    definition = "squared Mahalanobis distance of the answer from the training answers"
    free = True
    whitener: Tensor
    mean: Tensor

    def __init__(self, whitener: Tensor, mean: Tensor) -> None:
        super().__init__()
        self.register_buffer("whitener", whitener.detach().clone())
        self.register_buffer("mean", mean.detach().clone())

    @classmethod
    def make(cls, recipe: Recipe) -> OutputDeviation:
        """Builds it from the training set's answers."""
        return cls.fit(recipe.need_fit(), **recipe.options)

    @classmethod
    def fit(cls, fit: FitSet) -> OutputDeviation:
        """Fits the model's own answers on the training set."""
        fit.require(name=cls.name, least=3)
        return cls.of_answers(fit.signals.outputs)

    @classmethod
    def of_answers(cls, answers: Tensor) -> OutputDeviation:
        """Returns the score of how far values are from the model's own on the training set, [N,J]."""
        outputs = answers.flatten(1).double()
        mean = outputs.mean(0)
        covariance = (outputs - mean).T @ (outputs - mean) / len(outputs)
        level = covariance.diagonal().mean().clamp_min(1e-12)
        values, vectors = torch.linalg.eigh(
            # Outputs may be collinear, which leaves the covariance singular.
            covariance + 1e-3 * level * torch.eye(len(mean), dtype=torch.double)
        )
        whitener = vectors / torch.sqrt(values * outputs.shape[1])
        return cls(whitener.to(answers.dtype), mean.to(answers.dtype))

    def deviation(self, outputs: Tensor) -> Tensor:
        """Returns scores [N] of values [N,J]."""
        return torch.matmul(outputs.flatten(1) - self.mean, self.whitener).square().sum(1)

    def forward(self, signals: Signals) -> Tensor:
        """Returns scores [N]."""
        return self.deviation(signals.outputs)


def rest_probability(logits: Tensor) -> Tensor:
    """Returns 1 - max_k p_k as the sum of the other classes, which separates 1e-9 from 1e-12.

    1 - p_max would round both to 0.

    >>> rest_probability(torch.tensor([[30.0, 0.0]])).item() > 0
    True
    """
    return -pseudo_residual(logits).amin(1)


def _maps(outputs: Tensor) -> Tensor:
    if outputs.ndim != 4:
        raise ValueError(f"heatmaps are [N,J,H,W]; got shape {tuple(outputs.shape)}")
    return outputs
