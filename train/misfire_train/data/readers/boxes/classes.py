"""Numbers the classes of labelled boxes, and notes those that are not there.

A class list decides, else the label format's own list, else the names that occur.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from misfire_train.data.readers.boxes.labels import BoxFrame
from misfire_train.data.readers.class_lists import ClassList, nfc
from misfire_train.data.readers.files import first_of
from misfire_train.data.readers.halves import Halves
from misfire_train.errors import DatasetError


def require_numbers(where: str, names: Mapping[int, str]) -> tuple[str, ...]:
    """Returns class names by number. Raises DatasetError if there is none, or if a name occurs twice."""
    listed = tuple(nfc(names[number]) for number in sorted(names))
    if not listed:
        raise DatasetError(f"{where}: lists no classes")
    twice = next((name for name in listed if listed.count(name) > 1), None)
    if twice is not None:
        raise DatasetError(f"{where}: lists the class {twice} twice")
    return listed


def used_classes(frames: Sequence[BoxFrame]) -> set[str]:
    """Returns the classes that have boxes."""
    return {box.label for frame in frames for box in frame.boxes if box.label}


def final_classes(
    path: Path, own: Sequence[str] | None, listed: ClassList | None, used: Collection[str]
) -> tuple[str, ...]:
    """Returns the listed classes, else those of the labels, else the names that occur.

    Args:
        path: what is read, for messages.
        own: classes as the label format lists them, None if it does not.
        listed: a class list.
        used: the names that occur.

    Raises:
        DatasetError: there is no class, or the list lacks one that has boxes.
    """
    if listed is None:
        classes = tuple(own) if own is not None else tuple(sorted(used))
        if not classes:
            raise DatasetError(f"{path}: no box has a class")
        return classes
    unknown = sorted(set(used) - set(listed.names))
    if unknown:
        raise DatasetError(
            f"{listed.path} does not list {first_of(unknown)}, which {path} has boxes of; others=drop behind "
            "the path reads it without them, others=ignore with regions to be ignored"
        )
    return listed.names


def with_others(
    frames: Sequence[BoxFrame], listed: ClassList | None, others: str
) -> tuple[list[BoxFrame], list[str]]:
    """Returns the frames without the boxes of other classes, or with regions of no class in their places.

    Raises DatasetError if there is no list.
    """
    if listed is None:
        raise DatasetError(f"others={others}: needs a list of the classes that are meant (classes=FILE)")
    known, counts = {*listed.names, ""}, Counter[str]()
    chosen = []
    for frame in frames:
        counts.update(box.label for box in frame.boxes if box.label not in known)
        kept = (
            box if box.label in known else replace(box, label="", ignore=True)
            for box in frame.boxes
            if box.label in known or others == "ignore"
        )
        chosen.append(replace(frame, boxes=tuple(kept)))
    if not counts:
        return chosen, []
    names = first_of([f"{name} ({count})" for name, count in counts.most_common()])
    done = "left out" if others == "drop" else "to be ignored"
    return chosen, [
        f"{counts.total()} boxes of classes that {listed.path.name} does not list {done}: {names}"
    ]


def class_notes(classes: Sequence[str], halves: Halves) -> list[str]:
    """Notes classes without a box, and those without a box to train on."""
    trained, tested = (_labels(half.targets) for half in (halves.train, halves.test))
    empty = [name for at, name in enumerate(classes) if at not in trained | tested]
    unseen = [name for at, name in enumerate(classes) if at in tested - trained]
    notes = [f"classes without a box: {first_of(empty)}"] if empty else []
    return notes + ([f"classes without a box in the training half: {first_of(unseen)}"] if unseen else [])


def _labels(targets: NDArray[np.object_]) -> set[int]:
    """Returns the classes of boxes that are not ignored."""
    counts: Counter[int] = Counter()
    for boxes in targets:
        counts.update(boxes[boxes[:, 5] == 0, 4].astype(int).tolist())
    return set(counts)
