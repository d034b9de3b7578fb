"""Fits a committee of last layers, regressors on bootstrapped training data, and gradient scores made of it.

One forward pass gives phi~; K linear members answer from it. So both scores export as a few matrix products.

    egl_regression   mean_k ||(f - f_k) phi~^T||                     (Cai et al. 2013)
    egl_ensemble     ||phi~||^2 mean_k [ sigma_k^2 + (mu_k - f)^2 ]  (Shukla 2022: expected squared gradient)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from misfire_train.errors import ScoreError
from misfire_train.scores.fitting import FitSet
from misfire_train.scores.last_layer import feature_energy, pooled
from misfire_train.scores.registry import Recipe, register
from misfire_train.signals import Score, Signals


class Committee(nn.Module):
    """Holds K linear regressors on pooled features: weight [K,J,C], bias [K,J], residual variance [K,J]."""

    weight: Tensor
    bias: Tensor
    variance: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, variance: Tensor) -> None:
        super().__init__()
        if weight.ndim != 3 or bias.shape != weight.shape[:2] or variance.shape != bias.shape:
            raise ScoreError(
                f"a committee is weight [K,J,C], bias and variance [K,J]; got {tuple(weight.shape)}, "
                f"{tuple(bias.shape)}, {tuple(variance.shape)}"
            )
        self.register_buffer("weight", weight.detach().clone())
        self.register_buffer("bias", bias.detach().clone())
        self.register_buffer("variance", variance.detach().clone())

    @classmethod
    def fit(cls, fit: FitSet, *, members: int = 8, ridge: float = 1e-2, seed: int = 0) -> Committee:
        """Fits ridge regressions on `members` bootstrap samples; variance is that of the samples left out.

        ridge: relative to the mean feature energy. Raises ScoreError on fewer than 10 samples or 2 members.
        """
        fit.require(name="egl committee", least=10)
        if members < 2:
            raise ScoreError(f"a committee needs at least 2 members, got {members}")
        # float64: the normal equations square the condition number of the features.
        features = pooled(fit.signals).double()
        targets = fit.targets.reshape(len(fit), -1).double()
        design = torch.cat([features, torch.ones_like(features[:, :1])], 1)
        generator = torch.Generator().manual_seed(seed)
        weights, biases, variances = [], [], []
        for _ in range(members):
            drawn = torch.randint(len(fit), (len(fit),), generator=generator)
            solution = _ridge(design[drawn], targets[drawn], ridge)
            left_out = torch.ones(len(fit), dtype=torch.bool)
            left_out[drawn] = False
            # A tiny set may be drawn completely; then the variance is that of the drawn samples.
            use = left_out if int(left_out.sum()) > 1 else ~left_out
            variances.append((design[use] @ solution - targets[use]).square().mean(0))
            weights.append(solution[:-1].T)
            biases.append(solution[-1])
        dtype = fit.signals.outputs.dtype
        return cls(
            torch.stack(weights).to(dtype), torch.stack(biases).to(dtype), torch.stack(variances).to(dtype)
        )

    def forward(self, features: Tensor) -> Tensor:
        """Returns every member's answer [N,K,J] to features [N,C]."""
        members, outputs, channels = self.weight.shape
        flat = torch.matmul(features, self.weight.reshape(members * outputs, channels).T)
        return flat.reshape(-1, members, outputs) + self.bias


@register(tasks=("regression",), needs="fit", source="Cai et al. 2013")
class EglRegression(Score):
    """Scores mean_k ||f - f_k|| ||phi~|| / sqrt(C): gradient norm of (1/2)||f - f_k||^2 (Cai et al. 2013)."""

    name = "egl_regression"

    def __init__(self, committee: Committee, *, feature_norm: bool = True, name: str = "") -> None:
        super().__init__()
        self.committee, self.feature_norm = committee, feature_norm
        self.name = name or self.name
        self.definition = "mean_k ||f - f_k||" + (" ||phi~||" if feature_norm else "")

    @classmethod
    def make(cls, recipe: Recipe) -> EglRegression:
        """Builds it on a committee; options members, ridge and seed are the committee's."""
        committee, options = _committee(recipe)
        return cls(committee, **options)

    def forward(self, signals: Signals) -> Tensor:
        """Returns scores [N] for values [N,J]."""
        gap: Tensor = (_values(signals)[:, None] - self.committee(pooled(signals))).square().sum(2)
        length: Tensor = torch.sqrt(gap).mean(1)
        return length * torch.sqrt(feature_energy(signals)) if self.feature_norm else length


@register(tasks=("regression",), needs="fit", source="Shukla 2022")
class EglEnsemble(Score):
    """Scores ||phi~||^2 / C * mean_k sum_j [ sigma_kj^2 + (mu_kj - f_j)^2 ].

    It is the spread within and between members: Shukla 2022 (EGL++), ensemble form, for l = (1/2)||f - y||^2
    with y drawn from the members' Gaussians. With f = mean_k mu_k the bracket is the law of total variance.
    """

    name = "egl_ensemble"

    def __init__(self, committee: Committee, *, feature_norm: bool = True, name: str = "") -> None:
        super().__init__()
        self.committee, self.feature_norm = committee, feature_norm
        self.name = name or self.name
        self.definition = "mean_k [sigma_k^2 + (mu_k - f)^2]" + (" ||phi~||^2" if feature_norm else "")

    @classmethod
    def make(cls, recipe: Recipe) -> EglEnsemble:
        """Builds it on a committee; options members, ridge and seed are the committee's."""
        committee, options = _committee(recipe)
        return cls(committee, **options)

    def forward(self, signals: Signals) -> Tensor:
        """Returns scores [N] for values [N,J]."""
        answers: Tensor = self.committee(pooled(signals))
        gap = (_values(signals)[:, None] - answers).square()
        total = (gap + self.committee.variance).sum(2).mean(1)
        value: Tensor = total * feature_energy(signals) if self.feature_norm else total
        return value


def _committee(recipe: Recipe) -> tuple[Committee, dict[str, Any]]:
    """Returns the committee fitted with its own options, and the options that are left for the score."""
    options = dict(recipe.options)
    own = {key: options.pop(key) for key in ("members", "ridge", "seed") if key in options}
    return Committee.fit(recipe.need_fit(), **own), options


def _values(signals: Signals) -> Tensor:
    if signals.outputs.ndim != 2:
        raise ScoreError(f"committee scores need values [N,J], got {tuple(signals.outputs.shape)}")
    return signals.outputs


def _ridge(design: Tensor, targets: Tensor, ridge: float) -> Tensor:
    """Returns argmin ||X b - y||^2 + penalty ||b||^2, [C+1,J].

    The last column (the bias) is not penalised.
    """
    gram = design.T @ design
    level = ridge * float(gram.diagonal()[:-1].mean().clamp_min(1e-12))
    penalty = torch.full((design.shape[1],), level, dtype=design.dtype)
    penalty[-1] = 0
    solution: Tensor = torch.linalg.solve(gram + torch.diag(penalty), design.T @ targets)
    return solution
