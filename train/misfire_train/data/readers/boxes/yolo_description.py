"""Reads the description of a YOLO data set, a `data.yaml`: its folder, its halves and its classes.

    path: ../street          # optional
    train: images/train      # a folder, a list of folders, or a text file that lists images
    val: images/val
    names: [car, person]     # or {0: car, 1: person}

All values are read as text, so that a class may be called `no`, which YAML takes for false.
"""

from __future__ import annotations

import reprlib
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

import yaml

from misfire_train.data.readers.boxes.classes import require_numbers
from misfire_train.data.readers.files import first_of
from misfire_train.errors import DatasetError

_HALVES = ("train", "val", "test")
_NOTHING = ("", "~", "null", "none")
# A description of a data set is short; a larger file is a mistake, and would be read whole.
_MAX_BYTES = 1024 * 1024


@dataclass(frozen=True)
class Description:
    """Holds a data.yaml.

    root: the folder that the images are relative to.  names: of the classes.
    halves: what each names, in order.  keypoints: its lines have them after the box.
    """

    path: Path
    root: Path
    names: tuple[str, ...]
    halves: dict[str, tuple[str, ...]]
    keypoints: bool = False

    def find(self, place: str) -> Path | None:
        """Returns a folder or a file that the description names, None if it is not there.

        Roboflow writes `../train/images` for a folder beside the description.
        """
        plain = PureWindowsPath(place).as_posix()
        spellings = (plain, plain.removeprefix("../"))
        tried = (base / each for each in spellings for base in (self.root, self.path.parent))
        return next((path for path in tried if path.exists()), None)


def find_description(path: Path) -> Description | None:
    """Returns the description at a path or in a folder, None if the folder has none.

    Raises DatasetError if there are several, or if it is malformed.
    """
    if path.is_dir():
        files = sorted([*path.glob("*.yaml"), *path.glob("*.yml")])
        files = [file for file in files if file.stem in ("data", "dataset")][:1] or files
        if not files:
            return None
        if len(files) > 1:
            raise DatasetError(f"{path}: has {first_of([file.name for file in files])}; name one of them")
        path = files[0]
    content = _content(path)
    halves = {half: _places(path, half, content.get(half)) for half in _HALVES}
    halves = {half: places for half, places in halves.items() if places}
    if not halves:
        raise DatasetError(f"{path}: names no images; expected train, and perhaps val and test")
    names = _names(path, content.get("names"), content.get("nc"))
    return Description(path, _root(path, content), names, halves, "kpt_shape" in content)


def _content(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise DatasetError(f"{path}: a data.yaml has at most {_MAX_BYTES} bytes")
        # BaseLoader makes texts, lists and mappings, whatever tags the file has.
        content = yaml.load(path.read_text(encoding="utf-8-sig"), Loader=yaml.BaseLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        # Messages of the parser have several lines.
        raise DatasetError(f"{path}: cannot be read as YAML ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict):
        raise DatasetError(f"{path}: expected keys such as train, val and names")
    return content


def _root(path: Path, content: dict[str, Any]) -> Path:
    """Returns the folder that images are relative to; a `path` of another machine is not followed."""
    named = content.get("path")
    if isinstance(named, str) and named.strip().casefold() not in _NOTHING:
        for folder in (path.parent / named, Path(named)):
            if folder.is_dir():
                return folder
    return path.parent


def _places(path: Path, half: str, value: Any) -> tuple[str, ...]:
    places = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(place, str) for place in places):
        # Aliases can make a value of a few lines exponentially long.
        raise DatasetError(
            f"{path}: {half} is {reprlib.repr(value)}; expected a folder, a list of folders or a text file"
        )
    return tuple(place for place in places if place.strip().casefold() not in _NOTHING)


def _names(path: Path, names: Any, count: Any) -> tuple[str, ...]:
    listed = {str(at): name for at, name in enumerate(names)} if isinstance(names, list) else names
    if not isinstance(listed, dict) or not all(
        isinstance(name, str) and name.strip() and str(key).isdecimal() for key, name in listed.items()
    ):
        raise DatasetError(
            f"{path}: names is {reprlib.repr(names)}; expected a list of class names, or names by number"
        )
    numbered = {int(key): name.strip() for key, name in listed.items()}
    if sorted(numbered) != list(range(len(listed))):
        raise DatasetError(
            f"{path}: class numbers are {first_of([str(key) for key in sorted(numbered)])}; "
            f"expected 0 to {len(listed) - 1}"
        )
    classes = require_numbers(str(path), numbered)
    if isinstance(count, str) and count.strip() != str(len(classes)):
        raise DatasetError(f"{path}: nc is {count}, but names lists {len(classes)} classes")
    return classes
