"""Keeps in memory what uploads are filtered and sorted by: columns of numpy, one row for each stored sample.

rows of the database --append--> Columns --view--> View, whose arrays stay as they are while others append

Names (vehicles, classes, values of the context) are kept once; a row has their number. Vehicles choose
names of scores and of the context, so both are bounded: what exceeds a bound cannot be filtered by.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
MAX_SCORES, MAX_KEYS, MAX_VALUES = 64, 64, 50_000
"""Names of scores, keys of the context, and values of each key."""
VERDICTS = ("none", "right", "wrong", "missed", "ignore")
"""A sample's verdict is the place of its name here."""
NO_GROUP = 0

_FIXED: dict[str, tuple[Any, Any]] = {
    "seq": (np.int64, 0),
    "captured_at": (np.float64, 0.0),
    "stored_at": (np.float64, 0.0),
    "vehicle": (np.int32, -1),
    "bundle": (np.int32, -1),
    "trigger": (np.int32, -1),
    "random": (np.bool_, False),
    "percentile": (np.float64, np.nan),
    "size": (np.int64, 0),
    "dimensions": (np.int32, 0),
    "slot": (np.int64, -1),
    "group": (np.int64, NO_GROUP),
    "verdict": (np.int8, 0),
    "labelled": (np.bool_, False),
}
_BOXES: dict[str, tuple[Any, Any]] = {
    "seq": (np.int64, 0),
    "number": (np.int16, 0),
    "name": (np.int32, -1),
    "p": (np.float32, np.nan),
    "score": (np.float32, np.nan),
    "x0": (np.float32, 0.0),
    "y0": (np.float32, 0.0),
    "x1": (np.float32, 0.0),
    "y1": (np.float32, 0.0),
}


class Names:
    """Numbers names in the order in which they come, at most `most` of them. The rest has the number -1."""

    def __init__(self, most: int = 1_000_000) -> None:
        self.names: list[str] = []
        self._numbers: dict[str, int] = {}
        self._most = most

    def number(self, name: str) -> int:
        """Returns a name's number, and gives it one."""
        found = self._numbers.get(name)
        if found is None:
            if len(self.names) >= self._most:
                return -1
            found = self._numbers[name] = len(self.names)
            self.names.append(name)
        return found

    def find(self, name: str) -> int:
        """Returns a name's number; -2, which no row has, if it has none."""
        return self._numbers.get(name, -2)


class Table:
    """Holds columns that grow by doubling. What was returned before an append stays as it was."""

    def __init__(self, columns: Mapping[str, tuple[Any, Any]]) -> None:
        self.count = 0
        self._columns: dict[str, Array] = {}
        self._fills: dict[str, Any] = {}
        for name, (kind, fill) in columns.items():
            self.ensure(name, kind, fill)

    def ensure(self, name: str, kind: Any, fill: Any) -> None:
        """Adds a column if it is not there; rows so far have `fill`."""
        if name not in self._columns:
            self._columns[name] = np.full(max(1024, self.count), fill, kind)
            self._fills[name] = fill

    def append(self, count: int, columns: Mapping[str, Sequence[Any] | Array]) -> None:
        """Adds rows; columns that are not given have their `fill`."""
        end = self.count + count
        for name, column in list(self._columns.items()):
            if len(column) < end:
                larger = np.full(max(end, 2 * len(column)), self._fills[name], column.dtype)
                larger[: self.count] = column[: self.count]
                self._columns[name] = larger
            if name in columns:
                self._columns[name][self.count : end] = columns[name]
        self.count = end

    def take(self, places: Array) -> None:
        """Keeps the rows at these places, in this order."""
        for name, column in self._columns.items():
            self._columns[name] = column[: self.count][places].copy()
        self.count = len(places)

    def column(self, name: str) -> Array:
        """Returns a column's rows so far."""
        return self._columns[name][: self.count]

    def arrays(self) -> dict[str, Array]:
        """Returns all columns' rows so far."""
        return {name: column[: self.count] for name, column in self._columns.items()}


@dataclass(frozen=True)
class View:
    """Shows the columns at one moment.

    Attributes:
        columns: the fixed ones, `score:NAME` with values, `level:NAME` with percentiles, and `context:KEY`
            with the numbers of values.
        boxes: one row for each box of an answer: seq of its sample, number, class, P(TP), score, place.
        names: of `vehicle`, `bundle`, `trigger`, `class`, and of each `context:KEY`.
        label_names: numbers of the classes that a sample's label names, by its seq.
        complete: every stored sample is in it.
    """

    columns: Mapping[str, Array]
    boxes: Mapping[str, Array]
    names: Mapping[str, Names]
    label_names: Mapping[int, tuple[int, ...]]
    complete: bool
    version: int = 0

    def __len__(self) -> int:
        return len(self.columns["seq"])

    @property
    def seq(self) -> Array:
        """Returns the rows' `seq`, which rises."""
        return self.columns["seq"]

    def places(self, seqs: Iterable[int]) -> Array:
        """Returns where these rows are, without those that are not here."""
        wanted = np.unique(np.fromiter(seqs, np.int64))
        at = np.searchsorted(self.seq, wanted)
        at = at[at < len(self)]
        return at[np.isin(self.seq[at], wanted)]

    def mask_of(self, seqs: Iterable[int]) -> Array:
        """Returns which rows have one of these `seq`."""
        mask = np.zeros(len(self), np.bool_)
        mask[self.places(seqs)] = True
        return mask

    def used(self, column: str, *, most: int = 500) -> list[str]:
        """Returns the names that rows have in a column, sorted, at most `most`."""
        numbers = np.unique(self.columns[column])
        names = self.names[column].names
        return sorted(names[number] for number in numbers if number >= 0)[:most]

    @property
    def scores(self) -> list[str]:
        """Returns the names of all scores, sorted."""
        return sorted(name[6:] for name in self.columns if name.startswith("score:"))

    @property
    def context_keys(self) -> list[str]:
        """Returns the keys of the context, sorted."""
        return sorted(name[8:] for name in self.columns if name.startswith("context:"))


@dataclass
class Columns:
    """Collects the columns of all samples. Not thread-safe: its owner has a lock."""

    rows: Table = field(default_factory=lambda: Table(_FIXED))
    boxes: Table = field(default_factory=lambda: Table(_BOXES))
    names: dict[str, Names] = field(
        default_factory=lambda: {each: Names() for each in ("vehicle", "bundle", "trigger", "class")}
    )
    label_names: dict[int, tuple[int, ...]] = field(default_factory=dict)

    def numbers(self, column: str, values: Iterable[str]) -> list[int]:
        """Returns the numbers of names."""
        names = self.names[column]
        return [names.number(value) for value in values]

    def score_columns(self, name: str) -> bool:
        """Adds the columns of a score; returns False if there are too many scores."""
        known = f"score:{name}" in self.rows.arrays()
        if not known and sum(each.startswith("score:") for each in self.rows.arrays()) >= MAX_SCORES:
            return False
        self.rows.ensure(f"score:{name}", np.float64, np.nan)
        self.rows.ensure(f"level:{name}", np.float64, np.nan)
        return True

    def context_column(self, key: str) -> bool:
        """Adds the column of a key of the context; returns False if there are too many keys."""
        column = f"context:{key}"
        if column not in self.names:
            if sum(each.startswith("context:") for each in self.names) >= MAX_KEYS:
                return False
            self.names[column] = Names(MAX_VALUES)
        self.rows.ensure(column, np.int32, -1)
        return True

    def sort(self) -> None:
        """Brings the rows in the order of their `seq`."""
        seqs = self.rows.column("seq")
        if len(seqs) > 1 and bool((np.diff(seqs) <= 0).any()):
            self.rows.take(np.argsort(seqs, kind="stable"))

    def keep(self, seqs: Array) -> Array:
        """Drops the rows whose `seq` is not among these; returns those dropped."""
        own = self.rows.column("seq")
        kept = np.isin(own, seqs, assume_unique=True)
        gone = own[~kept].copy()
        if len(gone):
            self.rows.take(np.flatnonzero(kept))
            self.boxes.take(np.flatnonzero(~np.isin(self.boxes.column("seq"), gone)))
            for seq in gone:
                self.label_names.pop(int(seq), None)
        return gone

    def view(self, *, complete: bool, version: int) -> View:
        """Returns the columns as they are now."""
        return View(
            self.rows.arrays(), self.boxes.arrays(), dict(self.names), self.label_names, complete, version
        )
