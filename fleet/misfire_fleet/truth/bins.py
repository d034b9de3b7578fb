"""Holds a histogram of scores as arrays: merged fast, stored small, and compared with another one.

sketch or scores --> Bins --merge, pack--> a row of score_hours --table--> quantiles, shares, PSI

The bins are those of DDSketch, as in `histogram.py`: (sign, key), 2 % wide.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from misfire_fleet.truth.intervals import Array
from misfire_fleet.truth.sketches import GAMMA, LOG_GAMMA, MOST_BINS, SMALLEST, read_sketch

_PACKED = np.dtype([("key", "<i4"), ("count", "<f8")])


class Bins:
    """Counts frames by score. Keys of scores below 0 are stored in `negative`."""

    def __init__(self) -> None:
        self._sides: dict[int, tuple[int, Array]] = {}
        self._zero = 0.0

    def add_sketch(self, sketch: str) -> float:
        """Adds a sketch as vehicles send it; returns its number of frames.

        Raises:
            ValueError: it is not a sketch of this accuracy, or a count is negative or not finite.
        """
        read = read_sketch(sketch)
        for side in read.sides:
            self._add(side.sign, side.first, side.counts)
        self._zero += read.zero
        return read.total

    def add_score(self, score: float) -> None:
        """Adds a finite score."""
        if abs(score) <= SMALLEST:
            self._zero += 1
        else:
            key = math.ceil(math.log2(abs(score)) * (math.log(2) / LOG_GAMMA))
            self._add(1 if score > 0 else -1, key, np.ones(1))

    def merge(self, other: Bins) -> None:
        """Adds the counts of another histogram."""
        for sign, (offset, counts) in other._sides.items():
            self._add(sign, offset, counts)
        self._zero += other._zero

    @property
    def total(self) -> float:
        """Returns the number of frames."""
        return self._zero + sum(float(counts.sum()) for _, counts in self._sides.values())

    def pack(self) -> bytes:
        """Returns the counts as bytes; bins below 0 have their key's complement far below all others."""
        parts: list[NDArray[np.void]] = []
        for sign, (offset, counts) in sorted(self._sides.items()):
            there = np.flatnonzero(counts)
            part = np.empty(len(there), _PACKED)
            part["key"] = offset + there if sign > 0 else -(2**30) - (offset + there)
            part["count"] = counts[there]
            parts.append(part)
        if self._zero:
            parts.append(np.array([(2**30, self._zero)], _PACKED))
        return np.concatenate(parts).tobytes() if parts else b""

    @classmethod
    def unpack(cls, data: bytes) -> Bins:
        """Returns the histogram of packed bytes. Raises ValueError if they are damaged."""
        rows = np.frombuffer(data, _PACKED)
        made = cls()
        keys, counts = rows["key"].astype(np.int64), rows["count"].astype(float)
        if not (np.isfinite(counts).all() and (counts >= 0).all()):
            raise ValueError("not a histogram")
        zero = keys == 2**30
        made._zero = float(counts[zero].sum())
        for sign, mine in ((1, ~zero & (keys > -(2**29))), (-1, ~zero & (keys <= -(2**29)))):
            if mine.any():
                own = keys[mine] if sign > 0 else -(2**30) - keys[mine]
                first, last = int(own.min()), int(own.max())
                if last - first > MOST_BINS:
                    raise ValueError("not a histogram")
                dense = np.zeros(last - first + 1)
                np.add.at(dense, own - first, counts[mine])
                made._sides[sign] = first, dense
        return made

    def table(self) -> tuple[Array, Array]:
        """Returns the bins' values, rising, and their counts, both [B]."""
        values: list[Array] = []
        counts: list[Array] = []
        for sign in (-1, 1):
            if sign > 0 and self._zero:
                values.append(np.zeros(1))
                counts.append(np.array([self._zero]))
            offset, found = self._sides.get(sign, (0, np.zeros(0)))
            middle = sign * np.exp(np.clip((offset + np.arange(len(found))) * LOG_GAMMA, -700, 700))
            middle = middle * (2 / (1 + GAMMA))
            values.append(middle[::sign])
            counts.append(found[::sign])
        return np.concatenate(values), np.concatenate(counts)

    def quantiles(self, levels: ArrayLike) -> list[float] | None:
        """Returns the quantiles at `levels`, 0..1; None without frames."""
        values, counts = self.table()
        if not counts.sum():
            return None
        below = np.cumsum(counts)
        at = np.searchsorted(below, np.asarray(levels, float) * below[-1], side="left")
        return [float(values[min(int(i), len(values) - 1)]) for i in at]

    def below(self, edges: ArrayLike) -> Array:
        """Returns the share of frames at or below each edge, [E]."""
        values, counts = self.table()
        sums = np.concatenate([[0.0], np.cumsum(counts)])
        # Half a bin's width of tolerance: an edge may be the middle of a bin.
        at = np.searchsorted(values, np.asarray(edges, float) + 1e-12, side="right")
        return np.asarray(sums[at] / max(1.0, sums[-1]), float)

    def _add(self, sign: int, offset: int, counts: Array) -> None:
        before = self._sides.get(sign)
        if before is None:
            self._sides[sign] = offset, counts.copy()
            return
        first, own = before
        low, high = min(first, offset), max(first + len(own), offset + len(counts))
        if high - low > 4 * MOST_BINS:
            raise ValueError("scores are too far apart for a histogram")
        if low < first or high > first + len(own):
            grown = np.zeros(high - low)
            grown[first - low : first - low + len(own)] = own
            first, own = low, grown
            self._sides[sign] = first, own
        own[offset - first : offset - first + len(counts)] += counts


_FLOOR = 1e-4
PSI_WATCH, PSI_DRIFT = 0.1, 0.25
"""The usual thresholds of the population stability index: below .1 none, above .25 a shift."""
MIN_FRAMES = 200
"""With fewer frames the index is mostly chance: its mean without any shift is 9 (1/n + 1/m)."""


def psi(reference: Array, found: Array) -> float:
    """Returns the population stability index of two cumulative distributions at the same edges, [E] each."""
    shares = [np.clip(np.diff(below, prepend=0.0, append=1.0), 0, 1) for below in (reference, found)]
    expected, observed = (np.maximum(share, _FLOOR) for share in shares)
    return float(((observed - expected) * np.log(observed / expected)).sum())


def deciles() -> NDArray[np.float64]:
    """Returns the levels at which a reference is cut for `psi`."""
    return np.asarray(np.linspace(0.1, 0.9, 9), float)
