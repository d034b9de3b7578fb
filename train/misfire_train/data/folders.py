"""Image folders, a class per folder: PATH/CLASS/image, PATH/CLASS/GROUP/image, PATH/{train,test}/CLASS/..."""

from __future__ import annotations

from pathlib import Path

import numpy as np

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

_HALVES = {"train": False, "training": False, "test": True, "testing": True, "val": True, "valid": True}


def load_image_folder(folder: Path, options: Options) -> Dataset:
    """Every image below a class's folder. What lies between class and image is its group (a drive, a track).

    Raises DatasetError where there are no classes or no readable images.
    """
    files, problems = read_images(find_images(folder), base=folder)
    halves = sum(_half(file) is not None for file in files)
    if halves not in (0, len(files)):
        raise DatasetError(f"{folder} has images both inside and outside of train and test folders")
    rows = [(file, *_class_and_group(file, options)) for file in files]
    if not rows:
        raise DatasetError(
            f"{folder} has no readable images; {'; '.join(problems[:3]) or 'expected CLASS/image'}"
        )
    classes = tuple(sorted({label for _, label, _ in rows}))
    if len(classes) < 2:
        raise DatasetError(f"{folder} has one class only ({classes[0]}); expected one folder per class")
    number = {name: position for position, name in enumerate(classes)}
    examples = Examples(
        images=decoded(files),
        targets=np.array([number[label] for _, label, _ in rows], np.int64),
        ids=tuple(file.name for file in files),
        groups=tuple(group for _, _, group in rows),
    )
    train, test, notes = train_and_test(
        examples, (lambda identity: _HALVES[identity.split("/")[0]]) if halves else None
    )
    return Dataset(
        name=f"image-folder:{folder}",
        task="classification",
        classes=classes,
        contract=natural_contract(files, options.size),
        train=train,
        test=test,
        sha256=digest_files(files),
        licence="yours",
        notes=skipped_notes(problems) + notes,
    )


def _half(file: ImageFile) -> bool | None:
    first, *rest = file.name.split("/")
    return _HALVES.get(first) if len(rest) >= 2 else None


def _class_and_group(file: ImageFile, options: Options) -> tuple[str, str]:
    folders = file.name.split("/")[:-1]
    if _half(file) is not None:
        folders = folders[1:]
    if not folders:
        raise DatasetError(f"{file.name} lies in no class's folder; expected CLASS/image")
    between = "/".join(folders[1:])
    return folders[0], options.group_of(file.name, between or file.name)
