"""Reads the classes of a data set, in order, from `classes.txt` (one per line) or `classes.json`.

JSON may be a list of names or of {"id": 0, "name": "road"}, or an object with such a list or a mapping under
`classes`, `names` or `labels`, and optionally `ignore_index`: the label, or labels, that mean "not labelled".
"""

from __future__ import annotations

import json
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from misfire_runtime.bundle import sha256_file
from misfire_train.data.readers.options import Options, beside
from misfire_train.errors import DatasetError

TEXT_NAME, JSON_NAME = "classes.txt", "classes.json"
# A list of classes is small; a larger file is a mistake, and would be read whole.
_MAX_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True)
class ClassList:
    """Holds names (class k is names[k]), ignored labels ("not labelled"), and notes on what was not read."""

    path: Path
    names: tuple[str, ...]
    ignore: frozenset[int] = frozenset()
    notes: tuple[str, ...] = ()

    @property
    def digest(self) -> dict[str, str]:
        """Returns name and checksum of the file."""
        return {self.path.name: sha256_file(self.path)}


def nfc(name: str) -> str:
    """Returns the composed form: an archive of a Mac spells an umlaut in two characters."""
    return unicodedata.normalize("NFC", name)


def find_class_list(folder: Path, options: Options) -> ClassList | None:
    """Reads the list named by `classes=FILE`, else classes.txt or classes.json in the folder, if any.

    Raises DatasetError if it cannot be read, is empty, or names a class twice.
    """
    if options.classes is not None:
        return read_class_list(beside(options.classes, folder))
    text, data = folder / TEXT_NAME, folder / JSON_NAME
    if text.is_file():
        notes = (f"{JSON_NAME} was not read: {TEXT_NAME} is beside it",) if data.is_file() else ()
        found = read_class_list(text)
        return ClassList(found.path, found.names, found.ignore, notes)
    return read_class_list(data) if data.is_file() else None


def read_class_list(path: Path) -> ClassList:
    """Reads one file. Raises DatasetError as find_class_list does."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise DatasetError(f"{path}: a list of classes has at most {_MAX_BYTES} bytes")
        # Windows editors put a byte-order mark in front, which would become part of the first name.
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".json":
            names, ignore = _from_json(json.loads(text), path)
        else:
            names, ignore = [line.strip() for line in text.splitlines() if line.strip()], frozenset()
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DatasetError(f"{path}: cannot be read as a list of classes ({error})") from error
    names = [nfc(name) for name in names]
    if not names:
        raise DatasetError(f"{path}: lists no classes")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DatasetError(f"{path}: lists the class {twice} twice")
    return ClassList(path, tuple(names), ignore)


def _from_json(content: Any, path: Path) -> tuple[list[str], frozenset[int]]:
    ignored: Any = []
    if isinstance(content, dict):
        ignored = content.get("ignore_index", content.get("ignore", []))
        listed = next((content[key] for key in ("classes", "names", "labels") if key in content), None)
        if listed is None:
            # Without such a key the object itself is the mapping: {"0": "road", "1": "car"}.
            listed = {key: value for key, value in content.items() if key not in ("ignore_index", "ignore")}
        content = listed
    labels = ignored if isinstance(ignored, list) else [ignored]
    if not all(type(label) is int and label >= 0 for label in labels):
        raise DatasetError(f"{path}: ignore_index is {ignored}; expected a label, or a list of labels")
    ignore = frozenset(labels)
    names = _numbered(content)
    if names is None or not all(isinstance(name, str) and name.strip() for name in names.values()):
        raise DatasetError(
            f'{path}: expected class names, such as ["road", "car"] or {{"classes": ["road", "car"]}}'
        )
    # A name for what is ignored, behind all others, is no class; one in between keeps its number.
    while names and max(names) in ignore:
        del names[max(names)]
    if sorted(names) != list(range(len(names))):
        raise DatasetError(f"{path}: class numbers are {sorted(names)}; expected 0 to {len(names) - 1}")
    return [names[number].strip() for number in range(len(names))], ignore


def _numbered(content: Any) -> dict[int, str] | None:
    """Returns names by number, or None if the content lists no classes."""
    try:
        if isinstance(content, dict):
            # type(), not isinstance(): True and False are instances of int.
            if all(type(value) is int for value in content.values()):
                return {value: name for name, value in content.items()}
            return {int(key): value for key, value in content.items()}
        if isinstance(content, list) and all(isinstance(entry, dict) for entry in content):
            return {int(entry.get("id", place)): entry["name"] for place, entry in enumerate(content)}
    except (ValueError, TypeError, KeyError):
        return None
    return dict(enumerate(content)) if isinstance(content, list) else None
