"""Points and boxes lie where the pixels lie: the placement is tested against resized pictures."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from misfire_runtime.boxes import BoxRule
from misfire_runtime.errors import ImageError
from misfire_runtime.placement import Placement
from misfire_runtime.preprocess import InputContract, resize_image, size_inputs, to_tensor

RULES = ["stretch", "letterbox", "letterbox-center", "letterbox-topleft", "center-crop"]


def contract(resize: str, *, width: int = 96, height: int = 64, **fields: object) -> InputContract:
    return InputContract.model_validate({"width": width, "height": height, "resize": resize} | fields)


@pytest.mark.parametrize("size", [(240, 120), (120, 240), (96, 64), (31, 45), (97, 64), (400, 30)])
@pytest.mark.parametrize("rule", RULES)
def test_a_box_lands_on_the_pixels_that_it_bounds(rule: str, size: tuple[int, int]) -> None:
    width, height = size
    # In the middle, where a crop keeps it; large enough to have a sharp middle after shrinking.
    box = np.array([width * 0.45, height * 0.3, width * 0.55, height * 0.7]).round()
    x0, y0, x1, y1 = box.astype(int)
    image = np.zeros((height, width, 3), np.uint8)
    image[y0:y1, x0:x1] = 255
    seen = resize_image(image, contract(rule))[..., 0] / 255
    place = Placement.of(width, height, contract(rule))
    expected = np.clip(place.to_network(box.reshape(1, 4))[0], 0, [96, 64, 96, 64])
    # Extent and centre of mass do not depend on how soft the edges became.
    columns, rows = seen.max(0), seen.max(1)
    centre = (
        (columns * (np.arange(96) + 0.5)).sum() / columns.sum(),
        (rows * (np.arange(64) + 0.5)).sum() / rows.sum(),
    )
    assert centre[0] == pytest.approx((expected[0] + expected[2]) / 2, abs=0.51)
    assert centre[1] == pytest.approx((expected[1] + expected[3]) / 2, abs=0.51)
    assert columns.sum() == pytest.approx(expected[2] - expected[0], abs=1.1)
    assert rows.sum() == pytest.approx(expected[3] - expected[1], abs=1.1)


@given(
    width=st.integers(1, 3000),
    height=st.integers(1, 3000),
    rule=st.sampled_from(RULES),
    points=st.lists(st.tuples(st.floats(-50, 4000), st.floats(-50, 4000)), min_size=1, max_size=4),
)
def test_there_and_back_is_where_one_was(
    width: int, height: int, rule: str, points: list[tuple[float, float]]
) -> None:
    place = Placement.of(width, height, contract(rule))
    given_points = np.array(points, np.float32)
    back = place.to_image(place.to_network(given_points))
    assert back == pytest.approx(given_points, rel=1e-3, abs=0.05 * max(1, width / 96, height / 64))


def test_the_whole_picture_is_the_whole_input_when_stretched_and_a_band_when_letterboxed() -> None:
    whole = np.array([0, 0, 200, 50], np.float32)
    assert Placement.of(200, 50, contract("stretch")).to_network(whole).tolist() == [0, 0, 96, 64]
    assert Placement.of(200, 50, contract("letterbox-center")).to_network(whole).tolist() == [0, 20, 96, 44]
    assert Placement.of(200, 50, contract("letterbox-topleft")).to_network(whole).tolist() == [0, 0, 96, 24]


def test_letterboxes_are_padded_with_the_wanted_grey() -> None:
    image = np.full((50, 200, 3), 9, np.uint8)
    corner = resize_image(image, contract("letterbox-topleft", pad=114))
    assert corner[:24].max() == 9 and corner[24:].min() == corner[24:].max() == 114
    centred = resize_image(image, contract("letterbox", pad=114))
    assert set(np.unique(centred[:20])) == set(np.unique(centred[44:])) == {114}


def test_no_boxes_are_mapped_to_no_boxes() -> None:
    assert Placement.of(10, 10, contract("stretch")).to_image(np.zeros((2, 0, 4))).shape == (2, 0, 4)


def test_shares_of_the_input_become_shares_of_the_picture() -> None:
    place = Placement.of(200, 50, contract("letterbox"))
    middle_and_padding = np.array([[0.5, 0.5], [0.25, 0.0]], np.float32)
    assert place.shares_to_image(middle_and_padding).tolist() == [[0.5, 0.5], [0.25, 0.0]]


def test_clipping_keeps_boxes_in_the_picture() -> None:
    place = Placement.of(100, 50, contract("letterbox"))
    boxes = np.array([[-5, -5, 300, 20], [10, 60, 20, 70]], np.float32)
    assert place.clip(boxes).tolist() == [[0, 0, 100, 20], [10, 50, 20, 50]]


@pytest.mark.parametrize("shape", [(3,), (2, 6), ()])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected points"):
        Placement.of(10, 10, contract("stretch")).to_image(np.zeros(shape))


def test_a_picture_without_pixels_has_no_place() -> None:
    with pytest.raises(ValueError, match="no pixels"):
        Placement.of(0, 10, contract("stretch"))


@pytest.mark.parametrize("size", [(1, 1), (1, 20_000), (20_000, 1)])
@pytest.mark.parametrize("rule", ["stretch", "letterbox", "letterbox-topleft"])
def test_extreme_pictures_fit(rule: str, size: tuple[int, int]) -> None:
    image = np.full((size[1], size[0], 3), 200, np.uint8)
    assert resize_image(image, contract(rule)).shape == (64, 96, 3)


def test_a_strip_is_refused_before_a_crop_fills_the_memory() -> None:
    with pytest.raises(ImageError, match="cannot be cropped"):
        resize_image(np.zeros((20_000, 1, 3), np.uint8), contract("center-crop", width=320, height=320))


def test_pixels_of_0_to_255_are_one_standard_deviation_of_1_255() -> None:
    image = np.full((64, 96, 3), 114, np.uint8)
    assert to_tensor(image, contract("stretch", std=(1 / 255,)))[0, 0, 0, 0] == pytest.approx(114, abs=1e-4)


def test_an_older_vehicle_meets_no_field_that_it_refuses() -> None:
    plain = json.loads(contract("letterbox-center").model_dump_json())
    assert plain["resize"] == "letterbox" and not {"pad", "inputs"} & set(plain)
    padded = contract("letterbox", pad=114, inputs={"orig_size": "size-wh"})
    assert InputContract.model_validate_json(padded.model_dump_json()) == padded


def test_second_inputs_are_the_size_of_the_picture() -> None:
    both = contract("stretch", inputs={"wh": "size-wh", "hw": "size-hw"})
    made = size_inputs(640, 480, both)
    assert made["wh"].tolist() == [[640, 480]] and made["hw"].tolist() == [[480, 640]]
    assert made["wh"].dtype == np.int64
    with pytest.raises(ValidationError, match="the picture itself"):
        contract("stretch", inputs={"image": "size-wh"})


def test_a_rule_of_boxes_has_sound_defaults_and_bounds() -> None:
    rule = BoxRule()
    assert (rule.score_threshold, rule.suppression, rule.candidates, rule.max_boxes) == (0.3, 0.6, 100, 100)
    assert (rule.matching, rule.min_side, rule.alarm, rule.classes) == (0.5, 8.0, 0.5, ())
    for bad in ({"suppression": 0}, {"matching": 1.5}, {"candidates": 0}, {"classes": ["car", "car"]}):
        with pytest.raises(ValidationError):
            BoxRule.model_validate(bad)
