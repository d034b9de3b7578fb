"""Compares the learned nominee with the free nominee, fold by fold and pooled.

Table --build_view--> View (nominees of the other folds, compared here)
Table --list_candidates--> every score against the best free one, winners and losers alike
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from misfire_train.judge.folds import Table
from misfire_train.metrics.bootstrap import Comparison, compare


@dataclass(frozen=True)
class FoldResult:
    """Holds one held-out fold: who was nominated on the others, and how the two compare here."""

    name: str
    samples: int
    failures: int
    free: str
    learned: str
    comparisons: tuple[Comparison, ...]


@dataclass(frozen=True)
class View:
    """Holds all folds of one kind.

    pooled: learned minus free nominee, failure-weighted mean over folds.
    best_free: by metric, the free score that is best in this very view.
    against_best: learned nominee minus that score.
    """

    kind: str
    folds: tuple[FoldResult, ...]
    pooled: tuple[Comparison, ...]
    left_out: tuple[str, ...] = ()
    best_free: tuple[str, ...] = ()
    against_best: tuple[Comparison, ...] = ()

    @property
    def passed(self) -> bool:
        """Returns whether every interval is above zero, and no fold is significantly worse."""
        return all(c.a_wins for c in (*self.pooled, *self.against_best)) and not self.worse

    @property
    def won(self) -> tuple[Comparison, ...]:
        """Returns the metrics in which the learned nominee beats the best free score of this view."""
        return tuple(c for c in self.against_best if c.a_wins)

    @property
    def worse(self) -> tuple[str, ...]:
        """Returns the folds in which the learned nominee is significantly worse in some metric."""
        return tuple(fold.name for fold in self.folds if any(c.b_wins for c in fold.comparisons))


@dataclass(frozen=True)
class Candidate:
    """Holds one score over all folds of a view, and against the best free one (None for that one itself)."""

    name: str
    free: bool
    view: str
    values: Mapping[str, float]
    against_free: tuple[Comparison, ...] | None


def build_view(
    table: Table,
    *,
    free: Sequence[str],
    learned: Sequence[str],
    metrics: Sequence[str],
    left_out: tuple[str, ...],
    beside: Table | None = None,
) -> View:
    """Nominates on the other folds by the first metric, and compares on each fold in all metrics.

    beside: a table that nominates, too (the clean folds, if corruptions are held out).
    """
    # A single fold's interval is widened so that all folds together keep the 5 % chance of a false alarm.
    confidence = 1 - 0.05 / len(table.folds)
    pairs = [
        (
            table.best(free, metrics[0], without=i, beside=beside),
            table.best(learned, metrics[0], without=i, beside=beside),
        )
        for i in range(len(table.folds))
    ]
    folds = tuple(
        FoldResult(
            fold.name,
            len(fold.rows),
            fold.failures,
            *pairs[i],
            tuple(_compare_fold(table, i, pairs[i], metric, confidence) for metric in metrics),
        )
        for i, fold in enumerate(table.folds)
    )
    pooled = tuple(_compare_pooled(table, pairs, metric) for metric in metrics)
    # The nominee of the other folds may be beaten here by another free score, which a user could have had.
    best_free = tuple(table.best(free, metric) for metric in metrics)
    against_best = tuple(
        _compare_pooled(table, [(best, learned) for _, learned in pairs], metric)
        for metric, best in zip(metrics, best_free, strict=True)
    )
    return View(table.folds[0].kind, folds, pooled, left_out, best_free, against_best)


def _compare_fold(
    table: Table, fold: int, pair: tuple[str, str], metric: str, confidence: float
) -> Comparison:
    free, learned = pair
    value = table.values[learned][metric][fold] - table.values[free][metric][fold]
    rows = table.replicates[learned][metric][:, fold] - table.replicates[free][metric][:, fold]
    return compare(metric, float(value), rows, confidence=confidence)


def _compare_pooled(table: Table, pairs: Sequence[tuple[str, str]], metric: str) -> Comparison:
    values = np.array(
        [
            table.values[learned][metric][i] - table.values[free][metric][i]
            for i, (free, learned) in enumerate(pairs)
        ]
    )
    rows = np.stack(
        [
            table.replicates[learned][metric][:, i] - table.replicates[free][metric][:, i]
            for i, (free, learned) in enumerate(pairs)
        ],
        axis=1,
    )
    # A fold that has no value in a resample is left out of that resample's mean.
    defined = np.isfinite(rows)
    weights = defined * table.weights
    total = weights.sum(axis=1)
    means = np.divide(
        (np.where(defined, rows, 0) * weights).sum(axis=1),
        total,
        out=np.full(len(rows), np.nan),
        where=total > 0,
    )
    return compare(metric, float(values @ table.weights), means)


def list_candidates(table: Table, *, free: Sequence[str], metrics: Sequence[str]) -> list[Candidate]:
    """Returns every score over all folds, with its difference to the one free score that is best over all."""
    kind = table.folds[0].kind
    best = table.best(free, metrics[0])
    rows = []
    for name in table.values:
        pairs = [(best, name)] * len(table.folds)
        against = None if name == best else tuple(_compare_pooled(table, pairs, metric) for metric in metrics)
        values = {metric: table.mean(name, metric) for metric in metrics}
        rows.append(Candidate(name, name in free, kind, values, against))
    return rows
