"""Drawn road scenes: repeatable, boxes where the objects are, divided by drive."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from misfire_train.data import Dataset, load_dataset
from misfire_train.data.drawn.street import (
    CLASSES,
    HEIGHT,
    WIDTH,
    Scene,
    Thing,
    boxes_of,
    load_street,
    render,
    sample_look,
)


@pytest.fixture(scope="module")
def street() -> Dataset:
    return load_street(train_drives=8, test_drives=4, scenes=20)


def test_the_same_seed_draws_the_same_bytes_and_another_other_ones(street: Dataset) -> None:
    def digest(dataset: Dataset) -> str:
        pictures = b"".join(dataset.train.images[i].tobytes() for i in (0, 7, 50))
        return hashlib.sha256(
            pictures + b"".join(each.tobytes() for each in dataset.train.targets)
        ).hexdigest()

    again = load_street(train_drives=8, test_drives=4, scenes=20)
    other = load_street(train_drives=8, test_drives=4, scenes=20, seed=1)
    assert digest(again) == digest(street)
    assert digest(other) != digest(street)
    assert again.sha256 == street.sha256 != other.sha256
    more = load_street(train_drives=9, test_drives=4, scenes=20)
    assert np.array_equal(more.train.images[50], street.train.images[50])


def test_train_and_test_share_no_drive_and_a_drive_keeps_its_look(street: Dataset) -> None:
    assert len(set(street.train.groups)) == 8
    assert not set(street.train.groups) & set(street.test.groups)
    # The sky's corner: nothing stands there, and only a drive's light decides its colour.
    skies = np.stack([image[:6].mean((0, 1)) for image in street.train.images])
    by_drive = skies.reshape(8, 20, 3)
    assert by_drive.std(1).max() < by_drive.mean(1).std(0).max()
    assert "not photographs" in street.notes[0]


def test_boxes_are_inside_of_every_class_and_some_frames_have_none(street: Dataset) -> None:
    boxes = np.concatenate(list(street.train.targets))
    assert boxes.dtype == np.float32
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2] <= WIDTH).all() and (boxes[:, 3] <= HEIGHT).all()
    assert (boxes[:, 2:4] > boxes[:, :2]).all()
    assert set(boxes[:, 4].astype(int)) == set(range(len(CLASSES)))
    assert 0.05 < boxes[:, 5].mean() < 0.4
    assert any(len(each) == 0 for each in street.train.targets)
    sides = (boxes[:, 2:4] - boxes[:, :2]).min(1)
    assert (sides < 8).any() and (sides > 20).any()
    assert all(image.shape == (HEIGHT, WIDTH, 3) for image in street.test.images)


def thing(*, x: float, z: float, label: int = 0) -> Thing:
    return Thing(label, x, z, (250, 10, 250), (250, 10, 250), rear=True)


@pytest.mark.parametrize("label", range(len(CLASSES)))
def test_an_object_changes_the_picture_in_its_box_alone(label: int) -> None:
    look = sample_look(np.random.default_rng(3))
    seed = (0, 0, 0, 0, 1)
    with_one = Scene(look, (thing(x=1.0, z=9.0, label=label),), seed)
    changed = (render(with_one) != render(Scene(look, (), seed))).any(2)
    (box,) = boxes_of(with_one)
    rows, columns = np.nonzero(changed)
    found = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    assert np.abs(box[:4] - found).max() <= 1.5


def test_a_hidden_object_is_ignored_and_one_outside_is_left_out() -> None:
    look = sample_look(np.random.default_rng(3))
    behind, before, outside = thing(x=0.0, z=20.0), thing(x=0.0, z=8.0, label=1), thing(x=40.0, z=6.0)
    boxes = boxes_of(Scene(look, (behind, before, outside), (0,)))
    assert boxes[:, 4:].tolist() == [[0, 1], [1, 0]]


def test_the_catalogue_has_it_without_a_download() -> None:
    dataset = load_dataset("street")
    assert (len(dataset.train), len(dataset.test)) == (1200, 420)
    assert dataset.task == "detection"
    batch = dataset.train.batch(range(0, 1200, 6), dataset.contract)
    assert abs(float(batch.mean())) < 0.1
    assert abs(float(batch.std()) - 1) < 0.15
