"""Finds near-duplicates: a frame whose embedding is close to one just taken is not informative."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from misfire_runtime.tables import Table


class NoveltyTable(Table):
    """Suppression of near-duplicates by cosine similarity of embeddings."""

    similarity: float = Field(default=0.98, gt=-1, le=1)
    memory: int = Field(default=256, ge=1, le=65536)


class Novelty:
    """Remembers the embeddings of the last `memory` taken frames.

    A frame is a near-duplicate if its cosine similarity to one of them is at or above `similarity`.
    """

    def __init__(self, *, similarity: float, memory: int = 256) -> None:
        self._similarity = similarity
        self._memory = memory
        self._ring: NDArray[np.float32] | None = None
        self._count = 0

    def nearest(self, embedding: NDArray[np.float32]) -> float:
        """Returns the highest cosine similarity to a remembered frame; -1 if there is none.

        Args:
            embedding: [D], any length.
        """
        # Another width is another bundle's embedding: they cannot be compared.
        if self._ring is None or self._count == 0 or self._ring.shape[1] != embedding.size:
            return -1.0
        filled = min(self._count, self._memory)
        return float((self._ring[:filled] @ _unit(embedding)).max())

    def is_duplicate(self, embedding: NDArray[np.float32] | None) -> bool:
        """Returns True for a near-duplicate; False without an embedding: what cannot be compared is kept."""
        return embedding is not None and self.nearest(embedding) >= self._similarity

    def remember(self, embedding: NDArray[np.float32] | None) -> None:
        """Adds a taken frame and forgets the oldest. Another width (a new bundle) starts afresh."""
        if embedding is None:
            return
        if self._ring is None or self._ring.shape[1] != embedding.size:
            self._ring = np.zeros((self._memory, embedding.size), np.float32)
            self._count = 0
        self._ring[self._count % self._memory] = _unit(embedding)
        self._count += 1


def _unit(embedding: NDArray[np.float32]) -> NDArray[np.float32]:
    # 1e-12: an embedding of zeros has no direction, and must not become NaN.
    return embedding / np.float32(max(float(np.linalg.norm(embedding)), 1e-12))
