"""Chooses with `select` which k frames of a pool to label next.

embeddings (and scores, probabilities) --> checks --> one method --> [k] rows in the order of choice
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from misfire_train.errors import SelectionError
from misfire_train.selection import greedy
from misfire_train.selection.points import (
    EuclideanPoints,
    GradientPoints,
    as_matrix,
    check_finite,
    working_precision,
)
from misfire_train.selection.pool import Pool

METHODS: dict[str, str] = {
    "random": "an even draw: the baseline that everything is measured against",
    "top-k": "the highest scores",
    "k-center": "farthest-first cover of the embeddings (core-set), exact greedy",
    "kmeans++": "a draw by squared distance to what is chosen",
    "badge": "kmeans++ on last-layer gradients: uncertain and unlike one another; needs probabilities",
    "typiclust": "the most typical frame of each cluster; for small budgets",
    "probcover": "balls that cover the most frames; for small budgets",
    "score-diversity": "high scores that are far apart: rank(score)^power x squared distance",
}
_COVERAGE = frozenset({"typiclust", "probcover"})
_NEED_SCORES = frozenset({"top-k", "score-diversity"})
_NEED_EMBEDDINGS = frozenset(METHODS) - {"random", "top-k"}


def select(
    embeddings: ArrayLike | None = None,
    *,
    method: str,
    k: int,
    scores: ArrayLike | None = None,
    probabilities: ArrayLike | None = None,
    labelled: ArrayLike | None = None,
    balance: ArrayLike | None = None,
    ids: Sequence[str] | None = None,
    seed: int = 0,
    power: float = 1.0,
    radius: float | None = None,
) -> NDArray[np.int64]:
    """Returns [k] distinct rows of the pool, in the order of choice; the same rows for the same seed.

    Args:
        embeddings: [N,D], an array or a memory map, not copied; "random" and "top-k" do not need it.
        method: a key of METHODS.
        k: number of rows to choose.
        scores: [N], higher is more informative; "top-k" and "score-diversity" need it.
        probabilities: [N,K] of the classes, for "badge".
        labelled: rows [M] (integers) that are labelled already, or embeddings [M,D] of labelled frames
            elsewhere.
            They count as covered from the start and are never chosen.
        balance: [N], class or group of each row, for equal shares.
        ids: [N] names for error messages.
        seed: decides draws and ties.
        power: weight of the score in "score-diversity".
        radius: of a ball in "probcover". Default: found by purity.

    Raises:
        SelectionError: the method is unknown, an input is missing or NaN (named by id), the pool is empty, or
            k exceeds the pool.

    >>> import numpy as np
    >>> pool = np.array([[0.0, 0.0], [0.1, 0.0], [5.0, 0.0], [0.0, 9.0]])
    >>> select(pool, method="k-center", k=2, labelled=[0])
    array([3, 2])
    >>> select(method="top-k", k=2, scores=[0.2, 0.9, 0.5, 0.1])
    array([1, 2])
    """
    if method not in METHODS:
        raise SelectionError(f"no method {method!r}; there are {', '.join(METHODS)}")
    values = None if embeddings is None else as_matrix(embeddings, what="embeddings")
    if values is None and method in _NEED_EMBEDDINGS:
        raise SelectionError(f"{method} needs embeddings")
    ranks = _scores(scores, method, ids)
    size = _pool_size(values, ranks, balance, ids)
    rows, outside = _labelled(labelled, size=size, width=None if values is None else values.shape[1])
    pool = Pool(size, k=k, excluded=rows, balance=balance, seed=seed)
    rng = np.random.default_rng(seed)
    if method == "random":
        _take_in_order(pool, rng.permutation(size))
    elif method == "top-k":
        assert ranks is not None
        _take_in_order(pool, np.argsort(-ranks, kind="stable"))
    elif method == "badge":
        _badge(values, pool, probabilities, rows=rows, outside=outside, ids=ids, rng=rng)
    else:
        points = EuclideanPoints(values, ids=ids)  # type: ignore[arg-type]
        covered = _Covered(rows, outside)
        if method in _COVERAGE:
            _by_coverage(method, points, pool, covered, seed=seed, radius=radius)
        else:
            _by_distance(method, points, pool, covered, ranks=ranks, rng=rng, power=power)
    return pool.result()


@dataclass(frozen=True)
class _Covered:
    """Holds what is labelled already. rows: of the pool. outside: embeddings [M,D] of frames elsewhere."""

    rows: NDArray[np.int64]
    outside: NDArray[np.float32] | None


def _by_coverage(
    method: str,
    points: EuclideanPoints,
    pool: Pool,
    covered: _Covered,
    *,
    seed: int,
    radius: float | None,
) -> None:
    # These two methods need scikit-learn; the others must work without it.
    from misfire_train.selection import coverage

    if covered.outside is not None:
        raise SelectionError(f"{method} takes labelled rows of the pool, not embeddings from elsewhere")
    if method == "typiclust":
        coverage.typiclust(points, pool, labelled=covered.rows, seed=seed)
        return
    if radius is None:
        # At least two clusters, or no ball could be impure; at most 50, up to which k-means is exact.
        radius = coverage.choose_radius(points, clusters=max(2, min(pool.k, 50)), seed=seed)
    rng = np.random.default_rng(seed)
    coverage.prob_cover(points, pool, labelled=covered.rows, radius=radius, rng=rng)


def _by_distance(
    method: str,
    points: EuclideanPoints,
    pool: Pool,
    covered: _Covered,
    *,
    ranks: NDArray[np.float64] | None,
    rng: np.random.Generator,
    power: float,
) -> None:
    nearest = greedy.start(points, pool, covered.rows)
    if covered.outside is not None:
        nearest.add_outside(points, covered.outside)
    if method == "k-center":
        greedy.k_center(points, pool, nearest, rng=rng)
    elif method == "kmeans++":
        greedy.k_means_plus_plus(points, pool, nearest, rng=rng)
    else:
        assert ranks is not None
        greedy.score_diversity(points, pool, nearest, scores=ranks, power=power)


def _badge(
    values: NDArray[Any] | None,
    pool: Pool,
    probabilities: ArrayLike | None,
    *,
    rows: NDArray[np.int64],
    outside: NDArray[np.float32] | None,
    ids: Sequence[str] | None,
    rng: np.random.Generator,
) -> None:
    if probabilities is None:
        raise SelectionError("badge needs the class probabilities [N,K] of the pool")
    if outside is not None:
        raise SelectionError("badge takes labelled rows of the pool, not embeddings from elsewhere")
    assert values is not None
    points = GradientPoints(values, probabilities=probabilities, ids=ids)
    nearest = greedy.start(points, pool, rows)
    greedy.k_means_plus_plus(points, pool, nearest, rng=rng, first_by_norm=True)


def _take_in_order(pool: Pool, order: NDArray[np.intp]) -> None:
    for index in order:
        if not pool.open:
            return
        # A quota may close rows while the order is walked.
        if pool.available[index]:
            pool.take(int(index))


def _scores(scores: ArrayLike | None, method: str, ids: Sequence[str] | None) -> NDArray[np.float64] | None:
    if scores is None:
        if method in _NEED_SCORES:
            raise SelectionError(f"{method} needs scores")
        return None
    values = np.asarray(scores, np.float64)
    if values.ndim != 1:
        raise SelectionError(f"scores must be one number per row, got shape {values.shape}")
    check_finite(values, what="score", ids=ids if ids is not None and len(ids) == len(values) else None)
    return values


def _pool_size(
    values: NDArray[Any] | None,
    ranks: NDArray[np.float64] | None,
    balance: ArrayLike | None,
    ids: Sequence[str] | None,
) -> int:
    sizes = {
        name: len(given)  # type: ignore[arg-type]
        for name, given in (("embeddings", values), ("scores", ranks), ("balance", balance), ("ids", ids))
        if given is not None
    }
    if not sizes:
        raise SelectionError("need embeddings, scores or ids to know what there is to choose from")
    if len(set(sizes.values())) > 1:
        raise SelectionError("lengths differ: " + ", ".join(f"{name} {n}" for name, n in sizes.items()))
    size = next(iter(sizes.values()))
    if size == 0:
        raise SelectionError("the pool is empty: nothing to choose from")
    return size


def _labelled(
    labelled: ArrayLike | None, *, size: int, width: int | None
) -> tuple[NDArray[np.int64], NDArray[np.float32] | None]:
    """Returns (rows of the pool, embeddings of frames outside it)."""
    none = np.empty(0, np.int64)
    if labelled is None:
        return none, None
    given = np.asarray(labelled)
    if given.size == 0:
        return none, None
    if given.ndim == 2:
        if given.shape[1] != width:
            raise SelectionError(
                f"labelled embeddings have {given.shape[1]} values each; the pool has {width}"
            )
        vectors = np.asarray(working_precision(given), np.float32)
        # A sum is NaN or infinite if any of its values is.
        check_finite(vectors.sum(axis=1), what="labelled embedding", ids=None)
        return none, vectors
    if given.ndim != 1 or not np.issubdtype(given.dtype, np.integer):
        raise SelectionError("labelled must be rows [M] of integers, or embeddings [M,D]")
    rows = np.unique(given.astype(np.int64))
    if rows[0] < 0 or rows[-1] >= size:
        raise SelectionError(
            f"labelled row {rows[0] if rows[0] < 0 else rows[-1]} is not in a pool of {size}"
        )
    return rows, None
