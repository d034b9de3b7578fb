"""Finds near-duplicates: compares an embedding with the newest ones of its bundle, by cosine similarity.

Different bundles have different embedding spaces, so their embeddings are never compared. A sample is
remembered as soon as it is requested, because a thousand vehicles in one fog bank offer within the same
second. Whether the next similar one is declined or only put off depends on how many of them are stored;
OfferHandler decides.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray

from misfire_fleet.collector.settings import NearDuplicates

_MAX_BUNDLES = 16
"""A fleet runs few bundles at a time; the least recently used ring is dropped."""


class Novelty:
    """Holds a ring of embeddings per bundle and dimension. Thread-safe."""

    def __init__(self, settings: NearDuplicates) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._rings: OrderedDict[tuple[str, int], _Ring] = OrderedDict()
        self._expected: set[str] = set()

    def neighbours(self, bundle: str, embedding: NDArray[np.float32], *, besides: str) -> list[str]:
        """Returns the ids of similar samples.

        Args:
            bundle: label of the bundle that made the embedding.
            embedding: [D] floats.
            besides: id of a sample to leave out: the offered one itself may be remembered already.
        """
        unit = _unit(embedding)
        with self._lock:
            ring = self._rings.get((bundle, len(unit)))
            return [] if ring is None else ring.near(unit, self._settings.similarity, besides=besides)

    def remember(
        self, bundle: str, sample: str, embedding: NDArray[np.float32], *, stored: bool = True
    ) -> None:
        """Adds a sample, stored or under way. A full ring drops the oldest sample of its bundle."""
        unit = _unit(embedding)
        key = (bundle, len(unit))
        with self._lock:
            if key not in self._rings:
                self._rings[key] = _Ring(self._settings.remembered, len(unit))
                if len(self._rings) > _MAX_BUNDLES:
                    self._rings.popitem(last=False)
            self._rings.move_to_end(key)
            self._rings[key].add(sample, unit)
            if stored:
                self._expected.discard(sample)
            else:
                self._expected.add(sample)

    def arrived(self, sample: str) -> None:
        """Marks a sample that was under way as stored."""
        with self._lock:
            self._expected.discard(sample)

    def forget(self, sample: str) -> None:
        """Removes a sample that was requested and never came, or was deleted."""
        with self._lock:
            self._expected.discard(sample)
            for ring in self._rings.values():
                ring.remove(sample)

    def expects(self, sample: str) -> bool:
        """Returns True while a sample is under way."""
        return sample in self._expected


class _Ring:
    """Holds [capacity, D] unit vectors, grown by doubling. A removed row is zero: its similarity is zero."""

    def __init__(self, capacity: int, width: int) -> None:
        self._capacity = capacity
        # Grown on demand: a bundle with few samples needs little memory.
        self._rows: NDArray[np.float32] = np.zeros((min(capacity, 256), width), np.float32)
        self._ids: list[str | None] = []
        self._at: dict[str, int] = {}
        self._free: list[int] = []
        self._next = 0

    def near(self, unit: NDArray[np.float32], similarity: float, *, besides: str) -> list[str]:
        used = len(self._ids)
        similar = np.flatnonzero(self._rows[:used] @ unit >= similarity)
        found = (self._ids[slot] for slot in similar)
        return [sample for sample in found if sample is not None and sample != besides]

    def add(self, sample: str, unit: NDArray[np.float32]) -> None:
        slot = self._at.get(sample)
        if slot is None:
            slot = self._free.pop() if self._free else self._oldest()
        self._ids[slot], self._at[sample] = sample, slot
        self._rows[slot] = unit

    def _oldest(self) -> int:
        """Returns the next slot in turn, emptied.

        Slots of removed samples are used first, so a sample that never came displaces no other one.
        """
        slot = self._next
        self._next = (self._next + 1) % self._capacity
        if slot == len(self._ids):
            self._ids.append(None)
            if slot == len(self._rows):
                more = min(self._capacity, 2 * slot) - slot
                self._rows = np.concatenate([self._rows, np.zeros((more, self._rows.shape[1]), np.float32)])
        elif (old := self._ids[slot]) is not None:
            del self._at[old]
        return slot

    def remove(self, sample: str) -> None:
        slot = self._at.pop(sample, None)
        if slot is not None:
            self._ids[slot] = None
            self._rows[slot] = 0
            self._free.append(slot)


def _unit(embedding: NDArray[np.float32]) -> NDArray[np.float32]:
    # A zero vector stays zero, and is similar to nothing.
    length = float(np.linalg.norm(embedding))
    return embedding / length if length > 0 else embedding
