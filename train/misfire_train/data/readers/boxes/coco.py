"""Reads COCO instances: every image with its boxes, images without one included.

PATH/annotations/instances_{train,val}2017.json, images in PATH/train2017 and PATH/val2017
PATH/{train,val,test}.json, images beside it, in PATH/images or in a folder of the half
PATH/{train,valid,test}/_annotations.coco.json beside the images

A class is a category, in the order of the categories' ids, which need not be contiguous. `iscrowd` and
`ignore` make a box one to be ignored; an image's `group` is its group.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from misfire_train.data.examples import Dataset
from misfire_train.data.readers.boxes.classes import require_numbers
from misfire_train.data.readers.boxes.frames import assemble
from misfire_train.data.readers.boxes.labels import Box, BoxFrame, Found
from misfire_train.data.readers.class_lists import nfc
from misfire_train.data.readers.coco_documents import (
    Annotation,
    Document,
    Picture,
    Source,
    data_root,
    find_sources,
    image_folders,
    names_a_document,
    names_a_file_inside,
    read_document,
)
from misfire_train.data.readers.files import first_of, named_file
from misfire_train.data.readers.halves import is_test
from misfire_train.data.readers.options import Options
from misfire_train.errors import DatasetError


def load_coco_boxes(path: Path, options: Options) -> Dataset:
    """Returns the images of one COCO document, or of one per half, with their boxes.

    Images are searched for where `load_coco_keypoints` searches. Missing ones are counted and named, boxes
    beyond their image are cut, those without an area are left out and counted.

    Args:
        path: the JSON, or a folder with one JSON or one per half.
        options: size, group, test, classes, others, images.

    Raises:
        DatasetError: a document is malformed, an image or a category occurs twice, a box has a category that
            the document lacks, or nothing is left.
    """
    sources = find_sources(path, options, kind="instances")
    root = data_root(sources[0])
    documents = [read_document(source.path) for source in sources]
    found = Found(classes=_classes(documents, sources), labels=[source.path for source in sources])
    looked: list[Path] = []
    for source, document in zip(sources, documents, strict=True):
        folders = image_folders(source, root, options)
        looked += folders
        _collect(found, source, document, root=root, folders=folders)
    found.looked = ", ".join(str(folder) for folder in dict.fromkeys(looked))
    # A JSON of the test half is a source by now; only a list of names is left to be looked up.
    own = replace(options, test=None) if names_a_document(options) else options
    return assemble(found, reader="coco-boxes", path=path, root=root, options=own)


def _classes(documents: Sequence[Document], sources: Sequence[Source]) -> tuple[str, ...]:
    """Returns the categories of the training half's document, by id.

    Raises DatasetError if another one has boxes of further categories.
    """
    own = next((at for at, source in enumerate(sources) if not is_test(source.word)), 0)
    classes = require_numbers(str(sources[own].path), _category_names(documents[own], sources[own].path))
    for document, source in zip(documents, sources, strict=True):
        names = _category_names(document, source.path)
        used = {names.get(each.category_id, "") for each in document.annotations}
        more = sorted(used - {""} - set(classes))
        if more:
            raise DatasetError(
                f"{source.path} has boxes of {first_of(more)}, which {sources[own].path} does not list"
            )
    return classes


def _category_names(document: Document, path: Path) -> dict[int, str]:
    _require_once((each.id for each in document.categories), f"{path}: the category id")
    return {each.id: nfc(each.name.strip()) for each in document.categories}


def _collect(
    found: Found, source: Source, document: Document, *, root: Path, folders: Sequence[Path]
) -> None:
    """Adds the images of one document."""
    path = source.path
    _require_once((each.id for each in document.images), f"{path}: the image id")
    _require_once((each.file_name for each in document.images), f"{path}: the file name")
    names = _category_names(document, path)
    boxes: dict[int, list[Box]] = defaultdict(list)
    for annotation in document.annotations:
        boxes[annotation.image_id].append(_box(annotation, names, path))
    for picture in document.images:
        file = (
            named_file(picture.file_name, folders) if names_a_file_inside(picture.file_name, root) else None
        )
        own = tuple(boxes.pop(picture.id, ()))
        if file is None:
            found.absent.append(picture.file_name)
            continue
        found.frames.append(BoxFrame(file, own, word=source.word, group=_group(picture), size=_size(picture)))
    total = f"of {len(document.annotations)} annotations of {path.name}"
    if boxes:
        lost = sum(len(each) for each in boxes.values())
        found.notes.append(
            f"{lost} {total} left out: the document does not list their images, such as {next(iter(boxes))}"
        )
    again = sum(n - 1 for n in Counter(each.id for each in document.annotations).values())
    if again:
        found.notes.append(f"{again} {total} have the id of another one; all count")


def _box(annotation: Annotation, names: Mapping[int, str], path: Path) -> Box:
    where = f"{path}: annotation {annotation.id}"
    label = names.get(annotation.category_id)
    if label is None:
        listed = ", ".join(f"{key} {name}" for key, name in sorted(names.items())[:5])
        raise DatasetError(
            f"{where} is of category {annotation.category_id}, which the document does not list ({listed})"
        )
    x, y, width, height = annotation.bbox
    if not all(math.isfinite(value) for value in annotation.bbox):
        raise DatasetError(f"{where} has the bbox {list(annotation.bbox)}; expected four finite numbers")
    return Box(x, y, x + width, y + height, label, bool(annotation.iscrowd or annotation.ignore))


def _group(picture: Picture) -> str:
    return "" if picture.group is None else nfc(str(picture.group).strip())


def _size(picture: Picture) -> tuple[int, int] | None:
    if picture.width is None or picture.height is None:
        return None
    return round(picture.width), round(picture.height)


def _require_once(values: Iterable[object], what: str) -> None:
    twice = next((value for value, count in Counter(values).items() if count > 1), None)
    if twice is not None:
        raise DatasetError(f"{what} {twice} occurs twice; each image and each category needs its own")
