"""Divides examples into a training and a test half, by one set of rules for every reader.

A data set marks its halves with a split word (a folder, a column, a file's name) or with a list of the test
half (`test=FILE`). If it marks none, a fifth of the groups is set aside. A note names whatever could flatter
the numbers: groups that are single frames, drives that both halves share, validation data in the test half.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from misfire_runtime.preprocess import Image
from misfire_train.data.examples import Examples
from misfire_train.data.readers.class_lists import nfc
from misfire_train.data.readers.options import Options, beside
from misfire_train.data.splits import split
from misfire_train.errors import DatasetError

TEST_FRACTION = 0.2
_TEST_WORDS = {
    "train": False,
    "training": False,
    "val": True,
    "valid": True,
    "validation": True,
    "test": True,
    "testing": True,
}
SPLIT_WORDS = ", ".join(_TEST_WORDS)


@dataclass(frozen=True)
class Halves:
    """Holds both halves. notes: decisions that the reader of a number should know."""

    train: Examples
    test: Examples
    notes: tuple[str, ...]


def split_word(text: str) -> str:
    """Returns the word in its plain form (`Valid` is `valid`), or "" if it is none of SPLIT_WORDS."""
    word = nfc(text).strip().casefold()
    return word if word in _TEST_WORDS else ""


def is_test(word: str) -> bool:
    """Returns whether a split word in its plain form, or "", means the test half."""
    return _TEST_WORDS.get(word, False)


def require_words(folder: Path, names: Sequence[str], words: Sequence[str]) -> None:
    """Raises DatasetError if only some images are below a folder with a split word."""
    if any(words) and not all(words):
        stray = next(name for name, word in zip(names, words, strict=True) if not word)
        raise DatasetError(
            f"{folder} has images both inside and outside of train and test folders, such as {stray}; "
            f"the words for the halves are {SPLIT_WORDS}"
        )


def divide(
    *,
    images: Sequence[Image],
    targets: NDArray[Any],
    ids: Sequence[str],
    names: Sequence[str],
    groups: Sequence[str],
    words: Sequence[str],
    options: Options,
    folder: Path,
) -> Halves:
    """Divides the examples of one reader into halves.

    Args:
        images: of each example.
        targets: of each example.
        ids: unique.
        names: the images' file names, which `group` and `test` refer to.
        groups: as the data set itself defines them.
        words: split words, "" for none.
        options: of the user.
        folder: of the data set; `test=FILE` is relative to it.

    Raises:
        DatasetError: the options do not fit the names, or a half would be empty.
    """
    notes: list[str] = []
    if options.test is not None:
        words, missing = _listed(beside(options.test, folder), names)
        notes += missing
    tests = [_TEST_WORDS[word] if word else False for word in words]
    divided = any(tests) and not all(tests)
    regrouped, group_notes = _groups(names, groups, tests if divided else None, options)
    examples = Examples(images, targets, tuple(ids), regrouped)
    if divided:
        train = examples.take(np.flatnonzero(~np.array(tests)))
        test = examples.take(np.flatnonzero(tests))
        notes += _word_notes(words)
    else:
        # A fixed seed: the test half must be the same in every run.
        parts = split(examples, fractions={"train": 1 - TEST_FRACTION, "test": TEST_FRACTION}, seed=0)
        train, test = parts["train"], parts["test"]
        lacks = f"all examples are in {_named(set(words))}" if all(tests) else "no test half was given"
        how = "by group" if options.grouped else "without groups"
        notes.append(f"{lacks}: {len(test)} of {len(examples)} examples were set aside, {how}")
    return Halves(train, test, (*notes, *group_notes, *_flattering(train, test, options)))


def _listed(path: Path, names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Reads the file that names the test half: a split word per image, and a note on lines of no image."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"test={path}: cannot be read as a list of images ({error})") from error
    # Lists that were written on Windows have backslashes.
    wanted = [nfc(line.strip().replace("\\", "/")) for line in lines if line.strip()]
    places: dict[str, set[int]] = {}
    for place, name in enumerate(names):
        for key in _spellings(nfc(name)):
            places.setdefault(key, set()).add(place)
    tests: set[int] = set()
    absent = []
    for line in wanted:
        found = places.get(line, set())
        if len({names[place] for place in found}) > 1:
            which = ", ".join(sorted(names[place] for place in found)[:3])
            raise DatasetError(f"{path}: {line} may be any of {which}; write the path below the data set")
        absent += [] if found else [line]
        tests |= found
    if not tests:
        raise DatasetError(
            f"{path}: none of its {len(wanted)} lines names an image of the data set; "
            f"images are named like {names[0]}" + (f", its first line is {wanted[0]}" if wanted else "")
        )
    words = ["test" if place in tests else "train" for place in range(len(names))]
    if not absent:
        return words, []
    return words, [f"{len(absent)} of {len(wanted)} lines of {path.name} name no readable image: {absent[0]}"]


def _spellings(name: str) -> set[str]:
    """Returns how lists may write an image: its path or its name, with or without the ending."""
    path = PurePosixPath(name)
    return {name, str(path.with_suffix("")), path.name, path.stem}


def _groups(
    names: Sequence[str], groups: Sequence[str], tests: Sequence[bool] | None, options: Options
) -> tuple[tuple[str, ...], list[str]]:
    """Returns the groups that the options ask for, and notes; names of a given test half may not match."""
    if not options.grouped:
        torn = len(set(groups)) < len(set(names))
        note = "split without groups, as group=none says: neighbouring frames may be in different parts"
        return tuple(names), [note] if torn else []
    if options.group is None:
        return tuple(nfc(group) for group in groups), []
    found = [options.group.search(name) for name in names]
    # A group that takes no part in the match captures None.
    captured = [match.group(1) if match is not None else None for match in found]
    failed = [place for place, group in enumerate(captured) if group is None]
    fatal = failed if tests is None else [place for place in failed if not tests[place]]
    where = "images" if tests is None else "training images"
    if fatal:
        raise DatasetError(
            f"group={options.group.pattern} does not match {len(fatal)} of the {where}, "
            f"such as {names[fatal[0]]}"
        )
    notes = []
    if failed:
        notes.append(
            f"group={options.group.pattern} matches no name of {len(failed)} test images, "
            f"such as {names[failed[0]]}: they keep the groups they had"
        )
    return (
        tuple(nfc(other if group is None else group) for group, other in zip(captured, groups, strict=True)),
        notes,
    )


def _word_notes(words: Sequence[str]) -> list[str]:
    """Notes that validation data are in the test half, or that words are missing."""
    counts = Counter(word for word in words if word and _TEST_WORDS[word])
    notes = []
    if set(counts) - {"test", "testing"}:
        parts = " and ".join(f"{counts[word]} of {word}" for word in sorted(counts))
        notes.append(f"the test half is {parts}; test=FILE chooses another one")
    silent = sum(not word for word in words)
    if silent:
        notes.append(f"{silent} examples without a split word are in the training half")
    return notes


def _flattering(train: Examples, test: Examples, options: Options) -> list[str]:
    """Notes what would make a number look better than it is."""
    notes = []
    own = set(train.groups)
    if options.grouped and options.group is None and len(own) == len(train) > 1:
        notes.append(
            f"each of the {len(train)} training examples is a group of its own; if they are frames of drives "
            "or tracks, name those with group=REGEX, else frames of one drive are in several parts"
        )
    shared = own & set(test.groups)
    if shared and options.grouped:
        notes.append(
            f"{len(shared)} of the {len(set(test.groups))} groups of the test half are also in the training "
            f"half ({_named(shared)}): results on the test half look better than on new groups"
        )
    return notes


def _named(names: set[str]) -> str:
    first = sorted(names)[:3]
    return ", ".join(first) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
