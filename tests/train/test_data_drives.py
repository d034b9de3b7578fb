"""Sets in drives: repeatable, one look each, no drive in both halves; roles of groups are disjoint."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from misfire_train.data import Dataset
from misfire_train.data.drawn.cameras import film, paste, sample_drive
from misfire_train.data.drawn.drives import TEST_DRIVES, TRAIN_DRIVES, load_drives
from misfire_train.data.drawn.figures import Photo
from misfire_train.data.readers.boxes.carla_masks import mask_of

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def photos() -> list[Photo]:
    rng = np.random.default_rng(0)
    return [Photo(f"p{i}", rng.integers(0, 256, (80, 90, 3), dtype=np.uint8)) for i in range(30)]


@pytest.fixture(scope="module")
def parts(photos: list[Photo]) -> Dataset:
    return load_drives(kind="parts", frames=4, photos=photos)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_ones(
    parts: Dataset, photos: list[Photo]
) -> None:
    again = load_drives(kind="parts", frames=4, photos=photos)
    other = load_drives(kind="parts", frames=4, photos=photos, seed=1)
    for i in (0, 41):
        assert np.array_equal(parts.train.images[i], again.train.images[i])
        assert not np.array_equal(parts.train.images[i], other.train.images[i])
    assert np.array_equal(parts.test.targets, again.test.targets)
    assert parts.sha256 == again.sha256 != other.sha256


def test_every_task_has_thirty_drives_and_no_drive_is_in_both_halves(photos: list[Photo]) -> None:
    for kind, task, shape in (
        ("figures", "keypoints", (14, 3)),
        ("parts", "segmentation", (64, 64)),
        ("boxes", "regression", (4,)),
    ):
        made = load_drives(kind=kind, frames=2, photos=photos)  # type: ignore[arg-type]
        assert made.task == task and made.train.targets.shape[1:] == shape
        assert len(set(made.train.groups)) == TRAIN_DRIVES and len(set(made.test.groups)) == TEST_DRIVES
        assert not set(made.train.groups) & set(made.test.groups)
        assert made.test.images[1].shape == (64, 64, 3)


def test_frames_of_a_drive_look_alike_and_drives_differ() -> None:
    grey = np.full((32, 32, 3), 120, np.uint8)
    means = []
    for number in range(20):
        drive = replace(sample_drive(f"d{number}", (0, number)), weather=None)
        means.append([film(grey, drive, seed=(number, frame)).mean((0, 1)) for frame in range(6)])
    by_drive = np.array(means)
    assert by_drive.mean(1).std(0).min() > 3 * by_drive.std(1).mean()


def test_weather_shows_on_a_share_of_the_frames_only() -> None:
    drive = replace(
        sample_drive("d", (0, 1)), weather="fog", severity=4, wet=0.5, gain=1.0, vignette=0.0, grain=1.0
    )
    grey = np.full((32, 32, 3), 60, np.uint8)
    brightness = np.array([film(grey, drive, seed=(frame,)).mean() for frame in range(60)])
    dry = np.array([film(grey, replace(drive, weather=None), seed=(frame,)).mean() for frame in range(60)])
    foggy = brightness > dry.max() + 2
    assert 15 < foggy.sum() < 45


def test_a_pasted_object_is_in_front_of_the_scenery() -> None:
    patch = np.zeros((8, 8), np.uint8)
    patch[2:6, 2:6] = 255
    scenery = np.zeros((40, 40, 3), np.uint8)
    picture = paste(patch, scenery, side=12, rng=np.random.default_rng(0))
    assert picture.shape == (12, 12, 3)
    assert ((picture > 140).all(2)).sum() == 16


def test_masks_of_boxes_keep_small_boxes_on_top_and_ignored_ones_without_label() -> None:
    boxes = np.array([[4, 4, 8, 8, 2, 0], [0, 0, 40, 40, 0, 0], [100, 50, 110, 60, 1, 1]], np.float32)
    mask = mask_of(boxes)
    assert mask.shape == (96, 160)
    assert mask[5, 5] == 3 and mask[20, 20] == 1 and mask[55, 105] == 255 and mask[90, 150] == 0


def test_no_group_has_two_roles_in_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    from benchmarks.science.transfer_data import ROLES, read_roles

    for name in ("drive-parts", "carla-masks", "carla-detection", "street"):
        roles = read_roles(name)
        groups = [pattern for role in ROLES for pattern in roles[role]]
        assert len(groups) == len(set(groups))
        whole = [pattern.rstrip("*") for pattern in groups]
        assert not any(a != b and b.startswith(a) and f"{a}*" in groups for a in whole for b in whole)
