"""Computes bootstrap intervals that respect groups, and paired comparisons of scores on the same resamples.

groups [N] --resample_weights--> whole counts [B,N], one row per replicate
scores, failed, loss --replicate--> {score: {metric: [R]}}; a difference of two rows is a paired difference

Frames of one drive, track or photo (and its corrupted copies) fail together, so whole groups are drawn. If
every frame is its own group, this is the ordinary bootstrap. A resample is a row of counts on scores that
were sorted once: nothing is sorted again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from misfire_train.errors import JudgeError
from misfire_train.metrics import detection, risk
from misfire_train.metrics.ranking import (
    Floats,
    Ranked,
    Sums,
    as_failures,
    as_losses,
    as_scores,
    rank_scores,
    same_length,
)

_CELLS = 100_000
"""Resamples are drawn in blocks of at most this many counts: what fits a cache is twice as fast."""

ROW_METRICS: Mapping[str, Callable[[Sums], Floats]] = {
    "auroc": detection.auroc_rows,
    "average_precision": detection.average_precision_rows,
    "fpr_at_95_tpr": detection.fpr_at_tpr_rows,
    "aurc": risk.aurc_rows,
    "e_aurc": risk.e_aurc_rows,
    "augrc": risk.augrc_rows,
    **{f"recall_at_{b:.1%}": partial(detection.recall_at_budget_rows, budget=b) for b in detection.BUDGETS},
    **{
        f"precision_at_{b:.1%}": partial(detection.precision_at_budget_rows, budget=b)
        for b in detection.BUDGETS
    },
}
HIGHER_IS_BETTER = frozenset(ROW_METRICS) - {"fpr_at_95_tpr", "aurc", "e_aurc", "augrc"}
"""Of ROW_METRICS; for the others lower is better."""


@dataclass(frozen=True)
class Estimate:
    """Holds a value with its bootstrap percentile interval. usable: share of replicates that were defined."""

    value: float
    low: float
    high: float
    usable: float = 1.0


@dataclass(frozen=True)
class Comparison:
    """Holds a minus b on the same resamples, signed so that above zero means that a is better."""

    metric: str
    difference: float
    low: float
    high: float
    usable: float = 1.0

    @property
    def a_wins(self) -> bool:
        """Returns whether the whole interval is above zero."""
        return self.low > 0

    @property
    def b_wins(self) -> bool:
        """Returns whether the whole interval is below zero."""
        return self.high < 0


def resample_weights(
    groups: ArrayLike, *, replicates: int, seed: int, strata: ArrayLike | None = None
) -> Iterator[NDArray[np.float64]]:
    """Yields blocks [B,N] of counts, `replicates` rows in all: how often each sample is drawn.

    Args:
        groups: [N] labels; groups are drawn whole and with replacement.
        replicates: number of resamples.
        seed: the same seed gives the same resamples.
        strata: [N] labels; the number of groups drawn from each stratum stays as it was. A group must be in
            one stratum.
    """
    members, group_strata = _members(groups, strata)
    count = int(members.max()) + 1
    rng = np.random.default_rng(seed)
    block = max(1, _CELLS // max(len(members), count))
    for start in range(0, replicates, block):
        size = min(block, replicates - start)
        drawn = np.zeros((size, count))
        for stratum in np.unique(group_strata):
            pool = np.flatnonzero(group_strata == stratum)
            picks = pool[rng.integers(0, len(pool), (size, len(pool)))]
            # One bincount for the whole block: each replicate counts in a range of its own.
            flat = (picks + np.arange(size)[:, None] * count).ravel()
            drawn += np.bincount(flat, minlength=size * count).reshape(size, count)
        # If every frame is its own group, in order, the counts are per frame already.
        yield drawn[:, members] if count < len(members) or not _is_range(members) else drawn


def replicate(
    scores: Mapping[str, ArrayLike],
    *,
    failed: ArrayLike,
    loss: ArrayLike | None = None,
    groups: ArrayLike | None = None,
    metrics: Sequence[str] = ("auroc", "aurc"),
    replicates: int = 1000,
    seed: int = 0,
) -> dict[str, dict[str, Floats]]:
    """Returns {score: {metric: [replicates]}}.

    Every score sees the same resamples, so differences are paired.

    Args:
        scores: {name: [N]}, higher meaning that a failure is likelier.
        failed: [N] bool.
        loss: [N] >= 0. Default: the failures as 0/1.
        groups: [N] labels, drawn whole. Default: every sample is its own group.
        metrics: keys of ROW_METRICS.
        replicates: number of resamples.
        seed: the same seed gives the same resamples.

    Returns:
        NaN marks undefined values (a resample without failures).

    Raises:
        JudgeError: a metric is unknown, a value is NaN, or lengths differ.
    """
    unknown = [name for name in metrics if name not in ROW_METRICS]
    if unknown:
        raise JudgeError(f"no metric {unknown[0]!r}; there are {', '.join(ROW_METRICS)}")
    failures = as_failures(failed)
    losses = failures.astype(np.float64) if loss is None else as_losses(loss)
    arrays = {name: as_scores(values, what=f"score {name!r}") for name, values in scores.items()}
    same_length(failed=failures, loss=losses, **arrays)
    ranked = {
        name: Ranked(rank_scores(values), failed=failures, loss=losses) for name, values in arrays.items()
    }
    labels = np.arange(len(failures)) if groups is None else np.asarray(groups)
    by_loss = Ranked(rank_scores(losses), loss=losses)
    collected: dict[str, dict[str, list[Floats]]] = {name: {m: [] for m in metrics} for name in arrays}
    for weights in resample_weights(labels, replicates=replicates, seed=seed):
        # Computed once per block, because it is the same for all scores.
        oracle = risk.aurc_rows(by_loss.sums(weights)) if "e_aurc" in metrics else None
        for name, data in ranked.items():
            sums = data.sums(weights, oracle=oracle)
            for metric in metrics:
                collected[name][metric].append(ROW_METRICS[metric](sums))
    return {name: {m: np.concatenate(rows) for m, rows in per.items()} for name, per in collected.items()}


def point(score: ArrayLike, *, failed: ArrayLike, loss: ArrayLike | None = None, metric: str) -> float:
    """Returns the metric on the data as they are; NaN if it is undefined."""
    failures = as_failures(failed)
    losses = failures.astype(np.float64) if loss is None else as_losses(loss)
    sums = Ranked(rank_scores(as_scores(score)), failed=failures, loss=losses).sums()
    return float(ROW_METRICS[metric](sums)[0])


def estimate(value: float, replicates: Floats, *, confidence: float = 0.95) -> Estimate:
    """Returns the percentile interval around a value; NaN replicates are left out and counted."""
    low, high, usable = interval(replicates, confidence=confidence)
    return Estimate(value, low, high, usable)


def bootstrap_mean(
    values: ArrayLike, *, groups: ArrayLike | None = None, replicates: int = 1000, seed: int = 0
) -> Estimate:
    """Returns the mean of [N] values with its 95 % interval. groups: [N] drawn whole; None draws single ones.

    >>> gain = bootstrap_mean([0.0, 1.0, 1.0, 1.0] * 25)
    >>> gain.value, gain.low < 0.75 < gain.high
    (0.75, True)
    """
    numbers = np.asarray(values, np.float64)
    labels = np.arange(len(numbers)) if groups is None else np.asarray(groups)
    means = [
        weights @ numbers / weights.sum(axis=1)
        for weights in resample_weights(labels, replicates=replicates, seed=seed)
    ]
    return estimate(float(numbers.mean()), np.concatenate(means))


def bootstrap_ratio_gain(
    before: tuple[ArrayLike, ArrayLike],
    after: tuple[ArrayLike, ArrayLike],
    *,
    groups: ArrayLike | None = None,
    replicates: int = 1000,
    seed: int = 0,
) -> Estimate:
    """Returns by how much a ratio of sums grew, with its paired 95 % interval.

    Args:
        before: numerators [N] and denominators [N]; the ratio is that of their sums.
        after: the same of the same frames, in the same order.
        groups: [N] drawn whole; None draws single frames.
        replicates: number of resamples.
        seed: random seed.

    >>> right, counted = [0.0, 1.0, 1.0, 1.0] * 25, [1.0] * 100
    >>> bootstrap_ratio_gain((right, counted), (counted, counted)).value
    0.25
    """
    pairs = [tuple(np.asarray(each, np.float64) for each in side) for side in (before, after)]
    labels = np.arange(len(pairs[0][0])) if groups is None else np.asarray(groups)

    def gain(weights: NDArray[Any]) -> NDArray[np.float64]:
        old, new = ((weights @ right) / np.maximum(weights @ counted, 1e-12) for right, counted in pairs)
        return np.asarray(new - old, np.float64)

    means = [gain(weights) for weights in resample_weights(labels, replicates=replicates, seed=seed)]
    return estimate(float(gain(np.ones((1, len(labels))))[0]), np.concatenate(means))


def wilson(hits: float, total: float, *, z: float = 1.96) -> tuple[float, float]:
    """Returns Wilson's interval of a share, for shares that no resample varies: none of ten is not zero.

    >>> wilson(0, 10)[0], round(wilson(0, 10)[1], 2)
    (0.0, 0.28)
    """
    if not total:
        return 0.0, 1.0
    share, square = hits / total, z * z / total
    centre = (share + square / 2) / (1 + square)
    half = z / (1 + square) * math.sqrt(share * (1 - share) / total + square / (4 * total))
    return max(0.0, centre - half), min(1.0, centre + half)


def interval(replicates: Floats, *, confidence: float = 0.95) -> tuple[float, float, float]:
    """Returns (low, high, share of usable replicates)."""
    good = replicates[np.isfinite(replicates)]
    if not good.size:
        return float("nan"), float("nan"), 0.0
    tail = (1 - confidence) / 2
    low, high = np.quantile(good, [tail, 1 - tail])
    return float(low), float(high), good.size / replicates.size


def bootstrap_interval(
    metric: str, score: ArrayLike, *, failed: ArrayLike, loss: ArrayLike | None = None, **options: Any
) -> Estimate:
    """Returns one metric of one score with its interval.

    Args:
        metric: a key of ROW_METRICS.
        score: [N], higher meaning that a failure is likelier.
        failed: [N] bool.
        loss: [N] >= 0. Default: the failures as 0/1.
        options: groups, replicates and seed, as of `replicate`.
    """
    rows = replicate({"score": score}, failed=failed, loss=loss, metrics=(metric,), **options)
    return estimate(point(score, failed=failed, loss=loss, metric=metric), rows["score"][metric])


def paired_difference(
    metric: str,
    a: ArrayLike,
    b: ArrayLike,
    *,
    failed: ArrayLike,
    loss: ArrayLike | None = None,
    confidence: float = 0.95,
    **options: Any,
) -> Comparison:
    """Returns by how much score a is better than score b (above zero: a), with the paired interval.

    Args:
        metric: a key of ROW_METRICS.
        a, b: [N] scores of the same samples.
        failed: [N] bool.
        loss: [N] >= 0. Default: the failures as 0/1.
        confidence: of the interval.
        options: groups, replicates and seed, as of `replicate`.
    """
    rows = replicate({"a": a, "b": b}, failed=failed, loss=loss, metrics=(metric,), **options)
    value = partial(point, failed=failed, loss=loss, metric=metric)
    return compare(metric, value(a) - value(b), rows["a"][metric] - rows["b"][metric], confidence=confidence)


def compare(metric: str, difference: float, replicates: Floats, *, confidence: float = 0.95) -> Comparison:
    """Signs a raw difference (a - b) so that above zero means better."""
    sign = 1.0 if metric in HIGHER_IS_BETTER else -1.0
    low, high, usable = interval(sign * replicates, confidence=confidence)
    return Comparison(metric, sign * difference, low, high, usable)


def _members(groups: ArrayLike, strata: ArrayLike | None) -> tuple[NDArray[np.intp], NDArray[Any]]:
    labels = np.asarray(groups)
    if labels.ndim != 1 or not labels.size:
        raise JudgeError(f"groups must be one label per sample, got shape {labels.shape}")
    # Skips a sort in the common case that every frame is its own group.
    if np.issubdtype(labels.dtype, np.integer) and _is_range(labels):
        members, count = labels.astype(np.intp), len(labels)
    else:
        _, members = np.unique(labels, return_inverse=True)
        count = int(members.max()) + 1
    if strata is None:
        return members, np.zeros(count, np.intp)
    group_strata = np.empty(count, dtype=np.asarray(strata).dtype)
    group_strata[members] = np.asarray(strata)
    if (group_strata[members] != np.asarray(strata)).any():
        raise JudgeError("a group is in more than one stratum")
    return members, group_strata


def _is_range(labels: NDArray[Any]) -> bool:
    return bool(labels[0] == 0 and (np.diff(labels) == 1).all())
