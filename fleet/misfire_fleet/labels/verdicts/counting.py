"""Counts verdicts by bundle and person, and compares people; a console's counts follow the store.

rows of verdicts --newest of each person and sample--> counts by bundle, people, pairs on one sample

Rows are never changed, and the time of each is later than that of all before it. So what was read stays, and
only newer rows are read; if rows were deleted with their sample, all are read again. Only verdicts that were
given to the very picture are compared: one that a near-duplicate shares is no second look.
"""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from statistics import median
from typing import Any, NamedTuple

from sqlalchemy import Connection, func, select

from misfire_fleet.labels.verdicts.agreement import CONFIDENCE, VERDICTS, Agreement, compare
from misfire_fleet.store import Store
from misfire_fleet.store.schema import samples, verdicts
from misfire_fleet.store.verdicts import NONE


@dataclass(frozen=True)
class Person:
    """Counts what one person did. `median_s`: of the time for a picture; None if it is not known."""

    name: str
    verdicts: int
    shown: int
    median_s: float | None


@dataclass(frozen=True)
class Summary:
    """Counts the verdicts of a store. bundles: by bundle and verdict."""

    samples: int
    bundles: dict[str, dict[str, int]]
    people: tuple[Person, ...]
    agreement: tuple[Agreement, ...]

    def to_dict(self) -> dict[str, Any]:
        """Returns an object for JSON."""
        return asdict(self)


class _Said(NamedTuple):
    """Holds the newest row of a person about a sample."""

    at: float
    verdict: str
    shared: bool
    took_s: float | None


@dataclass
class _Sample:
    """Holds what people said of a sample, by name."""

    bundle: str
    said: dict[str, _Said] = field(default_factory=dict)

    @property
    def holding(self) -> list[tuple[str, _Said]]:
        """Returns the verdicts that hold, by name."""
        return sorted((name, each) for name, each in self.said.items() if each.verdict != NONE)


class VerdictCounts:
    """Counts the verdicts of a store again and again. Thread-safe.

    Memory: about half a kilobyte for each judged sample.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._samples: dict[str, _Sample] = {}
        self._rows, self._last = 0, -1.0

    def summary(self, *, bundle: str | None = None, confidence: float = CONFIDENCE) -> Summary:
        """Returns the counts of all verdicts, or of those on a bundle, and the agreement."""
        with self._lock:
            self._refresh()
            chosen = [each for each in self._samples.values() if bundle in (None, each.bundle)]
            return _summary(chosen, confidence=confidence)

    def _refresh(self) -> None:
        with self._store.database.read() as connection:
            total = int(connection.scalar(select(func.count()).select_from(verdicts)) or 0)
            fresh = list(_rows_after(connection, self._last))
            if self._rows + len(fresh) != total:
                # Rows were deleted with their samples.
                self._samples, self._rows, self._last = {}, 0, -1.0
                fresh = list(_rows_after(connection, -1.0))
        for row in fresh:
            sample = self._samples.setdefault(row.sample, _Sample(row.bundle))
            sample.said[row.annotator] = _Said(row.recorded_at, row.verdict, bool(row.shared), row.took_s)
            self._last = row.recorded_at
        self._rows += len(fresh)


def summary(store: Store, *, bundle: str | None = None, confidence: float = CONFIDENCE) -> Summary:
    """Returns the counts of a store's verdicts, or of those on a bundle, and the agreement."""
    return VerdictCounts(store).summary(bundle=bundle, confidence=confidence)


def _rows_after(connection: Connection, last: float) -> Iterator[Any]:
    """Yields the rows that were recorded later, in this order."""
    names = ("sample", "annotator", "verdict", "shared", "took_s", "recorded_at")
    query = (
        select(*(verdicts.c[name] for name in names), samples.c.bundle)
        .join(samples, samples.c.id == verdicts.c.sample)
        .where(verdicts.c.recorded_at > last)
        .order_by(verdicts.c.recorded_at)
    )
    yield from connection.execute(query)


def _summary(judged: Sequence[_Sample], *, confidence: float) -> Summary:
    bundles: dict[str, Counter[str]] = defaultdict(Counter)
    people: dict[str, list[_Said]] = defaultdict(list)
    pairs: dict[tuple[str, str, str], Counter[tuple[str, str]]] = defaultdict(Counter)
    for sample in judged:
        holding = sample.holding
        if holding:
            settled = max((said for _name, said in holding), key=lambda said: said.at)
            bundles[sample.bundle][settled.verdict] += 1
        for name, said in holding:
            people[name].append(said)
        looked = [(name, said.verdict) for name, said in holding if not said.shared]
        for (first, one), (second, other) in combinations(looked, 2):
            pairs[sample.bundle, first, second][one, other] += 1
    counted = {name: {verdict: bundles[name][verdict] for verdict in VERDICTS} for name in sorted(bundles)}
    return Summary(
        samples=sum(each.total() for each in bundles.values()),
        bundles=counted,
        people=tuple(_person(name, said) for name, said in sorted(people.items())),
        agreement=tuple(_agreement(pairs, confidence)),
    )


def _agreement(
    pairs: Mapping[tuple[str, str, str], Counter[tuple[str, str]]], confidence: float
) -> Iterable[Agreement]:
    """Returns the agreement of each pair of people on each bundle, the pair with most samples first."""
    found = [
        compare(given.elements(), bundle=bundle, people=(first, second), confidence=confidence)
        for (bundle, first, second), given in pairs.items()
    ]
    return sorted(found, key=lambda each: (each.bundle, -each.samples, each.people))


def _person(name: str, said: Sequence[_Said]) -> Person:
    times = [each.took_s for each in said if not each.shared and each.took_s is not None]
    shown = sum(not each.shared for each in said)
    return Person(name, len(said), shown, median(times) if times else None)
