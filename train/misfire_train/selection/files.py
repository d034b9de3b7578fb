"""Reads pools from .npy (memory-mapped) and Parquet, and writes chosen ids as CSV or JSON.

A source is FILE.npy or FILE.parquet[:COLUMN]; a Parquet column is read in batches into one array.
"""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from misfire_runtime.files import write_durably
from misfire_train.errors import SelectionError

_BATCH_ROWS = 65_536


def read_matrix(source: str, *, column: str) -> NDArray[Any]:
    """Returns [N,D] numbers: a memory map of a .npy, or a Parquet column of equally long lists as float32.

    Args:
        source: FILE.npy or FILE.parquet[:COLUMN].
        column: the Parquet column if the source names none.

    Raises:
        SelectionError: the file cannot be read, or a row is null or of another length; names file and row.
    """
    path, name = split_source(source, column)
    if path.suffix == ".npy":
        array = _load_npy(path)
        if array.ndim != 2:
            raise SelectionError(f"{path}: expected a table [N,D], got shape {array.shape}")
        return array
    matrix: NDArray[np.float32] | None = None
    start = 0
    rows, batches = _parquet_batches(path, name)
    for batch in batches:
        if batch.null_count:
            first = int(np.flatnonzero(batch.is_null().to_numpy(zero_copy_only=False))[0])
            raise SelectionError(f"{path}: column {name!r} is null in row {start + first}")
        if not hasattr(batch, "flatten") or not len(batch):
            raise SelectionError(f"{path}: column {name!r} holds no lists of numbers")
        flat = batch.flatten().to_numpy(zero_copy_only=False)
        width = flat.size // len(batch)
        if matrix is None:
            matrix = np.empty((rows, width), np.float32)
        if flat.size != len(batch) * matrix.shape[1] or not _equally_long(batch, matrix.shape[1]):
            raise SelectionError(f"{path}: the lists in column {name!r} differ in length")
        matrix[start : start + len(batch)] = flat.reshape(len(batch), -1)
        start += len(batch)
    if matrix is None:
        raise SelectionError(f"{path}: column {name!r} has no rows: nothing to choose from")
    return matrix


def read_column(source: str, *, column: str) -> NDArray[Any]:
    """Returns [N] values of any kind from a .npy or a Parquet column; a [N,D] .npy is returned as it is."""
    path, name = split_source(source, column)
    if path.suffix == ".npy":
        return _load_npy(path)
    _, batches = _parquet_batches(path, name)
    parts = [batch.to_numpy(zero_copy_only=False) for batch in batches]
    values = np.concatenate(parts) if parts else np.empty(0)
    if values.dtype == object:
        if any(value is None for value in values):
            row = next(i for i, value in enumerate(values) if value is None)
            raise SelectionError(f"{path}: column {name!r} is null in row {row}")
        values = values.astype(str)
    return values


def write_chosen(
    path: Path, chosen: NDArray[np.int64], *, ids: NDArray[Any] | None, scores: NDArray[Any] | None
) -> None:
    """Writes CSV (rank,row,id,score), or a list of objects if the name ends in .json; whole or not at all."""
    rows = [
        {
            "rank": rank,
            "row": int(row),
            "id": str(row if ids is None else ids[row]),
            **({} if scores is None else {"score": float(scores[row])}),
        }
        for rank, row in enumerate(chosen)
    ]
    if path.suffix == ".json":
        text = json.dumps(rows, indent=2) + "\n"
    else:
        # csv ends lines itself; without newline="" Python would change them again.
        stream = io.StringIO(newline="")
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        text = stream.getvalue()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_durably(path, text.encode())


def split_source(source: str, column: str) -> tuple[Path, str]:
    """Returns file and column of FILE.npy or FILE.parquet[:COLUMN]. Raises SelectionError on others."""
    # From the right, because the path may contain a colon.
    path, separator, name = source.rpartition(":")
    if not separator or not path.endswith(".parquet"):
        path, name = source, column
    file = Path(path)
    if file.suffix not in (".npy", ".parquet"):
        raise SelectionError(f"{source}: expected FILE.npy or FILE.parquet[:COLUMN]")
    if not file.is_file():
        raise SelectionError(f"{file}: no such file")
    return file, name


def _load_npy(path: Path) -> NDArray[Any]:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise SelectionError(f"{path}: not a .npy array that can be read ({error})") from error
    return np.asarray(array) if array.ndim < 2 else array


def _parquet_batches(path: Path, column: str) -> tuple[int, Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise SelectionError(f"{path}: not a Parquet file that can be read ({error})") from error
    if column not in file.schema_arrow.names:
        raise SelectionError(f"{path}: no column {column!r}; there are {', '.join(file.schema_arrow.names)}")
    batches = (batch.column(0) for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=[column]))
    return file.metadata.num_rows, batches


def _equally_long(batch: Any, width: int) -> bool:
    lengths = (
        batch.value_lengths().to_numpy(zero_copy_only=False) if hasattr(batch, "value_lengths") else None
    )
    return lengths is None or bool((lengths == width).all())
