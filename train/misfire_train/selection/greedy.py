"""Selects by distance, one point at a time: k-center, k-means++ (and so BADGE), score-weighted diversity.

Each method keeps one column of squared distances to the nearest centre and folds one new column in per step:
O(k N D) time, a few columns of memory beside the pool. Rows that cannot be chosen stay at -1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from misfire_train.errors import SelectionError
from misfire_train.selection.points import EuclideanPoints, Floats, Points
from misfire_train.selection.pool import Pool

# Below every distance, so that no maximum finds a closed row; minima with real distances keep it.
_CLOSED = np.float32(-1)
_MOST_AHEAD = 12


class NearestCentre:
    """Holds the squared distance of every point to its nearest centre: inf before the first, -1 if closed."""

    def __init__(self, points: Points, pool: Pool) -> None:
        self._points = points
        self.squared = np.full(len(points), np.inf, np.float32)
        self.squared[~pool.available] = _CLOSED
        self._column = np.empty(len(points), np.float32)

    def add(self, index: int) -> None:
        """Makes a point of the pool a centre."""
        self._points.squared_distances_to(index, self._column)
        np.minimum(self.squared, self._column, out=self.squared)

    def fold(self, column: Floats) -> None:
        """Makes a point a centre whose distances are known already."""
        np.minimum(self.squared, column, out=self.squared)

    def add_outside(self, points: EuclideanPoints, vectors: NDArray[np.float32]) -> None:
        """Makes points [M,D] outside the pool centres."""
        for vector in vectors:
            points.squared_distances_to_vector(vector, self._column)
            np.minimum(self.squared, self._column, out=self.squared)

    def close(self, rows: NDArray[np.intp]) -> None:
        """Excludes these rows from further choices."""
        self.squared[rows] = _CLOSED


class LookAhead:
    """Computes distance columns of the likely next choices together: one pass over the pool for many steps.

    A new centre rarely changes who is farthest, so the next maxima are mostly among the present ones. The
    guesses do not change which point is chosen; if they are wrong, fewer are made. The columns take at most a
    tenth of the pool's memory.
    """

    def __init__(self, points: EuclideanPoints) -> None:
        self._points = points
        self._most = max(1, min(_MOST_AHEAD, points.values.shape[1] // 10))
        self._width = self._most
        self._columns: dict[int, Floats] = {}
        self._made = 0

    def column(self, index: int, gain: NDArray[np.floating[Any]]) -> Floats:
        """Returns the squared distances [N] to point `index`.

        gain: [N], what the next choice will maximise.
        """
        if index not in self._columns:
            used = self._made - len(self._columns)
            # Twice as many guesses as were useful last time.
            self._width = min(self._most, 2 * used) if self._made else self._most
            self._columns = self._compute(index, gain)
            self._made = len(self._columns)
        return self._columns.pop(index)

    def _compute(self, index: int, gain: NDArray[np.floating[Any]]) -> dict[int, Floats]:
        width = min(self._width, len(gain))
        guesses = np.argpartition(gain, len(gain) - width)[-width:]
        guesses = np.unique(np.append(guesses[gain[guesses] > 0], index))
        # Freed before the new columns are computed, so that both are never in memory.
        self._columns = {}
        return dict(zip(guesses.tolist(), self._points.squared_distances_to_many(guesses), strict=True))


def start(points: Points, pool: Pool, labelled: NDArray[np.int64]) -> NearestCentre:
    """Returns the distances to the rows that are labelled already."""
    nearest = NearestCentre(points, pool)
    for index in labelled:
        nearest.add(int(index))
    return nearest


def k_center(
    points: EuclideanPoints, pool: Pool, nearest: NearestCentre, *, rng: np.random.Generator
) -> None:
    """Chooses the farthest point each time (Sener & Savarese 2018, greedy).

    The first point is drawn if nothing is labelled.
    """
    if np.isinf(nearest.squared).any():
        take(pool, nearest, int(rng.choice(np.flatnonzero(pool.available))))
    ahead = LookAhead(points)
    while pool.open:
        index = int(nearest.squared.argmax())
        take(pool, nearest, index, column=ahead.column(index, nearest.squared))


def k_means_plus_plus(
    points: Points,
    pool: Pool,
    nearest: NearestCentre,
    *,
    rng: np.random.Generator,
    first_by_norm: bool = False,
) -> None:
    """Draws each point with probability proportional to its squared distance (Arthur & Vassilvitskii 2007).

    first_by_norm: start with the longest vector (BADGE), else with a uniform draw. If all remaining points
    coincide with centres, the draw is uniform.
    """
    if np.isinf(nearest.squared).any():
        norms = np.where(pool.available, points.squared_norms, -1)
        uniform = int(rng.choice(np.flatnonzero(pool.available)))
        take(pool, nearest, int(norms.argmax()) if first_by_norm else uniform)
    while pool.open:
        take(pool, nearest, draw(nearest.squared, pool, rng))


def draw(weights: Floats, pool: Pool, rng: np.random.Generator) -> int:
    """Returns an available row, drawn in proportion to its weight; uniformly if all weights are zero."""
    cumulated = np.cumsum(np.maximum(weights, 0), dtype=np.float64)
    total = cumulated[-1]
    if total <= 0:
        return int(rng.choice(np.flatnonzero(pool.available)))
    index = int(np.searchsorted(cumulated, rng.random() * total, side="right"))
    # A draw at the very end may round past the last row that has weight.
    return index if index < len(weights) else int(np.flatnonzero(weights > 0)[-1])


def score_diversity(
    points: EuclideanPoints, pool: Pool, nearest: NearestCentre, *, scores: NDArray[np.float64], power: float
) -> None:
    """Maximises rank(score)^power x squared distance greedily.

    The result is informative frames that are unlike one another. The rank (a share in (0, 1]) makes it the
    same under any rising transform of the score. The first choice is the highest score. power 0 is k-center;
    a large power is top-k.
    """
    if power < 0:
        raise SelectionError(f"power must be at least 0, got {power}")
    order = np.argsort(scores, kind="stable")
    weight = np.empty(len(scores), np.float32)
    _, first, inverse = np.unique(scores[order], return_index=True, return_inverse=True)
    # Tied scores share the rank of the last of them.
    ends = np.append(first[1:], len(scores))
    weight[order] = (ends[inverse] / len(scores)) ** power
    if np.isinf(nearest.squared).any():
        take(pool, nearest, int(np.where(pool.available, weight, -1).argmax()))
    ahead = LookAhead(points)
    while pool.open:
        gain = nearest.squared * weight
        best = int(gain.argmax())
        # All remaining points coincide with centres.
        if gain[best] <= 0:
            best = int(np.where(pool.available, weight, -1).argmax())
        take(pool, nearest, best, column=ahead.column(best, gain))


def take(pool: Pool, nearest: NearestCentre, index: int, *, column: Floats | None = None) -> None:
    """Chooses a row, folds in its distances (computed if not given), and closes what its quota closes."""
    closed = pool.take(index)
    if column is None:
        nearest.add(index)
    else:
        nearest.fold(column)
    nearest.close(closed)
