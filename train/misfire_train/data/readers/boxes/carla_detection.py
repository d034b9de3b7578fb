"""Reads carla-detection: rendered road scenes of five towns, one of which is the test half.

A group is a stretch of a town's drive, TOWN/NUMBER. Four towns would be too few groups to divide the training
half; whoever holds out whole towns takes the part before the slash.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from misfire_train.data.catalogue import find_entry, open_file
from misfire_train.data.examples import Dataset, Examples
from misfire_train.data.readers.boxes.coco import load_coco_boxes
from misfire_train.data.readers.options import Options

# Frames; 26 stretches in the training half, 8 in the test half.
_STRETCH = 30


def load_carla_detection(root: Path | None = None) -> Dataset:
    """Returns the 779 frames of Town01 to Town04 to train on and the 249 of Town05 to test on."""
    entry = find_entry("carla-detection")
    paths = [open_file(file, name=entry.name, root=root) for file in entry.files]
    train = next(path for path in paths if path.name == "train.json")
    dataset = load_coco_boxes(train, Options(test=Path("test.json")))
    return replace(
        dataset,
        name=entry.name,
        train=_in_stretches(dataset.train),
        test=_in_stretches(dataset.test),
        sha256=entry.sha256,
        licence=entry.licence,
        notes=(
            *dataset.notes,
            f"groups are stretches of {_STRETCH} frames of a town's drive; neighbouring stretches are alike "
            "where they meet, only the test half's town is new",
            "boxes were made from a segmentation: touching objects of a class may share one",
        ),
    )


def _in_stretches(examples: Examples) -> Examples:
    return replace(examples, groups=stretches(examples.ids))


def stretches(ids: Sequence[str]) -> tuple[str, ...]:
    """Returns the group of each frame, from names such as images/Town01_001020.jpg.

    A last stretch of less than half the length belongs to the one before it.
    """
    drives: dict[str, list[str]] = defaultdict(list)
    for identity in sorted(ids):
        drives[_town(identity)].append(identity)
    group_of = {}
    for town, frames in drives.items():
        count = max(1, round(len(frames) / _STRETCH))
        for place, identity in enumerate(frames):
            group_of[identity] = f"{town}/{min(place // _STRETCH, count - 1):02d}"
    return tuple(group_of[identity] for identity in ids)


def _town(identity: str) -> str:
    return PurePosixPath(identity).stem.split("_")[0]
