"""Selection by distance, one point at a time: k-center, k-means++ (and so BADGE), score-weighted diversity.

Each keeps one column of squared distances to the nearest centre and folds one new column in per step:
O(k N D) time, a few columns of memory beside the pool. Rows that may not be chosen are at -1 for good.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from misfire_train.errors import SelectionError
from misfire_train.selection.points import EuclideanPoints, Floats, Points
from misfire_train.selection.pool import Pool

_CLOSED = np.float32(-1)
_MOST_AHEAD = 12


class NearestCentre:
    """Squared distance of every point to its nearest centre: inf before the first, -1 where closed."""

    def __init__(self, points: Points, pool: Pool) -> None:
        self._points = points
        self.squared = np.full(len(points), np.inf, np.float32)
        self.squared[~pool.available] = _CLOSED
        self._column = np.empty(len(points), np.float32)

    def add(self, index: int) -> None:
        """A point of the pool becomes a centre."""
        self._points.squared_distances_to(index, self._column)
        np.minimum(self.squared, self._column, out=self.squared)

    def fold(self, column: Floats) -> None:
        """A point whose distances are known already becomes a centre."""
        np.minimum(self.squared, column, out=self.squared)

    def add_outside(self, points: EuclideanPoints, vectors: NDArray[np.float32]) -> None:
        """Points [M,D] outside the pool become centres."""
        for vector in vectors:
            points.squared_distances_to_vector(vector, self._column)
            np.minimum(self.squared, self._column, out=self.squared)

    def close(self, rows: NDArray[np.intp]) -> None:
        """These rows can no longer be chosen."""
        self.squared[rows] = _CLOSED


class LookAhead:
    """Distance columns of the likely next choices, computed together: one reading of the pool for many steps.

    A new centre rarely changes who is farthest, so the next maxima are mostly among the present ones. Which
    point is chosen does not depend on it; where the guesses go wrong, fewer are made. The columns take at
    most a tenth of the pool's memory.
    """

    def __init__(self, points: EuclideanPoints) -> None:
        self._points = points
        self._most = max(1, min(_MOST_AHEAD, points.values.shape[1] // 10))
        self._width = self._most
        self._columns: dict[int, Floats] = {}
        self._made = 0

    def column(self, index: int, gain: NDArray[np.floating[Any]]) -> Floats:
        """Squared distances [N] to point `index`; gain: [N], what the next choice will maximise."""
        if index not in self._columns:
            used = self._made - len(self._columns)
            self._width = min(self._most, 2 * used) if self._made else self._most
            self._columns = self._compute(index, gain)
            self._made = len(self._columns)
        return self._columns.pop(index)

    def _compute(self, index: int, gain: NDArray[np.floating[Any]]) -> dict[int, Floats]:
        width = min(self._width, len(gain))
        guesses = np.argpartition(gain, len(gain) - width)[-width:]
        guesses = np.unique(np.append(guesses[gain[guesses] > 0], index))
        self._columns = {}
        return dict(zip(guesses.tolist(), self._points.squared_distances_to_many(guesses), strict=True))


def start(points: Points, pool: Pool, labelled: NDArray[np.int64]) -> NearestCentre:
    """Distances to the rows that are labelled already."""
    nearest = NearestCentre(points, pool)
    for index in labelled:
        nearest.add(int(index))
    return nearest


def k_center(
    points: EuclideanPoints, pool: Pool, nearest: NearestCentre, *, rng: np.random.Generator
) -> None:
    """Sener & Savarese 2018, greedy: always the farthest point. The first is drawn if nothing is labelled."""
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
    """Arthur & Vassilvitskii 2007: each point with probability proportional to its squared distance.

    first_by_norm: start with the longest vector (BADGE), else with a uniform draw. Where all that is left
    lies on centres, the draw is uniform.
    """
    if np.isinf(nearest.squared).any():
        norms = np.where(pool.available, points.squared_norms, -1)
        uniform = int(rng.choice(np.flatnonzero(pool.available)))
        take(pool, nearest, int(norms.argmax()) if first_by_norm else uniform)
    while pool.open:
        take(pool, nearest, draw(nearest.squared, pool, rng))


def draw(weights: Floats, pool: Pool, rng: np.random.Generator) -> int:
    """An available row, with probability proportional to its weight; uniform where all weights are zero."""
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
    """Greedy maximum of rank(score)^power x squared distance: telling frames that are unlike one another.

    The rank (a share in (0, 1]) makes the result the same under any rising transform of the score. Starts
    with the highest score. power 0 is k-center; a large power is top-k.
    """
    if power < 0:
        raise SelectionError(f"power must be at least 0, got {power}")
    order = np.argsort(scores, kind="stable")
    weight = np.empty(len(scores), np.float32)
    _, first, inverse = np.unique(scores[order], return_index=True, return_inverse=True)
    ends = np.append(first[1:], len(scores))
    weight[order] = (ends[inverse] / len(scores)) ** power
    if np.isinf(nearest.squared).any():
        take(pool, nearest, int(np.where(pool.available, weight, -1).argmax()))
    ahead = LookAhead(points)
    while pool.open:
        gain = nearest.squared * weight
        best = int(gain.argmax())
        if gain[best] <= 0:
            best = int(np.where(pool.available, weight, -1).argmax())
        take(pool, nearest, best, column=ahead.column(best, gain))


def take(pool: Pool, nearest: NearestCentre, index: int, *, column: Floats | None = None) -> None:
    """Chooses a row, folds its distances in (computed where not given), closes what its quota closes."""
    closed = pool.take(index)
    if column is None:
        nearest.add(index)
    else:
        nearest.fold(column)
    nearest.close(closed)
