"""Boxes stay on their objects when training varies pictures, and when they are corrupted."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from misfire_runtime.errors import ConfigError
from misfire_runtime.preprocess import InputContract
from misfire_train.augment import MOSAICS_UNTIL, Augmentation
from misfire_train.boxes.geometry import LEAST_VISIBLE
from misfire_train.boxes.mosaic import draw_mosaics, join_boxes, join_pictures
from misfire_train.data import Examples
from misfire_train.data.boxes import stack_boxes
from misfire_train.data.corruptions import FAMILIES, corrupt, corrupt_all
from misfire_train.data.images import ImageArray
from misfire_train.tasks import get_task
from misfire_train.train_config import TrainingTable

WIDTH, HEIGHT = 96, 64
CONTRACT = InputContract(height=HEIGHT, width=WIDTH, dtype="uint8")
COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255))


def painted(frames: list[list[tuple[int, int, int, int]]]) -> Examples:
    """Pictures in which box k is filled with colour k; none touches another one, nor the border."""
    pictures = np.zeros((len(frames), HEIGHT, WIDTH, 3), np.uint8)
    targets = []
    for picture, boxes in zip(pictures, frames, strict=True):
        for number, (x0, y0, x1, y1) in enumerate(boxes):
            picture[y0:y1, x0:x1] = COLOURS[number]
        rows = [(*box, number, number % 2) for number, box in enumerate(boxes)]
        targets.append(np.array(rows, np.float32).reshape(-1, 6))
    ids = tuple(f"{at}" for at in range(len(frames)))
    return Examples(ImageArray(pictures), stack_boxes(targets), ids, ids)


def extent(picture: np.ndarray, colour: tuple[int, int, int]) -> list[float] | None:
    """The box around a colour in a picture [3,H,W]; None if it is not there."""
    rows, columns = np.nonzero((picture == np.array(colour)[:, None, None]).all(0))
    if not len(rows):
        return None
    return [float(columns.min()), float(rows.min()), float(columns.max() + 1), float(rows.max() + 1)]


def area(box: Sequence[float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


@st.composite
def boxes_in_thirds(draw: st.DrawFn) -> list[tuple[int, int, int, int]]:
    found = []
    for number in range(draw(st.integers(0, 3))):
        left = 32 * number
        x0, y0 = draw(st.integers(left + 1, left + 28)), draw(st.integers(1, HEIGHT - 4))
        found.append((x0, y0, draw(st.integers(x0 + 1, left + 31)), draw(st.integers(y0 + 1, HEIGHT - 1))))
    return found


@settings(max_examples=60, deadline=None)
@given(
    frames=st.lists(boxes_in_thirds(), min_size=1, max_size=4),
    flip=st.booleans(),
    shift=st.sampled_from([0, 3, 30, 90]),
    seed=st.integers(0, 1000),
)
def test_a_box_is_where_its_object_is_seen(
    frames: list[list[tuple[int, int, int, int]]], flip: bool, shift: int, seed: int
) -> None:
    varied = Augmentation(get_task("detection"), CONTRACT, shift=shift, flip=flip)
    images, targets = varied.batch(painted(frames), np.arange(len(frames)), np.random.default_rng(seed))
    assert targets.shape[::2] == (len(frames), 6)
    for picture, rows, boxes in zip(images.numpy(), targets.numpy(), frames, strict=True):
        left = {int(row[4]): row for row in rows if row[4] >= 0}
        assert all(row[5] == 0 for row in rows if row[4] < 0)
        for number in range(len(boxes)):
            seen = extent(picture, COLOURS[number])
            # An object that was shifted out has no box any more: not even one at the border.
            assert (number in left) == (seen is not None)
            if seen is not None:
                assert left[number][:4].tolist() == seen
                visible = area(seen) / area(boxes[number])
                # Too little of an object to be found is not to be found.
                if abs(visible - LEAST_VISIBLE) > 1e-6:
                    assert left[number][5] == max(number % 2, visible < LEAST_VISIBLE)


def test_a_region_of_any_class_moves_too_and_padding_stays() -> None:
    task = get_task("detection")
    region = np.array([[10, 10, 20, 20, -1, 1]], np.float32)
    both = task.collate(stack_boxes([region, np.zeros((0, 6), np.float32)]))
    varied = Augmentation(task, CONTRACT, shift=4, flip=True)
    variation = varied._draw(2, np.random.default_rng(0))
    moved = task.move(both, variation)
    x0 = 10.0 if not variation.mirrored[0] else WIDTH - 20.0
    expected = [x0 + int(variation.right[0]), 10.0 + int(variation.down[0])]
    assert moved[0, 0].tolist() == [*expected, expected[0] + 10, expected[1] + 10, -1, 1]
    assert moved[1, 0].tolist() == [0, 0, 0, 0, -1, 0]
    # The labels themselves are not changed.
    assert both[0, 0, :4].tolist() == [10, 10, 20, 20]


def texture(height: int, width: int, seed: int) -> np.ndarray:
    """Fine and coarse structure, so that something is left of it by every corruption."""
    rng = np.random.default_rng(seed)
    layers = [
        weight * cv2.normalize(cv2.GaussianBlur(noise, (0, 0), sigma), None, 0, 1, cv2.NORM_MINMAX)
        for sigma, weight, noise in (
            (2.0, 1 / 3, rng.random((height, width), np.float32)),
            (height / 24, 2 / 3, rng.random((height, width), np.float32)),
        )
    ]
    return np.repeat((sum(layers) * 255).astype(np.uint8)[:, :, None], 3, axis=2)


def displacement(first: np.ndarray, second: np.ndarray, *, most: int = 6) -> float:
    """Pixels by which the second picture correlates best with the first, the larger of x and y."""
    one, two = (picture[:, :, 0].astype(np.float32) for picture in (first, second))
    inner = one[most:-most, most:-most]
    found = cv2.matchTemplate(two, inner, cv2.TM_CCOEFF_NORMED)
    _, _, _, (x, y) = cv2.minMaxLoc(found)
    return float(max(abs(x - most), abs(y - most)))


@pytest.mark.parametrize("size", [(192, 320), (381, 643)])
@pytest.mark.parametrize("family", FAMILIES)
def test_no_corruption_moves_a_picture(family: str, size: tuple[int, int]) -> None:
    for severity in (2, 4):
        clean = texture(*size, seed=severity)
        worse = corrupt(clean, family, severity=severity, seed=severity)
        assert displacement(clean, worse) <= 1
    # The measure would notice.
    assert displacement(clean, np.roll(clean, 3, axis=1)) == 3


@pytest.mark.parametrize("family", ["fog", "rain", "pixelate"])
def test_corrupted_examples_keep_their_boxes(family: str) -> None:
    examples = painted([[(4, 4, 20, 30)], []])
    worse = corrupt_all(examples, family, severity=3, seed=0)
    assert worse.targets is examples.targets
    varied = Augmentation(get_task("detection"), CONTRACT, corrupt=1.0)
    images, targets = varied.batch(examples, np.arange(2), np.random.default_rng(0))
    assert images.shape == (2, 3, HEIGHT, WIDTH)
    assert torch.equal(targets, get_task("detection").collate(examples.targets))


@settings(max_examples=40, deadline=None)
@given(frames=st.lists(boxes_in_thirds(), min_size=4, max_size=4), seed=st.integers(0, 1000))
def test_boxes_of_a_mosaic_are_where_their_objects_are_seen(
    frames: list[list[tuple[int, int, int, int]]], seed: int
) -> None:
    examples, task = painted(frames), get_task("detection")
    drawn = draw_mosaics(1, np.random.default_rng(seed), width=WIDTH, height=HEIGHT)
    picture = join_pictures(examples.batch(np.arange(4), CONTRACT)[None].float(), drawn)[0].numpy()
    boxes = join_boxes(task.collate(examples.targets)[None], drawn)[0].unflatten(0, (4, -1))
    for quarter, (window, factor) in enumerate(zip(drawn.windows[0], drawn.factor[0], strict=True)):
        x0, y0, x1, y1 = window.tolist()
        inside = picture[:, y0:y1, x0:x1]
        for number in range(len(frames[quarter])):
            colour = np.array(COLOURS[number])[:, None, None]
            rows, columns = np.nonzero((np.abs(inside - colour) < 120).all(0))
            box = boxes[quarter][number]
            if box[4] < 0:
                # What is gone covers less than a pixel in one direction.
                assert not len(rows) or min(np.ptp(rows), np.ptp(columns)) <= 1
                continue
            assert int(box[4]) == number
            if len(rows):
                seen = [x0 + columns.min(), y0 + rows.min(), x0 + columns.max() + 1, y0 + rows.max() + 1]
                assert np.abs(np.array(seen) - box[:4].numpy()).max() <= 1 + float(factor)
            assert bool((box[:2] >= window[:2]).all()) and bool((box[2:4] <= window[2:]).all())


def test_mosaics_fill_their_share_of_a_batch_keep_labels_and_end_before_the_training() -> None:
    frames = [[(4, 4, 28, 60), (36, 4, 60, 60), (68, 4, 92, 60)] for _ in range(40)]
    examples, task = painted(frames), get_task("detection")
    varied = Augmentation(task, InputContract(height=HEIGHT, width=WIDTH), shift=3, zoom=0.4, mosaic=0.5)
    images, targets = varied.batch(examples, np.arange(40), np.random.default_rng(0))
    assert images.shape == (40, 3, HEIGHT, WIDTH)
    counts = (targets[..., 4] >= 0).sum(1)
    # A frame has three objects, and a mosaic up to twelve.
    assert 12 <= int((counts > 3).sum()) <= 28 and int(counts.max()) <= 12
    again = varied.batch(examples, np.arange(40), np.random.default_rng(0))
    assert torch.equal(images, again[0]) and torch.equal(targets, again[1])
    assert [len(rows) for rows in examples.targets] == [3] * 40
    assert varied.at(MOSAICS_UNTIL - 0.01) is varied and varied.at(MOSAICS_UNTIL).mosaic == 0


def test_targets_that_cannot_be_joined_are_refused() -> None:
    with pytest.raises(ConfigError, match="cannot be joined"):
        Augmentation.of(TrainingTable(mosaic=0.5), task=get_task("segmentation"), contract=CONTRACT)
