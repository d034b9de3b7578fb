"""Keeps what a head remembers of the training set: embeddings as neighbours, and their labels.

embedding [N,C] -> [N,D]: distances to the nearest of the bank and, if targets are classes, whether its
neighbours' labels agree with the answer, and the distances of the prototypes. The bank is a buffer in the
graph. A bank of wide embeddings is kept by its principal components: a vehicle reads the whole bank from
memory for every frame, and that is most of what a head costs. Nothing of the frame itself is dropped: its
part outside the components counts in its distance to everything.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from misfire_train.scores.density import k_center
from misfire_train.scores.neighbours import squared_distances
from misfire_train.tasks.answers.softmax import Softmax

NEIGHBOURS = 10
# A vehicle reads all of them for every frame: that is most of what a head costs.
BANK_ROWS = 2048
WHOLE = 128
"""Embeddings up to this width are kept as they are,"""
COMPONENTS = 64
"""wider ones by this number of principal components."""
_NEAR = 1e-4
"""Under the root: two engines' rounding of a distance near zero must not become a difference in the score."""


class Memory(nn.Module):
    """Holds `rows` embeddings of `width` numbers, of which `kept` are kept (default: see COMPONENTS).

    Attributes:
        bank: [M,kept].
        votes: [M,K] one-hot labels; K = 0 without labels.
        prototypes: [K,kept].
        middle, axes: [C] and [C,kept], the mean and principal axes, if kept < C.
    """

    bank: Tensor
    votes: Tensor
    prototypes: Tensor
    temperature: Tensor
    middle: Tensor
    axes: Tensor

    def __init__(self, rows: int, width: int, classes: int = 0, *, kept: int | None = None) -> None:
        super().__init__()
        self.rows, self.width, self.classes = rows, width, classes
        self.kept = kept if kept is not None else width if width <= WHOLE else COMPONENTS
        self.register_buffer("bank", torch.zeros(rows, self.kept))
        self.register_buffer("votes", torch.zeros(rows, classes))
        self.register_buffer("prototypes", torch.zeros(max(1, classes), self.kept))
        self.register_buffer("temperature", torch.ones(()))
        if self.kept < width:
            self.register_buffer("middle", torch.zeros(width))
            self.register_buffer("axes", torch.zeros(width, self.kept))

    @classmethod
    def fit(
        cls,
        embeddings: Tensor,
        labels: Tensor | None,
        *,
        classes: int = 0,
        rows: int = BANK_ROWS,
        kept: int | None = None,
        seed: int = 0,
    ) -> Memory:
        """Builds a memory from training embeddings [N,C] and class labels [N]; more than `rows` are thinned.

        With labels the bank is drawn at random, so that votes stay in proportion; without, it covers.
        """
        known = classes if labels is not None else 0
        if labels is not None:
            generator = torch.Generator().manual_seed(seed)
            chosen = torch.randperm(len(embeddings), generator=generator)[:rows].sort().values
        else:
            chosen = k_center(embeddings, rows)
        memory = cls(len(chosen), embeddings.shape[1], known, kept=kept)
        if memory.kept < memory.width:
            memory.middle.copy_(embeddings.mean(0))
            memory.axes.copy_(principal_axes(embeddings, memory.kept))
        memory.bank.copy_(memory.components(embeddings[chosen]))
        means = embeddings.mean(0, keepdim=True)
        if labels is not None:
            memory.votes.copy_(nn.functional.one_hot(labels[chosen].long(), classes).float())
            hot = nn.functional.one_hot(labels.long(), classes).float()
            means = (hot.T @ embeddings) / hot.sum(0)[:, None].clamp_min(1)
        memory.prototypes.copy_(memory.components(means))
        # A sample suffices for one mean.
        near = memory.distances(embeddings[chosen[:256]], memory.bank)
        # Without the first: the nearest to a member of the bank is the member itself.
        nearest = near.topk(min(NEIGHBOURS + 1, len(chosen)), dim=1, largest=False).values[:, 1:]
        if nearest.numel():
            memory.temperature.copy_(nearest.mean().clamp_min(1e-4))
        return memory

    def components(self, embeddings: Tensor) -> Tensor:
        """Returns what is kept of embeddings [N,C], [N,kept]."""
        return (embeddings - self.middle) @ self.axes if self.kept < self.width else embeddings

    def distances(self, embedding: Tensor, points: Tensor) -> Tensor:
        """Returns squared distances [N,M] of whole embeddings [N,C] to kept points [M,kept]."""
        if self.kept == self.width:
            return squared_distances(embedding, points)
        moved = embedding - self.middle
        ahead = torch.addmm(points.square().sum(1), moved @ self.axes, points.T, alpha=-2)
        return (ahead + moved.square().sum(1, keepdim=True)).clamp_min(0)

    def forward(self, embedding: Tensor, outputs: Tensor) -> Tensor:
        """Returns [N,D] for embeddings [N,C] and, for classes, logits [N,K]."""
        # One product for both: the vehicle pays for operations more than for numbers.
        known = self.distances(embedding, torch.cat((self.bank, self.prototypes)))
        to_bank, to_prototypes = torch.split(known, [self.rows, len(self.prototypes)], dim=1)
        squared, places = to_bank.topk(min(NEIGHBOURS, self.rows), dim=1, largest=False)
        distance = torch.sqrt(squared + _NEAR)
        centre = torch.sqrt(to_prototypes + _NEAR)
        nearest = distance.amin(1, keepdim=True)
        columns = [nearest, distance.mean(1, keepdim=True), centre.amin(1, keepdim=True)]
        if self.classes:
            weights = torch.softmax(-squared / self.temperature, 1)
            votes = (weights[..., None] * nn.functional.embedding(places, self.votes)).sum(1)
            parts = Softmax(outputs)
            p, answer = parts.p, parts.answer
            own = (centre * answer).sum(1, keepdim=True)
            # Embeddings have norm 1, so no distance exceeds 2: adding 10 leaves the answer's own prototype
            # out.
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


def principal_axes(embeddings: Tensor, count: int) -> Tensor:
    """Returns the `count` orthogonal directions [C,count] of largest variance of [N,C], the largest last."""
    moved = (embeddings - embeddings.mean(0)).double()
    # eigh sorts its eigenvalues in ascending order, so the last columns have the largest variance.
    axes: Tensor = torch.linalg.eigh(moved.T @ moved).eigenvectors[:, -count:]
    return axes.to(embeddings.dtype)
