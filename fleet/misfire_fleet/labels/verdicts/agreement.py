"""Compares two people on the samples that both judged: Cohen's kappa, with intervals.

pairs of verdicts on one sample --table--> Agreement
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

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
