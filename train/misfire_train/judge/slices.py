"""Measures failures and flags group by group: time of day, weather, camera, class, drive.

labels [N] + errors + flags --slice_report--> rows per group, and the gap between the worst and the best group

A gap between many small groups is above zero just by chance, so each gap is listed with what shuffled labels
give (`by_chance`, the 95 % quantile). Groups below a stated number of frames are listed, not compared.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from misfire_train.errors import JudgeError
from misfire_train.metrics.bootstrap import Estimate, estimate, resample_weights, wilson
from misfire_train.metrics.detection import auroc
from misfire_train.metrics.ranking import Floats, as_failures, as_scores, same_length

MIN_FRAMES = 30
MAX_GROUPS_SHOWN = 40
"""Groups above which no slice shows them: such a table is not read."""


@dataclass(frozen=True)
class SliceRow:
    """Holds one group.

    Attributes:
        error: share of failures.
        flag_rate: share of frames at or above the threshold.
        flag_recall: share of its failures that are flagged.
        auroc: None without both kinds.
    """

    value: str
    samples: int
    failures: int
    error: Estimate
    flag_rate: Estimate
    flag_recall: float | None
    auroc: float | None


@dataclass(frozen=True)
class Gap:
    """Holds largest minus smallest over the groups compared, its interval, and what chance would give."""

    measure: str
    gap: Estimate
    largest: str
    smallest: str
    by_chance: float

    @property
    def beyond_chance(self) -> bool:
        """Returns whether it is larger than 95 % of the gaps between groups drawn at random."""
        return self.gap.value > self.by_chance


@dataclass(frozen=True)
class SliceReport:
    """Holds all groups of one kind of label. too_small: groups below `min_frames`, not compared."""

    name: str
    min_frames: int
    threshold: float
    rows: tuple[SliceRow, ...]
    gaps: tuple[Gap, ...]
    too_small: tuple[str, ...]


def slice_report(
    name: str,
    labels: ArrayLike,
    *,
    score: ArrayLike,
    failed: ArrayLike,
    threshold: float,
    clusters: ArrayLike | None = None,
    min_frames: int = MIN_FRAMES,
    replicates: int = 300,
    seed: int = 0,
) -> SliceReport:
    """Returns error and flag rate per group of `labels` [N], flagged if score >= threshold.

    clusters: [N] what a resample draws whole (drives); default: frames.
    """
    kinds = np.asarray(labels).astype(str)
    scores, failures = as_scores(score), as_failures(failed)
    same_length(labels=kinds, score=scores, failed=failures)
    if min_frames < 1:
        raise JudgeError(f"min_frames must be at least 1, got {min_frames}")
    flagged = scores >= threshold
    values, members = np.unique(kinds, return_inverse=True)
    sizes = np.bincount(members)
    kept = np.flatnonzero(sizes >= min_frames)
    measures = {"error": failures, "flag_rate": flagged}
    drawn = {
        measure: _replicate(members, sizes, kept, of, clusters=clusters, replicates=replicates, seed=seed)
        for measure, of in measures.items()
    }
    rows = tuple(
        _row(
            values[g],
            inside=members == g,
            scores=scores,
            failures=failures,
            flagged=flagged,
            drawn={measure: drawn[measure][:, i] for measure in measures},
        )
        for i, g in enumerate(kept)
    )
    gaps = tuple(
        _gap(measure, of, members=members, values=values, kept=kept, drawn=drawn[measure], seed=seed)
        for measure, of in measures.items()
        if len(kept) > 1
    )
    too_small = tuple(str(value) for value in values[sizes < min_frames])
    return SliceReport(name, min_frames, threshold, rows, gaps, too_small)


def _means(members: NDArray[np.intp], of: NDArray[np.bool_], groups: int) -> Floats:
    sizes = np.bincount(members, minlength=groups)
    return np.asarray(np.bincount(members, weights=of, minlength=groups) / np.maximum(sizes, 1))


def _replicate(
    members: NDArray[np.intp],
    sizes: NDArray[np.intp],
    kept: NDArray[np.intp],
    of: NDArray[np.bool_],
    *,
    clusters: ArrayLike | None,
    replicates: int,
    seed: int,
) -> Floats:
    """Returns the mean of `of` in each kept group on each resample, [R,G]."""
    # Sorted by group, each group is one run of columns, which reduceat sums.
    order = np.argsort(members, kind="stable")
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    blocks = []
    labels = np.arange(len(members)) if clusters is None else clusters
    for weights in resample_weights(labels, replicates=replicates, seed=seed):
        ordered = weights[:, order]
        counts = np.add.reduceat(ordered, starts, axis=1)
        hits = np.add.reduceat(ordered * of[order], starts, axis=1)
        blocks.append(np.divide(hits, counts, out=np.full_like(hits, np.nan), where=counts > 0)[:, kept])
    return np.concatenate(blocks)


def _row(
    value: Any,
    *,
    inside: NDArray[np.bool_],
    scores: NDArray[Any],
    failures: NDArray[np.bool_],
    flagged: NDArray[np.bool_],
    drawn: dict[str, Floats],
) -> SliceRow:
    count, failed = int(inside.sum()), int(failures[inside].sum())
    return SliceRow(
        value=str(value),
        samples=count,
        failures=failed,
        error=_share(failed, count, drawn["error"]),
        flag_rate=_share(int(flagged[inside].sum()), count, drawn["flag_rate"]),
        flag_recall=float(flagged[inside & failures].mean()) if failed else None,
        auroc=auroc(scores[inside], failures[inside]) if 0 < failed < count else None,
    )


def _share(hits: int, count: int, drawn: Floats) -> Estimate:
    """Returns a share with the wider of the bootstrap's and Wilson's intervals.

    No hits do not mean an error of 0.
    """
    found = estimate(hits / count, drawn)
    low, high = wilson(hits, count)
    return replace(found, low=min(found.low, low), high=max(found.high, high))


def _gap(
    measure: str,
    of: NDArray[np.bool_],
    *,
    members: NDArray[np.intp],
    values: NDArray[Any],
    kept: NDArray[np.intp],
    drawn: Floats,
    seed: int,
) -> Gap:
    means = _means(members, of, len(values))[kept]
    rng = np.random.default_rng(seed)
    chance = []
    # 200 shuffles place the 95 % quantile well enough to tell a gap from chance.
    for _ in range(200):
        shuffled = _means(rng.permutation(members), of, len(values))[kept]
        chance.append(shuffled.max() - shuffled.min())
    # A resample may draw no frame of a group, whose mean is then NaN.
    gaps = np.nanmax(drawn, axis=1) - np.nanmin(drawn, axis=1)
    return Gap(
        measure=measure,
        gap=estimate(float(means.max() - means.min()), gaps),
        largest=str(values[kept[means.argmax()]]),
        smallest=str(values[kept[means.argmin()]]),
        by_chance=float(np.quantile(chance, 0.95)),
    )
