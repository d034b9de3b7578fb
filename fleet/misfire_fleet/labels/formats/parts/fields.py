"""Lists what is known of a picture beside its label, for tools that sort and filter by it.

fields_of   the same names in every format: sample_id, percentile, score.NAME, context.KEY, ...
FieldsTable a CSV whose columns are all fields that occurred; rows wait in a file until all are known
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from misfire_fleet.labels.formats.base import ExportItem
from misfire_fleet.moments import parse_moment

SIDECAR = "samples.csv"
"""Beside the files of formats that have no place for fields."""
_NUMBERS = re.compile(r"[-+0-9.,eE ]+")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def fields_of(item: ExportItem) -> dict[str, str | float | bool | None]:
    """Returns a picture's fields by name; all values are text, numbers or truths."""
    record, doubt = item.record, suspicion(item)
    return {
        "sample_id": item.sample,
        "file_name": item.file_name,
        "width": item.width,
        "height": item.height,
        "vehicle": item.vehicle,
        "bundle": item.bundle,
        "captured_at": moment_text(item.captured_at),
        "trigger": item.trigger,
        "reason": item.reason,
        "random": item.random,
        "percentile": item.percentile,
        **({"split": item.split} if item.split else {}),
        **({"annotator": record.annotator, "labelled_at": record.at.isoformat()} if record else {}),
        **({"verdict": item.verdict} if item.verdict else {}),
        **({"suspicion": doubt} if doubt is not None else {}),
        **{f"score.{name}": value for name, value in sorted(item.scores.items())},
        **{f"percentile.{name}": value for name, value in sorted(item.percentiles.items())},
        **{f"context.{name}": value for name, value in sorted(item.context.items())},
    }


def suspicion(item: ExportItem) -> float | None:
    """Returns 1 minus the lowest P(correct) of the vehicle's answer: how doubtful its worst part is."""
    known = [p for p in item.answer.p_correct if p is not None] if item.answer is not None else []
    return 1 - min(known) if known else None


def moment_text(seconds: float) -> str:
    """Returns seconds since 1970 as ISO 8601 in UTC."""
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat()


def moment_of(text: object) -> datetime | None:
    """Returns the time that a file states; None if it states none, or nothing that is one."""
    try:
        return datetime.fromtimestamp(parse_moment(str(text).strip()), timezone.utc) if text else None
    except (ValueError, OverflowError, OSError):
        return None


class FieldsTable:
    """Writes a CSV in one pass over rows whose columns are known only at the end."""

    def __init__(self, path: Path, *, first: tuple[str, ...] = ()) -> None:
        """path: of the CSV. first: the columns that come first, also if no row has them."""
        self._path, self._waiting = path, path.with_name(f".{path.name}.part")
        self._columns = dict.fromkeys(first)
        self._rows: IO[str] = self._waiting.open("w+", encoding="utf-8")

    def add(self, row: Mapping[str, Any]) -> None:
        """Adds a row."""
        self._columns.update(dict.fromkeys(row))
        self._rows.write(json.dumps(row, ensure_ascii=False) + "\n")

    def finish(self) -> None:
        """Writes the CSV: UTF-8, commas, one header."""
        self._rows.seek(0)
        with self._path.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow(self._columns)
            for line in self._rows:
                row = json.loads(line)
                writer.writerow([cell(row.get(column)) for column in self._columns])

    def __enter__(self) -> FieldsTable:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.finish()
        self._rows.close()
        self._waiting.unlink(missing_ok=True)


def cell(value: Any) -> str:
    """Returns a value as the text of a cell.

    A vehicle chooses the text of its context: a spreadsheet must not run it as a formula.
    """
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    text = str(value)
    runs = isinstance(value, str) and text.startswith(_FORMULA) and not _NUMBERS.fullmatch(text)
    return f"'{text}" if runs else text


def text_of(cell: str) -> str:
    """Returns the text that `cell` wrote, without the mark that keeps it from being run."""
    return cell[1:] if cell.startswith("'") and cell[1:].startswith(_FORMULA) else cell
