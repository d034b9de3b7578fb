"""Reads scores that were computed elsewhere from a table, for `misfire evaluate --scores`.

table.parquet | .csv | .npz --read_columns--> {column: [N]} --judge_table--> Report, Evidence

One row is one frame (under one condition). Columns have roles: id, failed, loss, group and shift, and the
counts of `misfire_train.metrics.counts`. Every other column of numbers is a score, unless it is asked for as
a slice. A table that `--scores-out` wrote is judged as it was: with its free scores, threshold and refits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from misfire_train.errors import JudgeError
from misfire_train.judge.evaluating import evaluate
from misfire_train.judge.evidence import CLEAN, Evidence
from misfire_train.judge.files.score_table import TABLES, TableFacts, is_refit, read_facts, refits_in
from misfire_train.judge.gate import GateRules
from misfire_train.judge.report import Report
from misfire_train.judge.slices import MAX_GROUPS_SHOWN
from misfire_train.metrics.counts import COUNTS

ROLES = ("id", "failed", "loss", "group", "shift", *COUNTS)
"""Roles of columns; by default a role's column has its name."""


@dataclass(frozen=True)
class TableJudging:
    """Specifies how to judge a table.

    Attributes:
        columns: {role: column}, for columns that are not named after their role; "" for a role that has none.
        scores: columns that are scores, empty for all columns of numbers without another use.
        free: scores that cost nothing. None takes the names that misfire knows as free.
        slices: columns whose values are compared, such as weather.
        slice_labels: {name: {id: label}} from elsewhere.
        failure_threshold: a loss above it is a failure; None takes the column of failures.
        budget: share of frames that is uploaded, which then decides the gate; None for AUROC and AURC.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    scores: Sequence[str] = ()
    free: Sequence[str] | None = None
    slices: Sequence[str] = ()
    slice_labels: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    failure_threshold: float | None = None
    replicates: int = 300
    seed: int = 0
    budget: float | None = None


def is_table(path: str | Path) -> bool:
    """Returns whether a path has the name of a table."""
    return Path(path).suffix.lower() in TABLES


def judge_table(path: Path, judging: TableJudging) -> tuple[Report, Evidence]:
    """Judges the scores of a table.

    Args:
        path: .parquet, .csv, or .npz of equally long arrays.
        judging: roles of the columns, and what to judge.

    Raises:
        JudgeError: the file cannot be read, a column is missing or holds no numbers, a value is missing or
            not finite, an id occurs twice under one condition, or there is nothing that says what failed.
    """
    roles = _roles(judging.columns)
    names = [roles[role] for role in ("id", "group", "shift")]
    table = _Table(path, roles, read_columns(path, text=[*names, *judging.slices]))
    facts = read_facts(path)
    if judging.failure_threshold is None and roles["failed"] == "failed" and roles["loss"] == "loss":
        judging = replace(judging, failure_threshold=facts.failure_threshold)
    scores = _score_names(table, judging)
    free = _free_names(path, scores, judging.free, facts)
    evidence = _evidence(table, scores, judging.failure_threshold)
    rules = GateRules(
        free=free,
        fallback=facts.fallback,
        refitted=refits_in(table.columns, evidence.scores, evidence.shifts),
        known=facts.known,
        seed=judging.seed,
        budget=judging.budget,
    )
    return evaluate(
        evidence,
        rules,
        slices=_slices(table, judging),
        replicates=judging.replicates,
        settings=_settings(table, evidence, scores, judging, facts),
    ), evidence


class _Table:
    """Holds a table with the roles of its columns."""

    def __init__(self, path: Path, roles: Mapping[str, str], columns: Mapping[str, NDArray[Any]]) -> None:
        self.path, self.roles, self.columns = path, roles, columns
        self.ids = self._ids()

    def require(self, name: str) -> NDArray[Any]:
        """Returns a column. Raises JudgeError with the names that exist if there is none."""
        if name not in self.columns:
            raise JudgeError(f"{self.path}: there is no column {name!r}; there are {', '.join(self.columns)}")
        return self.columns[name]

    def text(self, name: str) -> NDArray[Any]:
        """Returns a column as text. Raises JudgeError if it is not there, or a value is missing."""
        values = self._full(name)
        # 3.0 is what becomes of a 3 in a column with gaps.
        if values.dtype.kind == "f" and (values == np.rint(values)).all():
            values = values.astype(np.int64)
        return values.astype(str)

    def numbers(self, role: str) -> NDArray[Any] | None:
        """Returns the column of a role, None without one. Raises JudgeError on text or a missing value."""
        name = self.roles[role]
        if name not in self.columns:
            return None
        values = self._full(name)
        if not is_numeric(values):
            raise JudgeError(f"{self.path}: the column {name!r} holds text, such as {str(values[0])!r}")
        return values

    def label(self, role: str) -> NDArray[Any] | None:
        """Returns the text of a role, None without one."""
        return self.text(self.roles[role]) if self.roles[role] in self.columns else None

    def _full(self, name: str) -> NDArray[Any]:
        values = self.require(name)
        missing = _missing_rows(values)
        if missing.size:
            first = str(self.ids[missing[0]])
            raise JudgeError(
                f"{self.path}: the column {name!r} is empty in {missing.size} rows, the first of {first!r}"
            )
        return values

    def _ids(self) -> NDArray[Any]:
        values = self.columns.get(self.roles["id"])
        if values is None:
            return np.arange(len(next(iter(self.columns.values())))).astype(str)
        missing = _missing_rows(values)
        if missing.size:
            raise JudgeError(f"{self.path}: the id {self.roles['id']!r} is missing in row {missing[0]}")
        return values.astype(str)


def _evidence(table: _Table, scores: Sequence[str], threshold: float | None) -> Evidence:
    shifts = table.label("shift")
    _require_once(table, shifts)
    failed, loss = table.numbers("failed"), table.numbers("loss")
    if failed is None and threshold is None:
        lacks = (
            f"no column {table.roles['failed']!r}: name it with --columns failed=NAME"
            if loss is None
            else f"the loss {table.roles['loss']!r} alone does not say what failed: state "
            "--failure-threshold, or name a column of failures with --columns failed=NAME"
        )
        raise JudgeError(f"{table.path}: {lacks}; there are {', '.join(table.columns)}")
    if threshold is not None and loss is None:
        raise JudgeError(
            f"{table.path}: --failure-threshold is a threshold of the loss; name its column with "
            "--columns loss=NAME"
        )
    counts = {name: table.numbers(name) for name in COUNTS}
    try:
        return Evidence.of(
            {name: table.columns[name] for name in scores},
            failed=failed if threshold is None else None,
            loss=loss,
            failure_threshold=threshold,
            groups=table.label("group"),
            frames=table.ids,
            shifts=shifts,
            counts={name: values for name, values in counts.items() if values is not None},
        )
    except JudgeError as error:
        raise JudgeError(f"{table.path}: {error}") from error


def _slices(table: _Table, judging: TableJudging) -> dict[str, NDArray[Any]]:
    groups = table.label("group")
    found: dict[str, NDArray[Any]] = {}
    if groups is not None and 1 < len(np.unique(groups)) <= MAX_GROUPS_SHOWN:
        found["group"] = groups
    found |= {name: table.text(name) for name in judging.slices}
    for name, given in judging.slice_labels.items():
        without = [each for each in table.ids if each not in given]
        if without:
            raise JudgeError(
                f"slice {name!r} has no label for {str(without[0])!r} ({len(without)} rows without)"
            )
        found[name] = np.array([given[each] for each in table.ids])
    return found


def _settings(
    table: _Table, evidence: Evidence, scores: Sequence[str], judging: TableJudging, facts: TableFacts
) -> dict[str, Any]:
    used = {*scores, *judging.slices, *table.roles.values()}
    unused = [name for name in table.columns if name not in used and not is_refit(name, table.columns)]
    threshold, grouped = judging.failure_threshold, table.roles["group"] in table.columns
    return {
        "scores": table.path.name,
        "frames": len(np.unique(table.ids)),
        "groups": len(np.unique(evidence.groups)) if grouped else None,
        "failure": _meaning(table, threshold, facts),
        "shifts": ", ".join(sorted(set(evidence.shifts.tolist()) - {CLEAN})) or "none",
        "columns_not_used": ", ".join(unused) or None,
        "replicates": judging.replicates,
    }


def _meaning(table: _Table, threshold: float | None, facts: TableFacts) -> str:
    if facts.failure and threshold == facts.failure_threshold:
        return facts.failure
    if threshold is None:
        return f"as the column {table.roles['failed']} says"
    return f"loss above {threshold:g}, stated with this evaluation"


def read_columns(path: Path, *, text: Sequence[str] = ()) -> dict[str, NDArray[Any]]:
    """Returns {column: [N]}: numbers, truth values, or text; other columns (lists, pictures) are left out.

    text: columns of names, which in a CSV may look like numbers ("0012").
    Missing numbers are NaN, missing text is None. Raises JudgeError if the file cannot be read.
    """
    if path.suffix.lower() not in TABLES:
        raise JudgeError(f"{path}: expected a table of scores: {', '.join(TABLES)}")
    if not path.is_file():
        raise JudgeError(f"{path}: no such file")
    found = _read_npz(path) if path.suffix.lower() == ".npz" else _read_arrow(path, text)
    if not found or not len(next(iter(found.values()))):
        raise JudgeError(f"{path}: the table has no rows with numbers")
    return found


def _read_npz(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: np.asarray(file[name]) for name in file.files}
    except (ValueError, OSError, EOFError) as error:
        raise JudgeError(f"{path}: not an .npz file of plain arrays ({error})") from error
    columns = {
        name: values for name, values in arrays.items() if values.ndim == 1 and values.dtype.kind in "biufU"
    }
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise JudgeError(
            f"{path}: arrays differ in length: " + ", ".join(f"{n} {k}" for n, k in lengths.items())
        )
    return columns


def _read_arrow(path: Path, text: Sequence[str]) -> dict[str, NDArray[Any]]:
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    try:
        if path.suffix.lower() == ".csv":
            types = {name: pa.string() for name in text if name}
            # Only so is an empty cell of text a missing one.
            convert = pyarrow.csv.ConvertOptions(column_types=types, strings_can_be_null=True)
            table = pyarrow.csv.read_csv(path, convert_options=convert)
        else:
            schema = pyarrow.parquet.read_schema(path)
            wanted = [field.name for field in schema if _is_plain(field.type)]
            table = pyarrow.parquet.read_table(path, columns=wanted)
    except (pa.ArrowInvalid, pa.ArrowKeyError, OSError) as error:
        raise JudgeError(f"{path}: not a table that can be read ({str(error).splitlines()[0]})") from error
    twice = [name for name in table.column_names if table.column_names.count(name) > 1]
    if twice:
        raise JudgeError(f"{path}: the column {twice[0]!r} is there more than once")
    # Indices of data frames ("__index_level_0__") are no scores.
    return {
        name: _array(table.column(name))
        for name in table.column_names
        if _is_plain(table.schema.field(name).type) and not name.startswith("__")
    }


def _is_plain(kind: Any) -> bool:
    import pyarrow.types as of

    if of.is_dictionary(kind):
        return _is_plain(kind.value_type)
    tests = (of.is_integer, of.is_floating, of.is_decimal, of.is_boolean, of.is_string, of.is_large_string)
    return any(test(kind) for test in tests) or of.is_temporal(kind)


def _array(column: Any) -> NDArray[Any]:
    import pyarrow as pa
    import pyarrow.types as of

    if of.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if of.is_temporal(column.type):
        column = column.cast(pa.string())
    if of.is_boolean(column.type):
        column = column.cast(pa.int8())
    if of.is_integer(column.type) or of.is_floating(column.type) or of.is_decimal(column.type):
        # Whole numbers with gaps have no other form than NaN.
        if column.null_count or not of.is_integer(column.type):
            single = of.is_float32(column.type)
            column = column.cast(pa.float32() if single else pa.float64())
        return np.asarray(column.to_numpy())
    return np.asarray(column.to_numpy(), object)


def _roles(stated: Mapping[str, str]) -> dict[str, str]:
    unknown = [role for role in stated if role not in ROLES]
    if unknown:
        raise JudgeError(f"--columns: there is no role {unknown[0]!r}; there are {', '.join(ROLES)}")
    return {role: stated.get(role, role) for role in ROLES}


def _score_names(table: _Table, judging: TableJudging) -> list[str]:
    for role, name in judging.columns.items():
        if name and name not in table.columns:
            raise JudgeError(
                f"--columns {role}={name}: there is none in {table.path}: {', '.join(table.columns)}"
            )
    if not judging.scores:
        taken = {*table.roles.values(), *judging.slices}
        found = [
            name
            for name, values in table.columns.items()
            if name not in taken and is_numeric(values) and not is_refit(name, table.columns)
        ]
        if not found:
            raise JudgeError(
                f"{table.path}: no column of numbers is left for a score, of {', '.join(table.columns)}"
            )
        return found
    for name in judging.scores:
        if not is_numeric(table.require(name)):
            raise JudgeError(
                f"{table.path}: the score {name!r} holds text, such as {str(table.columns[name][0])!r}"
            )
    return list(judging.scores)


def _free_names(
    path: Path, names: Sequence[str], stated: Sequence[str] | None, facts: TableFacts
) -> list[str]:
    if stated is None and facts.free:
        stated = [name for name in facts.free if name in names] or None
    if stated is None:
        # Imported here: the registry loads torch, which a table with named free scores does not need.
        from misfire_train.scores import SCORES

        stated = [name for name in names if name in SCORES and SCORES[name].free]
        if not stated:
            raise JudgeError(
                f"{path}: which of {', '.join(names)} cost nothing, because they need only the outputs? "
                "Name them with --free: the gate ships another score only if it beats the best of them"
            )
    unknown = [name for name in stated if name not in names]
    if unknown:
        raise JudgeError(f"--free: {unknown[0]!r} is not among the scores {', '.join(names)}")
    return list(stated)


def _missing_rows(values: NDArray[Any]) -> NDArray[np.intp]:
    if values.dtype.kind == "f":
        return np.flatnonzero(np.isnan(values))
    if values.dtype.kind != "O":
        return np.empty(0, np.intp)
    return np.flatnonzero(np.array([value is None or value == "" for value in values]))


def _require_once(table: _Table, shifts: NDArray[Any] | None) -> None:
    keys = table.ids if shifts is None else np.char.add(np.char.add(table.ids, "\n"), shifts)
    _, first, times = np.unique(keys, return_index=True, return_counts=True)
    if (times > 1).any():
        twice = str(table.ids[first[times > 1].min()])
        raise JudgeError(
            f"{table.path}: the id {twice!r} is there more than once; name the condition of each row with a "
            "column shift (clean, fog, ...), or rename the frames"
        )


def is_numeric(values: NDArray[Any]) -> bool:
    """Returns whether a column holds numbers or truth values."""
    return values.dtype.kind in "biuf"
