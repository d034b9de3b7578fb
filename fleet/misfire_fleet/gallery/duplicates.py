"""Groups near-duplicates: samples of one bundle whose embeddings are alike.

vectors in the order of arrival --assign--> the seq of each one's leader

A sample joins the most similar leader, so a group never drifts: all of it resembles its leader.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SIMILARITY = 0.98
"""Cosine similarity, as collectors decline near-duplicates, and the verdict screen folds them."""
_MOST = 4_096
"""Leaders of a bundle that a new sample is compared with, the newest ones. Near-duplicates come close in
time, and a store of a million different samples is still read in minutes."""


class Leaders:
    """Holds the leaders of one bundle, [L, D]."""

    def __init__(self, dimensions: int) -> None:
        self._vectors: NDArray[np.float32] = np.zeros((256, dimensions), np.float32)
        self._seqs: NDArray[np.int64] = np.zeros(256, np.int64)
        self._count = 0

    def assign(self, vectors: NDArray[np.float32], seqs: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the leader's seq of each sample; it is its own one if it resembles none.

        Args:
            vectors: [N, D], of length 1.
            seqs: [N].
        """
        found = np.empty(len(seqs), np.int64)
        for start in range(0, len(seqs), 256):
            part = slice(start, start + 256)
            found[part] = self._assign(vectors[part], seqs[part])
        return found

    def _assign(self, vectors: NDArray[np.float32], seqs: NDArray[np.int64]) -> NDArray[np.int64]:
        found = np.zeros(len(seqs), np.int64)
        if self._count:
            alike = vectors @ self._vectors[: self._count].T
            best = alike.argmax(1)
            near = alike[np.arange(len(seqs)), best] >= SIMILARITY
            found[near] = self._seqs[best[near]]
        # What resembles no leader so far may resemble one of its own group.
        rest = np.flatnonzero(found == 0)
        within = vectors[rest] @ vectors[rest].T
        for at, place in enumerate(rest):
            if found[place]:
                continue
            found[place] = seqs[place]
            self._add(vectors[place], int(seqs[place]))
            follow = rest[at + 1 :][within[at, at + 1 :] >= SIMILARITY]
            found[follow[found[follow] == 0]] = seqs[place]
        return found

    def _add(self, vector: NDArray[np.float32], seq: int) -> None:
        if self._count == _MOST:
            half = _MOST // 2
            self._vectors[:half], self._seqs[:half] = self._vectors[half:_MOST], self._seqs[half:_MOST]
            self._count = half
        if self._count == len(self._seqs):
            self._vectors = np.concatenate([self._vectors, np.zeros_like(self._vectors)])[:_MOST]
            self._seqs = np.concatenate([self._seqs, np.zeros_like(self._seqs)])[:_MOST]
        self._vectors[self._count], self._seqs[self._count] = vector, seq
        self._count += 1
