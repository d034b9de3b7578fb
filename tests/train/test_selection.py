"""Selection: what every method promises on random pools, and each method against a plain re-computation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from misfire_train.selection import METHODS, SelectionError, select
from misfire_train.selection.points import EuclideanPoints, GradientPoints
from misfire_train.selection.pool import equal_shares


def blobs(seed: int, count: int, width: int = 6) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(count, width)) + 4 * rng.integers(0, 4, (count, 1))).astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**32 - 1), method=st.sampled_from(sorted(METHODS)))
def test_every_method_gives_k_distinct_allowed_rows_and_the_same_for_the_same_seed(
    data: st.DataObject, seed: int, method: str
) -> None:
    rng = np.random.default_rng(seed)
    count = data.draw(st.integers(2, 40))
    # A coarse grid, so that there are many duplicates and ties.
    pool = rng.integers(0, 3, (count, 2)).astype(
        data.draw(st.sampled_from([np.float32, np.float64, np.float16]))
    )
    pool[0] = 7
    labelled = rng.choice(count, data.draw(st.integers(0, count // 2)), replace=False)
    k = data.draw(st.integers(1, count - len(labelled)))
    balance = rng.integers(0, 3, count) if data.draw(st.booleans()) else None

    def run() -> NDArray[np.int64]:
        return select(
            pool,
            method=method,
            k=k,
            scores=rng_scores,
            probabilities=probabilities,
            labelled=labelled,
            balance=balance,
            seed=seed,
        )

    rng_scores = rng.integers(0, 3, count).astype(float)
    probabilities = rng.dirichlet(np.ones(3), count)
    chosen = run()
    assert chosen.dtype == np.int64
    assert len(set(chosen.tolist())) == k
    assert not set(chosen.tolist()) & set(labelled.tolist())
    assert ((chosen >= 0) & (chosen < count)).all()
    assert (run() == chosen).all()


@settings(max_examples=100, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 50), min_size=1, max_size=8), k=st.integers(0, 300), seed=st.integers(0, 99)
)
def test_equal_shares_fill_the_budget_and_differ_by_more_than_one_only_where_a_group_is_exhausted(
    sizes: list[int], k: int, seed: int
) -> None:
    shares = equal_shares(np.array(sizes), k=k, seed=seed)
    assert shares.sum() == min(k, sum(sizes))
    assert (shares <= sizes).all()
    unfinished = shares[shares < np.array(sizes)]
    if unfinished.size:
        assert shares.max() <= unfinished.min() + 1


def test_a_quota_fills_from_other_groups_instead_of_stopping_at_the_smallest() -> None:
    balance = np.array(["day"] * 50 + ["night"] * 3)
    for method in ("top-k", "k-center", "random", "typiclust"):
        chosen = select(blobs(0, 53), method=method, k=20, scores=np.arange(53)[::-1], balance=balance)
        assert np.isin(np.arange(50, 53), chosen).all(), method
        assert len(chosen) == 20


def test_k_center_is_the_greedy_cover_of_a_plain_double_precision_computation() -> None:
    pool = blobs(1, 300)
    chosen = select(pool, method="k-center", k=40, labelled=[5, 9])
    distance = np.minimum(
        *(np.linalg.norm(pool.astype(float) - pool[i].astype(float), axis=1) for i in (5, 9))
    )
    for index in chosen:
        assert distance[index] == pytest.approx(distance.max(), rel=1e-5)
        distance = np.minimum(
            distance, np.linalg.norm(pool.astype(float) - pool[index].astype(float), axis=1)
        )


def test_k_center_keeps_away_from_labelled_frames_outside_the_pool() -> None:
    pool = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    assert select(pool, method="k-center", k=1, labelled=np.array([[9.0, 0.0], [0.0, 1.0]])).tolist() == [2]


def test_k_center_on_duplicates_ends_with_the_duplicates() -> None:
    pool = np.repeat([[0.0, 0.0], [1.0, 0.0], [5.0, 5.0]], 4, axis=0)
    first = select(pool, method="k-center", k=3, seed=1)
    assert len({tuple(pool[i]) for i in first}) == 3
    assert len(select(pool, method="k-center", k=12)) == 12


def test_badge_distances_equal_those_of_gradients_written_out() -> None:
    rng = np.random.default_rng(2)
    embeddings, probabilities = rng.normal(size=(50, 5)).astype(np.float32), rng.dirichlet(np.ones(4), 50)
    points = GradientPoints(embeddings, probabilities=probabilities)
    residual = probabilities - np.eye(4)[probabilities.argmax(1)]
    gradients = np.einsum("nk,nd->nkd", residual, embeddings).reshape(50, -1)
    column = np.empty(50, np.float32)
    for index in (0, 7, 49):
        points.squared_distances_to(index, column)
        assert np.allclose(column, ((gradients - gradients[index]) ** 2).sum(1), atol=1e-4)
    assert np.allclose(points.squared_norms, (gradients**2).sum(1), atol=1e-5)


def test_badge_starts_with_the_longest_gradient_and_then_draws_by_squared_distance() -> None:
    embeddings = np.ones((3, 1), np.float32)
    probabilities = np.array([[0.5, 0.5], [0.9, 0.1], [1.0, 0.0]])
    draws = [
        select(embeddings, method="badge", k=2, probabilities=probabilities, seed=s).tolist()
        for s in range(400)
    ]
    assert all(first == 0 for first, _ in draws)
    # Gradients -.5, -.1, 0: squared distances to the first are .16 and .25.
    share = np.mean([second == 2 for _, second in draws])
    assert share == pytest.approx(0.25 / 0.41, abs=0.08)


def test_badge_with_certain_predictions_draws_evenly_instead_of_dividing_by_zero() -> None:
    probabilities = np.tile([1.0, 0.0], (10, 1))
    chosen = select(np.ones((10, 2)), method="badge", k=10, probabilities=probabilities)
    assert sorted(chosen.tolist()) == list(range(10))


def test_prob_cover_takes_the_fullest_ball_first() -> None:
    pool = np.concatenate([np.zeros((5, 2)), np.full((3, 2), 10.0), [[50.0, 50.0]]])
    chosen = select(pool, method="probcover", k=3, radius=1.0)
    assert [tuple(pool[i]) for i in chosen] == [(0.0, 0.0), (10.0, 10.0), (50.0, 50.0)]
    assert select(pool, method="probcover", k=1, radius=1.0, labelled=[0]).tolist()[0] in (5, 6, 7)


def test_typiclust_takes_one_typical_point_of_each_cluster_and_skips_the_oddity() -> None:
    rng = np.random.default_rng(4)
    centres = np.array([[0.0, 0.0], [20.0, 0.0], [0.0, 20.0]])
    pool = np.concatenate([c + rng.normal(size=(60, 2)) for c in centres])
    chosen = select(pool, method="typiclust", k=3)
    assert sorted(int(i) // 60 for i in chosen) == [0, 1, 2]
    assert np.linalg.norm(pool[chosen] - centres[chosen // 60], axis=1).max() < 1.0


def test_score_diversity_ranges_from_top_k_to_k_center_and_ignores_the_scale_of_the_score() -> None:
    pool, scores = blobs(5, 200), np.random.default_rng(5).normal(size=200)
    top = set(select(method="top-k", k=10, scores=scores).tolist())
    steep = select(pool, method="score-diversity", k=10, scores=scores, power=200.0)
    mild = select(pool, method="score-diversity", k=10, scores=scores)
    assert steep[0] == mild[0] == scores.argmax()
    assert len(top & set(steep.tolist())) > len(top & set(mild.tolist()))
    assert (select(pool, method="score-diversity", k=10, scores=np.exp(3 * scores)) == mild).all()


def test_a_memory_map_gives_the_same_choice_as_the_array(tmp_path: Path) -> None:
    pool = blobs(6, 500)
    np.save(tmp_path / "pool.npy", pool)
    mapped = np.load(tmp_path / "pool.npy", mmap_mode="r")
    for method in ("k-center", "kmeans++", "probcover", "typiclust"):
        assert (select(mapped, method=method, k=20) == select(pool, method=method, k=20)).all(), method


def test_the_pool_is_neither_changed_nor_copied() -> None:
    pool = blobs(7, 100)
    before = pool.copy()
    assert EuclideanPoints(pool).values is pool
    select(pool, method="k-center", k=10)
    assert (pool == before).all()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"embeddings": np.empty((0, 3)), "method": "k-center", "k": 1}, "nothing to choose from"),
        ({"embeddings": np.ones((4, 2)), "method": "k-center", "k": 5}, "only 4 rows can be chosen"),
        ({"embeddings": np.ones((4, 2)), "method": "k-center", "k": 0}, "at least 1"),
        (
            {"embeddings": np.ones((4, 2)), "method": "random", "k": 1, "labelled": [0, 1, 2, 3]},
            "every row is labelled",
        ),
        ({"embeddings": np.ones((4, 2)), "method": "nearest", "k": 1}, "no method 'nearest'"),
        ({"embeddings": np.ones(4), "method": "k-center", "k": 1}, r"table of numbers \[N,D\]"),
        ({"embeddings": np.ones((4, 2)), "method": "top-k", "k": 1}, "needs scores"),
        ({"method": "k-center", "k": 1, "scores": np.ones(3)}, "needs embeddings"),
        ({"embeddings": np.ones((4, 2)), "method": "badge", "k": 1}, "needs the class probabilities"),
        (
            {"embeddings": np.ones((4, 2)), "method": "badge", "k": 1, "probabilities": np.ones((4, 1))},
            "at least two classes",
        ),
        (
            {
                "embeddings": np.ones((2, 2)),
                "method": "badge",
                "k": 1,
                "probabilities": np.array([[2.0, 3.0], [0, 1]]),
            },
            "softmax",
        ),
        ({"embeddings": np.ones((4, 2)), "method": "random", "k": 1, "labelled": [4]}, "not in a pool of 4"),
        ({"embeddings": np.ones((4, 2)), "method": "random", "k": 1, "balance": [1, 2]}, "lengths differ"),
        ({"embeddings": np.ones((4, 2)), "method": "top-k", "k": 1, "scores": [1.0]}, "lengths differ"),
        ({"embeddings": np.ones((4, 2)), "method": "probcover", "k": 1, "radius": 0.0}, "above 0"),
        ({"embeddings": np.ones((4, 2)), "method": "probcover", "k": 1}, "all embeddings are equal"),
    ],
)
def test_bad_input_says_what_is_wrong(options: dict[str, object], text: str) -> None:
    with pytest.raises(SelectionError, match=text):
        select(**options)  # type: ignore[arg-type]


def test_nan_is_named_by_id() -> None:
    pool = np.ones((4, 2))
    pool[2, 1] = np.nan
    names = ["a", "b", "frame-17", "d"]
    with pytest.raises(SelectionError, match="frame-17"):
        select(pool, method="k-center", k=1, ids=names)
    with pytest.raises(SelectionError, match=r"score is NaN.*frame-17"):
        select(method="top-k", k=1, scores=[0, 1, np.nan, 2], ids=names)
