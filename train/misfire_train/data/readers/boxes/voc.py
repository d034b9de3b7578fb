"""Reads Pascal VOC: one XML per picture, with an `object` for each box.

    PATH/Annotations/NAME.xml, PATH/JPEGImages/NAME.jpg, PATH/ImageSets/Main/{train,val,trainval,test}.txt
    PATH with several such folders (VOC2007, VOC2012)
    PATH/{train,valid,test}/NAME.xml beside NAME.jpg

VOC counts pixels from 1 and includes the last one: a box of xmin 1 begins at the picture's edge. Tools that
write edges from 0 are recognised by a box that begins at 0. `difficult` boxes are ignored.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PureWindowsPath
from xml.etree.ElementTree import Element

from misfire_train.data.examples import Dataset
from misfire_train.data.readers.boxes.frames import assemble
from misfire_train.data.readers.boxes.image_sets import divided_by_lists, half_lists
from misfire_train.data.readers.boxes.labels import Box, BoxFrame, Found, finite
from misfire_train.data.readers.class_lists import nfc
from misfire_train.data.readers.files import images_by_stem, named_file
from misfire_train.data.readers.halves import split_word
from misfire_train.data.readers.options import Options
from misfire_train.data.readers.plain_xml import read_xml
from misfire_train.errors import DatasetError

_SIDES = ("xmin", "ymin", "xmax", "ymax")
_IMAGE_FOLDERS = ("JPEGImages", "images")


def load_voc(path: Path, options: Options) -> Dataset:
    """Returns the annotated pictures below a folder, with their boxes.

    Lists of ImageSets/Main name the halves, and pictures in none of them are left out. Without lists,
    folders do.

    Args:
        path: the folder.
        options: size, group, test, classes, others.

    Raises:
        DatasetError: there are no annotations, one is malformed or has a document type, or nothing is left.
    """
    found = Found()
    for root in _roots(path):
        _collect(found, root, path)
    if _from_zero(found.frames):
        found.notes.append("a box begins at 0, so boxes are read as edges from 0, not as pixels from 1")
    else:
        found.frames = [replace(frame, boxes=_edges(frame.boxes)) for frame in found.frames]
    return assemble(found, reader="voc", path=path, root=path, options=options)


def _roots(path: Path) -> list[Path]:
    """Returns the folders with Annotations: the folder itself, or those in it; else the folder as it is."""
    if not path.is_dir():
        raise DatasetError(f"{path} is not a folder")
    inside = sorted(each.parent for each in path.glob("*/Annotations") if each.is_dir())
    return [path] if (path / "Annotations").is_dir() or not inside else inside


def _collect(found: Found, root: Path, path: Path) -> None:
    """Adds the annotated pictures of one folder."""
    annotations = root / "Annotations" if (root / "Annotations").is_dir() else root
    files = sorted(_annotation_files(annotations))
    if not files:
        raise DatasetError(f"{path}: no XML in {annotations}; expected one for each picture")
    pictures: dict[Path, dict[str, Path]] = {}
    frames = []
    for file in files:
        folders = _image_folders(file.parent, annotations, root)
        for folder in folders:
            pictures.setdefault(folder, images_by_stem(folder))
        element = read_xml(file)
        if element.tag != "annotation":
            raise DatasetError(f"{file}: its root is {element.tag[:40]}; expected annotation")
        name = _text(element, "filename")
        image = next((of[file.stem] for folder in folders if file.stem in (of := pictures[folder])), None)
        # A name may lead anywhere, so only its last part counts.
        image = image or (named_file(PureWindowsPath(name).name, folders) if name else None)
        found.labels.append(file)
        if image is None:
            found.absent.append(name or file.stem)
        else:
            frames.append(_frame(image, file, element, annotations))
    found.looked = ", ".join(str(folder) for folder in pictures if folder.is_dir())
    unlabelled = {image for of in pictures.values() for image in of.values()} - {each.path for each in frames}
    if unlabelled:
        found.notes.append(f"{len(unlabelled)} images without an annotation were left out")
    lists = root / "ImageSets" / "Main"
    kept, notes = divided_by_lists(frames, half_lists(lists), lists=lists)
    found.frames += kept
    found.notes += notes


def _annotation_files(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*.xml"):
        # Hidden files of an archive (._0001.xml) are no annotations.
        if not any(part.startswith(".") for part in path.relative_to(folder).parts):
            yield path


def _image_folders(folder: Path, annotations: Path, root: Path) -> list[Path]:
    """Lists where the picture of an annotation in this folder may be."""
    below = folder.relative_to(annotations)
    return [*(root / name / below for name in _IMAGE_FOLDERS if annotations != root), folder]


def _frame(image: Path, file: Path, element: Element, annotations: Path) -> BoxFrame:
    folders = file.relative_to(annotations).parts[:-1]
    word = next((word for part in folders if (word := split_word(part))), "")
    boxes = tuple(
        _box(each, where=f"{file}: object {place}") for place, each in enumerate(element.iter("object"), 1)
    )
    return BoxFrame(image, boxes, word=word, size=_size(element))


def _box(element: Element, *, where: str) -> Box:
    name = nfc(_text(element, "name"))
    if not name:
        raise DatasetError(f"{where} has no name")
    # A direct child: parts of a person have boxes of their own.
    corners = element.find("bndbox")
    if corners is None:
        raise DatasetError(f"{where} ({name}) has no bndbox")
    texts = [_text(corners, side) for side in _SIDES]
    try:
        x0, y0, x1, y1 = (finite(text) for text in texts)
    except ValueError:
        raise DatasetError(
            f"{where} ({name}) has the bndbox {', '.join(texts)}; expected xmin, ymin, xmax and ymax"
        ) from None
    return Box(x0, y0, x1, y1, name, _text(element, "difficult") not in ("", "0"))


def _from_zero(frames: Sequence[BoxFrame]) -> bool:
    return any(min(box.x0, box.y0) < 1 for frame in frames for box in frame.boxes)


def _edges(boxes: Sequence[Box]) -> tuple[Box, ...]:
    return tuple(replace(box, x0=box.x0 - 1, y0=box.y0 - 1) for box in boxes)


def _size(element: Element) -> tuple[int, int] | None:
    try:
        return int(_text(element, "size/width")), int(_text(element, "size/height"))
    except ValueError:
        return None


def _text(element: Element, tag: str) -> str:
    return (element.findtext(tag) or "").strip()
