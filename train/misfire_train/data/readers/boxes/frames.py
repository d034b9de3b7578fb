"""Turns the boxes of any label format into a data set for detection.

reader --list of BoxFrame (a picture's path, its boxes, its half)--> images read, boxes cut at the border,
classes numbered, boxes placed in network pixels, halves divided --> Dataset

A picture without a box is a frame like any other: a detector that is silent there is right.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from misfire_runtime.bundle import sha256_file
from misfire_train.data.boxes import ANY_CLASS, Boxes, clip_boxes, stack_boxes, to_targets
from misfire_train.data.examples import Dataset
from misfire_train.data.readers.boxes.classes import class_notes, final_classes, used_classes, with_others
from misfire_train.data.readers.boxes.labels import BoxFrame, Found
from misfire_train.data.readers.class_lists import find_class_list, nfc
from misfire_train.data.readers.files import (
    ImageFile,
    decoded,
    digest_files,
    first_of,
    name_below,
    natural_contract,
    read_images,
    skipped_notes,
)
from misfire_train.data.readers.halves import divide, is_test, split_word
from misfire_train.data.readers.options import Options, list_digest
from misfire_train.errors import DatasetError

# An input of at most 320 pixels is what a small detector trains on in minutes on a CPU; strides of up to 32
# need multiples of 32.
_LONGEST_SIDE, _MULTIPLE = 320, 32
# Folders that hold images, as opposed to folders that name a drive or a city.
_IMAGE_FOLDERS = frozenset({"images", "image", "img", "imgs", "image_2", "jpegimages", "leftimg8bit"})
# Pixels: rounding in a label file is no fault of the label.
_BEYOND = 1.0


@dataclass(frozen=True)
class _Read:
    """Pairs frames with their decoded files, in the same order."""

    frames: tuple[BoxFrame, ...]
    files: tuple[ImageFile, ...]
    notes: tuple[str, ...]


@dataclass
class _Cut:
    """Counts what happened to boxes at the border of their pictures. Names are those of pictures."""

    beyond: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)


def assemble(found: Found, *, reader: str, path: Path, root: Path, options: Options) -> Dataset:
    """Returns the data set.

    Args:
        found: what the reader found.
        reader: its name.
        path: what it was asked to read.
        root: the data set's folder: names of pictures are relative to it.
        options: size, group, test, classes, others.

    Raises:
        DatasetError: no picture can be read, none has a box, or a box has a class that the list lacks.
    """
    listed = find_class_list(root, options)
    if options.others:
        found.frames, notes = with_others(found.frames, listed, options.others)
        found.notes += notes
    read = _read(found, path=path, root=root)
    classes = final_classes(path, found.classes, listed, used_classes(read.frames))
    cut = _Cut()
    boxes = [
        _numbered(frame, file, classes, cut) for frame, file in zip(read.frames, read.files, strict=True)
    ]
    if not any(len(each) for each in boxes):
        why = first_of([*_absent(found), *read.notes, *_border_notes(cut)])
        raise DatasetError(f"{path}: none of its {len(boxes)} images has a box" + (f"; {why}" if why else ""))
    contract = natural_contract(
        read.files, options.size, longest=_LONGEST_SIDE, multiple=_MULTIPLE, resize="letterbox"
    )
    names = [file.name for file in read.files]
    halves = divide(
        images=decoded(read.files),
        targets=stack_boxes(
            [
                to_targets(each, size=(file.width, file.height), contract=contract)
                for each, file in zip(boxes, read.files, strict=True)
            ]
        ),
        ids=names,
        names=names,
        groups=_groups(read.frames, names),
        words=[frame.word for frame in read.frames],
        options=options,
        folder=root,
    )
    more = {name_below(each, root): sha256_file(each) for each in found.labels}
    more |= list_digest(options, root) | (listed.digest if listed is not None else {})
    return Dataset(
        name=f"{reader}:{path}",
        task="detection",
        classes=classes,
        contract=contract,
        train=halves.train,
        test=halves.test,
        sha256=digest_files(read.files, more=more),
        licence="yours",
        notes=(
            *_absent(found),
            *read.notes,
            *found.notes,
            *(listed.notes if listed is not None else ()),
            *_border_notes(cut),
            *_count_notes(boxes),
            *class_notes(classes, halves),
            *halves.notes,
        ),
    )


def _read(found: Found, *, path: Path, root: Path) -> _Read:
    """Decodes the pictures, each once; leaves out those whose size is not that of the labels."""
    frames, notes = _once(found.frames)
    base = _base([frame.path for frame in frames], root)
    files, problems = read_images([frame.path for frame in frames], base=base)
    frame_of = {frame.path: frame for frame in frames}
    kept = [file for file in files if _same_size(frame_of[file.path], file)]
    other = [file for file in files if not _same_size(frame_of[file.path], file)]
    notes = [*skipped_notes(problems), *notes]
    if other:
        first, stated = other[0], frame_of[other[0].path].size or (0, 0)
        notes.append(
            f"{len(other)} images have another size than their labels state and were left out, such as "
            f"{first.name} ({first.width}x{first.height}, labels of {stated[0]}x{stated[1]})"
        )
    if not kept:
        why = first_of([*_absent(found), *notes]) or "it has none"
        raise DatasetError(f"{path}: no image of it can be read; {why}")
    return _Read(tuple(frame_of[file.path] for file in kept), tuple(kept), tuple(notes))


def _once(frames: Sequence[BoxFrame]) -> tuple[list[BoxFrame], list[str]]:
    """Returns each picture once, in the test half if both list it: nothing is tested on what it learned."""
    chosen: dict[Path, BoxFrame] = {}
    both: dict[Path, None] = {}
    again = 0
    for frame in frames:
        known = chosen.setdefault(frame.path, frame)
        if known is frame:
            continue
        if is_test(known.word) == is_test(frame.word):
            again += 1
            continue
        both[frame.path] = None
        if is_test(frame.word):
            chosen[frame.path] = frame
    notes = [f"{again} images are listed more than once: each counts once"] if again else []
    if both:
        notes.append(
            f"{len(both)} images are listed in both halves and stay in the test half only, such as "
            f"{next(iter(both)).name}"
        )
    return list(chosen.values()), notes


def _base(paths: Sequence[Path], root: Path) -> Path:
    """Returns the folder that names are relative to: images elsewhere must not lose their folders."""
    if all(path.is_relative_to(root) for path in paths):
        return root
    return Path(os.path.commonpath([path.parent.absolute() for path in paths]))


def _same_size(frame: BoxFrame, file: ImageFile) -> bool:
    # Zeros are what some tools write if they do not know the size.
    return frame.size is None or not all(frame.size) or frame.size == (file.width, file.height)


def _numbered(frame: BoxFrame, file: ImageFile, classes: Sequence[str], cut: _Cut) -> Boxes:
    """Returns the boxes [G,6] of one picture in its pixels; a region of any class has the class -1."""
    number = {name: at for at, name in enumerate(classes)} | {"": ANY_CLASS}
    rows = [(box.x0, box.y0, box.x1, box.y1, number[box.label], box.ignore) for box in frame.boxes]
    # Far beyond any picture, and within float32.
    boxes: Boxes = np.clip(np.array(rows, np.float64).reshape(-1, 6), -1e9, 1e9).astype(np.float32)
    if frame.relative:
        boxes[:, :4] *= np.array([file.width, file.height] * 2, np.float32)
    inside, solid = clip_boxes(boxes, width=file.width, height=file.height)
    beyond = solid & (np.abs(inside[:, :4] - boxes[:, :4]) > _BEYOND).any(1)
    cut.beyond += [file.name] * int(beyond.sum())
    cut.empty += [file.name] * int((~solid).sum())
    return inside[solid]


def _groups(frames: Sequence[BoxFrame], names: Sequence[str]) -> list[str]:
    """Returns the group that the labels name, else the folders of a picture, else its name."""
    folders = [folder_group(name) for name in names]
    if len(set(folders)) == 1:
        # One folder for everything says nothing about drives.
        folders = [""] * len(names)
    return [frame.group or folder or name for frame, folder, name in zip(frames, folders, names, strict=True)]


def _absent(found: Found) -> list[str]:
    if not found.absent:
        return []
    total = len(found.absent) + len(found.frames)
    looked = f"; looked in {found.looked}" if found.looked else ""
    return [f"{len(found.absent)} of {total} images are not there: {first_of(found.absent)}{looked}"]


def _border_notes(cut: _Cut) -> list[str]:
    notes = []
    if cut.beyond:
        notes.append(
            f"{len(cut.beyond)} boxes reached beyond their picture and were cut at its border, such as in "
            f"{cut.beyond[0]}"
        )
    if cut.empty:
        notes.append(f"{len(cut.empty)} boxes without an area were left out, such as in {cut.empty[0]}")
    return notes


def _count_notes(boxes: Sequence[Boxes]) -> list[str]:
    empty = sum(not len(each) for each in boxes)
    ignored = sum(int(each[:, 5].sum()) for each in boxes)
    total = sum(len(each) for each in boxes)
    notes = [f"{empty} of {len(boxes)} images have no box"] if empty else []
    if ignored:
        notes.append(
            f"{ignored} of {total} boxes are to be ignored: not missed if not found, not wrong if found"
        )
    return notes


def folder_group(name: str) -> str:
    """Returns the folders of a picture's name that are neither a half nor the folder of all images.

    >>> folder_group("train/images/drive7/000012.jpg"), folder_group("train2017/000012.jpg")
    ('drive7', '')
    """
    folders = [nfc(part) for part in name.split("/")[:-1]]
    return "/".join(
        part
        for part in folders
        if part.casefold() not in _IMAGE_FOLDERS and not split_word(part.rstrip("0123456789"))
    )
