"""Draws articulated figures over real photographs: keypoints, part masks and boxes without labelled people.

The figures are made, the photographs are not: dash-cam stills and COCO photos, whose own people stay in the
picture, unlabelled. Limbs, clothing, light, occluders and a second figure vary, and some clothing takes its
colours from the background, so that a small network makes real mistakes. A figure is drawn on first access.
Seed and number determine it. Its group is its photograph; train and test share none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from misfire_runtime.preprocess import Image, InputContract, decode_image
from misfire_train.data.catalogue import find_entry, open_file
from misfire_train.data.drawn.drawing import Wardrobe, draw_figure, sample_wardrobe
from misfire_train.data.drawn.poses import JOINTS, Pose, sample_pose
from misfire_train.data.examples import Dataset, Examples
from misfire_train.data.images import DecodedImages

PARTS = ("background", "head", "torso", "arms", "legs")
BOX = ("centre_x", "centre_y", "width", "height")
Labels = Literal["keypoints", "parts", "boxes"]
# Figures are drawn at twice the size and averaged, so their edges look photographed.
_SUPERSAMPLING = 2
NOTE = "figures are drawn over real photographs; they are not photographs of people"


@dataclass(frozen=True)
class Photo:
    """Holds a background: its name and pixels."""

    name: str
    pixels: Image


@dataclass(frozen=True)
class Scene:
    """Holds all that determines a picture except the photograph's pixels.

    points: float32 [14,2] in image pixels.
    """

    photo: int
    pose: Pose
    points: NDArray[np.float32]
    wardrobe: Wardrobe
    occluder: tuple[float, float, float, float] | None
    seed: tuple[int, ...]


def load_figures(
    root: Path | None = None,
    *,
    labels: Labels = "keypoints",
    side: int = 96,
    train: int = 5000,
    test: int = 2000,
    seed: int = 0,
    photos: Sequence[Photo] | None = None,
) -> Dataset:
    """Returns figures with 14 keypoints, with a mask of body parts, or with the box around their joints.

    Args:
        root: folder of the published sets.
        labels: kind of target.
        side: of the square pictures, in pixels.
        train, test: number of pictures.
        seed: the same seed gives the same bytes.
        photos: the backgrounds. Default: the catalogue's photographs.
    """
    name, task, classes = _KINDS[labels]
    entry = find_entry(name)
    found = published_photos(name, root) if photos is None else list(photos)
    # By photograph: no background is in both halves.
    halves = {"train": [p for i, p in enumerate(found) if i % 3], "test": found[::3]}
    counts = {"train": train, "test": test}
    made = {
        part: _make(part, halves[part], count=counts[part], side=side, seed=seed, labels=labels)
        for part in ("train", "test")
    }
    return Dataset(
        name=name,
        task=task,
        classes=classes,
        contract=InputContract(height=side, width=side, mean=(0.45, 0.45, 0.44), std=(0.25, 0.25, 0.26)),
        train=made["train"],
        test=made["test"],
        sha256=entry.sha256,
        licence=entry.licence,
        notes=(NOTE, f"seed {seed}, {side}x{side}"),
    )


def published_photos(name: str, root: Path | None) -> list[Photo]:
    """Returns the photographs among the files of a catalogue's entry, verified.

    Raises DatasetError if one is missing or changed.
    """
    pictures = (file for file in find_entry(name).files if file.path.endswith(".jpg"))
    files = ((file.path, open_file(file, name=name, root=root)) for file in pictures)
    return [Photo(own, decode_image(path.read_bytes(), name=own)) for own, path in files]


_KINDS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "keypoints": ("figures", "keypoints", JOINTS),
    "parts": ("figure-parts", "segmentation", PARTS),
    "boxes": ("figure-boxes", "regression", BOX),
}
"""Name of the data set, its task, and what its outputs are called, by kind of label."""


def _make(part: str, photos: list[Photo], *, count: int, side: int, seed: int, labels: Labels) -> Examples:
    scenes = [
        sample_scene((seed, int(part == "test"), i), photos=len(photos), side=side) for i in range(count)
    ]

    def decode(index: int) -> Image:
        scene = scenes[index]
        return render(scene, photos[scene.photo].pixels, side=side)[0]

    if labels == "keypoints":
        targets: NDArray[np.generic] = np.stack([keypoints_of(scene, side=side) for scene in scenes])
    elif labels == "boxes":
        targets = np.stack([box_of(scene, side=side) for scene in scenes])
    else:
        # A mask does not depend on the photograph.
        blank = np.zeros((1, 1, 3), np.uint8)
        targets = np.stack([render(scene, blank, side=side)[1] for scene in scenes])
    return Examples(
        images=DecodedImages(decode, count=count, shape=(side, side, 3)),
        targets=targets,
        ids=tuple(f"figures-{seed}-{part}-{i:05d}" for i in range(count)),
        groups=tuple(photos[scene.photo].name for scene in scenes),
    )


def sample_scene(seed: tuple[int, ...], *, photos: int, side: int) -> Scene:
    """Returns pose, place, clothing and occluder of one picture."""
    rng = np.random.default_rng(seed)
    pose = sample_pose(rng)
    points = _placed(pose, rng, side=side)
    occluder = None
    if rng.random() < 0.4:
        over = points[int(rng.integers(14))] + rng.normal(0, 0.06 * side, 2)
        size = rng.uniform(0.12, 0.34, 2) * side
        occluder = (float(over[0]), float(over[1]), float(size[0]), float(size[1]))
    return Scene(int(rng.integers(photos)), pose, points, sample_wardrobe(rng), occluder, (*seed, 1))


def keypoints_of(scene: Scene, *, side: int) -> NDArray[np.float32]:
    """Returns [14,3]: x, y in pixels; 2 seen, 1 under the occluder, 0 outside the picture."""
    x, y = scene.points.T
    seen = np.full(14, 2, np.float32)
    if scene.occluder is not None:
        centre_x, centre_y, width, height = scene.occluder
        seen[(np.abs(x - centre_x) < width / 2) & (np.abs(y - centre_y) < height / 2)] = 1
    seen[(x < 0) | (y < 0) | (x > side - 1) | (y > side - 1)] = 0
    return np.column_stack((scene.points, seen)).astype(np.float32)


def box_of(scene: Scene, *, side: int) -> NDArray[np.float32]:
    """Returns the box around all joints as shares of the picture's side, [4].

    The numbers are centre x and y, width and height. A box that leaves the picture is cut at its border.
    """
    low, high = (np.clip(corner / side, 0, 1) for corner in (scene.points.min(0), scene.points.max(0)))
    return np.asarray(np.concatenate(((low + high) / 2, high - low)), np.float32)


def render(scene: Scene, photo: Image, *, side: int) -> tuple[Image, NDArray[np.uint8]]:
    """Returns the picture, uint8 [side,side,3] RGB, and its parts, uint8 [side,side] (indices into PARTS)."""
    rng = np.random.default_rng(scene.seed)
    large = side * _SUPERSAMPLING
    canvas = _background(photo, large, rng)
    parts = np.zeros((large, large), np.uint8)
    palette = canvas[rng.integers(large, size=4), rng.integers(large, size=4)]
    if rng.random() < 0.25:
        other = sample_pose(rng)
        away = _placed(other, rng, side=side) + np.float32(rng.choice([-1, 1]) * rng.uniform(0.3, 0.5) * side)
        clothes = sample_wardrobe(rng)
        draw_figure(
            canvas, np.zeros_like(parts), away * _SUPERSAMPLING, other, wardrobe=clothes, palette=palette
        )
    draw_figure(
        canvas, parts, scene.points * _SUPERSAMPLING, scene.pose, wardrobe=scene.wardrobe, palette=palette
    )
    if scene.occluder is not None:
        _occlude(canvas, parts, scene.occluder, _background(photo, large, rng))
    image = cv2.resize(canvas, (side, side), interpolation=cv2.INTER_AREA)
    return _developed(np.asarray(image, np.uint8), rng), parts[::_SUPERSAMPLING, ::_SUPERSAMPLING].copy()


def _placed(pose: Pose, rng: np.random.Generator, *, side: int) -> NDArray[np.float32]:
    """Converts figure space to pixels: 60 to 100 % of the picture's side, near the middle."""
    low, high = pose.points.min(0), pose.points.max(0)
    scale = rng.uniform(0.6, 1.0) * side / max(float((high - low).max()), 0.4)
    middle = side / 2 + rng.normal(0, 0.05, 2) * side
    return np.asarray((pose.points - (low + high) / 2) * scale + middle, np.float32)


def _background(photo: Image, large: int, rng: np.random.Generator) -> Image:
    height, width = photo.shape[:2]
    extent = int(min(height, width) * rng.uniform(0.3, 1.0)) or 1
    top, left = int(rng.integers(height - extent + 1)), int(rng.integers(width - extent + 1))
    crop = photo[top : top + extent, left : left + extent]
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    shrinking = extent > large
    return np.array(
        cv2.resize(crop, (large, large), interpolation=cv2.INTER_AREA if shrinking else cv2.INTER_LINEAR),
        np.uint8,
    )


def _occlude(
    canvas: Image, parts: NDArray[np.uint8], occluder: tuple[float, float, float, float], cover: Image
) -> None:
    """Pastes another piece of the photograph over a rectangle, in place."""
    x, y, width, height = (value * _SUPERSAMPLING for value in occluder)
    rows = slice(max(0, round(y - height / 2)), max(0, round(y + height / 2)))
    columns = slice(max(0, round(x - width / 2)), max(0, round(x + width / 2)))
    canvas[rows, columns] = cover[rows, columns]
    parts[rows, columns] = 0


def _developed(image: Image, rng: np.random.Generator) -> Image:
    """Adds the light and the grain of a camera."""
    gain, lift = rng.uniform(0.7, 1.2), rng.uniform(-12, 12)
    grain = rng.standard_normal(image.shape, np.float32) * np.float32(rng.uniform(1, 7))
    return np.asarray(np.clip(image * np.float32(gain) + np.float32(lift) + grain, 0, 255), np.uint8)
