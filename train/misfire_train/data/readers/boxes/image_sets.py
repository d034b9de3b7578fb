"""Reads ImageSets of VOC and KITTI: train.txt, val.txt, test.txt, each line the name of a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from misfire_train.data.readers.boxes.labels import BoxFrame
from misfire_train.data.readers.files import EXTENSIONS, first_of
from misfire_train.errors import DatasetError

# First come, first served: trainval holds train and val together.
_LISTS = {"train": "train", "val": "val", "test": "test", "trainval": "train"}


def half_lists(folder: Path) -> dict[str, str]:
    """Returns the split word of each listed name; empty if the folder has no list.

    Raises DatasetError if a list cannot be read.
    """
    words: dict[str, str] = {}
    for stem, word in _LISTS.items():
        path = folder / f"{stem}.txt"
        if not path.is_file():
            continue
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DatasetError(f"{path}: cannot be read as a list of images ({error})") from error
        for line in lines:
            # Lists of a class have a second column.
            name = line.split()[0] if line.strip() else ""
            if name:
                words.setdefault(_key(name), word)
    return words


def divided_by_lists(
    frames: Sequence[BoxFrame], words: dict[str, str], *, lists: Path
) -> tuple[list[BoxFrame], list[str]]:
    """Returns the frames that a list names, with their split words, and notes; all if there are no lists.

    Args:
        frames: with split words of their own.
        words: from `half_lists`.
        lists: their folder, for the notes.
    """
    if not words:
        return list(frames), []
    kept = [replace(frame, word=words[key]) for frame in frames if (key := _key(frame.path.name)) in words]
    notes = []
    if len(kept) < len(frames):
        stray = next(frame.path.name for frame in frames if _key(frame.path.name) not in words)
        notes.append(
            f"{len(frames) - len(kept)} labelled images are in no list of {lists} and were left out, "
            f"such as {stray}"
        )
    absent = sorted(set(words) - {_key(frame.path.name) for frame in frames})
    if absent:
        notes.append(
            f"{len(absent)} of {len(words)} names of {lists} have no labelled image: {first_of(absent)}"
        )
    return kept, notes


def _key(name: str) -> str:
    """Returns the name without folders and without the ending of an image; a dot may be part of a name."""
    plain = PurePosixPath(name.replace("\\", "/"))
    return plain.stem if plain.suffix.lower() in EXTENSIONS else plain.name
