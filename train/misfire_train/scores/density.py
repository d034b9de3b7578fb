"""Scores how far a frame is from what the model was trained on, in feature or output space.

    knn_distance       to the nearest training embeddings (L2-normalised): sees what no softmax can
    mahalanobis        to the nearest class mean under one shared covariance             (Lee et al. 2018)

They find inputs unlike the training set, which is not the same as wrong answers: a second channel.
"""

from __future__ import annotations

import torch
from torch import Tensor

from misfire_train.errors import ScoreError
from misfire_train.scores.fitting import FitSet
from misfire_train.scores.last_layer import pooled
from misfire_train.scores.neighbours import squared_distances
from misfire_train.scores.registry import ANY, Recipe, register
from misfire_train.signals import Score, Signals


def k_center(embeddings: Tensor, size: int) -> Tensor:
    """Returns positions of `size` rows of [N,D] that cover the rest greedily; sorted.

    The first is the row nearest to the mean.

    >>> k_center(torch.tensor([[0.0], [0.1], [5.0], [5.1], [9.0]]), 3).tolist()
    [0, 2, 4]
    """
    if size >= len(embeddings):
        return torch.arange(len(embeddings))
    centre = embeddings.mean(0, keepdim=True)
    chosen = [int(squared_distances(embeddings, centre).argmin())]
    nearest = squared_distances(embeddings, embeddings[chosen]).flatten()
    while len(chosen) < size:
        chosen.append(int(nearest.argmax()))
        # Only the new centre can be nearer than those before.
        nearest = torch.minimum(nearest, squared_distances(embeddings, embeddings[chosen[-1:]]).flatten())
    return torch.tensor(sorted(chosen))


@register(tasks=(*ANY, "detection"), needs="fit", source="Sun et al. 2022")
class KnnDistance(Score):
    """Scores the mean Euclidean distance to the k nearest of a bank of L2-normalised embeddings [M,C]."""

    name = "knn_distance"
    definition = "mean distance to the k nearest training embeddings"
    bank: Tensor

    def __init__(self, bank: Tensor, *, neighbours: int = 5) -> None:
        super().__init__()
        if not 1 <= neighbours <= len(bank):
            raise ScoreError(f"knn_distance: neighbours is {neighbours}, the bank has {len(bank)} rows")
        self.register_buffer("bank", bank.detach().clone())
        self.neighbours = neighbours

    @classmethod
    def make(cls, recipe: Recipe) -> KnnDistance:
        """Builds it from the training set."""
        return cls.fit(recipe.need_fit(), **recipe.options)

    @classmethod
    def fit(cls, fit: FitSet, *, neighbours: int = 5, size: int = 2048) -> KnnDistance:
        """Keeps the training embeddings as the bank, thinned by k-center to `size`."""
        fit.require(name=cls.name)
        embedding = fit.signals.embedding
        return cls(embedding[k_center(embedding, size)], neighbours=min(neighbours, len(fit)))

    def forward(self, signals: Signals) -> Tensor:
        """Returns scores [N], from 0 (seen) to 2."""
        distances = squared_distances(signals.embedding, self.bank)
        near = distances.topk(self.neighbours, dim=1, largest=False).values
        return torch.sqrt(near).mean(1)


@register(tasks=ANY, needs="fit", source="Lee et al. 2018")
class Mahalanobis(Score):
    """Scores min_c (phi - mu_c)^T Sigma^-1 (phi - mu_c) / C on pooled features.

    means: [G,D] already whitened; whitener: [C,D], Sigma^-1 = W W^T.
    """

    name = "mahalanobis"
    definition = "squared Mahalanobis distance to the nearest class mean, over C"
    whitener: Tensor
    means: Tensor

    def __init__(self, whitener: Tensor, means: Tensor) -> None:
        super().__init__()
        self.register_buffer("whitener", whitener.detach().clone())
        self.register_buffer("means", means.detach().clone())

    @classmethod
    def make(cls, recipe: Recipe) -> Mahalanobis:
        """Builds it from the training set."""
        return cls.fit(recipe.need_fit(), **recipe.options)

    @classmethod
    def fit(cls, fit: FitSet, *, shrinkage: float = 1e-2) -> Mahalanobis:
        """Fits one mean per class if targets are classes [N], else one.

        The covariance shrinks towards a sphere.
        """
        fit.require(name=cls.name, least=3)
        features = pooled(fit.signals).double()
        by_class = fit.targets.ndim == 1 and not fit.targets.is_floating_point()
        groups = fit.targets.long() if by_class else torch.zeros(len(fit), dtype=torch.long)
        labels = torch.unique(groups)
        means = torch.stack([features[groups == label].mean(0) for label in labels])
        centred = features - means[torch.searchsorted(labels, groups)]
        covariance = centred.T @ centred / len(fit)
        level = covariance.diagonal().mean().clamp_min(1e-12)
        covariance = (1 - shrinkage) * covariance + shrinkage * level * torch.eye(
            len(covariance), dtype=torch.double
        )
        values, vectors = torch.linalg.eigh(covariance)
        # One matrix product then does Sigma^-1/2 and the division by C.
        whitener = vectors / torch.sqrt(values * features.shape[1])
        dtype = fit.signals.last_input.dtype
        return cls(whitener.to(dtype), (means @ whitener).to(dtype))

    def forward(self, signals: Signals) -> Tensor:
        """Returns scores [N]."""
        return squared_distances(torch.matmul(pooled(signals), self.whitener), self.means).amin(1)
