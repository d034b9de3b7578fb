"""Scores the expected gradient length of the last layer, under the model's own belief about the label.

    classification   sum_k p_k ||(p - e_k) phi~^T||^2 = (1 - ||p||^2) ||phi~||^2             (Settles 2008)
    segmentation     labels independent per pixel: mean_p (1 - ||p_p||^2) ||phi~_p||^2
    keypoints        a joint's label is a Gaussian at one of its peaks, weighted by their softmax

No autograd is needed. Each returns the squared gradient norm divided by a constant (`unit` returns it), so
that fp16 holds it. `feature_norm=False` drops ||phi~||^2: what is left depends only on the outputs, and
shifts hurt it less.
"""

from __future__ import annotations

import torch
from torch import Tensor

from misfire_train.errors import ScoreError
from misfire_train.scores.last_layer import feature_energy, last_outputs, scaled_features
from misfire_train.scores.registry import MAPS, Recipe, register, register_variant
from misfire_train.signals import Score, Signals
from misfire_train.tasks.answers.heatmaps import SIGMA, render_gaussians
from misfire_train.tasks.answers.peaks import cells, local_maxima, scaled_peaks
from misfire_train.tasks.answers.softmax import is_predicted


def squared_residuals(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Returns p_k and ||p - e_k||^2 for every hypothesis k, both shaped as logits.

    No cancellation near p = 1.
    """
    top = is_predicted(logits)
    p = torch.softmax(logits, 1)
    others = torch.where(top, 0.0, p)
    rest = others.sum(1, keepdim=True)
    all_squared = p.square().sum(1, keepdim=True)
    of_top = rest.square() + others.square().sum(1, keepdim=True)
    return p, torch.where(top, of_top, (1 - p).square() + all_squared - p.square())


def gini(logits: Tensor) -> Tensor:
    """Returns 1 - ||p||^2 = sum_k p_k (1 - p_k) over dim 1, exact if one class has nearly all the mass."""
    top = is_predicted(logits)
    p = torch.softmax(logits, 1)
    others = torch.where(top, 0.0, p)
    rest = others.sum(1)
    return (1 - rest) * rest + (others * (1 - others)).sum(1)


@register(tasks=MAPS, source="Settles 2008, closed form")
class Egl(Score):
    """Scores the expected gradient length for logits [N,K] or pixel logits [N,K,H,W].

    squared: E||g||^2; else E||g|| (only for classification: over label maps the mean norm has no closed
    form).
    labels: "expected" weighs every class by p; "pseudo" takes only the predicted class, BADGE's magnitude.
    """

    name = "egl"

    def __init__(
        self, *, squared: bool = True, feature_norm: bool = True, labels: str = "expected", name: str = ""
    ) -> None:
        super().__init__()
        if labels not in ("expected", "pseudo"):
            raise ScoreError(f"labels is {labels!r}; expected 'expected' or 'pseudo'")
        self.squared, self.feature_norm, self.labels = squared, feature_norm, labels
        self.name = name or self.name
        self.free = not feature_norm
        what = "sum_k p_k ||g_k||" if labels == "expected" else "||g_yhat||"
        factor = "" if feature_norm else ", without the feature norm"
        self.definition = f"{what}{'^2' if squared else ''} of the last layer{factor}"

    @classmethod
    def make(cls, recipe: Recipe) -> Score:
        """Builds it for the task: heatmaps have a form of their own."""
        kind: type[Score] = HeatmapEgl if recipe.task.output_kind == "heatmaps" else cls
        return kind(**{"name": recipe.name, **recipe.options})

    def forward(self, signals: Signals) -> Tensor:
        """Returns scores [N]."""
        if signals.outputs.ndim == 2:
            return self._frames(signals)
        if not self.squared or self.labels != "expected":
            raise ScoreError("over label maps only the expected squared gradient norm has a closed form")
        return self._pixels(signals)

    def _frames(self, signals: Signals) -> Tensor:
        p, squares = squared_residuals(signals.outputs)
        energy = feature_energy(signals) if self.feature_norm else torch.ones_like(p[:, 0])
        if self.labels == "pseudo":
            chosen = torch.where(is_predicted(signals.outputs), squares, 0.0).sum(1) * energy
            return chosen if self.squared else torch.sqrt(chosen)
        if self.squared:
            return gini(signals.outputs) * energy
        return (p * torch.sqrt(squares)).sum(1) * torch.sqrt(energy)

    def _pixels(self, signals: Signals) -> Tensor:
        if not self.feature_norm:
            return gini(signals.outputs).flatten(1).mean(1)
        # Features exist only at the last layer's resolution, so the logits must have it too.
        impurity = gini(last_outputs(signals)).flatten(1)
        return (impurity * feature_energy(signals)).mean(1)

    def unit(self, signals: Signals) -> float:
        """Returns the factor that makes the score the (squared) gradient norm of the mean loss per frame."""
        channels = signals.last_input.shape[1] if self.feature_norm else 1
        if signals.outputs.ndim == 4:
            return channels / signals.last_input.flatten(2).shape[2]
        return float(channels) if self.squared else float(channels) ** 0.5


register_variant(
    Egl, "egl_norm", tasks=("classification",), source="Settles 2008, closed form", squared=False
)
register_variant(
    Egl, "egl_unweighted", tasks=MAPS, source="egl without ||phi||^2", free=True, feature_norm=False
)
register_variant(Egl, "badge_norm", tasks=("classification",), source="Ash et al. 2020", labels="pseudo")


class HeatmapEgl(Score):
    """Scores the expected squared gradient norm for heatmaps [N,J,H,W] of a 1x1 last convolution.

    A joint's hypotheses are Gaussians at its `peaks` local maxima with weights softmax(scale * value);
    ||G||^2 is a sum over joints, so their marginals suffice: sum_j sum_k q_jk ||(H_j - Y_jk) Phi~^T||^2.
    Pixels are summed before the norm is taken: the cross terms between pixels are most of it.
    Loss = mean_jp (H - Y)^2. sigma, peak: of the Gaussians that the network was trained on.
    """

    name = "egl"

    def __init__(
        self,
        *,
        sigma: float = SIGMA,
        peak: float = 1.0,
        radius: int = 5,
        peaks: int = 5,
        peak_scale: float = 1.0,
        feature_norm: bool = True,
        name: str = "",
    ) -> None:
        super().__init__()
        self.sigma, self.peak, self.radius, self.peaks = sigma, peak, radius, peaks
        self.peak_scale, self.feature_norm = peak_scale, feature_norm
        self.name = name or self.name
        self.free = not feature_norm
        self.definition = (
            "sum_jk q_jk ||(H_j - Y_jk) Phi~^T||^2" if feature_norm else "sum_jk q_jk ||H_j - Y_jk||^2"
        )

    def forward(self, signals: Signals) -> Tensor:
        """Returns scores [N]."""
        # Gradients are of the last layer, at its own resolution.
        maps = last_outputs(signals) if self.feature_norm else signals.outputs
        weights, residual = self.hypotheses(maps)
        joints = maps.shape[1]
        if not self.feature_norm:
            return (weights * residual.square().mean(3)).sum((1, 2)) / joints
        features = scaled_features(signals)
        pixels = features.shape[2]
        flat = residual.flatten(1, 2)
        gradient = torch.matmul(flat, features.transpose(1, 2)) / pixels
        squares = gradient.square().sum(2).reshape(-1, joints, residual.shape[2])
        return (weights * squares).sum((1, 2)) / joints

    def hypotheses(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Returns weights [N,J,K] and residuals H_j - Y_jk [N,J,K,P]."""
        size = (maps.shape[2], maps.shape[3])
        values, places = local_maxima(maps, radius=self.radius, peaks=self.peaks)
        labels = render_gaussians(cells(places, width=size[1], like=maps), size=size, sigma=self.sigma)
        weights = torch.softmax(scaled_peaks(values, scale=self.peak_scale), 2)
        return weights, maps.flatten(2)[:, :, None] - self.peak * labels.flatten(3)

    def unit(self, signals: Signals) -> float:
        """Returns the factor that makes the score the squared gradient norm of the mean squared error."""
        joints = signals.outputs.shape[1]
        pixels = signals.last_input.flatten(2).shape[2]
        return (2 / (joints * pixels)) ** 2 * joints * pixels**2 * signals.last_input.shape[1]
