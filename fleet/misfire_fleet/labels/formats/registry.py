"""Finds a format by its name, or by the look of a path. `@register` above a class adds it.

Formats are imported when they are asked for: some bring a library that only one extra installs.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import TypeVar

from misfire_fleet.labels.formats.base import Format
from misfire_runtime.errors import ConfigError

# Name and module, in the order in which a path is shown to them: the loosest look comes last.
_BUILT_IN = {
    "label-studio": "label_studio.tasks",
    "cvat": "cvat",
    "fiftyone": "fiftyone",
    "coco": "coco",
    "voc": "voc",
    "yolo": "yolo",
    "masks": "masks",
    "webdataset": "webdataset",
    "parquet": "parquet",
    "csv": "csv_table",
    "folder": "folder",
}
NAMES = tuple(sorted(_BUILT_IN))
_CLASSES: dict[str, type[Format]] = {}
T = TypeVar("T", bound=type[Format])


def register(format_class: T) -> T:
    """Adds a class under its name; for use as a decorator.

    Raises:
        ValueError: another class has that name already.
    """
    if _CLASSES.setdefault(format_class.name, format_class) is not format_class:
        raise ValueError(f"the format {format_class.name!r} is {_CLASSES[format_class.name]}")
    return format_class


def format_of(name: str) -> Format:
    """Returns the format of that name.

    Raises:
        ConfigError: there is none of that name.
    """
    if name in _BUILT_IN:
        import_module(f"misfire_fleet.labels.formats.{_BUILT_IN[name]}")
    if name not in _CLASSES:
        raise ConfigError(f"{name!r} is no label format; expected one of {', '.join(NAMES)}")
    return _CLASSES[name]()


def formats() -> Iterator[Format]:
    """Yields all formats, in the order in which a path is shown to them."""
    for name in dict.fromkeys((*_BUILT_IN, *_CLASSES)):
        yield format_of(name)


def recognised(path: Path) -> tuple[Format, str]:
    """Returns the first format that can read a path, and what it saw.

    Raises:
        ConfigError: none can.
    """
    for each in formats():
        seen = each.recognise(path)
        if seen is not None:
            return each, seen
    if path.is_file() and path.stat().st_size == 0:
        raise ConfigError(f"{path}: the file is empty")
    raise ConfigError(f"{path}: its format was not recognised; name it with --from ({', '.join(NAMES)})")
