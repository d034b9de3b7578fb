"""Provides VAAL, TA-VAAL and the ranker by itself as scores; higher means less like what is labelled.

The ranker by itself is the ablation that TA-VAAL needs: its discriminator sees r, which by itself separates
what the model was trained on (low) from what it was not, so TA-VAAL may be little more than a threshold on r.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from misfire_train.errors import ScoreError
from misfire_train.objectives import check_losses, rank_bce
from misfire_train.scores.fitting import FitSet
from misfire_train.scores.passes import ImageScore
from misfire_train.signals import Score, Signals
from misfire_train.vaal.training import TrainedVaal


class RankerScore(Score):
    """Predicts the loss rank from the embedding by a two-layer network. One pass; exports."""

    name = "ta_vaal_ranker"
    definition = "loss rank from the embedding, trained with rank_bce"
    centre: Tensor
    scale: Tensor

    def __init__(self, layers: nn.Module, *, centre: float = 0.0, scale: float = 1.0) -> None:
        super().__init__()
        self.layers = layers
        self.register_buffer("centre", torch.tensor(centre))
        self.register_buffer("scale", torch.tensor(scale))

    def forward(self, signals: Signals) -> Tensor:
        """Returns scores [N], standardised over what it was fitted on."""
        raw: Tensor = self.layers(signals.embedding).squeeze(1)
        return (raw - self.centre) / self.scale

    def rank(self, signals: Signals) -> Tensor:
        """Returns r in 0..1, [N], the one form in which both networks of TA-VAAL see it.

        A ranking objective leaves the offset of its scores open, hence the sigmoid of the standardised score.
        """
        return torch.sigmoid(self(signals))


def fit_ranker(
    fit: FitSet, losses: Tensor, *, steps: int = 300, width: int = 32, seed: int = 0
) -> RankerScore:
    """Trains a ranker on the losses [N] of a set that the model was not trained on (Kim et al. 2021, eq. 4).

    All pairs of random batches. Raises ScoreError below 4 samples, ValueError on losses that are negative or
    not finite.
    """
    fit.require(name="ranker", least=4)
    losses = check_losses(losses)
    if losses.shape != (len(fit),):
        raise ScoreError(f"{len(fit)} samples but losses of shape {tuple(losses.shape)}")
    embedding = fit.signals.embedding.detach()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = nn.Sequential(nn.Linear(embedding.shape[1], width), nn.ReLU(), nn.Linear(width, 1)).to(
            embedding.dtype
        )
        optimiser = torch.optim.AdamW(layers.parameters(), lr=3e-3, weight_decay=0.1)
        for _ in range(steps):
            chosen = torch.randperm(len(fit))[:128]
            optimiser.zero_grad()
            rank_bce(layers(embedding[chosen]).squeeze(1), losses[chosen], pairs="all").backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    layers.eval().requires_grad_(False)
    raw = layers(embedding).squeeze(1)
    # Standardised on its fitting set, so that `rank` uses the middle of the sigmoid.
    return RankerScore(layers, centre=float(raw.mean()), scale=max(float(raw.std()), 1e-6))


class VaalScore(ImageScore):
    """Scores minus the discriminator's logit on the code's mean: high if the frame looks unlabelled."""

    name = "vaal"
    definition = "-logit D(mu(x)), D trained to tell labelled from unlabelled"

    def __init__(self, trained: TrainedVaal) -> None:
        super().__init__()
        if trained.vae.rank:
            raise ScoreError("this was trained with ranks: score it with TaVaalScore(trained, ranker)")
        self.vae, self.discriminator = trained.vae.eval(), trained.discriminator.eval()

    def train(self, mode: bool = True) -> VaalScore:
        """Stays in eval mode: batch statistics would make a frame's score depend on its neighbours."""
        super().train(False)
        return self

    def combine(self, signals: Signals, image: Tensor) -> Tensor:
        """Returns scores [N]."""
        value: Tensor = -self.discriminator(self.vae.encode(image)[0])
        return value


class TaVaalScore(ImageScore):
    """Scores as VAAL does, with networks that also see the ranker's r."""

    name = "ta_vaal"
    definition = "-logit D(mu(x), r(x)), with the predicted loss rank r"

    def __init__(self, trained: TrainedVaal, ranker: RankerScore) -> None:
        super().__init__()
        if not trained.vae.rank:
            raise ScoreError("this was trained without ranks: score it with VaalScore(trained)")
        self.vae, self.discriminator, self.ranker = trained.vae, trained.discriminator, ranker
        self.train(False)

    def train(self, mode: bool = True) -> TaVaalScore:
        """Stays in eval mode, as VaalScore does."""
        super().train(False)
        return self

    def combine(self, signals: Signals, image: Tensor) -> Tensor:
        """Returns scores [N]."""
        value: Tensor = -self.discriminator(self.vae.encode(image)[0], self.ranker.rank(signals))
        return value
