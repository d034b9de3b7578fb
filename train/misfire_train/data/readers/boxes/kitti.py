"""Reads KITTI's object labels: one text file per picture, each line a type and 14 numbers.

    PATH/training/image_2/NAME.png, PATH/training/label_2/NAME.txt
    PATH/ImageSets/{train,val,test,trainval}.txt, or the same in PATH/training
    PATH/{train,val}/images and labels, as other tools write them

Pictures of testing/image_2 have no labels and are left out. `DontCare` is a region in which every class is
ignored.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from misfire_train.data.examples import Dataset
from misfire_train.data.readers.boxes.frames import assemble
from misfire_train.data.readers.boxes.image_sets import divided_by_lists, half_lists
from misfire_train.data.readers.boxes.labels import Box, BoxFrame, Found, finite
from misfire_train.data.readers.class_lists import nfc
from misfire_train.data.readers.files import first_of, images_by_stem
from misfire_train.data.readers.halves import split_word
from misfire_train.data.readers.options import Options
from misfire_train.errors import DatasetError

_PAIRS = {"label_2": "image_2", "labels": "images"}
_DONT_CARE = "dontcare"
# Type, truncated, occluded, alpha, four sides, three sizes, three places, rotation; a detector adds a score.
_COLUMNS = (15, 16)


def load_kitti(path: Path, options: Options) -> Dataset:
    """Returns the labelled pictures below a folder, with their boxes.

    Lists of ImageSets name the halves, and pictures in none of them are left out. Without lists, folders do.

    Args:
        path: the folder with `training`, or with `image_2` and `label_2`.
        options: size, group, test, classes, others.

    Raises:
        DatasetError: there are no labels, a line is malformed (the message names it), or nothing is left.
    """
    if not path.is_dir():
        raise DatasetError(f"{path} is not a folder")
    folders = list(_label_folders(path))
    if not folders:
        raise DatasetError(
            f"{path}: expected label_2 beside image_2 (or labels beside images), found neither"
        )
    found = Found()
    for labels in folders:
        _collect(found, labels, path)
    found.looked = ", ".join(str(_images_of(labels)) for labels in folders)
    lists = next(
        (place for base in (path, path / "training") if (place := base / "ImageSets").is_dir()), None
    )
    if lists is not None:
        found.frames, notes = divided_by_lists(found.frames, half_lists(lists), lists=lists)
        found.notes += notes
    return assemble(found, reader="kitti", path=path, root=path, options=options)


def _label_folders(path: Path) -> Iterator[Path]:
    """Yields folders of labels in the folder and in those directly in it."""
    for base in (path, *sorted(each for each in path.iterdir() if each.is_dir())):
        yield from (base / name for name in _PAIRS if (base / name).is_dir())


def _images_of(labels: Path) -> Path:
    return labels.parent / _PAIRS[labels.name]


def _collect(found: Found, labels: Path, path: Path) -> None:
    pictures = images_by_stem(_images_of(labels))
    files = sorted(each for each in labels.glob("*.txt") if not each.name.startswith("."))
    word = split_word(labels.parent.name) if labels.parent != path else ""
    for file in files:
        found.labels.append(file)
        image = pictures.pop(file.stem, None)
        if image is None:
            found.absent.append(f"{_images_of(labels).name}/{file.stem}.png")
        else:
            found.frames.append(BoxFrame(image, _boxes(file), word=word))
    if pictures:
        names = [image.name for image in pictures.values()]
        found.notes.append(f"{len(pictures)} images without a label file were left out: {first_of(names)}")


def _boxes(file: Path) -> tuple[Box, ...]:
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{file}: cannot be read as text ({error})") from error
    return tuple(_box(line, where=f"{file}:{number}") for number, line in enumerate(lines, 1) if line.strip())


def _box(line: str, *, where: str) -> Box:
    words = line.split()
    if len(words) not in _COLUMNS:
        raise DatasetError(f"{where}: {len(words)} columns; expected a type and 14 numbers")
    try:
        x0, y0, x1, y1 = (finite(word) for word in words[4:8])
    except ValueError:
        raise DatasetError(
            f"{where}: the box is {' '.join(words[4:8])}; expected four finite numbers"
        ) from None
    anything = words[0].casefold() == _DONT_CARE
    return Box(x0, y0, x1, y1, "" if anything else nfc(words[0]), anything)
