"""Writes what was judged as a table, one row per frame and condition, and reads back what it was judged by.

Evidence, GateRules --write_score_table--> .parquet | .csv | .npz --judge.tables--> the same report and gate

Columns: id, group, shift, loss, failed, counts of a detector, every score. A head that was fitted without a
corruption has a column "NAME without SHIFT", filled on that corruption's rows. A Parquet file also keeps
which scores are free and what counts as a failure (`TableFacts`); the other forms keep columns only.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from misfire_runtime.files import write_durably
from misfire_train.errors import JudgeError
from misfire_train.judge.evidence import Evidence
from misfire_train.judge.gate import GateRules
from misfire_train.judge.report import WITHOUT

TABLES = (".parquet", ".csv", ".npz")
_KEY = b"misfire.scores"


@dataclass(frozen=True)
class TableFacts:
    """Holds what a table's columns do not say.

    Attributes:
        free: scores that cost nothing.
        fallback: free score that ships if nothing can be decided.
        known: shifts that a learned score was trained on.
        failure_threshold: loss above which a frame failed, None if the answer itself decides.
        failure: the same in words.
        trigger: the score that the gate chose, "" before it has.
        written: the project wrote this table.
    """

    free: tuple[str, ...] = ()
    fallback: str | None = None
    known: tuple[str, ...] = ()
    failure_threshold: float | None = None
    failure: str = ""
    trigger: str = ""
    written: bool = False


def require_table_name(path: Path) -> None:
    """Raises JudgeError if no table is written under such a name."""
    if path.suffix.lower() not in TABLES:
        raise JudgeError(f"{path}: a table of scores ends in {', '.join(TABLES)}")


def write_score_table(
    path: Path, evidence: Evidence, rules: GateRules, *, failure: str = "", trigger: str = ""
) -> None:
    """Writes one row per frame and condition, whole or not at all.

    Args:
        path: .parquet, .csv or .npz.
        evidence: what was judged.
        rules: by which the gate judges it, with the scores of refitted heads.
        failure: what a failure is, in words.
        trigger: the score that the gate chose.

    Raises:
        JudgeError: the name is none of a table.
        OSError: it cannot be written.
    """
    facts = TableFacts(
        free=tuple(name for name in evidence.scores if name in rules.free),
        fallback=rules.fallback,
        known=tuple(rules.known),
        failure_threshold=evidence.failure_threshold,
        failure=failure,
        trigger=trigger,
        written=True,
    )
    write_columns(path, columns_of(evidence, rules), facts)


def write_columns(path: Path, columns: Mapping[str, NDArray[Any]], facts: TableFacts) -> None:
    """Writes columns {name: [N]}, whole or not at all. Raises JudgeError on another name, and OSError."""
    require_table_name(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_durably(path, _encode(path.suffix.lower(), columns, facts))


def columns_of(evidence: Evidence, rules: GateRules) -> dict[str, NDArray[Any]]:
    """Returns {column: [N]} in the order of the table; a refitted head is NaN where it does not count."""
    columns: dict[str, NDArray[Any]] = {
        "id": evidence.frames.astype(str),
        "group": evidence.groups.astype(str),
        "shift": evidence.shifts.astype(str),
        "loss": evidence.loss,
        "failed": evidence.failed,
        **evidence.counts,
        **evidence.scores,
    }
    for shift, scores in rules.refitted.items():
        for name, values in scores.items():
            rows = evidence.shifts == shift
            columns[f"{name}{WITHOUT}{shift}"] = np.where(rows, np.asarray(values, np.float64), np.nan)
    return columns


def refits_in(
    columns: Mapping[str, NDArray[Any]], scores: Mapping[str, NDArray[Any]], shifts: NDArray[Any]
) -> dict[str, dict[str, NDArray[Any]]]:
    """Returns {shift: {score: [N]}} of the columns "NAME without SHIFT"; other rows keep the score itself."""
    found: dict[str, dict[str, NDArray[Any]]] = {}
    for column, values in columns.items():
        name, without, shift = column.partition(WITHOUT)
        rows = shifts == shift
        if without and name in scores and rows.any():
            found.setdefault(shift, {})[name] = np.where(rows, values, scores[name])
    return found


def is_refit(column: str, columns: Mapping[str, Any]) -> bool:
    """Returns whether a column holds a score of a head that was fitted again."""
    name, without, _ = column.partition(WITHOUT)
    return bool(without) and name in columns


def read_facts(path: Path) -> TableFacts:
    """Returns what a table says of itself; nothing if it is not one of `write_score_table`."""
    if path.suffix.lower() != ".parquet":
        return TableFacts()
    import pyarrow as pa
    import pyarrow.parquet

    try:
        stored = (pyarrow.parquet.read_schema(path).metadata or {}).get(_KEY)
        values: dict[str, Any] = {} if stored is None else json.loads(stored)
    except (pa.ArrowInvalid, OSError, ValueError) as error:
        raise JudgeError(f"{path}: not a table that can be read ({str(error).splitlines()[0]})") from error
    # Facts that a later version adds are left aside.
    own = {field.name for field in fields(TableFacts)}
    known: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in own}
    return TableFacts(**known)


def _full(values: NDArray[Any]) -> NDArray[Any]:
    """Returns single precision as double: a CSV has the shortest digits, which name another double."""
    return values.astype(np.float64) if values.dtype == np.float32 else values


def _encode(form: str, columns: Mapping[str, NDArray[Any]], facts: TableFacts) -> bytes:
    if form == ".npz":
        stream = io.BytesIO()
        np.savez(stream, **dict(columns))  # type: ignore[arg-type]
        return stream.getvalue()
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    # An empty cell is what any reader takes for a missing value; a NaN in a CSV is a word.
    table = pa.table({name: pa.array(_full(values), from_pandas=True) for name, values in columns.items()})
    sink = pa.BufferOutputStream()
    if form == ".csv":
        pyarrow.csv.write_csv(table, sink)
    else:
        kept = table.replace_schema_metadata({_KEY: json.dumps(asdict(facts)).encode()})
        pyarrow.parquet.write_table(kept, sink)
    return bytes(sink.getvalue().to_pybytes())
