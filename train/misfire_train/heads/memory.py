"""What the head remembers of the training set: embeddings to be near to, and what was true there.

embedding [N,C] -> [N,D]: distances to the nearest of the bank and, where targets are classes, whether its
neighbours' labels agree with the answer, and how far the prototypes are. The bank is a buffer in the graph.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from misfire_train.scores.density import k_center
from misfire_train.scores.neighbours import squared_distances

NEIGHBOURS = 10
BANK_ROWS = 2048
BANK_NUMBERS = 2048 * 128
"""Bounds the bank: it is read from memory whole for every frame, and 4 MB cost 1.6 % of a ResNet-18."""
_NEAR = 1e-4
"""Under the root: two engines' rounding of a distance near zero must not become a difference in the score."""


def bank_rows(width: int) -> int:
    """How many embeddings of `width` numbers a bank holds: 2,048 up to a width of 128, fewer above."""
    return max(256, min(BANK_ROWS, BANK_NUMBERS // width))


class Memory(nn.Module):
    """bank: [M,C] normalised embeddings.  votes: [M,K] one-hot labels; K = 0 where there are none."""

    bank: Tensor
    votes: Tensor
    prototypes: Tensor
    temperature: Tensor

    def __init__(self, rows: int, width: int, classes: int = 0) -> None:
        super().__init__()
        self.rows, self.width, self.classes = rows, width, classes
        self.register_buffer("bank", torch.zeros(rows, width))
        self.register_buffer("votes", torch.zeros(rows, classes))
        self.register_buffer("prototypes", torch.zeros(max(1, classes), width))
        self.register_buffer("temperature", torch.ones(()))

    @classmethod
    def fit(
        cls,
        embeddings: Tensor,
        labels: Tensor | None,
        *,
        classes: int = 0,
        rows: int | None = None,
        seed: int = 0,
    ) -> Memory:
        """From training embeddings [N,C] and class labels [N]; more than `rows` (see bank_rows) are thinned.

        With labels the bank is drawn at random, so that votes stay in proportion; without, it covers.
        """
        known = classes if labels is not None else 0
        rows = bank_rows(embeddings.shape[1]) if rows is None else rows
        if labels is not None:
            generator = torch.Generator().manual_seed(seed)
            chosen = torch.randperm(len(embeddings), generator=generator)[:rows].sort().values
        else:
            chosen = k_center(embeddings, rows)
        memory = cls(len(chosen), embeddings.shape[1], known)
        memory.bank.copy_(embeddings[chosen])
        if labels is not None:
            memory.votes.copy_(nn.functional.one_hot(labels[chosen].long(), classes).float())
            hot = nn.functional.one_hot(labels.long(), classes).float()
            memory.prototypes.copy_((hot.T @ embeddings) / hot.sum(0)[:, None].clamp_min(1))
        else:
            memory.prototypes.copy_(embeddings.mean(0, keepdim=True))
        near = squared_distances(memory.bank[:256], memory.bank)
        nearest = near.topk(min(NEIGHBOURS + 1, len(chosen)), dim=1, largest=False).values[:, 1:]
        if nearest.numel():
            memory.temperature.copy_(nearest.mean().clamp_min(1e-4))
        return memory

    def forward(self, embedding: Tensor, outputs: Tensor) -> Tensor:
        """[N,C] and, for classes, logits [N,K], to [N,D]."""
        squared, places = squared_distances(embedding, self.bank).topk(
            min(NEIGHBOURS, self.rows), dim=1, largest=False
        )
        distance = torch.sqrt(squared + _NEAR)
        centre = torch.sqrt(squared_distances(embedding, self.prototypes) + _NEAR)
        columns = [distance[:, :1], distance.mean(1, keepdim=True), centre.amin(1, keepdim=True)]
        if self.classes:
            weights = torch.softmax(-squared / self.temperature, 1)
            votes = (weights[..., None] * self.votes[places]).sum(1)
            p = torch.softmax(outputs, 1)
            answer = nn.functional.one_hot(p.argmax(1), self.classes).to(p.dtype)
            own = (centre * answer).sum(1, keepdim=True)
            other = (centre + 10 * answer).amin(1, keepdim=True)
            agreement = (votes * answer).sum(1, keepdim=True)
            disagreement = (votes - p).square().sum(1, keepdim=True)
            ambiguity = 1 - votes.square().sum(1, keepdim=True)
            columns += [
                own,
                own - other,
                agreement,
                (votes * p).sum(1, keepdim=True),
                disagreement,
                ambiguity,
            ]
        return torch.cat(columns, 1)
