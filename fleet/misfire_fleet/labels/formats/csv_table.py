"""Writes and reads a CSV: a row for each picture, with its id, its label, and a column for each field.

id,label,kind,file_name,percentile,reason,score.learning_loss_pp,context.weather,...

Reading takes commas, semicolons or tabs, a byte-order mark, any line ends, ids with endings and folders, and
the CSV of `misfire retrain` (columns id and label). See `words.py` for what a label looks like.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import get_args

from misfire_fleet.labels.formats.base import (
    ALL_KINDS,
    ExportItem,
    Format,
    ImportedLabel,
    Kind,
    Known,
    Plan,
    Problem,
    Written,
    id_in,
)
from misfire_fleet.labels.formats.parts.fields import FieldsTable, fields_of, moment_of, text_of
from misfire_fleet.labels.formats.parts.json_stream import outline
from misfire_fleet.labels.formats.parts.pictures import write_picture
from misfire_fleet.labels.formats.parts.words import label_of, words_of
from misfire_fleet.labels.formats.registry import register
from misfire_runtime.errors import ConfigError

_IDS = ("sample_id", "id", "sample", "image_id", "file_name", "filename", "file", "image", "path")
_SEPARATORS = ",;\t"
_MAX_CELL = 32 * 1024 * 1024
"""Characters; a mask of many megapixels as JSON."""


@register
class CsvTable(Format):
    """A table that spreadsheets open, with a row for each picture."""

    name = "csv"
    help = "labels.csv with a row for each picture: id, label, scores and context"
    kinds = ALL_KINDS
    answers = True
    main = "labels.csv"

    def write(self, items: Iterable[ExportItem], folder: Path, plan: Plan) -> Written:
        """Writes labels.csv, and the pictures to images/."""
        written = Written()
        with FieldsTable(folder / self.main, first=("id", "label", "kind")) as table:
            for item in items:
                if plan.pictures:
                    write_picture(item, folder / "images")
                written.count(item)
                label, answer = item.label, item.answer
                table.add(
                    {
                        "id": item.sample,
                        "label": "" if label is None else words_of(label),
                        "kind": "" if label is None else label.kind,
                        **fields_of(item),
                        "answer": "" if answer is None else words_of(answer.label),
                    }
                )
        return written

    def recognise(self, path: Path) -> str | None:
        """Accepts a CSV with columns of an id and a label, or a folder with a labels.csv."""
        file = path / self.main if path.is_dir() else path
        if file.suffix.lower() not in (".csv", ".tsv", ".txt") or not file.is_file():
            return None
        header = outline(file, most=16 * 1024).lstrip().partition("\n")[0]
        columns = next(csv.reader([header], delimiter=_separator(header)), [])
        names = {name.strip().casefold() for name in columns}
        if "label" not in names or not names & set(_IDS):
            return None
        return f"a table with the columns {', '.join(name.strip() for name in columns[:3])} ({file.name})"

    def read(self, path: Path, known: Known) -> Iterator[ImportedLabel | Problem]:
        """Yields a label for each row that has one."""
        file = path / self.main if path.is_dir() else path
        csv.field_size_limit(_MAX_CELL)
        try:
            # utf-8-sig: spreadsheets save CSV with a byte-order mark, which would become part of "id".
            with file.open(newline="", encoding="utf-8-sig") as stream:
                separator = _separator(stream.readline())
                stream.seek(0)
                rows = csv.DictReader(stream, delimiter=separator)
                rows.fieldnames = [name.strip().casefold() for name in rows.fieldnames or ()]
                columns = _columns(file, rows.fieldnames)
                for row in rows:
                    yield from _row(row, columns, known, file, f"{file.name}:{rows.line_num}")
        except OSError as error:
            raise ConfigError(f"{file}: cannot be read ({error.strerror})") from error
        except (UnicodeDecodeError, csv.Error) as error:
            raise ConfigError(f"{file}: not a CSV file in UTF-8: {error}") from error


def _columns(file: Path, names: Iterable[str]) -> str:
    """Returns the column of the id. Raises ConfigError if there is none, or no label."""
    names = set(names)
    identity = next((name for name in _IDS if name in names), None)
    if identity is None or "label" not in names:
        missing = "label" if identity is not None else "id"
        raise ConfigError(f"{file}: the header needs the columns id and label; {missing} is missing")
    return identity


def _row(
    row: Mapping[str, str | None], identity: str, known: Known, file: Path, where: str
) -> Iterator[ImportedLabel | Problem]:
    sample, text = (row[identity] or "").strip(), row["label"]
    stated = (row.get("kind") or "").strip()
    if not sample and not (text or "").strip():
        return
    # None is a row that ends before the label: cut off, rather than empty.
    if not sample or text is None:
        yield Problem(where, "a row needs both an id and a label")
        return
    if stated and stated not in get_args(Kind):
        yield Problem(where, f"kind is {stated[:40]!r}; expected one of {', '.join(sorted(ALL_KINDS))}")
        return
    kind: Kind | None = stated or None  # type: ignore[assignment]
    if not text.strip() and not _empty_counts(row, kind, known):
        return
    try:
        label = label_of(text_of(text), kind=kind, known=known, beside=file.parent, where=where)
    except ConfigError as error:
        yield Problem(where, str(error).removeprefix(f"{where}: "))
        return
    annotator = (row.get("annotator") or "").strip()
    yield ImportedLabel(
        id_in(sample), label, where, annotator=annotator, at=moment_of(row.get("labelled_at"))
    )


def _empty_counts(row: Mapping[str, str | None], kind: Kind | None, known: Known) -> bool:
    """Returns whether an empty cell says that there is nothing; a table with kinds must say of which."""
    decided = kind if "kind" in row else known.kind
    return decided in ("boxes", "classes")


def _separator(header: str) -> str:
    """Returns what divides a header: the mark that it has most of."""
    return max(_SEPARATORS, key=header.count)
