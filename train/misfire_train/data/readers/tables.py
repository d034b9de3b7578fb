"""Reads a CSV: a column `image` (path beside the CSV) and columns of numbers, or a column of class names.

image,steering,speed,group,split            image,class,group,split
frames/0001.jpg,-0.12,11.3,drive-1,train    frames/0001.jpg,bus,drive-1,train

`group` and `split` are optional. Separators may be commas, semicolons (then numbers may have decimal commas)
or tabs.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from misfire_runtime.bundle import sha256_file
from misfire_train.data.examples import Dataset
from misfire_train.data.readers.class_lists import find_class_list, nfc
from misfire_train.data.readers.files import (
    decoded,
    digest_files,
    first_of,
    named_file,
    natural_contract,
    read_images,
    skipped_notes,
)
from misfire_train.data.readers.halves import SPLIT_WORDS, divide, split_word
from misfire_train.data.readers.options import Options, list_digest
from misfire_train.errors import DatasetError

_OTHER_COLUMNS = ("image", "group", "split")
_CLASS_COLUMNS = ("class", "label")
_INDEX_COLUMN = re.compile(r"(Unnamed: [\d.]+)?")
"""How pandas writes and reads back the index of a table: no name, or one of its own making."""


@dataclass(frozen=True)
class _Row:
    """Holds a row. path: None if there is no such file. word: split word, "" for none. label: its class."""

    line: int
    image: str
    path: Path | None
    values: tuple[float, ...]
    group: str
    word: str
    label: str = ""


@dataclass(frozen=True)
class _Table:
    columns: tuple[str, ...]
    rows: tuple[_Row, ...]
    notes: tuple[str, ...]


def load_csv_regression(path: Path, options: Options) -> Dataset:
    """Returns the images of a CSV.

    Every column but image, group and split is a value to predict, in its own unit.

    Rows whose image is missing or unreadable are skipped, counted and named. A column without a name (an
    index that pandas wrote) is left out with a note. Raises DatasetError, with the line, on a missing column,
    a value that is not a finite number, an unknown split word, or an image that is listed twice.
    """
    table = _read_table(path)

    def targets(rows: Sequence[_Row]) -> NDArray[Any]:
        return np.array([row.values for row in rows], np.float32)

    return _dataset(path, table, options, kind=("csv-regression", "regression", table.columns), of=targets)


def load_csv_classes(path: Path, options: Options) -> Dataset:
    """Returns the images of a CSV with one class name each, in the column `class`, `label` or the only other.

    The classes are those of a class list, else the names that occur, in alphabetical order. Raises
    DatasetError as `load_csv_regression` does, and on a class that the list lacks, or fewer than two.
    """
    table = _read_table(path, named=True)
    listed = find_class_list(path.parent, options)
    classes = listed.names if listed else tuple(sorted({row.label for row in table.rows}))
    lacking = next((row for row in table.rows if row.label not in classes), None)
    if lacking is not None and listed is not None:
        raise DatasetError(f"{path}:{lacking.line}: {listed.path.name} has no class {lacking.label!r}")
    if len(classes) < 2:
        raise DatasetError(f"{path}: has one class only ({first_of(classes) or 'no rows'})")

    def targets(rows: Sequence[_Row]) -> NDArray[Any]:
        return np.array([classes.index(row.label) for row in rows], np.int64)

    kind = ("csv-classes", "classification", classes)
    found = _dataset(path, table, options, kind=kind, of=targets, more=listed.digest if listed else {})
    return replace(found, notes=(*(listed.notes if listed else ()), *found.notes))


def _dataset(
    path: Path,
    table: _Table,
    options: Options,
    *,
    kind: tuple[str, str, tuple[str, ...]],
    of: Callable[[Sequence[_Row]], NDArray[Any]],
    more: Mapping[str, str] = MappingProxyType({}),
) -> Dataset:
    """Returns the images of a table.

    kind: reader, task and classes. of: the targets of rows. more: checksums of further files.
    """
    base, (reader, task, classes) = path.parent, kind
    missing = [row.image for row in table.rows if row.path is None]
    row_of = {row.path: row for row in table.rows if row.path is not None}
    files, problems = read_images(list(row_of), base=base)
    if not files:
        absent = [f"{name} is not in {base}" for name in missing]
        raise DatasetError(
            f"{path}: no image of it can be read; {first_of([*absent, *problems]) or 'it has no rows'}"
        )
    kept = [row_of[file.path] for file in files]
    names = [file.name for file in files]
    halves = divide(
        images=decoded(files),
        targets=of(kept),
        ids=names,
        names=names,
        groups=[row.group or name for row, name in zip(kept, names, strict=True)],
        words=[row.word for row in kept],
        options=options,
        folder=base,
    )
    lost = f"{len(missing)} of {len(table.rows)} images are not there: {first_of(missing)}"
    return Dataset(
        name=f"{reader}:{path}",
        task=task,
        classes=classes,
        contract=natural_contract(files, options.size),
        train=halves.train,
        test=halves.test,
        sha256=digest_files(files, more={path.name: sha256_file(path), **more} | list_digest(options, base)),
        licence="yours",
        notes=(*skipped_notes(problems), *((lost,) if missing else ()), *table.notes, *halves.notes),
    )


def load_csv_labels(path: Path, options: Options) -> Dataset:
    """Returns the images of a CSV whose columns, but image, group and split, are labels: 1 there, 0 not.

    Raises DatasetError as `load_csv_regression` does, and on any other number.
    """
    found = load_csv_regression(path, options)
    for half in (found.train, found.test):
        bad = np.argwhere((half.targets != 0) & (half.targets != 1))
        if len(bad):
            row, column = (int(i) for i in bad[0])
            raise DatasetError(
                f"{path}: {found.classes[column]} of {half.ids[row]} is {half.targets[row, column]:g}; a "
                "label is 0 or 1 (csv-regression reads numbers)"
            )
    return replace(found, name=f"csv-labels:{path}", task="multi-label")


def _read_table(path: Path, *, named: bool = False) -> _Table:
    """Returns the rows of a CSV of numbers; of class names, if `named`."""
    try:
        # Excel writes a byte-order mark, which would become part of the first column's name.
        with path.open(newline="", encoding="utf-8-sig") as stream:
            separator = _separator(stream.readline())
            stream.seek(0)
            reader = csv.DictReader(stream, delimiter=separator)
            header = [name.strip() for name in reader.fieldnames or []]
            reader.fieldnames = header
            columns, notes = (_class_column if named else _columns)(path, header)
            rows = [_row(path, reader.line_num, raw, columns, separator, named=named) for raw in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{path}: cannot be read as CSV ({error})") from error
    seen: set[Path | str] = set()
    for row in rows:
        # Two spellings of one path are one image.
        key = row.path or row.image
        if key in seen:
            raise DatasetError(f"{path}:{row.line}: {row.image} is listed twice")
        seen.add(key)
    return _Table(columns, tuple(rows), (*notes, *(() if named else _counting(columns, rows))))


def _separator(header: str) -> str:
    """Returns what the header is divided by: a comma if it has one."""
    return next((each for each in ",;\t" if each in header), ",")


def _columns(path: Path, header: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the columns of values, and a note on those without a name."""
    twice = next((name for name in header if name and header.count(name) > 1), None)
    if twice is not None:
        raise DatasetError(f"{path}: has two columns {twice}")
    index = [name for name in header if _INDEX_COLUMN.fullmatch(name)]
    columns = tuple(name for name in header if name not in (*_OTHER_COLUMNS, *index))
    if "image" not in header or not columns:
        raise DatasetError(
            f"{path}: needs a column `image` and at least one of numbers; "
            f"it has {', '.join(header) or 'none'}"
        )
    note = f"columns without a name left out: {len(index)} (an index, not a value to learn)"
    return columns, (note,) if index else ()


def _class_column(path: Path, header: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the column of class names, and a note on those that are not read."""
    others = [n for n in header if n and n not in _OTHER_COLUMNS and not _INDEX_COLUMN.fullmatch(n)]
    named = [name for name in _CLASS_COLUMNS if name in others] or (others if len(others) == 1 else [])
    if "image" not in header or len(named) != 1:
        raise DatasetError(
            f"{path}: needs a column `image` and one of class names, `class` or `label`; "
            f"it has {', '.join(header) or 'none'}"
        )
    rest = [name for name in others if name != named[0]]
    return (named[0],), (f"columns that were not read: {', '.join(rest)}",) if rest else ()


def _row(
    path: Path, line: int, raw: dict[str, str], columns: Sequence[str], separator: str, *, named: bool
) -> _Row:
    name = (raw.get("image") or "").strip()
    if not name:
        raise DatasetError(f"{path}:{line}: no image")
    text = (raw.get("split") or "").strip()
    word = split_word(text)
    if text and not word:
        raise DatasetError(f"{path}:{line}: split is {text}; the words for the halves are {SPLIT_WORDS}")
    found = named_file(name, [path.parent])
    group = (raw.get("group") or "").strip()
    if named:
        label = nfc((raw.get(columns[0]) or "").strip())
        if not label:
            raise DatasetError(f"{path}:{line}: no {columns[0]}")
        return _Row(line, name, found, (), group, word, label)
    values = tuple(_number(path, line, column, raw, separator) for column in columns)
    return _Row(line, name, found, values, group, word)


def _number(path: Path, line: int, column: str, raw: dict[str, str], separator: str) -> float:
    text = (raw.get(column) or "").strip()
    try:
        value = float(text.replace(",", ".") if separator == ";" else text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        hint = " (csv-classes reads class names)" if text and column in _CLASS_COLUMNS else ""
        raise DatasetError(f"{path}:{line}: {column} is {text!r}, not a finite number{hint}")
    return value


def _counting(columns: Sequence[str], rows: Sequence[_Row]) -> list[str]:
    """Notes columns that only count the rows: an index under a name."""
    count = len(rows)
    counting = [
        name
        for at, name in enumerate(columns)
        # Two rows may differ by one without being an index.
        if count > 2 and [row.values[at] - rows[0].values[at] for row in rows] == list(range(count))
    ]
    return [f"{name} counts the rows; if it is an index, remove the column" for name in counting]
