"""Reads regression from a CSV: a column `image` (path beside the CSV) and columns of numbers.

image,steering,speed,group,split
frames/0001.jpg,-0.12,11.3,drive-1,train

`group` and `split` are optional. Separators may be commas, semicolons (then numbers may have decimal commas)
or tabs.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from misfire_runtime.bundle import sha256_file
from misfire_train.data.examples import Dataset
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
_INDEX_COLUMN = re.compile(r"(Unnamed: [\d.]+)?")
"""How pandas writes and reads back the index of a table: no name, or one of its own making."""


@dataclass(frozen=True)
class _Row:
    """Holds a row. path: None if there is no such file. word: split word, "" for none."""

    line: int
    image: str
    path: Path | None
    values: tuple[float, ...]
    group: str
    word: str


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
    base = path.parent
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
        targets=np.array([row.values for row in kept], np.float32),
        ids=names,
        names=names,
        groups=[row.group or name for row, name in zip(kept, names, strict=True)],
        words=[row.word for row in kept],
        options=options,
        folder=base,
    )
    lost = f"{len(missing)} of {len(table.rows)} images are not there: {first_of(missing)}"
    return Dataset(
        name=f"csv-regression:{path}",
        task="regression",
        classes=table.columns,
        contract=natural_contract(files, options.size),
        train=halves.train,
        test=halves.test,
        sha256=digest_files(files, more={path.name: sha256_file(path)} | list_digest(options, base)),
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


def _read_table(path: Path) -> _Table:
    try:
        # Excel writes a byte-order mark, which would become part of the first column's name.
        with path.open(newline="", encoding="utf-8-sig") as stream:
            separator = _separator(stream.readline())
            stream.seek(0)
            reader = csv.DictReader(stream, delimiter=separator)
            header = [name.strip() for name in reader.fieldnames or []]
            reader.fieldnames = header
            columns, notes = _columns(path, header)
            rows = [_row(path, reader.line_num, raw, columns, separator) for raw in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{path}: cannot be read as CSV ({error})") from error
    seen: set[Path | str] = set()
    for row in rows:
        # Two spellings of one path are one image.
        key = row.path or row.image
        if key in seen:
            raise DatasetError(f"{path}:{row.line}: {row.image} is listed twice")
        seen.add(key)
    return _Table(columns, tuple(rows), (*notes, *_counting(columns, rows)))


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


def _row(path: Path, line: int, raw: dict[str, str], columns: Sequence[str], separator: str) -> _Row:
    name = (raw.get("image") or "").strip()
    if not name:
        raise DatasetError(f"{path}:{line}: no image")
    text = (raw.get("split") or "").strip()
    word = split_word(text)
    if text and not word:
        raise DatasetError(f"{path}:{line}: split is {text}; the words for the halves are {SPLIT_WORDS}")
    values = tuple(_number(path, line, column, raw, separator) for column in columns)
    found = named_file(name, [path.parent])
    return _Row(line, name, found, values, (raw.get("group") or "").strip(), word)


def _number(path: Path, line: int, column: str, raw: dict[str, str], separator: str) -> float:
    text = (raw.get(column) or "").strip()
    try:
        value = float(text.replace(",", ".") if separator == ";" else text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DatasetError(f"{path}:{line}: {column} is {text!r}, not a finite number")
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
