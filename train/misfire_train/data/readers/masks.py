"""Reads segmentation from folders: an image and a mask of class numbers, 255 for pixels without a label.

    PATH/images/**/NAME.jpg                        PATH/masks/**/NAME.png, or both below train/ and test/
    PATH/leftImg8bit/PART/CITY/X_leftImg8bit.png   PATH/gtFine/PART/CITY/X_gtFine_labelTrainIds.png

The first folder that is a split word (train, val, test) is the half. All other folders beside `images` are
the group (a drive, a city). `PATH/classes.txt` or `classes.json` names the classes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from misfire_runtime.bundle import sha256_file
from misfire_train.data.examples import Dataset
from misfire_train.data.readers.class_lists import ClassList, find_class_list, nfc
from misfire_train.data.readers.files import (
    ImageFile,
    decoded,
    digest_files,
    find_images,
    first_of,
    name_below,
    natural_contract,
    read_images,
    skipped_notes,
)
from misfire_train.data.readers.halves import divide, require_words, split_word
from misfire_train.data.readers.mask_images import IGNORE, read_mask, resize_mask
from misfire_train.data.readers.options import Options, list_digest
from misfire_train.errors import DatasetError

_IMAGE_FOLDERS = ("images", "leftImg8bit")


@dataclass(frozen=True)
class _Place:
    """Holds what an image's folders mean. word: its split word, "" for none. group: "" for none."""

    word: str
    group: str


def load_masks(folder: Path, options: Options) -> Dataset:
    """Returns images with masks, resized by the nearest label to the network's input size.

    Images without a mask and masks without an image are left out and counted. Raises DatasetError if nothing
    is left, a mask is invalid (see read_mask), or a label is beyond the listed classes.
    """
    found = find_images(folder)
    listed = find_class_list(folder, options)
    pairs, unpaired = _pairs(folder, found.paths)
    files, problems = read_images([image for image, _ in pairs], base=folder)
    mask_of = dict(pairs)
    if not files:
        raise DatasetError(
            f"{folder}: no readable image with a mask; "
            f"{first_of(problems) or 'expected images/ and masks/ or the names of Cityscapes'}"
        )
    contract = natural_contract(files, options.size)
    count = len(listed.names) if listed is not None else None
    ignore = options.ignore | (listed.ignore if listed is not None else frozenset())
    masks: NDArray[np.uint8] = np.empty((len(files), contract.height, contract.width), np.uint8)
    pixels: NDArray[np.int64] = np.zeros(IGNORE + 1, np.int64)
    for row, file in enumerate(files):
        mask = read_mask(mask_of[file.path], size=(file.width, file.height), classes=count, ignore=ignore)
        # Counted before resizing, which may drop a small class.
        pixels += np.bincount(mask.reshape(-1), minlength=len(pixels))
        masks[row] = resize_mask(mask, height=contract.height, width=contract.width)
    classes = _classes(folder, pixels[:IGNORE], listed)
    names = [file.name for file in files]
    places = _places(folder, names)
    halves = divide(
        images=decoded(files),
        targets=masks,
        ids=names,
        names=names,
        groups=[place.group or name for place, name in zip(places, names, strict=True)],
        words=[place.word for place in places],
        options=options,
        folder=folder,
    )
    absent = [classes[label] for label in np.flatnonzero(pixels[: len(classes)] == 0)]
    return Dataset(
        name=f"masks:{folder}",
        task="segmentation",
        classes=classes,
        contract=contract,
        train=halves.train,
        test=halves.test,
        sha256=digest_files(files, more=_digests(files, mask_of, listed) | list_digest(options, folder)),
        licence="yours",
        notes=(
            *skipped_notes(problems),
            *((f"{unpaired} images or masks without a partner left out",) if unpaired else ()),
            *found.notes,
            *(listed.notes if listed is not None else ()),
            *((f"classes without a pixel in any mask: {first_of(absent)}",) if absent else ()),
            *_ignored(pixels, ignore),
            *halves.notes,
        ),
    )


def _pairs(folder: Path, paths: Sequence[Path]) -> tuple[list[tuple[Path, Path]], int]:
    """Returns (image, mask) pairs and the number of files without a partner."""
    images, masks = {}, {}
    for path in paths:
        name = nfc(name_below(path, folder))
        if "leftImg8bit" in name:
            images[re.sub(r"_leftImg8bit\.\w+$", "", name.replace("leftImg8bit/", "", 1))] = path
        elif name.endswith("_labelTrainIds.png"):
            masks[
                re.sub(
                    r"_gt(Fine|Coarse)_labelTrainIds\.png$", "", re.sub("gt(Fine|Coarse)/", "", name, count=1)
                )
            ] = path
        elif "images" in name.split("/")[:-1]:
            images[_key(name, "images")] = path
        elif "masks" in name.split("/")[:-1]:
            masks[_key(name, "masks")] = path
    both = sorted(set(images) & set(masks))
    return [(images[key], masks[key]) for key in both], len(images) + len(masks) - 2 * len(both)


def _key(name: str, kind: str) -> str:
    parts = name.split("/")
    # Removes the first only: a deeper folder of that name is part of the key.
    parts.remove(kind)
    return "/".join(parts).rsplit(".", 1)[0]


def _places(folder: Path, names: Sequence[str]) -> list[_Place]:
    """Returns split word and group of each image. Raises DatasetError if only some have a split word."""
    found = []
    for name in names:
        folders = [nfc(part) for part in name.split("/")[:-1]]
        kind = next((at for at, part in enumerate(folders) if part in _IMAGE_FOLDERS), len(folders))
        half = next((at for at, part in enumerate(folders) if at != kind and split_word(part)), None)
        rest = [part for at, part in enumerate(folders) if at not in (kind, half)]
        found.append(_Place(split_word(folders[half]) if half is not None else "", "/".join(rest)))
    require_words(folder, names, [place.word for place in found])
    return found


def _classes(folder: Path, pixels: NDArray[np.int64], listed: ClassList | None) -> tuple[str, ...]:
    """Names the classes. pixels: how many have each label."""
    labels = np.flatnonzero(pixels)
    if not labels.size:
        raise DatasetError(f"{folder}: no pixel of any mask has a label")
    if len(labels) == 1:
        raise DatasetError(
            f"{folder}: every labelled pixel of every mask is class {labels[0]}; expected two classes or "
            f"more (pixels of {IGNORE} count as not labelled: an object is stored as 1, not as {IGNORE})"
        )
    if listed is not None:
        return listed.names
    return tuple(f"class {number}" for number in range(int(labels.max()) + 1))


def _ignored(pixels: NDArray[np.int64], ignore: frozenset[int]) -> list[str]:
    share = pixels[IGNORE] / pixels.sum()
    labels = ", ".join(str(label) for label in sorted(ignore | {IGNORE}))
    return [f"{100 * share:.1f} % of all pixels are not labelled (label {labels})"] if share > 0 else []


def _digests(
    files: Sequence[ImageFile], mask_of: dict[Path, Path], listed: ClassList | None
) -> dict[str, str]:
    """Returns checksums of the masks, and of a class list that defines their numbers."""
    masks = {f"{file.name}.mask": sha256_file(mask_of[file.path]) for file in files}
    return masks | (listed.digest if listed is not None and listed.ignore else {})
