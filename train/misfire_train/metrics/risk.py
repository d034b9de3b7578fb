"""Measures risk and coverage: the loss that remains when the frames with the highest scores are set aside.

Samples are admitted by rising score. With S(k) the summed loss of the first k of N and R(k) = S(k)/k:

    AURC    = 1/N  sum_k R(k)                       Geifman et al. 2019 (selective risk)
    E-AURC  = AURC - AURC of the oracle             the oracle sorts this very sample by its true loss
    AUGRC   = 1/N^2 sum_k (S(k-1) + S(k)) / 2       Traub et al. 2024 (generalised risk, trapezoid from 0)

Tied scores are merged: every order of the tied samples is equally likely, and the value is the exact mean
over those orders. So a constant score has AURC = mean loss and AUGRC = mean loss / 2, the random references.
For 0/1 losses with error rate e: AUGRC = e (1 - e) (1 - AUROC) + e^2 / 2. Lower is better for all three.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike

from misfire_train.metrics.ranking import (
    Floats,
    Ranked,
    Ranking,
    Sums,
    as_losses,
    as_scores,
    rank_scores,
    same_length,
)


def aurc(score: ArrayLike, loss: ArrayLike) -> float:
    """Returns the area under the risk-coverage curve.

    Args:
        score: [N], higher meaning that a failure is likelier.
        loss: [N] >= 0; 0/1 failures are a loss too.

    Raises:
        JudgeError: a value is NaN or a loss is negative or infinite, or lengths differ.
    """
    return float(aurc_rows(_prepare(score, loss))[0])


def e_aurc(score: ArrayLike, loss: ArrayLike) -> float:
    """Returns the AURC above that of the oracle that knows the loss; 0 is perfect."""
    return float(e_aurc_rows(_prepare(score, loss))[0])


def augrc(score: ArrayLike, loss: ArrayLike) -> float:
    """Returns the area under the generalised risk-coverage curve.

    It is the mean loss that gets through undetected.
    """
    return float(augrc_rows(_prepare(score, loss))[0])


@dataclass(frozen=True)
class References:
    """Holds what the best and an uninformative score would reach on the same losses."""

    oracle: float
    random: float


def aurc_references(loss: ArrayLike) -> References:
    """Returns the AURC of sorting by the loss itself, and of chance (the mean loss)."""
    losses = as_losses(loss)
    return References(aurc(losses, losses), float(losses.mean()))


def augrc_references(loss: ArrayLike) -> References:
    """Returns the AUGRC of sorting by the loss itself, and of chance (half the mean loss)."""
    losses = as_losses(loss)
    return References(augrc(losses, losses), float(losses.mean() / 2))


def risk_coverage_curve(score: ArrayLike, loss: ArrayLike, *, points: int = 200) -> tuple[Floats, Floats]:
    """Returns (coverage, selective risk) for drawing.

    Args:
        score: [N], higher meaning that a failure is likelier.
        loss: [N] >= 0.
        points: maximum number of points; they are at the ends of tie groups.
    """
    sums = _prepare(score, loss)
    covered, lost = sums.covered[0], np.cumsum(sums.data.loss.take(sums.ranking.order))[sums.ranking.ends]
    keep = np.unique(np.linspace(0, len(covered) - 1, min(points, len(covered))).astype(np.intp))
    return covered[keep] / covered[-1], lost[keep] / covered[keep]


def aurc_rows(sums: Sums) -> Floats:
    """Returns the AURC of each row of weights (whole counts), [B]."""
    # Without weights the sum runs over single samples, in place.
    if sums.weights is None:
        risk = sums.data.loss.take(sums.ranking.order)
        _share_ties(risk, sums.ranking)
        np.cumsum(risk, out=risk)
        risk /= np.arange(1.0, len(risk) + 1)
        return np.array([risk.mean()])
    # Within a tie group of mean loss m after n samples with loss S: sum_k (S + (k - n) m) / k. By parts, over
    # all groups, with F(n) = n H(n): S (1 + H(N)) - sum_groups m (F(n') - F(n)), n' at its end.
    most = int(sums.samples.max())
    # A power of two, so that resamples of one set share a table.
    table = _count_times_harmonic(1 << most.bit_length())
    steps, marks = sums.losses, sums.data.losses
    total = steps.total * (1 + table[sums.samples.astype(np.intp)] / sums.samples)
    if sums.ranking.distinct and len(marks.groups) == sums.covered.shape[1]:
        falls = marks.values - np.append(marks.values[1:], 0.0)
        return np.asarray((total - table[sums.covered.astype(np.intp)] @ falls) / sums.samples)
    lengths = table[steps.stop.astype(np.intp)] - table[steps.start.astype(np.intp)]
    if sums.ranking.distinct:
        return np.asarray((total - lengths @ marks.values) / sums.samples)
    size = steps.stop - steps.start
    mean = np.divide(steps.added, size, out=np.zeros_like(size), where=size > 0)
    return np.asarray((total - np.einsum("bt,bt->b", lengths, mean)) / sums.samples)


def e_aurc_rows(sums: Sums) -> Floats:
    """Returns the E-AURC of each row of weights, [B]. The oracle is resampled with the data."""
    if sums.oracle is not None:
        return aurc_rows(sums) - sums.oracle
    loss = sums.data.loss
    return aurc_rows(sums) - aurc_rows(Ranked(rank_scores(loss), loss=loss).sums(sums.weights))


def augrc_rows(sums: Sums) -> Floats:
    """Returns the AUGRC of each row of weights, [B]."""
    area = sums.losses.total * sums.samples - sums.losses.halfway
    return np.asarray(area / sums.samples**2)


def _share_ties(ordered: Floats, ranking: Ranking) -> None:
    """Replaces the losses of tied samples by their mean, in place: the expectation over their orders."""
    if ranking.distinct:
        return
    sizes = np.diff(ranking.ends, prepend=-1)
    tied = np.flatnonzero(sizes > 1)
    sizes = sizes[tied]
    offsets = np.cumsum(sizes) - sizes
    places = np.repeat(ranking.ends[tied] - sizes + 1 - offsets, sizes) + np.arange(int(sizes.sum()))
    ordered[places] = np.repeat(np.add.reduceat(ordered[places], offsets) / sizes, sizes)


@lru_cache(maxsize=4)
def _count_times_harmonic(count: int) -> Floats:
    """Returns n H(n) of n = 0..count, with the harmonic numbers H."""
    numbers = np.arange(1.0, count + 1)
    return np.concatenate([[0.0], numbers * np.cumsum(1.0 / numbers)])


def _prepare(score: ArrayLike, loss: ArrayLike) -> Sums:
    scores, losses = as_scores(score), as_losses(loss)
    same_length(score=scores, loss=losses)
    return Ranked(rank_scores(scores), loss=losses).sums()
