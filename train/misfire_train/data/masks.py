"""Segmentation from folders: an image and a mask of class numbers, 255 where nothing is labelled.

    PATH/images/**/NAME.jpg                        PATH/masks/**/NAME.png, or both below train/ and test/
    PATH/leftImg8bit/PART/CITY/X_leftImg8bit.png   PATH/gtFine/PART/CITY/X_gtFine_labelTrainIds.png

The folder between `images` and the file is the group (a drive, a city). `PATH/classes.txt` names the classes,
one per line.
"""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from misfire_runtime.bundle import sha256_file
from misfire_runtime.preprocess import InputContract
from misfire_train.data.examples import Dataset, Examples
from misfire_train.data.files import (
    ImageFile,
    Options,
    decoded,
    digest_files,
    find_images,
    natural_contract,
    read_images,
    skipped_notes,
    train_and_test,
)
from misfire_train.errors import DatasetError

IGNORE = 255
_TEST_PARTS = ("test", "val")


def load_masks(folder: Path, options: Options) -> Dataset:
    """Images with masks, resized by the nearest label to the network's input size.

    Images without a mask and masks without an image are left out and counted. Raises DatasetError where
    nothing is left, a mask is in colours, its size is not its image's, or a label is beyond classes.txt.
    """
    pairs, unpaired = _pairs(folder)
    files, problems = read_images([image for image, _ in pairs], base=folder)
    mask_of = dict(pairs)
    if not files:
        raise DatasetError(
            f"{folder}: no readable image with a mask; expected images/ and masks/ or Cityscapes' names"
        )
    contract = natural_contract(files, options.size)
    masks = np.stack([_read_mask(mask_of[file.path], file, contract) for file in files])
    classes = _classes(folder, masks)
    examples = Examples(
        images=decoded(files),
        targets=masks,
        ids=tuple(file.name for file in files),
        groups=tuple(options.group_of(file.name, _group(file.name)) for file in files),
    )
    given = any(_part(file.name) in _TEST_PARTS for file in files)
    train, test, notes = train_and_test(
        examples, (lambda name: _part(name) in _TEST_PARTS) if given else None
    )
    missing = (f"{unpaired} images or masks without a partner left out",) if unpaired else ()
    return Dataset(
        name=f"masks:{folder}",
        task="segmentation",
        classes=classes,
        contract=contract,
        train=train,
        test=test,
        sha256=digest_files(
            files, more={f"{file.name}.mask": sha256_file(mask_of[file.path]) for file in files}
        ),
        licence="yours",
        notes=skipped_notes(problems) + missing + notes,
    )


def _pairs(folder: Path) -> tuple[list[tuple[Path, Path]], int]:
    """(image, mask) pairs and how many files have no partner."""
    images, masks = {}, {}
    for path in find_images(folder):
        name = path.relative_to(folder).as_posix()
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
    parts.remove(kind)
    return "/".join(parts).rsplit(".", 1)[0]


def _part(name: str) -> str:
    """train, test or val, where the name says so before the image's own folder."""
    return next((part for part in name.split("/")[:-1] if part in ("train", "test", "val")), "")


def _group(name: str) -> str:
    parts = [p for p in name.split("/")[:-1] if p not in ("images", "leftImg8bit", "train", "test", "val")]
    return "/".join(parts) or name


def _read_mask(path: Path, image: ImageFile, contract: InputContract) -> NDArray[np.uint8]:
    mask = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if mask is None:
        raise DatasetError(f"{path}: the mask of {image.name} cannot be decoded")
    if mask.ndim == 3:
        if not (mask[..., 0] == mask[..., 1]).all() or not (mask[..., 1] == mask[..., 2]).all():
            raise DatasetError(
                f"{path}: the mask is in colours; expected one channel of class numbers, 255 to ignore"
            )
        mask = mask[..., 0]
    if mask.shape != (image.height, image.width):
        raise DatasetError(
            f"{path}: the mask is {mask.shape[1]}x{mask.shape[0]}, its image {image.width}x{image.height}"
        )
    if int(mask.max()) > IGNORE:
        raise DatasetError(
            f"{path}: label {int(mask.max())} is above 255; expected class numbers, 255 to ignore"
        )
    size = (contract.width, contract.height)
    return np.asarray(cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST), np.uint8)


def _classes(folder: Path, masks: NDArray[np.uint8]) -> tuple[str, ...]:
    labelled = masks[masks != IGNORE]
    if not labelled.size:
        raise DatasetError(f"{folder}: no pixel of any mask has a label")
    count = int(labelled.max()) + 1
    listed = folder / "classes.txt"
    if not listed.is_file():
        return tuple(f"class {number}" for number in range(count))
    names = tuple(line.strip() for line in listed.read_text(encoding="utf-8").splitlines() if line.strip())
    if len(names) < count:
        raise DatasetError(f"{listed} names {len(names)} classes, but a mask has the label {count - 1}")
    return names
