"""Figures over real photographs: repeatable, labelled right, and divided by photograph."""

from __future__ import annotations

import hashlib

import cv2
import numpy as np
import pytest

from misfire_train.data import Dataset
from misfire_train.data.drawn.drawing import sample_wardrobe
from misfire_train.data.drawn.figures import BOX, PARTS, keypoints_of, render, sample_scene
from misfire_train.data.drawn.poses import (
    HEAD,
    JOINTS,
    L_ANKLE,
    L_ELBOW,
    L_HIP,
    L_KNEE,
    L_SHOULDER,
    L_WRIST,
    NECK,
    R_ANKLE,
    R_ELBOW,
    R_HIP,
    R_KNEE,
    R_SHOULDER,
    R_WRIST,
    sample_pose,
)
from proving_ground.pictures import drawn_figures


@pytest.fixture(scope="module")
def figures() -> Dataset:
    return drawn_figures(train=120, test=60)


def test_the_same_seed_draws_the_same_bytes_and_another_other_ones(figures: Dataset) -> None:
    def digest(dataset: Dataset) -> str:
        images = b"".join(dataset.train.images[i].tobytes() for i in (0, 7, 50))
        return hashlib.sha256(images + dataset.train.targets.tobytes()).hexdigest()

    again = drawn_figures(train=120, test=60)
    assert digest(again) == digest(figures)
    assert digest(drawn_figures(train=120, test=60, seed=1)) != digest(figures)
    fewer = drawn_figures(train=51, test=1)
    assert np.array_equal(fewer.train.images[50], figures.train.images[50])


def test_train_and_test_share_no_photograph(figures: Dataset) -> None:
    assert not set(figures.train.groups) & set(figures.test.groups)
    assert len(set(figures.train.groups)) > 10
    assert "not photographs of people" in figures.notes[0]


def test_keypoints_are_inside_where_they_are_visible(figures: Dataset) -> None:
    targets = figures.train.targets
    assert targets.shape == (120, len(JOINTS), 3)
    visible = targets[..., 2] > 0
    assert visible.mean() > 0.85
    assert (targets[visible][:, :2] >= 0).all()
    assert (targets[visible][:, :2] <= 95).all()
    assert 0.01 < (targets[..., 2] == 1).mean() < 0.2
    assert (targets[..., 2] == 0).any()


def test_parts_lie_where_the_joints_are() -> None:
    hits: dict[str, list[bool]] = {"head": [], "arms": [], "legs": []}
    for number in range(150):
        scene = sample_scene((3, number), photos=1, side=96)
        seen = keypoints_of(scene, side=96)
        parts = render(scene, np.full((40, 40, 3), 128, np.uint8), side=96)[1]
        assert parts.max() < len(PARTS)
        for name, joints in (("arms", (R_WRIST, L_WRIST)), ("legs", (R_ANKLE, L_ANKLE))):
            for joint in joints:
                x, y, visible = seen[joint]
                if visible == 2:
                    hits[name].append(parts[round(y), round(x)] == PARTS.index(name))
        x, y = 0.4 * seen[NECK, :2] + 0.6 * seen[HEAD, :2]
        if seen[NECK, 2] == seen[HEAD, 2] == 2:
            hits["head"].append(parts[round(float(y)), round(float(x))] == PARTS.index("head"))
    for name, found in hits.items():
        assert np.mean(found) > 0.75, name  # the rest lies behind the body or under the occluder


def test_left_and_right_swap_sides_when_a_figure_turns_its_back() -> None:
    for number in range(200):
        pose = sample_pose(np.random.default_rng(number))
        right_is_left_of_left = pose.points[R_SHOULDER, 0] < pose.points[L_SHOULDER, 0]
        upright = pose.points[NECK, 1] < pose.points[[R_HIP, L_HIP], 1].mean() - 0.15
        if upright and abs(np.cos(pose.yaw)) > 0.3:
            assert right_is_left_of_left == (np.cos(pose.yaw) > 0)


def test_bones_have_the_lengths_of_a_body() -> None:
    bones = [(R_SHOULDER, R_ELBOW), (L_ELBOW, L_WRIST), (R_HIP, R_KNEE), (L_KNEE, L_ANKLE), (NECK, HEAD)]
    lengths = np.array(
        [
            [np.hypot(*(pose.points[a] - pose.points[b])) for a, b in bones]
            for pose in (sample_pose(np.random.default_rng(i)) for i in range(100))
        ]
    )
    assert (lengths > 0.08).all()
    assert (lengths < 0.27).all()
    assert (lengths.std(0) > 0.005).all()


def test_the_drawn_figure_stands_out_from_its_background_but_not_always() -> None:
    contrast = []
    photo = cv2.resize(np.random.default_rng(0).integers(0, 256, (6, 6, 3), np.uint8), (80, 80))
    for number in range(60):
        scene = sample_scene((9, number), photos=1, side=64)
        image, parts = render(scene, photo, side=64)
        if (parts > 0).any() and (parts == 0).any():
            contrast.append(np.abs(image[parts > 0].mean(0) - image[parts == 0].mean(0)).max())
    assert np.median(contrast) > 15
    assert min(contrast) < 15
    assert any(sample_wardrobe(np.random.default_rng(i)).camouflage for i in range(20))


def test_part_masks_belong_to_the_same_pictures_as_the_keypoints(figures: Dataset) -> None:
    parts = drawn_figures(labels="parts", train=10, test=5)
    assert parts.task == "segmentation"
    assert parts.classes == PARTS
    assert parts.train.targets.dtype == np.uint8
    assert parts.train.targets.shape == (10, 96, 96)
    assert np.array_equal(parts.train.images[3], figures.train.images[3])
    assert 0.05 < (parts.train.targets > 0).mean() < 0.5


def test_a_box_holds_every_joint_that_is_inside_the_picture(figures: Dataset) -> None:
    boxes = drawn_figures(labels="boxes", train=40, test=5)
    assert (boxes.name, boxes.task, boxes.classes) == ("figure-boxes", "regression", BOX)
    assert boxes.train.targets.dtype == np.float32
    assert np.array_equal(boxes.train.images[3], figures.train.images[3])
    for (x, y, width, height), joints in zip(boxes.train.targets, figures.train.targets, strict=False):
        inside = joints[joints[:, 2] > 0, :2] / 96
        assert (inside[:, 0] >= x - width / 2 - 1e-5).all()
        assert (inside[:, 0] <= x + width / 2 + 1e-5).all()
        assert (inside[:, 1] >= y - height / 2 - 1e-5).all()
        assert (inside[:, 1] <= y + height / 2 + 1e-5).all()
        assert x - width / 2 + 1e-6 >= 0
        assert y + height / 2 <= 1 + 1e-6
