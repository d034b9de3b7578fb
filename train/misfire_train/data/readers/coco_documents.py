"""Finds and reads COCO documents: which JSON files a data set has, their content, and where their images are.

A folder has one JSON, or one per half with a split word in its name: `person_keypoints_train2017.json`,
`instances_val2017.json`; or one in the folder of each half. `test=FILE.json` names that of the test half.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from misfire_runtime.toml import explain
from misfire_train.data.readers.class_lists import JSON_NAME
from misfire_train.data.readers.halves import SPLIT_WORDS, split_word
from misfire_train.data.readers.options import Options, beside
from misfire_train.errors import DatasetError


class _Read(BaseModel):
    # Documents have many more fields, such as segmentations and licences.
    model_config = ConfigDict(frozen=True, extra="ignore")


class Picture(_Read):
    """Is one image. group: a drive, a town or a vehicle, if the document names one."""

    id: int
    file_name: str = Field(min_length=1)
    width: float | None = None
    height: float | None = None
    group: str | int | None = None


class _Category(_Read):
    id: int
    name: str = Field(min_length=1)
    keypoints: tuple[str, ...] = ()


class Annotation(_Read):
    id: int
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    keypoints: tuple[float, ...] = ()
    num_keypoints: int = 0
    iscrowd: int = 0
    ignore: int = 0


class Document(_Read):
    images: tuple[Picture, ...]
    annotations: tuple[Annotation, ...]
    categories: tuple[_Category, ...]


@dataclass(frozen=True)
class Source:
    """Names one JSON of a data set.

    word: the split word of its half, "" if it is the only one. part: what its ids begin with.
    """

    path: Path
    word: str = ""
    part: str = ""


def names_a_document(options: Options) -> bool:
    """Returns whether `test` names the JSON of the test half, not a list of its images."""
    return options.test is not None and options.test.suffix.lower() == ".json"


def find_sources(path: Path, options: Options, *, kind: str) -> list[Source]:
    """Finds the documents of a data set.

    Args:
        path: the document, or a folder.
        options: `test` may name the document of the test half.
        kind: a word in the names of the official documents, keypoints or instances, which tells them from
            others beside them.

    Raises:
        DatasetError: it is not clear which they are.
    """
    found = [path] if path.is_file() else _documents_in(path, kind)
    if options.test is not None and names_a_document(options):
        test = beside(options.test, path if path.is_dir() else path.parent)
        rest = [each for each in found if each.resolve() != test.resolve()]
        if len(rest) == 1:
            return [Source(rest[0], "train", "train"), Source(test, "test", "test")]
    elif len(found) == 1:
        return [Source(found[0])]
    else:
        parts = {each: half_part(each) for each in found}
        if not all(parts.values()):
            parts = {each: split_word(each.parent.name) and each.parent.name for each in found}
        if found and all(parts.values()):
            return [Source(each, split_word(_word(part)), part) for each, part in parts.items()]
    which = ", ".join(each.name for each in found) or "none"
    raise DatasetError(
        f"{path}: expected one JSON of {kind}, or one per half with its split word in the name "
        f"({SPLIT_WORDS}), found {which}; name the file itself, and that of the test half with test=FILE.json"
    )


def _documents_in(folder: Path, kind: str) -> list[Path]:
    """Lists JSON files of a folder; the official archives hold captions, boxes and keypoints together."""
    found = sorted([*folder.glob("*.json"), *folder.glob("annotations/*.json")])
    # Lists of classes are no documents.
    found = [each for each in found if each.name != JSON_NAME]
    if not found:
        found = sorted(each for each in folder.glob("*/*.json") if split_word(each.parent.name))
    return [each for each in found if kind in each.stem.casefold()] or found


def half_part(path: Path) -> str:
    """Returns the piece of a document's name that is a split word and perhaps a year: `train2017`."""
    pieces = re.split(r"[^A-Za-z0-9]+", path.stem)
    return next((piece for piece in pieces if split_word(_word(piece))), "")


def _word(part: str) -> str:
    return part.rstrip("0123456789")


def data_root(source: Source) -> Path:
    """Returns the data set's folder: that of the JSON, or the one above `annotations` or a half's folder."""
    folder = source.path.parent
    return folder.parent if folder.name in ("annotations", source.part) else folder


def image_folders(source: Source, root: Path, options: Options) -> list[Path]:
    """Lists where the images of a document may be, first to last."""
    own = half_part(source.path)
    halves = list(dict.fromkeys((own, _word(own)))) if own else []
    if options.images is not None:
        base = beside(options.images, root)
        return [*(base / half for half in halves), base]
    folder = source.path.parent
    bases = (folder, folder / "images", folder.parent / "images", folder.parent)
    return [*(base / half for half in halves for base in (root, root / "images")), *bases]


def names_a_file_inside(name: str, root: Path) -> bool:
    """Returns whether a file_name stays beside or below the data set.

    One that leads elsewhere is not followed.
    """
    # PureWindowsPath splits at both kinds of slashes, so no system's way up is missed.
    path = PureWindowsPath(name)
    return ".." not in path.parts and (not path.anchor or Path(name).is_relative_to(root.parent.absolute()))


def read_document(path: Path) -> Document:
    """Reads a document. Raises DatasetError, with the place, if the file is none."""
    try:
        return Document.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise DatasetError(f"{path}: cannot be read as JSON ({error})") from error
    except ValidationError as error:
        raise DatasetError(explain(error, file=f"{path}: not a COCO document", most=1)) from error


def joint_names(documents: Sequence[Document], sources: Sequence[Source]) -> tuple[str, ...]:
    """Returns the keypoints of the one category that has some, the same in all documents."""
    found = []
    for document, source in zip(documents, sources, strict=True):
        named = [category for category in document.categories if category.keypoints]
        if len(named) != 1:
            raise DatasetError(f"{source.path}: expected one category with keypoints, found {len(named)}")
        found.append(named[0].keypoints)
    other = next((at for at, names in enumerate(found) if names != found[0]), None)
    if other is not None:
        raise DatasetError(f"{sources[other].path} has other keypoints than {sources[0].path}")
    return found[0]
