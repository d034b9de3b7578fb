"""Scores how much a pseudo-label step on one frame would hurt the held-out loss (Aljundi et al., WACV 2022).

    S    = L_V(theta after T steps on (x, yhat)) - L_V(theta)          exact, any T, in closed form
    S_a  = -grad L_V . grad l(x, yhat) = -r^T G_V phi~                 one product with a constant matrix

Every update of a last linear layer by sample x is an outer product with phi~: T steps need only x's own
logits: D = sum_t (softmax(z_t) - e_yhat), z_{t+1} = z_t - eta ||phi~||^2 g_t, and the held-out logits move by
-eta (phi~_v . phi~) D. S ~ T eta S_a. `ErrorReduction` judges the same step by a reference pool's entropy.

Both rank candidates for labelling; the sign of a single frame's score means little. Confident mistakes have
r ~ 0 and stay unseen. A holdout that is fit perfectly has G_V ~ 0: the scores are noise then, and fitting
warns.
"""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

from misfire_train.errors import HoldoutWarning, ScoreError
from misfire_train.scores.fitting import FitSet
from misfire_train.scores.gradient.egl_pp import class_labels
from misfire_train.scores.last_layer import (
    exp_minus_one,
    label_maps,
    last_outputs,
    log_one_plus,
    pseudo_residual,
    scaled_features,
)
from misfire_train.scores.registry import CLASSES, Recipe, register
from misfire_train.signals import Score, Signals
from misfire_train.tasks.answers.softmax import is_predicted

PERFECT_FIT = 1e-3
"""Mean residual norm below which a holdout has nothing left to teach."""


def holdout_residuals(holdout: FitSet, *, name: str) -> tuple[Tensor, Tensor]:
    """Returns p_v - e_y of every held-out sample [V,K], and its phi~ / sqrt(C) [V,C+1].

    Raises ScoreError on fewer than 2 samples or a single class; warns if the fit is perfect.
    """
    holdout.require(name=name, least=2)
    labels = class_labels(holdout.targets, holdout.classes)
    present = int((labels.sum(0) > 0).sum())
    if present < 2:
        raise ScoreError(
            f"{name}: the holdout has one class only; it needs at least 2 (better, 2 samples of each)"
        )
    residual = torch.softmax(holdout.signals.outputs, 1) - labels.to(holdout.signals.outputs.dtype)
    warn_if_perfect(residual, name=name)
    return residual, scaled_features(holdout.signals)


def warn_if_perfect(residual: Tensor, *, name: str) -> None:
    """Warns if the mean norm of holdout residuals [V,K] is below PERFECT_FIT."""
    size = float(residual.square().sum(1).sqrt().mean())
    if size < PERFECT_FIT:
        warnings.warn(
            f"{name}: the holdout is fit perfectly (mean residual {size:.1e}), so this score is noise; "
            "hold out samples that the model was not trained on",
            HoldoutWarning,
            stacklevel=3,
        )


@register(tasks=("classification",), needs="holdout", source="Aljundi et al. 2022, S")
class WrongPrediction(Score):
    """Scores S for logits [N,K] of a last linear layer: change of the summed held-out loss after SGD steps.

    probability: of the held-out samples [V,K]; features: phi~ / sqrt(C) [V,C+1]; labels: one-hot [V,K]; eta:
    step size. Cross-entropy changes by log(1 + sum_k p_k (e^delta_k - 1)) - delta_y: no difference of large
    numbers.
    """

    name = "wrong_prediction"
    definition = "L_holdout after pseudo-label steps on the last layer - L_holdout"
    probability: Tensor
    features: Tensor
    labels: Tensor

    def __init__(
        self, probability: Tensor, features: Tensor, labels: Tensor, *, eta: float = 1e-3, steps: int = 3
    ) -> None:
        super().__init__()
        if eta <= 0 or steps < 1:
            raise ScoreError(f"eta {eta} must be above zero and steps {steps} at least 1")
        self.register_buffer("probability", probability.detach().clone())
        self.register_buffer("features", features.detach().clone())
        self.register_buffer("labels", labels.detach().clone())
        self.eta, self.steps = eta, steps

    @classmethod
    def make(cls, recipe: Recipe) -> WrongPrediction:
        """Builds it from the held-out set."""
        return cls.fit(recipe.need_holdout(), **recipe.options)

    @classmethod
    def fit(
        cls, holdout: FitSet, *, eta: float = 1e-3, steps: int = 3, size: int = 256, seed: int = 0
    ) -> WrongPrediction:
        """Fits it to held-out logits with labels [V].

        More than `size` of them are thinned to a random subset.
        """
        if holdout.signals.outputs.ndim != 2:
            raise ScoreError("wrong_prediction serves classification; for pixels use wrong_prediction_approx")
        if len(holdout) > size:
            # Every frame computes [V,K] changes, so V is bounded.
            drawn = torch.randperm(len(holdout), generator=torch.Generator().manual_seed(seed))[:size]
            holdout = holdout.take(drawn.sort().values)
        residual, features = holdout_residuals(holdout, name=cls.name)
        labels = class_labels(holdout.targets, holdout.classes).to(residual.dtype)
        return cls(residual + labels, features, labels, eta=eta, steps=steps)

    def forward(self, signals: Signals) -> Tensor:
        """Returns scores [N]."""
        change = logit_change(signals.outputs, signals, self.features, eta=self.eta, steps=self.steps)
        growth = (self.probability * exp_minus_one(change)).sum(2)
        return (log_one_plus(growth) - (self.labels * change).sum(2)).sum(1)


@register(tasks=CLASSES, needs="holdout", source="Aljundi et al. 2022, S_a")
class WrongPredictionApprox(Score):
    """Scores S_a for logits [N,K], and its positive part averaged over pixels for [N,K,H,W].

    gradient: G_V over sqrt(C), [K,C+1]. L_V is the mean over the holdout; the score is S_a / C.
    """

    name = "wrong_prediction_approx"
    definition = "-grad L_holdout . grad l(x, yhat), last layer"
    gradient: Tensor

    def __init__(self, gradient: Tensor) -> None:
        super().__init__()
        self.register_buffer("gradient", gradient.detach().clone())

    @classmethod
    def make(cls, recipe: Recipe) -> WrongPredictionApprox:
        """Builds it from the held-out set."""
        return cls.fit(recipe.need_holdout(), **recipe.options)

    @classmethod
    def fit(cls, holdout: FitSet) -> WrongPredictionApprox:
        """Fits it to held-out logits [V,K] with labels [V], or to pixel logits with maps [V,H,W].

        255 in a map means "not labelled".
        """
        if holdout.signals.outputs.ndim == 2:
            residual, features = holdout_residuals(holdout, name=cls.name)
            return cls(residual.T @ features / len(holdout))
        return cls(_pixel_gradient(holdout, name=cls.name))

    def forward(self, signals: Signals) -> Tensor:
        """Returns scores [N]."""
        logits = last_outputs(signals)
        residual = pseudo_residual(logits)
        if logits.ndim == 2:
            # The constant 1 and the scale of `scaled_features` move into the constants: one Gemm.
            scaled = self.gradient / math.sqrt(self.gradient.shape[1] - 1)
            moved = torch.addmm(scaled[:, -1], signals.last_input, scaled[:, :-1].T)
            return -(residual * moved).sum(1)
        features = scaled_features(signals)
        worse = torch.relu(-(residual.flatten(2) * torch.matmul(self.gradient, features)).sum(1))
        return worse.sum(1) / (worse > 0).to(worse.dtype).sum(1).clamp_min(1)


@register(tasks=("classification",), needs="fit", source="Roy & McCallum 2001")
class ErrorReduction(Score):
    """Scores the expected error on a pool after a pseudo-label step on this frame, negated.

    Roy & McCallum 2001. -mean_u H(p_u after the step): the highest is the frame whose pseudo-label makes the
    pool most certain. It chooses what to label; as a failure detector it is weak, and the judge shows it.
    logits: of the pool [U,K]; features: phi~ / sqrt(C) [U,C+1].
    """

    name = "error_reduction"
    definition = "-mean pool entropy after pseudo-label steps on the last layer"
    logits: Tensor
    features: Tensor

    def __init__(self, logits: Tensor, features: Tensor, *, eta: float = 1e-3, steps: int = 3) -> None:
        super().__init__()
        if eta <= 0 or steps < 1:
            raise ScoreError(f"eta {eta} must be above zero and steps {steps} at least 1")
        self.register_buffer("logits", logits.detach().clone())
        self.register_buffer("features", features.detach().clone())
        self.eta, self.steps = eta, steps

    @classmethod
    def make(cls, recipe: Recipe) -> ErrorReduction:
        """Builds it from the training set."""
        return cls.fit(recipe.need_fit(), **recipe.options)

    @classmethod
    def fit(
        cls, pool: FitSet, *, eta: float = 1e-3, steps: int = 3, size: int = 256, seed: int = 0
    ) -> ErrorReduction:
        """Fits it to a pool's signals; labels are not used."""
        pool.require(name=cls.name, least=2)
        if pool.signals.outputs.ndim != 2:
            raise ScoreError("error_reduction serves classification")
        drawn = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))[:size]
        chosen = pool.take(drawn.sort().values).signals
        return cls(chosen.outputs, scaled_features(chosen), eta=eta, steps=steps)

    def forward(self, signals: Signals) -> Tensor:
        """Returns scores [N]."""
        change = logit_change(signals.outputs, signals, self.features, eta=self.eta, steps=self.steps)
        log_p = torch.log_softmax(self.logits + change, 2).clamp_min(-100)
        return (torch.exp(log_p) * log_p).sum(2).mean(1)


def logit_change(logits: Tensor, signals: Signals, others: Tensor, *, eta: float, steps: int) -> Tensor:
    """Returns how `steps` SGD steps on (x, yhat) move other samples' logits: [N,V,K], rank one per frame.

    others: phi~_v / sqrt(C) [V,C+1]. Equals explicit steps on the last layer; yhat stays the first answer.
    """
    features = scaled_features(signals)
    channels = signals.last_input.shape[1]
    energy = features.square().sum(1, keepdim=True) * channels
    label = is_predicted(logits).to(logits.dtype)
    moved, total = logits, torch.zeros_like(logits)
    for step in range(steps):
        # The first step is exact even if p rounds to 1, at which softmax - label would cancel.
        gradient = pseudo_residual(logits) if step == 0 else torch.softmax(moved, 1) - label
        total = total + gradient
        moved = moved - eta * energy * gradient
    kernel = torch.matmul(features, others.T) * channels
    return -eta * kernel[:, :, None] * total[:, None, :]


def _pixel_gradient(holdout: FitSet, *, name: str, ignore: int = 255) -> Tensor:
    """Returns G_V of per-pixel cross-entropy, mean over the holdout's valid pixels, over sqrt(C): [K,C+1]."""
    holdout.require(name=name, least=1)
    logits = last_outputs(holdout.signals)
    targets = label_maps(holdout.targets, (logits.shape[2], logits.shape[3]))
    valid = targets != ignore
    if int(torch.unique(targets[valid]).numel()) < 2:
        raise ScoreError(f"{name}: the holdout's label maps show fewer than 2 classes")
    one_hot = (torch.arange(logits.shape[1])[:, None, None] == targets[:, None]).to(logits.dtype)
    residual = (torch.softmax(logits, 1) - one_hot) * valid[:, None]
    flat = residual.permute(0, 2, 3, 1)[valid]
    warn_if_perfect(flat, name=name)
    features = scaled_features(holdout.signals)
    total = torch.einsum("vkp,vcp->kc", residual.flatten(2), features)
    return total / valid.sum()
