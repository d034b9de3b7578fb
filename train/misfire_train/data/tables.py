"""Regression from a CSV: a column `image` (path beside the CSV), number columns; optionally group and split.

image,steering,speed,group,split
frames/0001.jpg,-0.12,11.3,drive-1,train
"""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from misfire_runtime.bundle import sha256_file
from misfire_train.data.examples import Dataset, Examples
from misfire_train.data.files import (
    Options,
    decoded,
    digest_files,
    natural_contract,
    read_images,
    skipped_notes,
    train_and_test,
)
from misfire_train.errors import DatasetError

_OTHER_COLUMNS = ("image", "group", "split")


@dataclass(frozen=True)
class _Row:
    path: Path
    values: tuple[float, ...]
    group: str
    test: bool


def load_csv_regression(path: Path, options: Options) -> Dataset:
    """Every column but image, group and split is a value to predict, in its own unit.

    Rows whose image cannot be read are skipped, counted and named. Raises DatasetError, with the line, on a
    missing column, a value that is not a finite number, or an image that is listed twice.
    """
    columns, rows = _read_rows(path)
    base = path.parent
    files, problems = read_images([row.path for row in rows], base=base)
    if not files:
        raise DatasetError(
            f"{path}: no image of it can be read; {'; '.join(problems[:3]) or 'it has no rows'}"
        )
    row_of = {row.path: row for row in rows}
    kept = [row_of[file.path] for file in files]
    examples = Examples(
        images=decoded(files),
        targets=np.array([row.values for row in kept], np.float32),
        ids=tuple(file.name for file in files),
        groups=tuple(
            options.group_of(f.name, row.group or f.name) for f, row in zip(files, kept, strict=True)
        ),
    )
    tests = {file.name for file, row in zip(files, kept, strict=True) if row.test}
    train, test, notes = train_and_test(examples, tests.__contains__ if tests else None)
    return Dataset(
        name=f"csv-regression:{path}",
        task="regression",
        classes=columns,
        contract=natural_contract(files, options.size),
        train=train,
        test=test,
        sha256=digest_files(files, more={path.name: sha256_file(path)}),
        licence="yours",
        notes=skipped_notes(problems) + notes,
    )


def _read_rows(path: Path) -> tuple[tuple[str, ...], list[_Row]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            header = [name.strip() for name in reader.fieldnames or []]
            reader.fieldnames = header
            columns = tuple(name for name in header if name not in _OTHER_COLUMNS)
            if "image" not in header or not columns:
                raise DatasetError(
                    f"{path}: needs a column `image` and at least one of numbers; it has {header}"
                )
            rows = [_row(path, reader.line_num, raw, columns) for raw in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{path}: cannot be read as CSV ({error})") from error
    seen: set[Path] = set()
    for line, row in enumerate(rows, 2):
        if row.path in seen:
            raise DatasetError(f"{path}:{line}: {row.path.name} is listed twice")
        seen.add(row.path)
    return columns, rows


def _row(path: Path, line: int, raw: dict[str, str], columns: tuple[str, ...]) -> _Row:
    values = []
    for column in columns:
        text = (raw.get(column) or "").strip()
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise DatasetError(f"{path}:{line}: {column} is {text!r}, not a finite number")
        values.append(value)
    name = (raw.get("image") or "").strip()
    if not name:
        raise DatasetError(f"{path}:{line}: no image")
    part = (raw.get("split") or "").strip()
    return _Row(path.parent / name, tuple(values), (raw.get("group") or "").strip(), part in ("test", "val"))
