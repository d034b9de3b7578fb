"""Examples and image sequences: what a batch is must not depend on how the images are kept."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from misfire_runtime.preprocess import InputContract, to_tensor
from misfire_train.data import Examples, load_dataset
from misfire_train.data.examples import join
from misfire_train.data.images import DecodedImages, ImageArray, ImageSubset, planes
from misfire_train.errors import DatasetError

CONTRACTS = [
    InputContract(height=8, width=8, color="gray", mean=(0.3,), std=(0.4,)),
    InputContract(height=8, width=8, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)),
    InputContract(height=8, width=8, color="bgr"),
    InputContract(height=5, width=11, resize="letterbox"),
    InputContract(height=12, width=7, color="gray", resize="center-crop"),
    InputContract(height=8, width=8, dtype="uint8"),
]


def examples_of(images: object, count: int) -> Examples:
    ids = tuple(f"i{k}" for k in range(count))
    return Examples(images, np.arange(count), ids, ids)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "contract", CONTRACTS, ids=lambda c: f"{c.color}-{c.resize}-{c.dtype}-{c.height}x{c.width}"
)
@settings(max_examples=20, deadline=None)
@given(
    data=st.one_of(
        hnp.arrays(np.uint8, (3, 8, 8)),
        hnp.arrays(np.uint8, (3, 8, 8, 3)),
        hnp.arrays(np.uint8, (3, 6, 9, 3)),
    )
)
def test_a_batch_equals_the_vehicles_preprocessing_bit_for_bit(
    contract: InputContract, data: np.ndarray
) -> None:
    array = ImageArray(data)
    lazy = DecodedImages(lambda i: array[i], count=3)
    kept = DecodedImages(lambda i: array[i], count=3, shape=(*data.shape[1:3], 3))
    order = [2, 0, 2]
    wanted = np.concatenate([to_tensor(array[i], contract) for i in order])
    for images in (array, lazy, kept, ImageSubset(array, [0, 1, 2]), list(array)):
        batch = examples_of(images, 3).batch(order, contract)
        assert batch.dtype == (torch.uint8 if contract.dtype == "uint8" else torch.float32)
        assert batch.shape == (3, contract.channels, contract.height, contract.width)
        assert np.array_equal(batch.numpy(), wanted)


def test_a_decoded_image_is_decoded_once_per_contract() -> None:
    asked: list[int] = []

    def decode(index: int) -> np.ndarray:
        asked.append(index)
        return np.full((4 + index, 5, 3), index, np.uint8)

    images = DecodedImages(decode, count=4)
    first, second = (InputContract(height=size, width=size) for size in (6, 3))
    for _ in range(2):
        planes(images, [0, 1, 1, 3], first)
    assert sorted(asked) == [0, 1, 3]
    planes(images, [1], first.model_copy(update={"mean": (0.5,)}))
    assert sorted(asked) == [0, 1, 3]
    planes(images, [1], second)
    assert sorted(asked) == [0, 1, 1, 3]


def test_images_that_do_not_fit_the_cache_are_decoded_anew() -> None:
    asked: list[int] = []

    def decode(index: int) -> np.ndarray:
        asked.append(index)
        return np.full((4, 4, 3), index, np.uint8)

    images = DecodedImages(decode, count=3, shape=(4, 4, 3), max_cache_bytes=100)
    contract = InputContract(height=4, width=4)
    for _ in range(2):
        assert planes(images, [2], contract)[0, 0, 0, 0] == 2
    assert asked == [2, 2]


def test_taking_twice_keeps_images_targets_ids_and_groups_together() -> None:
    digits = load_dataset("digits").train
    once = digits.take([5, 3, 9, 9 + 1])
    twice = once.take([2, 0])
    assert twice.ids == (digits.ids[9], digits.ids[5])
    assert twice.targets.tolist() == [digits.targets[9], digits.targets[5]]
    assert np.array_equal(twice.images[0], digits.images[9])
    assert len(digits.take([])) == 0


def test_positions_find_ids_and_name_the_one_that_is_missing() -> None:
    digits = load_dataset("digits").train
    assert digits.positions([digits.ids[7], digits.ids[0]]).tolist() == [7, 0]
    with pytest.raises(DatasetError, match="nobody"):
        digits.positions(["nobody"])


def test_joined_sets_hold_all_of_both() -> None:
    digits = load_dataset("digits").train
    odd = DecodedImages(lambda i: np.full((3, 5, 3), i, np.uint8), count=2)
    other = Examples(odd, np.array([1, 2]), ("a", "b"), ("g", "g"))
    both = join([digits.take([0, 1]), other])
    assert both.ids == (*digits.ids[:2], "a", "b")
    assert both.images[3].shape == (3, 5, 3)
    assert np.array_equal(both.images[1], digits.images[1])
    same = both.batch([0, 3], InputContract(height=8, width=8))
    assert same.shape == (2, 3, 8, 8)
    with pytest.raises(DatasetError, match="more than once"):
        join([other, other])
    with pytest.raises(DatasetError):
        join([])


@pytest.mark.parametrize(
    ("ids", "groups", "match"),
    [(("a",), ("a", "b"), "as many"), (("a", "a"), ("a", "b"), "'a' is there more than once")],
)
def test_examples_that_do_not_fit_together_are_refused(
    ids: tuple[str, ...], groups: tuple[str, ...], match: str
) -> None:
    with pytest.raises(DatasetError, match=match):
        Examples(ImageArray(np.zeros((2, 4, 4), np.uint8)), np.zeros(2), ids, groups)


def test_an_array_that_is_no_image_array_is_refused() -> None:
    with pytest.raises(ValueError, match="uint8"):
        ImageArray(np.zeros((2, 4, 4), np.float32))  # type: ignore[arg-type]
