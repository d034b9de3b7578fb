"""Corruptions: repeatable, graded, harmless to labels, for any size of image."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from misfire_runtime.errors import ConfigError
from misfire_train.data import Examples, load_dataset
from misfire_train.data.corruptions import FAMILIES, SEVERITIES, corrupt, corrupt_all
from misfire_train.data.images import DecodedImages
from proving_ground import pictures

NAMES = tuple(FAMILIES)


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(np.int16) - b).mean())


def test_the_families_that_others_name_exist() -> None:
    assert {"noise", "blur", "night", "fog", "contrast", "glare"} <= set(NAMES)
    assert {family.kind for family in FAMILIES.values()} == {"weather", "light", "lens", "sensor", "link"}


@pytest.mark.parametrize("family", NAMES)
def test_every_severity_is_worse_than_the_one_before_on_a_photograph(family: str) -> None:
    frame = pictures.view(3, width=320, height=180)
    steps = [
        np.mean([distance(corrupt(frame, family, severity=s, seed=seed), frame) for seed in range(4)])
        for s in SEVERITIES
    ]
    assert steps[0] > 1
    assert all(later > earlier for earlier, later in pairwise(steps)), steps


@pytest.mark.parametrize("family", NAMES)
@settings(max_examples=15, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    grey=st.booleans(),
    severity=st.sampled_from(SEVERITIES),
    seed=st.integers(0, 2**62),
)
def test_any_image_keeps_its_shape_its_greyness_and_its_seed(
    family: str, shape: tuple[int, int], grey: bool, severity: int, seed: int
) -> None:
    height, width = shape
    image = np.random.default_rng(seed % 1000).integers(0, 256, (height, width, 3), np.uint8)
    if grey:
        image[:] = image[:, :, :1]
    before = image.copy()
    worse = corrupt(image, family, severity=severity, seed=seed)
    assert worse.shape == image.shape
    assert worse.dtype == np.uint8
    assert np.array_equal(image, before)
    assert np.array_equal(worse, corrupt(image, family, severity=severity, seed=seed))
    if grey:
        assert (worse == worse[:, :, :1]).all()


@pytest.mark.parametrize(
    "family", [name for name in NAMES if name not in ("blur", "contrast", "exposure", "jpeg", "pixelate")]
)
def test_another_seed_is_another_weather(family: str) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    one, two = (corrupt(frame, family, severity=3, seed=seed) for seed in (1, 2))
    assert not np.array_equal(one, two)


@pytest.mark.parametrize("family", NAMES)
def test_a_whole_set_is_what_its_images_are_one_by_one(family: str) -> None:
    digits = load_dataset("digits").test.take(range(6))
    lazy = Examples(
        DecodedImages(lambda i: digits.images[i], count=6), digits.targets, digits.ids, digits.groups
    )
    eager_set, lazy_set = (corrupt_all(e, family, severity=4, seed=7) for e in (digits, lazy))
    assert eager_set.ids == digits.ids
    assert np.array_equal(eager_set.targets, digits.targets)
    for i in range(6):
        assert np.array_equal(eager_set.images[i], lazy_set.images[i])
    part = corrupt_all(digits.take([4]), family, severity=4, seed=7)
    assert np.array_equal(part.images[0], eager_set.images[4])


def test_full_hd_frames_work_in_every_family() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (1080, 1920, 3), np.uint8)
    for family in NAMES:
        assert corrupt(frame, family, severity=5, seed=0).shape == frame.shape


def test_variable_sizes_are_corrupted_when_decoded() -> None:
    sizes = [(20 + 5 * i, 50 + 3 * i) for i in range(5)]
    crops = Examples(
        images=[pictures.view(i, width=w, height=h) for i, (w, h) in enumerate(sizes)],
        targets=np.arange(5),
        ids=tuple("abcde"),
        groups=tuple("abcde"),
    )
    foggy = corrupt_all(crops, "fog", severity=5, seed=0)
    for i in range(5):
        assert foggy.images[i].shape == crops.images[i].shape
        assert distance(foggy.images[i], crops.images[i]) > 5


@pytest.mark.parametrize(
    ("family", "severity", "match"),
    [("sleet", 1, "no corruption"), ("fog", 0, "1 to 5"), ("fog", 6, "1 to 5")],
)
def test_unknown_families_and_severities_are_refused(family: str, severity: int, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        corrupt(np.zeros((8, 8, 3), np.uint8), family, severity=severity, seed=0)
