"""Gives every task a data set in drives: garments, traffic lights, and figures as joints, parts and boxes.

published pictures or drawn figures --one drive each, filmed by its camera--> Examples, grouped by drive

Made to measure what a failure score is worth on the next drive: network, head, tuning and judging need drives
of their own, and no published set that may be redistributed here has enough. Twenty-two drives are in the
training half, eight in the test half; no two share a photograph.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from misfire_runtime.preprocess import Image, InputContract
from misfire_train.data.catalogue import find_entry
from misfire_train.data.drawn.cameras import Drive, film, paste, sample_drive
from misfire_train.data.drawn.figures import (
    BOX,
    PARTS,
    Photo,
    Scene,
    box_of,
    keypoints_of,
    published_photos,
    render,
    sample_scene,
)
from misfire_train.data.drawn.poses import JOINTS
from misfire_train.data.examples import Dataset, Examples
from misfire_train.data.images import DecodedImages
from misfire_train.data.readers.published import load_fashion_mnist, load_traffic_lights

Kind = Literal["garments", "lights", "figures", "parts", "boxes"]
TRAIN_DRIVES, TEST_DRIVES = 22, 8
FRAMES = 300
"""Frames of each drive; traffic lights have as many as there are photographs."""
_SIDE = 64
_GARMENT_SIDE = 32
_NOTE = "each drive has a camera, an exposure, a scenery and a weather that were made up"


def load_drives(
    root: Path | None = None,
    *,
    kind: Kind,
    frames: int = FRAMES,
    seed: int = 0,
    photos: Sequence[Photo] | None = None,
) -> Dataset:
    """Returns a data set of 30 drives, 8 of them in the test half.

    Args:
        root: folder of the published sets.
        kind: what is seen: garments (classes), lights (classes), figures as joints, as a mask of body parts,
            or as the box around them (four values).
        frames: of each drive; lights have all photographs that there are.
        seed: the same seed gives the same bytes.
        photos: the sceneries, at least 30. Default: the catalogue's photographs.
    """
    entry = find_entry(f"drive-{kind}")
    if kind == "lights":
        return _lights(root, seed=seed)
    found = published_photos(entry.name, root) if photos is None else list(photos)
    drives = _drives(seed)
    if kind == "garments":
        made = _garments(root, found, drives, frames=frames, seed=seed)
    else:
        made = _figures(kind, found, drives, frames=frames, seed=seed)
    train, test, task, classes, side = made
    return Dataset(
        name=entry.name,
        task=task,
        classes=classes,
        contract=InputContract(height=side, width=side, mean=(0.45, 0.45, 0.44), std=(0.25, 0.25, 0.26)),
        train=train,
        test=test,
        sha256=_digest(entry.sha256, seed, frames),
        licence=entry.licence,
        notes=(_NOTE, f"seed {seed}, {side}x{side}"),
    )


def _drives(seed: int) -> tuple[Drive, ...]:
    return tuple(
        sample_drive(f"drive-{number:02d}", (seed, 77, number), scenery=number)
        for number in range(TRAIN_DRIVES + TEST_DRIVES)
    )


def _halves(count: int) -> tuple[range, range]:
    """Returns the numbers of the frames of both halves, if each drive has `count`."""
    train = TRAIN_DRIVES * count
    return range(train), range(train, train + TEST_DRIVES * count)


def _examples(
    numbers: range,
    draw: Callable[[int], Image],
    targets: NDArray[Any],
    drives: Sequence[Drive],
    *,
    prefix: str,
    frames: int,
    shape: tuple[int, int, int],
) -> Examples:
    return Examples(
        images=DecodedImages(lambda i: draw(numbers[i]), count=len(numbers), shape=shape),
        targets=targets[numbers.start : numbers.stop],
        ids=tuple(f"{prefix}-{i // frames:02d}-{i % frames:04d}" for i in numbers),
        groups=tuple(drives[i // frames].name for i in numbers),
    )


_Made = tuple[Examples, Examples, str, tuple[str, ...], int]


def _garments(
    root: Path | None, photos: Sequence[Photo], drives: Sequence[Drive], *, frames: int, seed: int
) -> _Made:
    source = load_fashion_mnist(root)
    halves = _halves(frames)
    # Garments of the published training half never appear in a drive of the test half.
    rng = np.random.default_rng([seed, 78])
    chosen = [
        rng.permutation(len(half))[: len(numbers)]
        for half, numbers in zip((source.train, source.test), halves, strict=True)
    ]
    targets = np.concatenate(
        [half.targets[rows] for half, rows in zip((source.train, source.test), chosen, strict=True)]
    )

    def draw(number: int) -> Image:
        half, place = (0, number) if number < halves[1].start else (1, number - halves[1].start)
        garment = (source.train, source.test)[half].images[int(chosen[half][place])][:, :, 0]
        drive = drives[number // frames]
        own = np.random.default_rng((seed, 79, number))
        picture = paste(garment, photos[drive.scenery].pixels, side=_GARMENT_SIDE, rng=own)
        return film(picture, drive, seed=(seed, 80, number))

    shape = (_GARMENT_SIDE, _GARMENT_SIDE, 3)
    train, test = (
        _examples(half, draw, targets, drives, prefix=f"drive-garments-{seed}", frames=frames, shape=shape)
        for half in halves
    )
    return train, test, "classification", source.classes, _GARMENT_SIDE


def _figures(
    kind: Kind, photos: Sequence[Photo], drives: Sequence[Drive], *, frames: int, seed: int
) -> _Made:
    halves = _halves(frames)
    scenes = [
        sample_scene((seed, 81, number), photos=1, side=_SIDE) for number in range(frames * len(drives))
    ]
    task, classes = _FIGURES[kind]

    def draw(number: int) -> Image:
        drive = drives[number // frames]
        picture = render(scenes[number], photos[drive.scenery].pixels, side=_SIDE)[0]
        return film(picture, drive, seed=(seed, 82, number))

    targets = np.stack([_figure_target(kind, scene) for scene in scenes])
    shape = (_SIDE, _SIDE, 3)
    train, test = (
        _examples(half, draw, targets, drives, prefix=f"drive-{kind}-{seed}", frames=frames, shape=shape)
        for half in halves
    )
    return train, test, task, classes, _SIDE


_FIGURES: dict[str, tuple[str, tuple[str, ...]]] = {
    "figures": ("keypoints", JOINTS),
    "parts": ("segmentation", PARTS),
    "boxes": ("regression", BOX),
}
"""Task and names of outputs, by kind."""


def _figure_target(kind: Kind, scene: Scene) -> NDArray[Any]:
    if kind == "figures":
        return keypoints_of(scene, side=_SIDE)
    if kind == "boxes":
        return box_of(scene, side=_SIDE)
    # A mask does not depend on the photograph.
    return render(scene, np.zeros((1, 1, 3), np.uint8), side=_SIDE)[1]


def _lights(root: Path | None, *, seed: int) -> Dataset:
    """Returns the photographs of traffic lights, each filmed by one drive; what is around them stays."""
    source = load_traffic_lights(root)
    drives = _drives(seed)
    counts = {"train": range(TRAIN_DRIVES), "test": range(TRAIN_DRIVES, TRAIN_DRIVES + TEST_DRIVES)}
    halves = {
        part: _filmed(examples, [drives[n] for n in counts[part]], seed=seed)
        for part, examples in (("train", source.train), ("test", source.test))
    }
    entry = find_entry("drive-lights")
    return Dataset(
        name=entry.name,
        task=source.task,
        classes=source.classes,
        contract=source.contract,
        train=halves["train"],
        test=halves["test"],
        sha256=_digest(entry.sha256, seed, 0),
        licence=entry.licence,
        notes=(_NOTE, "crops of the two halves may come from the same video", f"seed {seed}"),
    )


def _filmed(examples: Examples, drives: Sequence[Drive], *, seed: int) -> Examples:
    """Deals pictures to drives at random, evenly, and films them."""
    dealt = np.random.default_rng([seed, 83, len(examples)]).permutation(len(examples)) % len(drives)

    def draw(index: int) -> Image:
        return film(examples.images[index], drives[dealt[index]], seed=(seed, 84, len(examples), index))

    return Examples(
        images=DecodedImages(draw, count=len(examples)),
        targets=examples.targets,
        ids=examples.ids,
        groups=tuple(drives[number].name for number in dealt),
    )


def _digest(sha256: str, seed: int, frames: int) -> str:
    return hashlib.sha256(f"{sha256} {seed} {frames}".encode()).hexdigest()
