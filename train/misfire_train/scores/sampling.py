"""Scores uncertainty from several answers to one image: MC-dropout, BALD, epistemic, aleatoric, ensembles.

Answers are [T,N,K] or [T,N,K,H,W] logits, [T,N,J] values or [T,N,J,H,W] heatmaps; maps become frames' means.
Total = epistemic (answers differ) + aleatoric (each answer is unsure)                    (Kendall & Gal 2017)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from misfire_train.errors import ScoreError
from misfire_train.scores.fitting import FitSet, evaluating
from misfire_train.scores.last_layer import pooled
from misfire_train.scores.passes import DropoutScore, ImageScore
from misfire_train.scores.registry import ALL, CLASSES, Recipe, register
from misfire_train.signals import Score, Signals
from misfire_train.tasks import Task, as_task
from misfire_train.tasks.answers.heatmaps import peak_cells


def frame_mean(value: Tensor) -> Tensor:
    """Returns [N] for [N] or [N,H,W]."""
    return value if value.ndim == 1 else value.flatten(1).mean(1)


def mean_entropy(samples: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the entropy of the mean prediction and the mean entropy of the predictions, in nats.

    samples: logits [T,N,K,...]. Both results are [N] or [N,H,W]. Probabilities are averaged, not logits.
    """
    log_p = torch.log_softmax(samples, 2)
    p = torch.exp(log_p)
    average = p.mean(0)
    total = -torch.xlogy(average, average).sum(1)
    expected = -(p * log_p.clamp_min(-100)).sum(2).mean(0)
    return total, expected


def predictive_variance(means: Tensor, variances: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Returns epistemic and aleatoric variance, [N,J] each: variance of the means, and mean of the variances.

    means, variances: [T,N,J]. T = 1 has no epistemic part.

    >>> means = torch.tensor([[[1.0]], [[3.0]]])
    >>> [v.item() for v in predictive_variance(means, torch.full_like(means, 0.5))]
    [1.0, 0.5]
    """
    # Two passes over the data: E[x^2] - E[x]^2 would cancel.
    epistemic = (means - means.mean(0, keepdim=True)).square().mean(0)
    aleatoric = torch.zeros_like(epistemic) if variances is None else variances.mean(0)
    return epistemic, aleatoric


def spread(samples: Tensor) -> Tensor:
    """Returns how far T answers differ, [N].

    It is the variance of values, or of joints decoded from heatmaps, in cells.
    """
    if samples.ndim == 5:
        points = torch.stack([peak_cells(maps)[0] for maps in samples]).flatten(2)
        return predictive_variance(points)[0].mean(1)
    return predictive_variance(samples.flatten(2))[0].mean(1)


@register(tasks=ALL, passes="many", source="Gal & Ghahramani 2016")
class McDropout(DropoutScore):
    """Scores the entropy of the mean prediction over T dropout passes.

    For values and heatmaps, their variance.
    """

    name = "mc_dropout"

    def __init__(self, *, task: str | Task = "classification", passes: int = 10, rate: float = 0.1) -> None:
        super().__init__(passes=passes, rate=rate)
        self.by_class = as_task(task).by_class
        what = "entropy of the mean prediction" if self.by_class else "variance of the answers"
        self.definition = f"{what} over {passes} dropout passes"

    @classmethod
    def make(cls, recipe: Recipe) -> McDropout:
        """Builds it for the task."""
        return cls(task=recipe.task, **recipe.options)

    def combine(self, samples: Tensor) -> Tensor:
        """Returns scores [N]."""
        return frame_mean(mean_entropy(samples)[0]) if self.by_class else spread(samples)


@register(tasks=CLASSES, passes="many", source="Houlsby et al. 2011; Gal et al. 2017")
class Bald(DropoutScore):
    """Scores the mutual information of label and weights: H of the mean less mean of H (Houlsby et al.

    2011).
    """

    name = "bald"

    def __init__(self, *, passes: int = 10, rate: float = 0.1, name: str = "") -> None:
        super().__init__(passes=passes, rate=rate)
        self.name = name or self.name
        self.definition = f"H(mean p) - mean H(p) over {passes} dropout passes"

    def combine(self, samples: Tensor) -> Tensor:
        """Returns scores [N], at least 0 except for rounding."""
        total, expected = mean_entropy(samples)
        return frame_mean(total - expected)


@register(tasks=ALL, passes="many", source="Kendall & Gal 2017")
class Epistemic(DropoutScore):
    """Scores the variance of answers over T dropout passes, for values and heatmaps (Kendall & Gal 2017, eq.

    4).
    """

    name = "epistemic"

    def __init__(self, *, passes: int = 10, rate: float = 0.1) -> None:
        super().__init__(passes=passes, rate=rate)
        self.definition = f"variance of the answers over {passes} dropout passes"

    @classmethod
    def make(cls, recipe: Recipe) -> Score:
        """Builds BALD for classes, the variance for values and heatmaps."""
        if recipe.task.by_class:
            return Bald(name=cls.name, **recipe.options)
        return cls(**recipe.options)

    def combine(self, samples: Tensor) -> Tensor:
        """Returns scores [N]."""
        return spread(samples)


class ExpectedEntropy(DropoutScore):
    """Scores the mean entropy over T dropout passes: the aleatoric part for classes."""

    name = "aleatoric"

    def __init__(self, *, passes: int = 10, rate: float = 0.1) -> None:
        super().__init__(passes=passes, rate=rate)
        self.definition = f"mean H(p) over {passes} dropout passes"

    def combine(self, samples: Tensor) -> Tensor:
        """Returns scores [N]."""
        return frame_mean(mean_entropy(samples)[1])


@register(
    tasks=(*CLASSES, "regression"),
    needs="holdout",
    passes="many",
    exportable=False,
    source="Kendall & Gal 2017",
)
class Aleatoric(Score):
    """Predicts the log-variance of values [N,J], mean over outputs: a linear layer on phi. One pass; exports.

    Fitted on held-out residuals r by the Gaussian likelihood (1/2) exp(-s) r^2 + (1/2) s with the task model
    frozen (Kendall & Gal 2017, eq. 8): convex in the layer's weights.
    """

    name = "aleatoric"
    definition = "predicted log-variance of the answer"
    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight.detach().clone())
        self.register_buffer("bias", bias.detach().clone())

    @classmethod
    def make(cls, recipe: Recipe) -> Score:
        """Builds the mean entropy under dropout for classes, a fitted log-variance for values."""
        if recipe.task.by_class:
            return ExpectedEntropy(**recipe.options)
        return cls.fit(recipe.need_holdout(), **recipe.options)

    @classmethod
    def fit(cls, holdout: FitSet, *, penalty: float = 1e-2) -> Aleatoric:
        """Fits it to held-out values with targets [V,J].

        Penalty: L2 on the weights of standardised features.
        """
        holdout.require(name=cls.name, least=10)
        outputs = holdout.signals.outputs
        if outputs.ndim != 2 or holdout.targets.shape != outputs.shape:
            shapes = f"{tuple(outputs.shape)} and {tuple(holdout.targets.shape)}"
            raise ScoreError(f"aleatoric needs values and targets [V,J], got {shapes}")
        residual = (outputs - holdout.targets).double().square().clamp_min(1e-12)
        features = pooled(holdout.signals).double()
        centre, scale = features.mean(0), features.std(0).clamp_min(1e-6)
        design = (features - centre) / scale
        weight = torch.zeros(outputs.shape[1], design.shape[1], dtype=torch.double, requires_grad=True)
        bias = torch.log(residual.mean(0)).clone().requires_grad_()
        optimiser = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

        def closure() -> float:
            optimiser.zero_grad()
            value = (
                gaussian_nll(design @ weight.T + bias, residual).mean() + penalty * weight.square().sum() / 2
            )
            value.backward()  # type: ignore[no-untyped-call]
            return value.item()

        with torch.enable_grad():
            optimiser.step(closure)  # type: ignore[no-untyped-call]
        # The standardisation moves into the layer, which then takes raw features.
        slope = weight.detach() / scale
        shift = bias.detach() - slope @ centre
        return cls(slope.to(outputs.dtype), shift.to(outputs.dtype))

    def log_variance(self, signals: Signals) -> Tensor:
        """Returns log-variances [N,J]."""
        return torch.matmul(pooled(signals), self.weight.T) + self.bias

    def forward(self, signals: Signals) -> Tensor:
        """Returns scores [N]."""
        return self.log_variance(signals).mean(1)


def gaussian_nll(log_variance: Tensor, squared_residual: Tensor) -> Tensor:
    """Returns (1/2) exp(-s) r^2 + (1/2) s elementwise.

    It may be negative: rank its exponential, not its share.
    """
    return 0.5 * torch.exp(-log_variance) * squared_residual + 0.5 * log_variance


@register(tasks=ALL, needs="members", passes="many", source="Lakshminarayanan et al. 2017")
class Ensemble(ImageScore):
    """Scores the disagreement of K networks and the probed one: K + 1 passes, for mining offline.

    measure: "entropy" of the mean prediction or "bald" for classes; "variance" for values and heatmaps.
    """

    name = "ensemble"

    def __init__(self, members: Sequence[nn.Module], *, measure: str = "entropy") -> None:
        super().__init__()
        if not members:
            raise ScoreError("an ensemble needs at least one other network: members=[...]")
        if measure not in ("entropy", "bald", "variance"):
            raise ScoreError(f"measure is {measure!r}; expected 'entropy', 'bald' or 'variance'")
        self.members, self.measure = nn.ModuleList(members), measure
        self.definition = f"{measure} over {len(members) + 1} networks"

    @classmethod
    def make(cls, recipe: Recipe) -> Ensemble:
        """Builds it from the option members=[other networks]."""
        options = dict(recipe.options)
        members = options.pop("members", None)
        if not members:
            raise ScoreError("ensemble needs other networks: build(..., ensemble={'members': [model, ...]})")
        return cls(members, **{"measure": "entropy" if recipe.task.by_class else "variance", **options})

    def combine(self, signals: Signals, image: Tensor) -> Tensor:
        """Returns scores [N]."""
        with evaluating(self.members):
            answers = [member(image) for member in self.members]
        samples = torch.stack([signals.outputs, *answers])
        if self.measure == "variance":
            return spread(samples)
        total, expected = mean_entropy(samples)
        return frame_mean(total if self.measure == "entropy" else total - expected)
