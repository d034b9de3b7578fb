"""Divides what the gate holds out: whole groups of clean frames, and whole families of corruption.

groups, shifts [N] --group_folds, shift_folds--> Folds (rows each)
scores x folds --tabulate--> a Table of values and bootstrap replicates, all on the same resamples

A fold's nominee is the score that is best on the other folds, so that picking the best of many scores is not
rewarded on the data it was picked on.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from misfire_train.judge.evidence import CLEAN, Evidence
from misfire_train.metrics.bootstrap import HIGHER_IS_BETTER, ROW_METRICS, resample_weights
from misfire_train.metrics.ranking import Floats, Ranked, rank_scores

MIN_PER_FOLD = 5
"""A fold with fewer failures (or successes) shows nothing by itself and is left out."""
GOOD_PER_FOLD = 15
"""Failures per fold if folds are dealt: a few folds that show something rather than many that do not."""


@dataclass(frozen=True)
class Fold:
    """Holds rows that are held out together.

    kind: "groups", "frames" if no two frames share a group, or "corruptions".
    """

    name: str
    kind: str
    rows: NDArray[np.intp]
    failures: int
    groups: int

    @property
    def usable(self) -> bool:
        """Returns whether there are enough failures and successes for a value."""
        return MIN_PER_FOLD <= self.failures <= len(self.rows) - MIN_PER_FOLD


def group_folds(evidence: Evidence, *, most: int, seed: int) -> tuple[Fold, ...]:
    """Returns folds of clean rows, one per group.

    More than `most` are dealt into at most `most` of like failures.

    Groups are dealt together, too, if fewer than two of them have enough failures by themselves. A single
    group is divided by its frames: it holds nothing out, but no score is nominated on what it is judged on.
    """
    rows = evidence.clean
    labels = evidence.groups[rows]
    known = len(np.unique(labels))
    # A fold of single frames holds no drive out: nobody must read it as one that does.
    kind = "groups" if 1 < known < len(np.unique(evidence.frames[rows])) else "frames"
    if known < 2:
        labels = evidence.frames[rows]
    names, members = np.unique(labels, return_inverse=True)
    if len(names) < 2:
        return ()
    if len(names) <= most:
        folds = tuple(_fold(str(name), kind, rows[members == i], evidence) for i, name in enumerate(names))
        if sum(fold.usable for fold in folds) > 1:
            return folds
    return _dealt(rows, members, evidence, kind=kind, most=most, seed=seed)


def _dealt(
    rows: NDArray[np.intp],
    members: NDArray[np.intp],
    evidence: Evidence,
    *,
    kind: str,
    most: int,
    seed: int,
) -> tuple[Fold, ...]:
    """Deals whole groups in turn, those with the most failures first.

    There are as many folds as the failures fill.
    """
    failures = np.bincount(members, weights=evidence.failed[rows])
    count = int(min(most, len(failures), max(2, failures.sum() // GOOD_PER_FOLD)))
    shuffled = np.random.default_rng(seed).permutation(len(failures))
    # A stable sort of a shuffled order: the seed decides among groups of equal failures.
    by_failures = shuffled[np.argsort(-failures[shuffled], kind="stable")]
    fold_of_group = np.empty(len(failures), np.intp)
    fold_of_group[by_failures] = np.arange(len(failures)) % count
    dealt = fold_of_group[members]
    return tuple(_fold(f"fold {i + 1}", kind, rows[dealt == i], evidence) for i in range(count))


def shift_folds(evidence: Evidence, *, known: Collection[str] = ()) -> tuple[Fold, ...]:
    """Returns one fold per corruption family, all its severities together; clean rows are in none.

    known: families that a score was trained on, which are therefore not held out.
    """
    names = sorted({str(shift) for shift in evidence.shifts} - {CLEAN, *known})
    return tuple(
        _fold(name, "corruptions", np.flatnonzero(evidence.shifts == name), evidence) for name in names
    )


def _fold(name: str, kind: str, rows: NDArray[np.intp], evidence: Evidence) -> Fold:
    return Fold(name, kind, rows, int(evidence.failed[rows].sum()), len(np.unique(evidence.groups[rows])))


@dataclass(frozen=True)
class Table:
    """Holds a value of every score and metric on every fold, and its bootstrap replicates.

    values[score][metric]: [F]. replicates[score][metric]: [R,F], resampled jointly over all folds.
    """

    folds: tuple[Fold, ...]
    values: Mapping[str, Mapping[str, Floats]]
    replicates: Mapping[str, Mapping[str, Floats]]

    @property
    def weights(self) -> Floats:
        """Returns each fold's share of the failures, [F]."""
        return np.asarray(self._failures / self._failures.sum())

    @property
    def _failures(self) -> Floats:
        return np.array([fold.failures for fold in self.folds], np.float64)

    def best(
        self, names: Sequence[str], metric: str, *, without: int | None = None, beside: Table | None = None
    ) -> str:
        """Returns the score with the best failure-weighted mean over folds; the first on a tie.

        without: a fold that must not count. beside: a table whose folds count too. If that leaves no fold at
        all, the only fold nominates for itself.
        """
        keep = np.arange(len(self.folds)) != (-1 if without is None else without)
        if beside is None and not keep.any():
            keep[:] = True
        counts = self._failures[keep] if beside is None else np.append(self._failures[keep], beside._failures)
        sign = 1 if metric in HIGHER_IS_BETTER else -1
        means = []
        for name in names:
            values = self.values[name][metric][keep]
            if beside is not None:
                values = np.append(values, beside.values[name][metric])
            means.append(sign * float(values @ counts / counts.sum()))
        return names[int(np.argmax(means))]

    def mean(self, name: str, metric: str) -> float:
        """Returns the failure-weighted mean over all folds."""
        return float(self.values[name][metric] @ self.weights)


def tabulate(
    folds: Sequence[Fold],
    evidence: Evidence,
    *,
    metrics: Sequence[str],
    replicates: int,
    seed: int,
    refitted: Mapping[str, Mapping[str, NDArray[Any]]],
) -> Table:
    """Returns values and joint replicates of every score on every usable fold.

    refitted: {fold name: {score: [N]}} replaces a score by one that was fitted without that fold.
    """
    usable = tuple(fold for fold in folds if fold.usable)
    values = {name: {m: np.zeros(len(usable)) for m in metrics} for name in evidence.scores}
    rows = {
        name: {m: np.full((replicates, len(usable)), np.nan) for m in metrics} for name in evidence.scores
    }
    ranked = [_rank_fold(fold, evidence, refitted.get(fold.name, {})) for fold in usable]
    for index, name in product(range(len(usable)), evidence.scores):
        sums = ranked[index][name].sums()
        for metric in metrics:
            values[name][metric][index] = ROW_METRICS[metric](sums)[0]
    if not usable:
        return Table(usable, values, rows)
    clusters, _ = evidence.clusters()
    start = 0
    for weights in resample_weights(clusters, replicates=replicates, seed=seed):
        block = slice(start, start + len(weights))
        start += len(weights)
        for index, fold in enumerate(usable):
            # Metrics walk along rows, which a column selection leaves scattered in memory.
            inner = np.ascontiguousarray(weights[:, fold.rows])
            # A resample that drew no row of the fold has no value there; it stays NaN.
            drawn = inner.any(axis=1)
            # Of many frames a block holds one resample, and metrics take at least one.
            if not drawn.any():
                continue
            for name in evidence.scores:
                sums = ranked[index][name].sums(inner[drawn])
                for metric in metrics:
                    rows[name][metric][block, index][drawn] = ROW_METRICS[metric](sums)
    return Table(usable, values, rows)


def _rank_fold(fold: Fold, evidence: Evidence, refitted: Mapping[str, NDArray[Any]]) -> dict[str, Ranked]:
    failed, loss = evidence.failed[fold.rows], evidence.risk[fold.rows]
    return {
        name: Ranked(rank_scores(refitted.get(name, score)[fold.rows]), failed=failed, loss=loss)
        for name, score in evidence.scores.items()
    }
