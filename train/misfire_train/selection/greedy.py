"""Selection by distance, one point at a time: k-center, k-means++ (and so BADGE), score-weighted diversity.

Each keeps one column of squared distances to the nearest centre and folds one new column in per step:
O(k N D) time, two columns of memory beside the pool. Rows that may not be chosen stand at -1 and stay there.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from misfire_train.selection.errors import SelectionError
from misfire_train.selection.points import EuclideanPoints, Floats, Points
from misfire_train.selection.pool import Pool

_CLOSED = np.float32(-1)


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

    def add_outside(self, points: EuclideanPoints, vectors: NDArray[np.float32]) -> None:
        """Points [M,D] outside the pool become centres."""
        for vector in vectors:
            points.squared_distances_to_vector(vector, self._column)
            np.minimum(self.squared, self._column, out=self.squared)

    def close(self, rows: NDArray[np.intp]) -> None:
        """These rows can no longer be chosen."""
        self.squared[rows] = _CLOSED


def start(points: Points, pool: Pool, labelled: NDArray[np.int64]) -> NearestCentre:
    """Distances to the rows that are labelled already."""
    nearest = NearestCentre(points, pool)
    for index in labelled:
        nearest.add(int(index))
    return nearest


def k_center(points: Points, pool: Pool, nearest: NearestCentre, *, rng: np.random.Generator) -> None:
    """Sener & Savarese 2018, greedy: always the farthest point. The first is drawn if nothing is labelled."""
    if np.isinf(nearest.squared).any():
        take(pool, nearest, int(rng.choice(np.flatnonzero(pool.available))))
    while pool.open:
        take(pool, nearest, int(nearest.squared.argmax()))


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
    points: Points, pool: Pool, nearest: NearestCentre, *, scores: NDArray[np.float64], power: float
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
    while pool.open:
        gain = nearest.squared * weight
        best = int(gain.argmax())
        if gain[best] <= 0:
            best = int(np.where(pool.available, weight, -1).argmax())
        take(pool, nearest, best)


def take(pool: Pool, nearest: NearestCentre, index: int) -> None:
    """Chooses a row, folds its distances in, and closes what its quota closes."""
    closed = pool.take(index)
    nearest.add(index)
    nearest.close(closed)
