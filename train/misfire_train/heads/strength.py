"""Chooses how strongly a head may correct its free score: by leaving out groups of the head's own holdout.

groups [N] --deal_groups--> a fold for each image
a head per fold, fitted on the others --its scores of the rows left out, at each strength--> Choice

A correction that helps on images of known drives can hurt on the next drive, and a check by image cannot show
that. So each row is scored by a head that never saw its drive, and a strength above zero has to earn its
place: what it gains over the free score, less one standard error, has to be above zero, and on clean frames
it must not lose. If no strength is so good, a loss on clean frames of at most TOLERATED is allowed: a network
that is nearly always right has few clean failures, and a hair's breadth among them must not cost the gain on
all others. Of strengths that are alike within one standard error the weakest is taken. Where nothing earns
it, the head is the free score. Strength 1 is the head as fitted.

The rule knows scores only, not what made them: heads of frames, units and boxes use the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

STRENGTHS = (0.125, 0.25, 0.5, 1.0)
"""What is tried besides 0: each doubles the last."""
MOST_FOLDS = 4
"""A fold costs one fit of the head, and three quarters of the groups are enough to fit on."""
LEAST_PER_FOLD = 5
"""Failures, and successes, below which a fold has no AUROC worth the name."""
MANY_GROUPS = 20
"""With fewer, a standard error over groups has too little to go by."""

TOLERATED = 0.0025
"""Most that may be lost on clean frames, in AUROC, if nothing else has earned its place."""

Floats = NDArray[np.float64]
Setting = tuple[str, float]
"""Names a set of columns and a strength."""


@dataclass(frozen=True)
class Folds:
    """Holds which images are left out together.

    number: [N], the fold of each image.  groups: [N], the group of each; itself if it has none.
    by: "groups" or "images".  count: of the groups, or images.
    """

    number: NDArray[np.intp]
    groups: NDArray[np.intp]
    by: str
    count: int

    @property
    def folds(self) -> int:
        """Returns the number of folds."""
        return int(self.number.max()) + 1


@dataclass(frozen=True)
class Gain:
    """Holds what a setting gains over the free score on rows left out, in AUROC of failure.

    clean, shifted: on clean rows and on corrupted copies, means over folds weighted by failures; None if no
    fold has enough failures and successes.  both: their mean.  error: standard error of `both`, the larger of
    that within folds (groups or images drawn anew) and that between folds.
    """

    columns: str
    strength: float
    clean: float | None
    shifted: float | None
    both: float
    error: float

    @property
    def earned(self) -> bool:
        """Returns whether the gain is beyond one standard error, and nothing is lost on clean frames."""
        return self.holds(loss=0.0)

    def holds(self, *, loss: float) -> bool:
        """Returns whether the gain is beyond one standard error, and no more than `loss` is lost on clean."""
        return self.both - self.error > 0 and (self.clean is None or self.clean >= -loss)


@dataclass(frozen=True)
class Choice:
    """Holds the strength that was chosen, and from what.

    Attributes:
        strength: 0 is the free score, 1 the head as fitted.
        columns: the set of columns.
        by, count: what was left out ("groups" or "images"), and how many of them there are.
        folds: number of times that something was left out.
        free: AUROC of the free score on clean rows, mean over folds; None if it has none.
        gains: of all settings that were tried.
    """

    strength: float
    columns: str
    by: str
    count: int
    folds: int
    free: float | None
    gains: tuple[Gain, ...]

    @property
    def gain(self) -> Gain | None:
        """Returns the gain of the chosen setting, None at strength 0."""
        found = (g for g in self.gains if (g.columns, g.strength) == (self.columns, self.strength))
        return next(found, None)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for run.json."""
        return asdict(self)

    def __str__(self) -> str:
        """Returns the choice in words, such as "strength 0.25 of 1, chosen over 4 groups"."""
        return f"strength {self.strength:g} of 1, chosen over {self.count} {self.by}"


def deal_groups(groups: Sequence[str], *, most: int = MOST_FOLDS, seed: int = 0) -> Folds:
    """Returns folds of whole groups, of like size; of images if no two share a group.

    Args:
        groups: [N], drive, vehicle or track of each image; its own name, or "", if it has none.
        most: number of folds, if there are as many groups.
        seed: of the order of groups of one size.
    """
    names, member, sizes = np.unique(np.asarray(groups, str), return_inverse=True, return_counts=True)
    if len(names) in (1, len(groups)):
        member, sizes = np.arange(len(groups)), np.ones(len(groups), np.intp)
        by = "images"
    else:
        by = "groups"
    rng = np.random.default_rng([seed, 11])
    count = min(most, len(sizes))
    # The largest first, each to the fold that has the fewest images so far.
    order = np.lexsort((rng.random(len(sizes)), -sizes))
    fold_of, filled = np.zeros(len(sizes), np.intp), np.zeros(count)
    for group in order:
        fold = int(filled.argmin())
        fold_of[group], filled[fold] = fold, filled[fold] + sizes[group]
    return Folds(fold_of[member], np.asarray(member, np.intp), by, len(sizes))


def choose_strength(
    scores: Mapping[Setting, Floats],
    free: Mapping[str, Floats],
    *,
    failed: NDArray[np.bool_],
    clean: NDArray[np.bool_],
    image: NDArray[np.intp],
    folds: Folds,
    tolerated: float | None = None,
) -> Choice:
    """Returns the weakest setting that is as good as the best, or strength 0 if none has earned its place.

    Args:
        scores: {(columns, strength): [R]}, of each row by a head that was not fitted on its fold.
        free: {columns: [R]}, the free score that each set starts from.
        failed: [R].
        clean: [R], False for corrupted copies.
        image: [R], the image that a row shows.
        folds: of the images.
        tolerated: most that may be lost on clean frames, in AUROC. None: nothing, or TOLERATED if no setting
            is so good.
    """
    kinds = [rows for rows in (clean, ~clean) if rows.any()]
    cells = [_cells(rows, failed, folds.number[image], folds.folds) for rows in kinds]
    # Drawing whole groups needs many of them; with few, what differs between folds has to show it.
    cluster = folds.groups[image] if folds.by == "groups" and folds.count >= MANY_GROUPS else image
    gains = []
    for (columns, strength), values in scores.items():
        parts = [_compare(values, free[columns], failed, rows, cluster) for rows in cells]
        gains.append(_gain(columns, strength, parts, has_clean=bool(clean.any())))
    limits = (0.0, TOLERATED) if tolerated is None else (tolerated,)
    found = (_weakest_as_good([gain for gain in gains if gain.holds(loss=limit)]) for limit in limits)
    best = next((gain for gain in found if gain is not None), None)
    first = next(iter(free))
    return Choice(
        strength=0.0 if best is None else best.strength,
        columns=first if best is None else best.columns,
        by=folds.by,
        count=folds.count,
        folds=folds.folds,
        free=_mean_auroc(free[first], failed, cells[0]) if clean.any() else None,
        gains=tuple(gains),
    )


def _weakest_as_good(earned: Sequence[Gain]) -> Gain | None:
    """Returns the weakest setting within one standard error of the best, by the rule of Breiman et al. 1984.

    With few groups the best strength is hardly known, and the weaker one has less to lose elsewhere.
    """
    best = max(earned, key=lambda gain: gain.both - gain.error, default=None)
    if best is None:
        return None
    alike = [gain for gain in earned if gain.columns == best.columns and gain.both >= best.both - best.error]
    return min(alike, key=lambda gain: gain.strength)


def can_show(
    failed: NDArray[np.bool_], clean: NDArray[np.bool_], image: NDArray[np.intp], folds: Folds
) -> bool:
    """Returns whether at least two folds have the failures and successes that a gain needs.

    failed, clean, image: [R], as in `choose_strength`.
    """
    for rows in (clean, ~clean):
        cells = _cells(rows, failed, folds.number[image], folds.folds)
        if sum(len(each) > 0 for each in cells) > 1:
            return True
    return False


@dataclass(frozen=True)
class _Part:
    """Differences of one kind of rows. by_fold: [K], NaN without a value. influence: {cluster: [K]}."""

    by_fold: Floats
    weights: Floats
    influence: Floats

    @property
    def mean(self) -> float | None:
        return float(np.nansum(self.by_fold * self.weights)) if self.weights.any() else None


def _cells(
    rows: NDArray[np.bool_], failed: NDArray[np.bool_], fold: NDArray[np.intp], count: int
) -> list[NDArray[np.intp]]:
    """Returns the rows of each fold; none of a fold with too few failures or successes."""
    found = [np.flatnonzero(rows & (fold == k)) for k in range(count)]
    none = np.empty(0, np.intp)
    return [
        each if LEAST_PER_FOLD <= failed[each].sum() <= len(each) - LEAST_PER_FOLD else none for each in found
    ]


def _compare(
    values: Floats,
    free: Floats,
    failed: NDArray[np.bool_],
    cells: Sequence[NDArray[np.intp]],
    cluster: NDArray[np.intp],
) -> _Part:
    failures = np.array([failed[rows].sum() for rows in cells], np.float64)
    weights = failures / max(1.0, failures.sum())
    by_fold = np.full(len(cells), np.nan)
    influence = np.zeros(int(cluster.max()) + 1)
    for k, rows in enumerate(cells):
        if not len(rows):
            continue
        own, own_influence = auroc_influence(values[rows], failed[rows])
        other, other_influence = auroc_influence(free[rows], failed[rows])
        by_fold[k] = own - other
        np.add.at(influence, cluster[rows], weights[k] * (own_influence - other_influence))
    return _Part(by_fold, weights, influence)


def _gain(columns: str, strength: float, parts: Sequence[_Part], *, has_clean: bool) -> Gain:
    known = [part for part in parts if part.mean is not None]
    if not known:
        return Gain(columns, strength, None, None, 0.0, math.inf)
    both = float(np.mean([part.mean for part in known]))
    within = float(np.sqrt(np.square(np.mean([part.influence for part in known], 0)).sum()))
    means = dict(enumerate(part.mean for part in parts))
    return Gain(
        columns=columns,
        strength=strength,
        clean=means[0] if has_clean else None,
        shifted=means.get(1) if has_clean else means[0],
        both=both,
        error=max(within, _between(known)),
    )


def _between(parts: Sequence[_Part]) -> float:
    """Returns the standard error of the mean over folds, from how much the folds differ."""
    weights = np.mean([part.weights for part in parts], 0)
    values = np.mean([np.nan_to_num(part.by_fold * part.weights) for part in parts], 0)
    used = weights > 0
    count = int(used.sum())
    if count < 2:
        # One fold says nothing about the next.
        return math.inf
    moved = values[used] - weights[used] * values.sum()
    return float(np.sqrt(np.square(moved).sum() * count / (count - 1)))


def _mean_auroc(values: Floats, failed: NDArray[np.bool_], cells: Sequence[NDArray[np.intp]]) -> float | None:
    failures = np.array([failed[rows].sum() for rows in cells], np.float64)
    if not failures.any():
        return None
    found = [auroc_influence(values[rows], failed[rows])[0] if len(rows) else 0.0 for rows in cells]
    return float(np.asarray(found) @ failures / failures.sum())


def auroc_influence(scores: Floats, failed: NDArray[np.bool_]) -> tuple[float, Floats]:
    """Returns the AUROC and what each row adds to it, [R], whose squares sum to its variance.

    DeLong, DeLong & Clarke-Pearson 1988: the share of successes below a failure, and of failures above a
    success, each less the AUROC and divided by the number of its kind.
    """
    order = np.argsort(scores, kind="stable")
    ranks = np.empty(len(scores))
    ranks[order] = _tied_ranks(scores[order])
    positive, negative = np.flatnonzero(failed), np.flatnonzero(~failed)
    own = np.empty(len(scores))
    for rows in (positive, negative):
        inner = rows[np.argsort(scores[rows], kind="stable")]
        own[inner] = _tied_ranks(scores[inner])
    below = (ranks[positive] - own[positive]) / len(negative)
    above = 1 - (ranks[negative] - own[negative]) / len(positive)
    area = float(below.mean())
    influence = np.empty(len(scores))
    influence[positive] = (below - area) / len(positive)
    influence[negative] = (above - area) / len(negative)
    return area, influence


def _tied_ranks(ordered: Floats) -> Floats:
    """Returns ranks of sorted values, 1 to R; equal values share the mean of theirs."""
    starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
    ends = np.append(starts[1:], len(ordered))
    return np.repeat((starts + 1 + ends) / 2, ends - starts)
