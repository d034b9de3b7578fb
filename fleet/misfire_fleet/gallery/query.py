"""Answers what the gallery asks: which uploads match, in which order, folded, from a cursor on.

Question --masks over the View--> rows --order, fold--> Page of `seq`, whose rows the database then reads

Nothing but the rows of one page is read from the database, so every combination of filters costs the same:
one pass over columns of numbers. What only the database knows (snapshots, selections, pins) it answers as
lists of `seq`, by an index.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Select, select

from misfire_fleet.gallery.columns import NO_GROUP, VERDICTS, View
from misfire_fleet.gallery.index import GalleryIndex, Similar
from misfire_fleet.gallery.losses import Losses
from misfire_fleet.store import Store
from misfire_fleet.store.database import one_of
from misfire_fleet.store.records import ANY, SampleFilter, StoredSample
from misfire_fleet.store.rows import sample_of
from misfire_fleet.store.schema import pins, samples, selection_samples, snapshot_samples
from misfire_runtime.errors import ConfigError

ORDERS = ("newest", "oldest", "percentile", "loss", "similar")
"""Besides `score:NAME`."""
_CONDITION = re.compile(r"([^=<>]{1,64}?)\s*(<=|>=|=|<|>)\s*(.{1,256})", re.DOTALL)
_COMPARE: dict[str, Callable[[Any, float], Any]] = {
    "<": np.less,
    "<=": np.less_equal,
    ">": np.greater,
    ">=": np.greater_equal,
}
_CURSOR = re.compile(r"(-?(?:\d+(?:\.\d+)?(?:e[+-]?\d+)?|inf))_(\d{1,18})")
Mask = NDArray[Any]


@dataclass(frozen=True)
class Condition:
    """A condition on the context: `weather=rain`, or a number compared, `speed>=20`."""

    key: str
    relation: str
    value: str

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Returns the condition of a text. Raises ConfigError."""
        found = _CONDITION.fullmatch(text.strip())
        if found is None:
            raise ConfigError(f"context {text[:80]!r}: expected KEY=VALUE, or a number as in speed>=20")
        key, relation, value = found.groups()
        if relation != "=" and not math.isfinite(_float(value)):
            raise ConfigError(f"context {text[:80]!r}: {value[:40]!r} is not a number")
        return cls(key.strip(), relation, value.strip())

    def __str__(self) -> str:
        return f"{self.key}{self.relation}{self.value}"


@dataclass(frozen=True)
class Question:
    """What the gallery shows.

    Attributes:
        filters: as of all commands.
        context: all must hold.
        order: of ORDERS, or `score:NAME`.
        similar: id of a sample: orders by similarity to it.
        group: id of a sample: takes only its near-duplicates.
        fold: shows one sample of each group of near-duplicates, the first in the order.
        box_class: of boxes, in the view of boxes.
    """

    filters: SampleFilter = ANY
    context: tuple[Condition, ...] = ()
    order: str = "newest"
    similar: str = ""
    group: str = ""
    fold: bool = False
    box_class: str = ""


@dataclass(frozen=True)
class Shown:
    """A sample of a page. `folded`: near-duplicates behind it; `similarity`, `loss`: None if unknown."""

    sample: StoredSample
    folded: int = 0
    similarity: float | None = None
    loss: float | None = None
    verdict: str = "none"
    labelled: bool = False
    pinned: bool = False


@dataclass(frozen=True)
class Page:
    """Holds one page. `cursor`: where the next one starts, None after the last.

    `matching`: all samples that match; `groups`: of them, if folded; `similar`: how many were compared.
    """

    shown: tuple[Shown, ...]
    cursor: str | None
    matching: int
    complete: bool
    groups: int | None = None
    similar: Similar | None = None


@dataclass(frozen=True)
class BoxShown:
    """A box of a page of boxes. `doubt`: 1 - P(TP); None if the bundle does not say."""

    sample: str
    vehicle: str
    number: int
    name: str
    doubt: float | None
    score: float | None


@dataclass(frozen=True)
class BoxPage:
    """Holds one page of boxes."""

    shown: tuple[BoxShown, ...]
    cursor: str | None
    matching: int
    complete: bool


@dataclass(frozen=True)
class Answered:
    """What matches: the view, the mask of its rows, and the similarity to a sample if that was asked."""

    view: View
    mask: Mask
    similar: Similar | None = field(default=None)

    @property
    def count(self) -> int:
        """Returns the number of rows that match."""
        return int(self.mask.sum())


class Gallery:
    """Answers questions about one store. Thread-safe."""

    def __init__(self, store: Store, index: GalleryIndex, losses: Losses) -> None:
        self._store = store
        self.index = index
        self.losses = losses

    def answered(self, question: Question) -> Answered:
        """Returns which rows match.

        Raises:
            ConfigError: the sample to compare with is not here, or has no embedding.
        """
        view = self.index.view()
        mask = np.ones(len(view), np.bool_)
        for part in self._masks(view, question):
            mask &= part
        similar = None
        if question.similar:
            similar = self.index.similar(view, self._seq_of(question.similar, "similar"))
            if similar is None:
                raise ConfigError(f"similar: sample {question.similar[:16]} has no embedding to compare")
            mask &= ~np.isnan(similar.values)
        return Answered(view, mask, similar)

    def page(self, question: Question, *, limit: int, cursor: str = "") -> Page:
        """Returns a page of samples. Raises ConfigError as `answered`, and for a cursor that is none."""
        found = self.answered(question)
        view, rising = found.view, question.order == "oldest"
        keys = self._keys(question, found)
        rows = np.flatnonzero(found.mask)
        rows = rows if rising else rows[::-1]
        if keys is not None:
            # Stable, over rows from the newest on: of equal keys, the newest comes first.
            rows = rows[np.argsort(-keys[rows], kind="stable")]
        folded: dict[int, int] = {}
        groups = None
        if question.fold:
            rows, folded = _folded(view, rows)
            groups = len(rows)
        if cursor:
            rows = rows[_after(view, keys, rows, cursor, rising=rising)]
        taken, more = rows[:limit], len(rows) > limit
        after = None
        if more:
            last = int(taken[-1])
            key = 0.0 if keys is None else float(keys[last])
            after = f"{key!r}_{int(view.seq[last])}"
        shown = self._shown(found, taken, folded)
        return Page(shown, after, found.count, view.complete, groups, found.similar)

    def boxes(self, question: Question, *, limit: int, cursor: str = "") -> BoxPage:
        """Returns a page of boxes of the samples that match, the most doubtful first."""
        found = self.answered(question)
        boxes, view = found.view.boxes, found.view
        mask = np.isin(boxes["seq"], view.seq[found.mask])
        if question.box_class:
            mask &= boxes["name"] == view.names["class"].find(question.box_class)
        rows = np.flatnonzero(mask)[::-1]
        # Boxes without P(TP) come last, the least sure first.
        doubt = np.where(np.isnan(boxes["p"]), -np.nan_to_num(boxes["score"], nan=1.0), 1 - boxes["p"])
        rows = rows[np.argsort(-doubt[rows], kind="stable")]
        start = int(cursor) if re.fullmatch(r"\d{1,9}", cursor) else 0
        taken = rows[start : start + limit]
        owners = self._rows_of([int(boxes["seq"][row]) for row in taken])
        names = view.names["class"].names
        shown = []
        for row in taken:
            owner = owners.get(int(boxes["seq"][row]))
            if owner is not None:
                p, score, name = float(boxes["p"][row]), float(boxes["score"][row]), int(boxes["name"][row])
                shown.append(
                    BoxShown(
                        owner.id,
                        owner.vehicle,
                        int(boxes["number"][row]),
                        names[name] if name >= 0 else "?",
                        None if math.isnan(p) else 1 - p,
                        None if math.isnan(score) else score,
                    )
                )
        more = str(start + limit) if start + limit < len(rows) else None
        return BoxPage(tuple(shown), more, len(rows), view.complete)

    def ids(self, question: Question, *, limit: int) -> list[str]:
        """Returns the ids of the first samples that match, in the question's order."""
        return [each.sample.id for each in self.page(question, limit=limit).shown]

    def _keys(self, question: Question, found: Answered) -> NDArray[np.float64] | None:
        """Returns what rows are ordered by, larger first; None for the order of storing."""
        columns = found.view.columns
        if question.order == "percentile":
            keys = columns["percentile"]
        elif question.order == "loss":
            keys = self.losses.column(found.view)
        elif question.order.startswith("score:"):
            keys = columns.get(question.order, np.full(len(found.view), np.nan))
        elif question.order == "similar" and found.similar is not None:
            keys = found.similar.values.astype(np.float64)
        else:
            return None
        return np.where(np.isnan(keys), -np.inf, keys)

    def _masks(self, view: View, question: Question) -> list[Mask]:
        filters, columns = question.filters, view.columns
        masks: list[Mask] = [
            columns[name] == view.names[name].find(value)
            for name, value in (
                ("vehicle", filters.vehicle),
                ("trigger", filters.trigger),
                ("bundle", filters.bundle),
            )
            if value is not None
        ]
        if filters.random is not None:
            masks.append(columns["random"] == filters.random)
        if filters.captured_from is not None:
            masks.append(columns["captured_at"] >= filters.captured_from)
        if filters.captured_to is not None:
            masks.append(columns["captured_at"] < filters.captured_to)
        if filters.min_percentile is not None:
            masks.append(columns["percentile"] >= filters.min_percentile)
        if filters.before_seq is not None:
            masks.append(view.seq < filters.before_seq)
        if filters.labelled is not None:
            masks.append(columns["labelled"] == filters.labelled)
        if filters.verdict is not None:
            given = columns["verdict"]
            masks.append(given > 0 if filters.verdict == "any" else given == VERDICTS.index(filters.verdict))
        if filters.label_class is not None:
            number = view.names["class"].find(filters.label_class)
            named = [seq for seq, classes in list(view.label_names.items()) if number in classes]
            masks.append(view.mask_of(named))
        masks += [_context_mask(view, each) for each in question.context]
        masks += self._listed_masks(view, filters)
        if question.group:
            masks.append(self._group_mask(view, question.group))
        return masks

    def _listed_masks(self, view: View, filters: SampleFilter) -> list[Mask]:
        """Returns the masks of what the database lists."""
        wanted: list[tuple[Select[Any], bool]] = []
        for table, column, name in (
            (snapshot_samples, snapshot_samples.c.snapshot, filters.snapshot),
            (selection_samples, selection_samples.c.selection, filters.selection),
        ):
            if name is not None:
                query = select(samples.c.seq).join(table, table.c.sample == samples.c.id)
                wanted.append((query.where(column == name.replace("\0", "")), True))
        if filters.pinned is not None:
            query = select(samples.c.seq).join(pins, pins.c.sample == samples.c.id)
            wanted.append((query, filters.pinned))
        masks = []
        with self._store.database.read() as connection:
            if filters.ids is not None:
                chosen = one_of(samples.c.id, filters.ids, on=connection)
                wanted.append((select(samples.c.seq).where(chosen), True))
            for query, holds in wanted:
                mask = view.mask_of(connection.scalars(query))
                masks.append(mask if holds else ~mask)
        return masks

    def _group_mask(self, view: View, sample: str) -> Mask:
        place = view.places([self._seq_of(sample, "group")])
        if not len(place):
            return np.zeros(len(view), np.bool_)
        group = view.columns["group"][place[0]]
        if group == NO_GROUP:
            mask = np.zeros(len(view), np.bool_)
            mask[place] = True
            return mask
        return np.asarray(view.columns["group"] == group)

    def _seq_of(self, sample: str, field_name: str) -> int:
        with self._store.database.read() as connection:
            seq = connection.scalar(select(samples.c.seq).where(samples.c.id == sample.replace("\0", "")))
        if seq is None:
            raise ConfigError(f"{field_name}: sample {sample[:16]} is not in the store")
        return int(seq)

    def _rows_of(self, seqs: Sequence[int]) -> dict[int, StoredSample]:
        if not seqs:
            return {}
        with self._store.database.read() as connection:
            query = select(samples).where(one_of(samples.c.seq, seqs, on=connection))
            return {int(row.seq): sample_of(row) for row in connection.execute(query)}

    def _shown(self, found: Answered, rows: NDArray[Any], folded: dict[int, int]) -> tuple[Shown, ...]:
        view = found.view
        stored = self._rows_of([int(view.seq[row]) for row in rows])
        losses = self.losses.column(view)
        pinned = self._pinned([each.id for each in stored.values()])
        shown = []
        for row in rows:
            sample = stored.get(int(view.seq[row]))
            if sample is None:  # it was deleted meanwhile
                continue
            similarity = None if found.similar is None else float(found.similar.values[row])
            loss = float(losses[row])
            shown.append(
                Shown(
                    sample,
                    folded.get(int(row), 0),
                    similarity,
                    None if math.isnan(loss) else loss,
                    VERDICTS[int(view.columns["verdict"][row])],
                    bool(view.columns["labelled"][row]),
                    sample.id in pinned,
                )
            )
        return tuple(shown)

    def _pinned(self, ids: Sequence[str]) -> set[str]:
        if not ids:
            return set()
        with self._store.database.read() as connection:
            query = select(pins.c.sample).where(one_of(pins.c.sample, ids, on=connection))
            return set(connection.scalars(query))


def _context_mask(view: View, condition: Condition) -> Mask:
    column = f"context:{condition.key}"
    numbers = view.columns.get(column)
    if numbers is None:
        return np.zeros(len(view), np.bool_)
    names = view.names[column]
    if condition.relation == "=":
        return np.asarray(numbers == names.find(condition.value))
    # Compared once for each value that occurs; the last place is that of rows without one.
    values = np.array([*(_float(name) for name in list(names.names)), math.nan])
    holds = _COMPARE[condition.relation](values, float(condition.value))
    return np.asarray(holds[numbers])


def _folded(view: View, rows: NDArray[Any]) -> tuple[NDArray[Any], dict[int, int]]:
    """Returns the first row of each group, and how many more it has."""
    groups = view.columns["group"][rows]
    # A sample without a group is one of its own.
    groups = np.where(groups == NO_GROUP, -view.seq[rows], groups)
    _, first, counts = np.unique(groups, return_index=True, return_counts=True)
    order = np.argsort(first)
    kept = rows[first[order]]
    return kept, {int(row): int(count) - 1 for row, count in zip(kept, counts[order], strict=True)}


def _after(
    view: View, keys: NDArray[np.float64] | None, rows: NDArray[Any], cursor: str, *, rising: bool
) -> Mask:
    """Returns which rows come after a cursor. Raises ConfigError if it is none."""
    found = _CURSOR.fullmatch(cursor)
    if found is None:
        raise ConfigError("cursor: not one of the gallery")
    key, seq = float(found[1]), int(found[2])
    seqs = view.seq[rows]
    if keys is None:
        return np.asarray(seqs > seq if rising else seqs < seq)
    own = keys[rows]
    return np.asarray((own < key) | ((own == key) & (seqs < seq)))


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
