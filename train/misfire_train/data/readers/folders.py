"""Reads image folders: PATH/CLASS/image, PATH/CLASS/GROUP/image, PATH/{train,test}/CLASS/...

A folder without images is still a class, so that class numbers stay those of the network; `classes.txt` (or
`classes=FILE`) fixes the classes and their order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from misfire_train.data.examples import Dataset
from misfire_train.data.readers.class_lists import ClassList, find_class_list, nfc
from misfire_train.data.readers.files import (
    decoded,
    digest_files,
    find_images,
    first_of,
    name_below,
    natural_contract,
    read_images,
    skipped_notes,
    subfolders,
)
from misfire_train.data.readers.halves import Halves, divide, require_words, split_word
from misfire_train.data.readers.options import Options, list_digest, printable
from misfire_train.errors import DatasetError


@dataclass(frozen=True)
class _Place:
    """Holds what an image's folders mean. word: its split word, "" for none. group: "" for none."""

    word: str
    label: str
    group: str


def load_image_folder(folder: Path, options: Options) -> Dataset:
    """Returns every image below a class's folder.

    Folders between class and image are its group (a drive, a track).

    Raises DatasetError if there are no classes, no readable images, or a class that the list lacks.
    """
    found = find_images(folder)
    listed = find_class_list(folder, options)
    known = set(listed.names) if listed is not None else set()
    names = [name_below(path, folder) for path in found.paths]
    words = _words(folder, names, known)
    files, problems = read_images(found.paths, base=folder)
    if not files:
        raise DatasetError(f"{folder} has no readable images; {first_of(problems) or 'expected CLASS/image'}")
    place_of = {name: _place(name, word) for name, word in zip(names, words, strict=True)}
    classes = _classes(folder, [place.label for place in place_of.values()], halved=any(words), listed=listed)
    places = [place_of[file.name] for file in files]
    number = {name: position for position, name in enumerate(classes)}
    halves = divide(
        images=decoded(files, channels=options.channels),
        targets=np.array([number[place.label] for place in places], np.int64),
        ids=[file.name for file in files],
        names=[file.name for file in files],
        groups=[place.group or file.name for place, file in zip(places, files, strict=True)],
        words=[place.word for place in places],
        options=options,
        folder=folder,
    )
    failed = Counter(place.label for place in place_of.values()) - Counter(place.label for place in places)
    more = list_digest(options, folder) | (listed.digest if listed is not None else {})
    return Dataset(
        name=f"image-folder:{folder}",
        task="classification",
        classes=classes,
        contract=natural_contract(files, options.size, channels=options.channels),
        train=halves.train,
        test=halves.test,
        sha256=digest_files(files, more=more),
        licence="yours",
        notes=(
            *skipped_notes(problems),
            *found.notes,
            *(listed.notes if listed is not None else ()),
            *_class_notes(classes, halves, failed),
            *halves.notes,
        ),
    )


def _words(folder: Path, names: Sequence[str], known: set[str]) -> list[str]:
    """Returns the split word of each image, all "" if the first folders are classes."""
    tops = [(name.split("/")[0], len(name.split("/"))) for name in names]
    # In train/x.png the folder is a class (train, as of vehicles), and so is any folder of the class list.
    words = ["" if depth < 3 or nfc(top) in known else split_word(top) for top, depth in tops]
    if not known and not any(words) and names and all(split_word(top) for top, _ in tops):
        raise DatasetError(
            f"{folder} has images directly in {first_of(sorted({top for top, _ in tops}))}; expected "
            "a folder per class below each half, as train/CLASS/image (or list the classes in classes.txt)"
        )
    require_words(folder, names, words)
    return words


def _place(name: str, word: str) -> _Place:
    folders = [nfc(part) for part in name.split("/")[:-1]][1 if word else 0 :]
    if not folders:
        raise DatasetError(f"{name} is in no class's folder; expected CLASS/image")
    return _Place(word, folders[0], "/".join(folders[1:]))


def _classes(folder: Path, used: Iterable[str], *, halved: bool, listed: ClassList | None) -> tuple[str, ...]:
    """Returns the listed classes, else the names of all class folders, empty ones too."""
    if listed is not None:
        unknown = sorted(set(used) - set(listed.names))
        if unknown:
            raise DatasetError(
                f"{listed.path} does not list {first_of(unknown)}, which {folder} has images of"
            )
        classes = listed.names
    else:
        tops = subfolders(folder)
        parents = [top for top in tops if split_word(top.name)] if halved else [folder]
        empty = {nfc(printable(path.name)) for parent in parents for path in subfolders(parent)}
        # Sorted, so that class numbers do not depend on the order in a file system.
        classes = tuple(sorted(empty | set(used)))
    if len(classes) < 2:
        raise DatasetError(f"{folder} has one class only ({classes[0]}); expected one folder per class")
    return classes


def _class_notes(classes: Sequence[str], halves: Halves, failed: Mapping[str, int]) -> list[str]:
    """Notes classes without images, and those without images to train on."""
    trained, tested = (set(np.unique(half.targets)) for half in (halves.train, halves.test))
    empty = [
        f"{name} ({failed[name]} that cannot be read)" if failed.get(name) else name
        for number, name in enumerate(classes)
        if number not in trained | tested
    ]
    unseen = [name for number, name in enumerate(classes) if number in tested - trained]
    notes = [f"classes without a readable image: {first_of(empty)}"] if empty else []
    return notes + ([f"classes without a training image: {first_of(unseen)}"] if unseen else [])
