"""Splits: whole groups, even classes, the same seed, and an error instead of an empty part."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from misfire_runtime.errors import ConfigError
from misfire_train.data import Examples, load_dataset, split
from misfire_train.data.images import ImageArray
from misfire_train.errors import DatasetError


def labelled(classes: list[int], groups: list[str] | None = None) -> Examples:
    count = len(classes)
    ids = tuple(f"frame-{i:04d}" for i in range(count))
    images = ImageArray(np.zeros((count, 2, 2), np.uint8))
    return Examples(images, np.array(classes, np.int64), ids, tuple(groups) if groups else ids)


fractions_of = st.lists(st.floats(0.05, 1.0), min_size=1, max_size=4).map(
    lambda raw: {f"part{i}": value / max(1.0, sum(raw)) for i, value in enumerate(raw)}
)


@settings(max_examples=60, deadline=None)
@given(
    classes=st.lists(st.integers(0, 4), min_size=40, max_size=200),
    fractions=fractions_of,
    seed=st.integers(0, 2**40),
)
def test_single_examples_are_divided_exactly_and_evenly(
    classes: list[int], fractions: dict[str, float], seed: int
) -> None:
    examples = labelled(classes)
    try:
        parts = split(examples, fractions=fractions, seed=seed)
    except DatasetError:
        assert min(fractions.values()) * len(classes) < len(set(classes)) + 1
        return
    everywhere = [identity for part in parts.values() for identity in part.ids]
    assert len(everywhere) == len(set(everywhere))
    for name, part in parts.items():
        assert abs(len(part) - fractions[name] * len(classes)) < 2
        for value, count in Counter(classes).items():
            assert abs((part.targets == value).sum() - fractions[name] * count) < 3


@settings(max_examples=60, deadline=None)
@given(
    members=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 25)), min_size=30, max_size=200),
    fractions=fractions_of,
    seed=st.integers(0, 2**40),
)
def test_groups_are_never_torn_apart_and_all_data_is_used(
    members: list[tuple[int, int]], fractions: dict[str, float], seed: int
) -> None:
    examples = labelled([c for c, _ in members], [f"drive {g}" for _, g in members])
    groups = len({g for _, g in members})
    try:
        parts = split(examples, fractions=fractions, seed=seed)
    except DatasetError:
        assert groups < len(fractions)
        return
    home: dict[str, str] = {}
    for name, part in parts.items():
        assert len(part) > 0
        for group in part.groups:
            assert home.setdefault(group, name) == name
    if sum(fractions.values()) > 1 - 1e-9:
        assert sum(len(part) for part in parts.values()) == len(examples)


def test_many_groups_give_each_part_its_share_of_every_class() -> None:
    rng = np.random.default_rng(3)
    group_of = rng.integers(0, 120, 2400)
    classes = (group_of % 4 + rng.integers(0, 2, 2400)) % 4
    examples = labelled(classes.tolist(), [f"d{g}" for g in group_of])
    fractions = {"train": 0.5, "holdout": 0.2, "calibration": 0.1, "field": 0.2}
    parts = split(examples, fractions=fractions, seed=1)
    for name, part in parts.items():
        assert abs(len(part) / 2400 - fractions[name]) < 0.02
        share = np.bincount(part.targets, minlength=4) / np.bincount(classes, minlength=4)
        assert np.abs(share - fractions[name]).max() < 0.04


def test_a_split_depends_on_ids_and_seed_but_not_on_order() -> None:
    digits = load_dataset("digits").train
    fractions = {"a": 0.3, "b": 0.6}
    first = split(digits, fractions=fractions, seed=5)
    shuffled = digits.take(np.random.default_rng(0).permutation(len(digits)))
    again = split(shuffled, fractions=fractions, seed=5)
    other = split(digits, fractions=fractions, seed=6)
    assert {k: set(v.ids) for k, v in first.items()} == {k: set(v.ids) for k, v in again.items()}
    assert set(first["a"].ids) != set(other["a"].ids)
    groups = [f"g{i // 3}" for i in range(len(digits))]
    grouped = Examples(digits.images, digits.targets, digits.ids, tuple(groups))
    turned = grouped.take(np.arange(len(digits))[::-1])
    one, two = (split(e, fractions=fractions, seed=2) for e in (grouped, turned))
    assert {k: set(v.ids) for k, v in one.items()} == {k: set(v.ids) for k, v in two.items()}


def test_without_groups_a_drive_may_be_divided() -> None:
    examples = labelled([0, 1] * 10, ["one drive"] * 20)
    with pytest.raises(DatasetError, match="1 groups of 20 examples are too few"):
        split(examples, fractions={"a": 0.5, "b": 0.5}, seed=0)
    parts = split(examples, fractions={"a": 0.5, "b": 0.5}, seed=0, by_group=False)
    assert [len(part) for part in parts.values()] == [10, 10]


def test_as_many_groups_as_parts_are_enough() -> None:
    examples = labelled([0] * 40, [f"d{i // 10}" for i in range(40)])
    parts = split(
        examples, fractions={"train": 0.85, "holdout": 0.05, "calibration": 0.05, "field": 0.05}, seed=0
    )
    assert sorted(len(part) for part in parts.values()) == [10, 10, 10, 10]


@pytest.mark.parametrize(
    "fractions", [{}, {"a": 0.0}, {"a": -0.1}, {"a": float("nan")}, {"a": 0.7, "b": 0.4}]
)
def test_impossible_fractions_are_refused(fractions: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        split(labelled([0, 1]), fractions=fractions, seed=0)


def test_nothing_cannot_be_divided() -> None:
    with pytest.raises(DatasetError, match="0 examples are too few"):
        split(labelled([]), fractions={"a": 0.5}, seed=0, by_group=False)
