"""Counts verdicts, and compares two people on the samples that both judged: Cohen's kappa, with intervals.

settled rows --by bundle--> counts        pairs of verdicts on one sample --by bundle--> Agreement

Only verdicts that were given to the very picture are compared: one that a near-duplicate shares is no second
look.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist, median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import func, select

from misfire_fleet.store import Store
from misfire_fleet.store.schema import samples, verdicts
from misfire_fleet.store.verdicts import NONE, is_newest, settled

VERDICTS = ("right", "wrong", "missed", "ignore")
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Agreement:
    """Says how far two people agree on the verdicts of a bundle.

    Attributes:
        bundle: `name@version`; "" for all.
        people: the two names; of more than two people, all pairs together.
        samples: that both judged.
        agreed: that got the same verdict of both.
        share, share_low, share_high: agreed share with Wilson's interval.
        kappa, kappa_low, kappa_high: Cohen's kappa with its interval; None if both always said the same one
            thing, so that chance alone would agree always.
        table: samples by the verdict of the first and of the second person.
    """

    bundle: str
    people: tuple[str, ...]
    samples: int
    agreed: int
    share: float
    share_low: float
    share_high: float
    kappa: float | None
    kappa_low: float | None
    kappa_high: float | None
    table: dict[str, dict[str, int]]


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


def summary(store: Store, *, bundle: str | None = None, confidence: float = CONFIDENCE) -> Summary:
    """Returns the counts of all verdicts, or of those on a bundle, and the agreement."""
    of_bundle = () if bundle is None else (samples.c.bundle == bundle.replace("\0", ""),)
    found = settled().subquery()
    counts = (
        select(samples.c.bundle, found.c.verdict, func.count())
        .join(found, found.c.sample == samples.c.id)
        .where(*of_bundle)
        .group_by(samples.c.bundle, found.c.verdict)
    )
    own = (
        select(verdicts.c.annotator, verdicts.c.shared, verdicts.c.took_s)
        .join(samples, samples.c.id == verdicts.c.sample)
        .where(verdicts.c.verdict != NONE, is_newest(verdicts), *of_bundle)
    )
    bundles: dict[str, dict[str, int]] = {}
    rows: dict[str, list[tuple[bool, float | None]]] = defaultdict(list)
    with store.database.read() as connection:
        for name, verdict, count in connection.execute(counts):
            bundles.setdefault(name, dict.fromkeys(VERDICTS, 0))[verdict] = int(count)
        for name, shared, took in connection.execute(own):
            rows[name].append((bool(shared), took))
    return Summary(
        samples=sum(sum(each.values()) for each in bundles.values()),
        bundles=dict(sorted(bundles.items())),
        people=tuple(_person(name, listed) for name, listed in sorted(rows.items())),
        agreement=tuple(agreement(store, bundle=bundle, confidence=confidence)),
    )


def agreement(store: Store, *, bundle: str | None = None, confidence: float = CONFIDENCE) -> list[Agreement]:
    """Returns the agreement of each pair of people on each bundle, the pair with most samples first."""
    several = (
        select(verdicts.c.sample)
        .where(~verdicts.c.shared, verdicts.c.verdict != NONE, is_newest(verdicts))
        .group_by(verdicts.c.sample)
        .having(func.count() > 1)
    )
    row = verdicts.alias()
    query = (
        select(samples.c.bundle, row.c.sample, row.c.annotator, row.c.verdict)
        .join(samples, samples.c.id == row.c.sample)
        .where(row.c.sample.in_(several), ~row.c.shared, row.c.verdict != NONE, is_newest(row))
        .order_by(row.c.sample, row.c.annotator)
    )
    if bundle is not None:
        query = query.where(samples.c.bundle == bundle.replace("\0", ""))
    said: dict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
    with store.database.read() as connection:
        for each in connection.execute(query):
            said[each.bundle, each.sample].append((each.annotator, each.verdict))
    pairs: dict[tuple[str, str, str], list[tuple[str, str]]] = defaultdict(list)
    for (name, _sample), listed in said.items():
        for place, (first, one) in enumerate(listed):
            for second, other in listed[place + 1 :]:
                pairs[name, first, second].append((one, other))
    found = [
        compare(given, bundle=name, people=(first, second), confidence=confidence)
        for (name, first, second), given in pairs.items()
    ]
    return sorted(found, key=lambda each: (each.bundle, -each.samples, each.people))


def compare(
    pairs: Iterable[tuple[str, str]],
    *,
    bundle: str = "",
    people: Sequence[str] = (),
    confidence: float = CONFIDENCE,
) -> Agreement:
    """Returns the agreement of pairs of verdicts.

    Cohen (1960). The interval of kappa has the variance of Fleiss, Cohen and Everitt (1969), and is widened
    to what Wilson's interval of the agreed share means for kappa: near full agreement that variance is close
    to zero for any number of samples.
    """
    table = np.zeros((len(VERDICTS), len(VERDICTS)))
    for first, second in pairs:
        table[VERDICTS.index(first), VERDICTS.index(second)] += 1
    count = float(table.sum())
    agreed = float(np.trace(table))
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    low, high = _wilson(agreed, count, z)
    kappa, kappa_low, kappa_high = _kappa(table, (low, high), z)
    return Agreement(
        bundle=bundle,
        people=tuple(people),
        samples=int(count),
        agreed=int(agreed),
        share=agreed / count if count else 0.0,
        share_low=low,
        share_high=high,
        kappa=kappa,
        kappa_low=kappa_low,
        kappa_high=kappa_high,
        table={
            first: {second: int(table[i, j]) for j, second in enumerate(VERDICTS)}
            for i, first in enumerate(VERDICTS)
        },
    )


def _kappa(
    table: NDArray[np.float64], share: tuple[float, float], z: float
) -> tuple[float | None, float | None, float | None]:
    count = table.sum()
    if not count:
        return None, None, None
    p = table / count
    rows, columns = p.sum(1), p.sum(0)
    observed, chance = float(np.trace(p)), float(rows @ columns)
    if chance >= 1 - 1e-12:
        return None, None, None
    kappa = (observed - chance) / (1 - chance)
    diagonal = float((np.diag(p) * ((1 - chance) - (rows + columns) * (1 - observed)) ** 2).sum())
    off = p * (columns[:, None] + rows[None, :]) ** 2
    rest = (1 - observed) ** 2 * float(off.sum() - np.trace(off))
    inner = diagonal + rest - (observed * chance - 2 * chance + observed) ** 2
    error = math.sqrt(max(0.0, inner) / (count * (1 - chance) ** 4))
    low = min(kappa - z * error, (share[0] - chance) / (1 - chance))
    high = max(kappa + z * error, (share[1] - chance) / (1 - chance))
    return kappa, max(-1.0, low), min(1.0, high)


def _wilson(hits: float, total: float, z: float) -> tuple[float, float]:
    if not total:
        return 0.0, 1.0
    rate, square = hits / total, z * z / total
    centre = (rate + square / 2) / (1 + square)
    half = z / (1 + square) * math.sqrt(rate * (1 - rate) / total + square / (4 * total))
    return max(0.0, centre - half), min(1.0, centre + half)


def _person(name: str, rows: Sequence[tuple[bool, float | None]]) -> Person:
    times = [took for shared, took in rows if not shared and took is not None]
    return Person(
        name, len(rows), sum(not shared for shared, _took in rows), median(times) if times else None
    )
