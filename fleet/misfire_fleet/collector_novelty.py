"""Has the fleet seen this already? The newest embeddings of each bundle, compared by cosine similarity.

Embeddings of different bundles live in different spaces and are never compared. Accepted offers count at
once, not only when stored: a thousand vehicles in one fog bank offer within the same second.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray

from misfire_fleet.collector_settings import NearDuplicates

_MAX_BUNDLES = 16


class Novelty:
    """A ring of embeddings per bundle and width; thread-safe."""

    def __init__(self, settings: NearDuplicates) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._rings: OrderedDict[tuple[str, int], _Ring] = OrderedDict()

    def neighbours(self, bundle: str, embedding: NDArray[np.float32], *, besides: str) -> int:
        """How many remembered samples other than `besides` are at least as similar as the settings say."""
        unit = _unit(embedding)
        with self._lock:
            ring = self._rings.get((bundle, len(unit)))
            return 0 if ring is None else ring.near(unit, self._settings.similarity, besides=besides)

    def remember(self, bundle: str, sample: str, embedding: NDArray[np.float32]) -> None:
        """Adds a sample; the oldest of its bundle is forgotten where the ring is full."""
        unit = _unit(embedding)
        key = (bundle, len(unit))
        with self._lock:
            if key not in self._rings:
                self._rings[key] = _Ring(self._settings.remembered, len(unit))
                if len(self._rings) > _MAX_BUNDLES:
                    self._rings.popitem(last=False)
            self._rings.move_to_end(key)
            self._rings[key].add(sample, unit)

    def forget(self, sample: str) -> None:
        """Takes a sample out: it was asked for and never came."""
        with self._lock:
            for ring in self._rings.values():
                ring.remove(sample)

    def is_duplicate(self, bundle: str, embedding: NDArray[np.float32], *, sample: str) -> bool:
        """True where the fleet has its copies of this scene."""
        return self.neighbours(bundle, embedding, besides=sample) >= self._settings.copies


class _Ring:
    """[capacity, D] unit vectors, grown by doubling; a removed row is zero and resembles nothing."""

    def __init__(self, capacity: int, width: int) -> None:
        self._capacity = capacity
        self._rows: NDArray[np.float32] = np.zeros((min(capacity, 256), width), np.float32)
        self._ids: list[str | None] = []
        self._at: dict[str, int] = {}
        self._next = 0

    def near(self, unit: NDArray[np.float32], similarity: float, *, besides: str) -> int:
        used = len(self._ids)
        count = int(np.count_nonzero(self._rows[:used] @ unit >= similarity))
        own = self._at.get(besides)
        return count - (own is not None and float(self._rows[own] @ unit) >= similarity)

    def add(self, sample: str, unit: NDArray[np.float32]) -> None:
        if sample in self._at:
            self._rows[self._at[sample]] = unit
            return
        slot = self._next
        self._next = (self._next + 1) % self._capacity
        if slot == len(self._ids):
            self._ids.append(sample)
            if slot == len(self._rows):
                more = min(self._capacity, 2 * len(self._rows))
                self._rows = np.concatenate([self._rows, np.zeros((more - slot, unit.size), np.float32)])
        else:
            old = self._ids[slot]
            if old is not None:
                del self._at[old]
            self._ids[slot] = sample
        self._rows[slot] = unit
        self._at[sample] = slot

    def remove(self, sample: str) -> None:
        slot = self._at.pop(sample, None)
        if slot is not None:
            self._ids[slot] = None
            self._rows[slot] = 0


def _unit(embedding: NDArray[np.float32]) -> NDArray[np.float32]:
    length = float(np.linalg.norm(embedding))
    return embedding / length if length > 0 else embedding
