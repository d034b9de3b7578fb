"""Finds a frame's neighbours in the training set and the weight of each: t-SNE's conditional q_n.

    q_n = softmax_n(-(d_n^2 - min d^2) / 2 sigma^2),  sigma such that exp(entropy(q)) = perplexity

Entropy and perplexity have one base, and the row's minimum is subtracted first: without it every weight of a
frame far from all training data underflows and q is uniform. Only the nearest 3 x perplexity take part
(as in Barnes-Hut t-SNE); q sums to 1. The search for sigma is a fixed number of rounds, so it exports;
a single sigma, fixed offline, is cheaper. `reference_compat` is the published code's variant: all samples
take part, perplexity is 2^(entropy in nats), and the 30 largest weights are kept without renormalising.
q is blind to distance as such: pair it with `knn_distance`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from misfire_train.errors import ScoreError

# 6 rounds of 16 narrow a range of 25 to 1.5e-6.
WAYS, ROUNDS = 16, 6
REFERENCE_NEIGHBOURS = 30


def squared_distances(query: Tensor, bank: Tensor) -> Tensor:
    """Returns squared distances [N,M] of [N,D] to [M,D], never below zero."""
    if bank.shape[0] > 1:
        # Around the bank's mean: embeddings of one network are close together, and |q|^2 + |b|^2 - 2 qb
        # would cancel to the rounding of numbers a thousand times larger than their distance.
        centre = bank.mean(0, keepdim=True)
        query, bank = query - centre, bank - centre
    total = torch.addmm(bank.square().sum(1), query, bank.T, alpha=-2) + query.square().sum(1, keepdim=True)
    return total.clamp_min(0)


def bandwidth(gaps: Tensor, *, entropy_nats: float, rounds: int = ROUNDS) -> Tensor:
    """Returns log sigma^2 [N,1] at which softmax(-gaps / 2 sigma^2) has the given entropy.

    gaps: [N,M] squared distances less each row's minimum. The error is at most 25 / 16^rounds. A row of equal
    distances keeps any sigma.
    """
    # Entropy grows with sigma, so the trial values that are still too narrow are counted. Few wide rounds
    # instead of many halvings: the time of TensorRT's builder doubles with every step of such a chain.
    low, width = torch.log(gaps.amax(1, keepdim=True).clamp_min(1e-12)) - 16, 25.0
    for _ in range(rounds):
        width /= WAYS
        trials = low + width * torch.arange(1, WAYS, dtype=gaps.dtype, device=gaps.device)
        precision = torch.exp(-trials)[:, :, None] / 2
        entropy = _entropy(torch.softmax(-gaps[:, None] * precision, 2))
        low = low + width * (entropy <= entropy_nats).to(gaps.dtype).sum(1, keepdim=True)
    return low + width / 2


def _entropy(weights: Tensor) -> Tensor:
    return -(weights * torch.log(weights.clamp_min(1e-30))).sum(-1)


class Neighbours(nn.Module):
    """Holds a bank of training embeddings; `forward` returns the nearest ones' positions and weights.

    bank: [M,D]. perplexity: effective number of neighbours, by default min(20, M/3). sigma: a fixed bandwidth
    instead of the search, "auto" for the bank's own median. Raises ScoreError if the bank is smaller than the
    perplexity needs.
    """

    bank: Tensor
    sigma: Tensor | None

    def __init__(
        self,
        bank: Tensor,
        *,
        perplexity: float | None = None,
        sigma: float | str | None = None,
        reference_compat: bool = False,
    ) -> None:
        super().__init__()
        count = bank.shape[0]
        if bank.ndim != 2 or count < 3:
            raise ScoreError(f"a bank is [M,D] with at least 3 rows, got {tuple(bank.shape)}")
        # 20 is the published code's.
        perplexity = perplexity if perplexity is not None else min(20.0, count / 3)
        nats = math.log(perplexity) / math.log(2) if reference_compat else math.log(perplexity)
        if perplexity <= 1 or nats >= math.log(count) - 1e-9:
            needed = math.floor(math.exp(nats) + 1e-6) + 1
            raise ScoreError(
                f"perplexity {perplexity} needs a bank of at least {needed} samples, got {count}"
            )
        self.perplexity, self.entropy_nats, self.reference_compat = perplexity, nats, reference_compat
        self.candidates = count if reference_compat else min(count, max(3, math.ceil(3 * perplexity)))
        self.kept = min(REFERENCE_NEIGHBOURS, count) if reference_compat else self.candidates
        self.register_buffer("bank", bank.detach().clone())
        fixed = self.median_sigma() if sigma == "auto" else sigma
        if fixed is not None and not (isinstance(fixed, float | int) and fixed > 0):
            raise ScoreError(f"sigma is {sigma!r}; expected a number above zero, 'auto' or None")
        self.register_buffer("sigma", None if fixed is None else torch.tensor(float(fixed), dtype=bank.dtype))

    def median_sigma(self) -> float:
        """Returns the median of the sigmas that give each member of the bank its perplexity."""
        some = self.bank[torch.linspace(0, len(self.bank) - 1, min(512, len(self.bank))).long()]
        distances = squared_distances(some, self.bank)
        # One more, without the first: the nearest to a member of the bank is the member itself.
        near = distances.topk(min(self.candidates + 1, len(self.bank)), dim=1, largest=False).values[:, 1:]
        log_variance = bandwidth(near - near[:, :1], entropy_nats=self.entropy_nats)
        return math.sqrt(math.exp(float(log_variance.median())))

    def forward(self, query: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns positions [N,k], weights q [N,k], and the squared distance to the nearest [N]."""
        distances = squared_distances(query, self.bank)
        near, places = distances.topk(self.candidates, dim=1, largest=False)
        gaps = near - near[:, :1]
        if self.sigma is None:
            half_precision = torch.exp(-bandwidth(gaps, entropy_nats=self.entropy_nats)) / 2
        else:
            half_precision = 0.5 / self.sigma.square()
        weights = torch.softmax(-gaps * half_precision, 1)
        return places[:, : self.kept], weights[:, : self.kept], near[:, 0]
