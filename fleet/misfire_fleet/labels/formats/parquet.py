"""Writes and reads Parquet: a row for each picture, the picture itself included.

    datasets.load_dataset("parquet", data_files="DIR/*.parquet")   or   pandas.read_parquet("DIR")

DIR/samples-00000.parquet: id, image {bytes, path}, label (the content as JSON), label_text, label_kind, the
fields, scores and percentiles as maps, context and answer as JSON. Files have about 512 MiB of pictures.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, get_args

from misfire_fleet.labels.content import canonical
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
    training_readers,
)
from misfire_fleet.labels.formats.parts.fields import suspicion
from misfire_fleet.labels.formats.parts.words import label_of, words_of
from misfire_fleet.labels.formats.registry import register
from misfire_runtime.errors import ConfigError

_MAX_FILE_BYTES = 512 * 1024 * 1024
_GROUP_ROWS, _GROUP_BYTES = 256, 32 * 1024 * 1024
_MAX_GROUP_BYTES = 4 * 1024 * 1024 * 1024
"""Of the columns that are read of one row group: a small file may claim more."""
_MAGIC = b"PAR1"
_READ = ("sample_id", "id", "image_id", "label", "label_kind", "annotator", "labelled_at", "width", "height")


@register
class Parquet(Format):
    """Tables for pandas, DuckDB and the Hugging Face hub."""

    name = "parquet"
    help = "Parquet tables with pictures, labels, scores and context; the layout of Hugging Face's datasets"
    kinds = ALL_KINDS
    answers = True

    def write(self, items: Iterable[ExportItem], folder: Path, plan: Plan) -> Written:
        """Writes row groups of at most 256 pictures."""
        written = Written()
        writer = _Writer(folder)
        try:
            for item in items:
                writer.add(item, item.read() if plan.pictures else None)
                written.count(item)
            writer.finish()
        finally:
            writer.close()
        return written

    def recognise(self, path: Path) -> str | None:
        """Accepts Parquet files with a column `label`."""
        files = _files(path)
        if not files or not _is_parquet(files[0]):
            return None
        return f"Parquet ({files[0].name})"

    def read(self, path: Path, known: Known) -> Iterator[ImportedLabel | Problem]:
        """Yields the labels of all rows that have one; pictures are not read."""
        for file in _files(path):
            yield from _read_file(file, known)


def _arrow() -> Any:
    with training_readers():
        import pyarrow
        import pyarrow.parquet
    return pyarrow


def _schema() -> Any:
    arrow = _arrow()
    text, number = arrow.string(), arrow.float64()
    columns = {
        "id": text,
        "image": arrow.struct([("bytes", arrow.binary()), ("path", text)]),
        "label": text,
        "label_kind": text,
        "label_text": text,
        "media_type": text,
        "width": arrow.int32(),
        "height": arrow.int32(),
        "vehicle": text,
        "bundle": text,
        "captured_at": arrow.timestamp("us", tz="UTC"),
        "trigger": text,
        "reason": text,
        "random": arrow.bool_(),
        "percentile": number,
        "suspicion": number,
        "scores": arrow.map_(text, number),
        "percentiles": arrow.map_(text, number),
        "context": text,
        "answer": text,
        "annotator": text,
        "labelled_at": arrow.timestamp("us", tz="UTC"),
        "split": text,
    }
    # What `datasets` reads to show the column as pictures.
    features = {"info": {"features": {"image": {"_type": "Image"}}}}
    return arrow.schema(list(columns.items()), metadata={"huggingface": json.dumps(features)})


class _Writer:
    """Collects rows into groups, and groups into files."""

    def __init__(self, folder: Path) -> None:
        self._arrow, self._schema, self._folder = _arrow(), _schema(), folder
        self._rows: list[dict[str, Any]] = []
        self._waiting = self._bytes = self._number = 0
        self._open: Any = None

    def add(self, item: ExportItem, picture: bytes | None) -> None:
        """Adds a row; writes a group if enough wait."""
        self._rows.append(_row(item, picture))
        self._waiting += len(picture or b"")
        if len(self._rows) >= _GROUP_ROWS or self._waiting >= _GROUP_BYTES:
            self._flush()

    def finish(self) -> None:
        """Writes the rest. Without a row, one empty file keeps the columns."""
        self._flush(even_empty=self._number == 0)

    def close(self) -> None:
        """Ends the open file."""
        if self._open is not None:
            self._open.close()
            self._open = None

    def _flush(self, *, even_empty: bool = False) -> None:
        if not self._rows and not even_empty:
            return
        if self._open is not None and self._bytes >= _MAX_FILE_BYTES:
            self.close()
        if self._open is None:
            file = self._folder / f"samples-{self._number:05d}.parquet"
            # Pictures are compressed already.
            self._open = self._arrow.parquet.ParquetWriter(file, self._schema, compression="snappy")
            self._number, self._bytes = self._number + 1, 0
        self._open.write_table(self._arrow.Table.from_pylist(self._rows, schema=self._schema))
        self._bytes += self._waiting
        self._rows, self._waiting = [], 0


def _row(item: ExportItem, picture: bytes | None) -> dict[str, Any]:
    label, answer, record = item.label, item.answer, item.record
    return {
        "id": item.sample,
        "image": {"bytes": picture, "path": item.file_name},
        "label": None if label is None else canonical(label),
        "label_kind": None if label is None else label.kind,
        "label_text": None if label is None or label.kind == "mask" else words_of(label),
        "media_type": item.media_type,
        "width": item.width,
        "height": item.height,
        "vehicle": item.vehicle,
        "bundle": item.bundle,
        "captured_at": datetime.fromtimestamp(item.captured_at, timezone.utc),
        "trigger": item.trigger,
        "reason": item.reason,
        "random": item.random,
        "percentile": item.percentile,
        "suspicion": suspicion(item),
        "scores": sorted(item.scores.items()),
        "percentiles": sorted(item.percentiles.items()),
        "context": json.dumps(dict(item.context), ensure_ascii=False, sort_keys=True),
        "answer": None
        if answer is None
        else json.dumps(
            {
                "label": answer.label.model_dump(mode="json"),
                "confidence": answer.confidence,
                "p_correct": answer.p_correct,
                "more": answer.more,
            },
            ensure_ascii=False,
        ),
        "annotator": record.annotator if record else None,
        "labelled_at": record.at.astimezone(timezone.utc) if record else None,
        "split": item.split or None,
    }


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(path.glob("*.parquet"))
    return [path] if path.suffix.lower() in (".parquet", ".pq") and path.is_file() else []


def _is_parquet(file: Path) -> bool:
    try:
        with file.open("rb") as stream:
            return stream.read(4) == _MAGIC
    except OSError:
        return False


def _read_file(file: Path, known: Known) -> Iterator[ImportedLabel | Problem]:
    arrow = _arrow()
    try:
        with arrow.parquet.ParquetFile(file) as table:
            names = set(table.schema_arrow.names)
            identity = next((name for name in ("sample_id", "id", "image_id") if name in names), None)
            if identity is None or "label" not in names:
                missing = "label" if identity is not None else "id"
                raise ConfigError(f"{file}: needs the columns id and label; {missing} is missing")
            columns = [name for name in _READ if name in names]
            _require_bounded_groups(file, table, columns)
            number = 0
            for batch in table.iter_batches(batch_size=1024, columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    found = _read_row(row, identity, known, file, f"{file.name}: row {number}")
                    if found is not None:
                        yield found
    except (arrow.ArrowException, OSError) as error:
        raise ConfigError(f"{file}: damaged or cut off ({str(error).splitlines()[0][:200]})") from error


def _require_bounded_groups(file: Path, table: Any, columns: list[str]) -> None:
    for group in range(table.metadata.num_row_groups):
        about = table.metadata.row_group(group)
        chunks = (about.column(at) for at in range(about.num_columns))
        size = sum(c.total_uncompressed_size for c in chunks if c.path_in_schema in columns)
        if size > _MAX_GROUP_BYTES:
            raise ConfigError(
                f"{file}: row group {group} has {size:,} bytes; at most {_MAX_GROUP_BYTES:,} are read"
            )


def _read_row(
    row: Mapping[str, Any], identity: str, known: Known, file: Path, where: str
) -> ImportedLabel | Problem | None:
    sample, text = row[identity], row["label"]
    if text is None:
        return None
    if not isinstance(sample, str) or not sample or not isinstance(text, str):
        return Problem(where, "a row needs both an id and a label, as text")
    stated = row.get("label_kind")
    kind: Kind | None = stated if stated in get_args(Kind) else None
    try:
        label = label_of(text, kind=kind, known=known, beside=file.parent, where=where)
    except ConfigError as error:
        return Problem(where, str(error).removeprefix(f"{where}: "))
    size, at = (row.get("width"), row.get("height")), row.get("labelled_at")
    annotator = row.get("annotator")
    return ImportedLabel(
        id_in(sample),
        label,
        where,
        size=size if all(type(side) is int and side > 0 for side in size) else None,  # type: ignore[arg-type]
        annotator=annotator if isinstance(annotator, str) else "",
        at=at if isinstance(at, datetime) and at.tzinfo else None,
    )
