"""Reads YOLO's text labels: a `data.yaml`, and for each image a file of `class x y width height` in shares.

data.yaml: path, train, val, test (a folder, a list of folders, or a text file of images), names
an image's labels: the same path with `labels` for `images` and the ending .txt, or a .txt beside it

Lines of polygons, with more than four numbers, become the box around their points. An image without a label
file is one without an object, as trainers of this format take it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path, PureWindowsPath

from misfire_train.data.examples import Dataset
from misfire_train.data.readers.boxes.frames import assemble
from misfire_train.data.readers.boxes.labels import Box, BoxFrame, Found, finite
from misfire_train.data.readers.boxes.yolo_description import Description, find_description
from misfire_train.data.readers.class_lists import TEXT_NAME, find_class_list
from misfire_train.data.readers.files import find_images
from misfire_train.data.readers.halves import split_word
from misfire_train.data.readers.options import Options
from misfire_train.errors import DatasetError


def load_yolo(path: Path, options: Options) -> Dataset:
    """Returns the images that a data.yaml names, with their boxes.

    A folder without a data.yaml is read as `images` and `labels`, with the classes of `classes=FILE` or
    classes.txt.

    Args:
        path: a data.yaml, or a folder with one.
        options: size, group, test, classes, others.

    Raises:
        DatasetError: the description names nothing that is there, a line is malformed (the message has its
            place), a class is not listed, or nothing is left.
    """
    described = find_description(path)
    if described is None:
        return _load_folder(path, options)
    found = Found(classes=described.names, labels=[described.path])
    for half, places in described.halves.items():
        for image in _images(described, half, places, found):
            found.frames.append(_frame(image, half, described.names, found, keypoints=described.keypoints))
    return _finish(found, path, described.root, options)


def _load_folder(folder: Path, options: Options) -> Dataset:
    listed = find_class_list(folder, options)
    if listed is None:
        raise DatasetError(
            f"{folder}: expected a data.yaml, or {TEXT_NAME} with the classes beside images and labels"
        )
    images = find_images(folder)
    found = Found(classes=listed.names, notes=list(images.notes))
    for image in images.paths:
        folders = image.relative_to(folder).parts[:-1]
        word = next((word for part in folders if (word := split_word(part.rstrip("0123456789")))), "")
        found.frames.append(_frame(image, word, listed.names, found))
    return _finish(found, folder, folder, options)


def _finish(found: Found, path: Path, root: Path, options: Options) -> Dataset:
    # Its own description is the first label file of a data.yaml.
    silent = len(found.frames) - sum(each.suffix == ".txt" for each in found.labels)
    if silent:
        found.notes.append(f"{silent} images have no label file: they count as images without an object")
    return assemble(found, reader="yolo", path=path, root=root, options=options)


def _images(described: Description, half: str, places: Sequence[str], found: Found) -> Iterator[Path]:
    """Yields the images of one half; those of a list that are not there are noted."""
    for place in places:
        target = described.find(place)
        if target is None:
            raise DatasetError(f"{described.path}: {half} is {place}, which is not in {described.root}")
        if target.is_dir():
            images = find_images(target)
            found.notes += images.notes
            yield from images.paths
            continue
        for line in _lines(target):
            image = _listed(line, target.parent, described.root)
            if image is None:
                found.absent.append(line)
            else:
                yield image


def _listed(line: str, folder: Path, root: Path) -> Path | None:
    plain = PureWindowsPath(line).as_posix()
    return next((path for path in (folder / plain, root / plain) if path.is_file()), None)


def _frame(
    image: Path, word: str, names: Sequence[str], found: Found, *, keypoints: bool = False
) -> BoxFrame:
    labels = _label_file(image)
    if labels is None:
        return BoxFrame(image, word=word)
    found.labels.append(labels)
    boxes = tuple(
        _box(line, names, where=f"{labels}:{number}", keypoints=keypoints)
        for number, line in enumerate(_lines(labels, keep_empty=True), start=1)
        if line
    )
    return BoxFrame(image, boxes, relative=True, word=word)


def _label_file(image: Path) -> Path | None:
    parts = list(image.parts)
    places = [image.with_suffix(".txt")]
    if "images" in parts[:-1]:
        # The last one: a folder above may have the name too.
        last = len(parts) - 2 - parts[-2::-1].index("images")
        parts[last] = "labels"
        places.insert(0, Path(*parts).with_suffix(".txt"))
    return next((place for place in places if place.is_file()), None)


def _lines(path: Path, *, keep_empty: bool = False) -> list[str]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: cannot be read as text ({error})") from error
    return lines if keep_empty else [line for line in lines if line]


def _box(line: str, names: Sequence[str], *, where: str, keypoints: bool) -> Box:
    words = line.split()
    try:
        label, values = finite(words[0]), [finite(word) for word in words[1:]]
    except ValueError:
        raise DatasetError(f"{where}: {line[:80]!r} has something else than finite numbers") from None
    # Some tools write class numbers as 3.0.
    if not label.is_integer() or not 0 <= label < len(names):
        raise DatasetError(f"{where}: class {words[0]} is not listed; classes are 0 to {len(names) - 1}")
    name = names[int(label)]
    if len(values) == 4 or (keypoints and len(values) > 4):
        x, y, width, height = values[:4]
        return Box(x - width / 2, y - height / 2, x + width / 2, y + height / 2, name)
    if len(values) < 6 or len(values) % 2:
        raise DatasetError(
            f"{where}: {len(words)} numbers; expected class, x, y, width and height, or class and a polygon"
        )
    return Box(min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2]), name)
