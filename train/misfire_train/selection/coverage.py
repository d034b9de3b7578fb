"""Selects by density: ProbCover covers the pool with balls, TypiClust takes a typical point per cluster.

Both serve small budgets, at which the farthest points are mostly oddities.
"""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.exceptions import ConvergenceWarning

from misfire_train.errors import SelectionError
from misfire_train.selection.points import BLOCK_BYTES, EuclideanPoints, working_precision
from misfire_train.selection.pool import Pool

# As in the published code of TypiClust, like the next three.
MAX_CLUSTERS = 500
# Up to this many clusters k-means sees the whole pool at each step, above it mini-batches.
_EXACT_CLUSTERS = 50
# A smaller cluster comes last: it may consist of outliers.
_MIN_CLUSTER = 5
# K of the typicality.
_NEIGHBOURS = 20
# Yehuda et al. 2022, alpha of the purity by which the radius is chosen.
_PURITY = 0.95
# All pairs of the sample are compared: 16 MB of float32.
_RADIUS_SAMPLE = 2000


def prob_cover(
    points: EuclideanPoints,
    pool: Pool,
    *,
    labelled: NDArray[np.int64],
    radius: float,
    rng: np.random.Generator,
) -> None:
    """Chooses greedily the point whose ball holds the most uncovered points (Yehuda et al. 2022).

    Balls are not stored. What a choice newly covers is subtracted from everybody's count, so each point is
    compared with the pool at most twice: O(N^2 D) time in blocks, O(N) memory beside them. Once everything is
    covered, the remaining choices are drawn evenly.
    """
    if not radius > 0:
        raise SelectionError(f"radius must be above 0, got {radius}")
    everyone = np.arange(len(points))
    uncovered = np.ones(len(points), np.bool_)
    gain = count_within(points, everyone, radius)
    column = np.empty(len(points), np.float32)

    def cover(index: int) -> None:
        points.squared_distances_to(index, column)
        # Rounding may leave a point at a small distance from itself.
        column[index] = 0
        newly = np.flatnonzero((column <= radius * radius) & uncovered)
        uncovered[newly] = False
        gain[:] -= count_within(points, newly, radius)

    for index in labelled:
        cover(int(index))
    while pool.open:
        best = int(np.where(pool.available, gain, -1).argmax())
        if gain[best] <= 0:
            best = int(rng.choice(np.flatnonzero(pool.available)))
        pool.take(best)
        cover(best)


def count_within(points: EuclideanPoints, rows: NDArray[np.intp], radius: float) -> NDArray[np.int64]:
    """Returns [N], how many of those rows are within `radius` of each point of the pool."""
    found = np.zeros(len(points), np.int64)
    if not len(rows):
        return found
    for start in range(0, len(rows), 4096):
        some = rows[start : start + 4096]
        centres = working_precision(np.asarray(points.values[some]))
        step = max(1, BLOCK_BYTES // (4 * len(some)))
        for first in range(0, len(points), step):
            block = slice(first, first + step)
            squared = working_precision(np.asarray(points.values[block])) @ centres.T
            squared *= -2
            squared += points.squared_norms[block, None]
            squared += points.squared_norms[None, some]
            found[block] += (squared <= radius * radius).sum(axis=1)
    return found


def choose_radius(points: EuclideanPoints, *, clusters: int, seed: int) -> float:
    """Returns the largest radius whose balls are 95 % pure.

    Purity is measured against k-means clusters, on a sample of 2,000 points.
    """
    rng = np.random.default_rng(seed)
    sample = np.sort(rng.choice(len(points), min(len(points), _RADIUS_SAMPLE), replace=False))
    values = working_precision(np.asarray(points.values[sample]))
    labels = cluster(values, clusters=min(clusters, len(sample)), seed=seed)
    norms = points.squared_norms[sample]
    squared = np.maximum(norms[:, None] + norms[None] - 2 * values @ values.T, 0)
    np.fill_diagonal(squared, np.inf)
    alien = np.where(labels[:, None] != labels[None], squared, np.inf).min(axis=1)
    finite = squared[np.isfinite(squared)]
    if not finite.size or finite.max() == 0:
        raise SelectionError("all embeddings are equal: there is no radius to cover with")
    # A ball is pure while it holds no point of another cluster; 95 % of the balls must be.
    limit = np.quantile(alien, 1 - _PURITY) if np.isfinite(alien).any() else finite.max()
    return float(np.sqrt(max(min(limit, finite.max()), finite[finite > 0].min())))


def typiclust(points: EuclideanPoints, pool: Pool, *, labelled: NDArray[np.int64], seed: int) -> None:
    """Chooses the most typical point of each of as many clusters as there will be labels (Hacohen et al.

    2022).

    Typicality is the inverse mean distance to the 20 nearest neighbours in the cluster. Clusters with the
    fewest labels come first, then the largest; clusters below five points come last.
    """
    values = working_precision(np.asarray(points.values))
    wanted = min(len(labelled) + pool.k, MAX_CLUSTERS, len(points))
    labels = cluster(values, clusters=wanted, seed=seed)
    members = [np.flatnonzero(labels == c) for c in range(int(labels.max()) + 1)]
    covered = np.bincount(labels[labelled], minlength=len(members)).astype(np.int64)
    sizes = np.array([len(rows) for rows in members])
    ranked: dict[int, list[int]] = {}
    while pool.open:
        # lexsort sorts by its last key first: small clusters last, then few labels first, then large ones
        # first.
        for c in np.lexsort((-sizes, covered, sizes < _MIN_CLUSTER)):
            if c not in ranked:
                ranked[c] = [
                    int(row) for row in members[c][np.argsort(-typicality(values[members[c]]), kind="stable")]
                ]
            while ranked[c] and not pool.available[ranked[c][0]]:
                ranked[c].pop(0)
            if ranked[c]:
                pool.take(ranked[c].pop(0))
                covered[c] += 1
                break


def typicality(values: NDArray[np.float32], *, neighbours: int = _NEIGHBOURS) -> NDArray[np.float64]:
    """Returns the inverse mean distance to the nearest neighbours, [n], in blocks of little memory."""
    count = len(values)
    if count == 1:
        return np.ones(1)
    near = min(neighbours, count - 1)
    norms = np.einsum("nd,nd->n", values, values)
    means = np.empty(count)
    step = max(1, BLOCK_BYTES // (4 * count))
    for start in range(0, count, step):
        block = slice(start, min(start + step, count))
        squared = np.maximum(norms[block, None] + norms[None] - 2 * values[block] @ values.T, 0)
        squared[np.arange(len(squared)), np.arange(count)[block]] = np.inf
        nearest = np.partition(squared, near - 1, axis=1)[:, :near]
        means[block] = np.sqrt(nearest).mean(axis=1)
    return 1.0 / np.maximum(means, 1e-12)


def cluster(values: NDArray[np.float32], *, clusters: int, seed: int) -> NDArray[np.intp]:
    """Returns k-means labels [N] without gaps: full k-means up to 50 clusters, mini-batches above."""
    kind = KMeans if clusters <= _EXACT_CLUSTERS else MiniBatchKMeans
    options = {} if kind is KMeans else {"batch_size": 5000}
    with warnings.catch_warnings():
        # Fewer distinct points than clusters is fine: the empty clusters are dropped below.
        warnings.simplefilter("ignore", ConvergenceWarning)
        labels = kind(n_clusters=clusters, n_init=1, random_state=seed, **options).fit_predict(values)
    return np.asarray(np.unique(labels, return_inverse=True)[1])
