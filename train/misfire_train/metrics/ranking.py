"""Sorts a score once, exactly and fast, and cumulates values along that order.

score [N] --rank_scores--> Ranking (ascending order, ends of tie groups)
failures, losses [N] --Ranked--> the few places along it that hold one, worked out once
weights [B,N] --Ranked.sums--> Sums: samples [B,G] up to the end of every tie group, and what those places add

Every metric of the judge is a formula on such sums. So a point estimate (one row of ones) and a thousand
bootstrap replicates (rows of counts) share one code, and tied scores are always one step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from misfire_train.errors import JudgeError

Floats = NDArray[np.float64]
_PACKED_FROM = 4096
"""Below this many scores a plain argsort is as fast as packing keys."""
_PACKED_BELOW = 1 << 29
"""A float32 leaves this many index values free in the bit pattern of a float64."""
_SEARCH_FROM = 32
"""With this many tie groups a row, a binary search in each row is quicker than a comparison of all."""


@dataclass(frozen=True)
class Ranking:
    """Holds the order [N], indices by rising score, and the ends [G], the last position of each tie group."""

    order: NDArray[np.intp]
    ends: NDArray[np.intp]

    @property
    def distinct(self) -> bool:
        """Returns whether no two scores are equal."""
        return len(self.ends) == len(self.order)


def as_scores(values: ArrayLike, *, what: str = "score", ids: Sequence[str] | None = None) -> NDArray[Any]:
    """Returns [N] float32 or float64. Raises JudgeError on NaN (named by id), a wrong shape or no values."""
    array = np.asarray(values)
    if array.dtype not in (np.float32, np.float64):
        array = array.astype(np.float64)
    if array.ndim != 1:
        raise JudgeError(f"{what} must be one number per sample, got shape {array.shape}")
    if array.size == 0:
        raise JudgeError(f"{what} is empty: there is nothing to judge")
    bad = np.flatnonzero(np.isnan(array))
    if bad.size:
        names = ", ".join(repr(ids[i]) if ids is not None else f"index {i}" for i in bad[:5])
        raise JudgeError(f"{what} is NaN for {bad.size} of {array.size} samples: {names}")
    return array


def as_losses(values: ArrayLike, *, ids: Sequence[str] | None = None) -> Floats:
    """Returns [N] float64, finite and >= 0. Raises JudgeError that names the first offenders."""
    array = as_scores(values, what="loss", ids=ids).astype(np.float64, copy=False)
    if array.min() < 0 or array.max() == np.inf:
        bad = np.flatnonzero(~np.isfinite(array) | (array < 0))
        names = ", ".join(repr(ids[i]) if ids is not None else f"index {i}" for i in bad[:5])
        raise JudgeError(f"loss must be finite and >= 0; it is not for {names}")
    return array


def as_failures(values: ArrayLike) -> NDArray[np.bool_]:
    """Returns [N] bool. Raises JudgeError if a value is not 0 or 1."""
    array = np.asarray(values)
    if array.ndim != 1 or array.size == 0:
        raise JudgeError(f"failed must be one flag per sample, got shape {array.shape}")
    if array.dtype != np.bool_ and not np.isin(array, (0, 1)).all():
        raise JudgeError("failed must hold only 0 and 1 (or False and True)")
    return array.astype(np.bool_)


def same_length(**arrays: NDArray[Any]) -> None:
    """Raises JudgeError if the arrays differ in length."""
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise JudgeError("lengths differ: " + ", ".join(f"{name} {n}" for name, n in lengths.items()))


def argsort_scores(score: NDArray[Any]) -> NDArray[np.intp]:
    """Returns indices by rising score: exact, ties in any order.

    On a million as fast as an unstable argsort.
    """
    return _sort(score)[0]


def rank_scores(score: NDArray[Any]) -> Ranking:
    """Sorts once and finds the groups of equal scores."""
    order, ordered = _sort(score)
    last = np.ones(len(order), np.bool_)
    np.not_equal(ordered[1:], ordered[:-1], out=last[:-1])
    return Ranking(order, np.arange(len(order)) if last.all() else np.flatnonzero(last))


def _sort(score: NDArray[Any]) -> tuple[NDArray[np.intp], NDArray[Any]]:
    """Returns (order, score[order]).

    The index replaces the lowest bits of the score's own bit pattern, so that a plain sort of one uint64 does
    the work. Scores that then share a key (hardly any) are sorted again.
    """
    count = len(score)
    if count < _PACKED_FROM or count >= _PACKED_BELOW:
        order = np.argsort(score, kind="stable")
        return order, score[order]
    index_bits = np.uint64((1 << (count - 1).bit_length()) - 1)
    keys = _sortable_bits(score)
    # Makes room for the index.
    keys &= ~index_bits
    keys |= np.arange(count, dtype=np.uint64)
    keys.sort()
    order = (keys & index_bits).view(np.int64)
    ordered = score.take(order)
    # Scores that differ only in the overwritten bits were sorted by index.
    inverted = np.flatnonzero(ordered[1:] < ordered[:-1])
    if inverted.size:
        first = np.unique(keys[inverted] & ~index_bits)
        starts, stops = np.searchsorted(keys, first), np.searchsorted(keys, first | index_bits, side="right")
        _resort_runs(order, ordered, starts, stops - starts)
    return order, ordered


def _sortable_bits(score: NDArray[Any]) -> NDArray[np.uint64]:
    """Returns uint64 [N] in the order of the scores.

    Positive numbers get the sign bit flipped, negative ones all bits.
    """
    # Adding zero turns -0.0 into 0.0, which must tie with it.
    bits = (score.astype(np.float64, copy=False) + 0.0).view(np.int64)
    flips = bits >> 63
    flips |= np.int64(-(1 << 63))
    flips ^= bits
    return flips.view(np.uint64)


def _resort_runs(
    order: NDArray[np.intp], ordered: NDArray[Any], starts: NDArray[np.intp], sizes: NDArray[np.intp]
) -> None:
    """Puts runs of scores that share a key into their exact order, in place in both arrays."""
    places = np.repeat(starts - (np.cumsum(sizes) - sizes), sizes) + np.arange(int(sizes.sum()))
    # Runs are ordered among themselves already, so one sort of all of them keeps each run in its place.
    inner = places[np.argsort(ordered[places])]
    order[places], ordered[places] = order[inner], ordered[inner]


@dataclass(frozen=True)
class Marks:
    """Holds where along a ranking a value is not zero: failures are few, and most metrics need only those.

    places: [M], along the order.  values: [M].  groups: [T], the tie groups that hold such a place.
    starts: [T], the first place of each group among the M; None if no scores are tied.
    """

    places: NDArray[np.intp]
    values: Floats
    groups: NDArray[np.intp]
    starts: NDArray[np.intp] | None

    @classmethod
    def of(cls, ranking: Ranking, values: NDArray[Any]) -> Marks:
        """Returns the marks of values [N], given in the order of the scores."""
        ordered = values.take(ranking.order).astype(np.float64, copy=False)
        places = np.flatnonzero(ordered)
        if ranking.distinct:
            return cls(places, ordered[places], places, None)
        groups = np.searchsorted(ranking.ends, places)
        starts = np.flatnonzero(np.diff(groups, prepend=-1))
        return cls(places, ordered[places], groups[starts], starts)


class Steps:
    """Holds what the marked tie groups add, for each of B rows of weights. Each made when asked for."""

    def __init__(self, sums: Sums, marks: Marks) -> None:
        self._sums, self._marks = sums, marks

    @cached_property
    def added(self) -> Floats:
        """Returns the summed values in each group, [B,T]."""
        weights, marks = self._sums.ordered_weights, self._marks
        if weights is None:
            added = marks.values[None]
        else:
            every = len(marks.places) == weights.shape[1]
            added = (weights if every else weights.take(marks.places, axis=1)) * marks.values
        # reduceat takes no empty list of starts.
        if marks.starts is None or not marks.starts.size:
            return added
        return np.asarray(np.add.reduceat(added, marks.starts, axis=1))

    @cached_property
    def start(self) -> Floats:
        """Returns the samples before each group, [B,T]."""
        covered, groups = self._sums.covered, self._marks.groups
        if len(groups) == covered.shape[1]:
            return before(covered)
        start = covered.take(groups - 1, axis=1)
        start[:, groups == 0] = 0
        return start

    @cached_property
    def stop(self) -> Floats:
        """Returns the samples up to the end of each group, [B,T]."""
        covered, groups = self._sums.covered, self._marks.groups
        return covered if len(groups) == covered.shape[1] else covered.take(groups, axis=1)

    @cached_property
    def total(self) -> Floats:
        """Returns the sum of all values, [B]."""
        weights, marks = self._sums.ordered_weights, self._marks
        if weights is not None and len(marks.places) == weights.shape[1]:
            return np.asarray(weights @ marks.values)
        return np.asarray(self.added.sum(axis=1))

    @cached_property
    def earlier(self) -> Floats:
        """Returns what was there before each group, [B,T]."""
        return before(np.cumsum(self.added, axis=1))

    @cached_property
    def halfway(self) -> Floats:
        """Returns the sum over groups of what each adds, times the samples up to its middle, [B]."""
        return np.asarray(np.einsum("bt,bt->b", self.added, self.start + self.stop) / 2)


class Ranked:
    """Holds failures and losses along a ranking: what no resample changes is worked out once.

    Args:
        ranking: of the score.
        failed: [N] bool.
        loss: [N].
    """

    def __init__(
        self, ranking: Ranking, *, failed: NDArray[np.bool_] | None = None, loss: Floats | None = None
    ) -> None:
        self.ranking, self._failed, self._loss = ranking, failed, loss

    @cached_property
    def failures(self) -> Marks:
        """Returns where the failures are."""
        assert self._failed is not None
        return Marks.of(self.ranking, self._failed)

    @cached_property
    def losses(self) -> Marks:
        """Returns where the losses above zero are."""
        # Failures as losses of 0 and 1 are common: their sums are then computed once.
        if self._failed is not None and np.array_equal(self._failed, self.loss):
            return self.failures
        return Marks.of(self.ranking, self.loss)

    @property
    def loss(self) -> Floats:
        """Returns the losses in the order in which they were given, [N]."""
        assert self._loss is not None
        return self._loss

    def sums(self, weights: Floats | None = None, *, oracle: Floats | None = None) -> Sums:
        """Returns the sums of resamples, one row of whole counts [B,N] each; without weights, of the data.

        oracle: AURC of a perfect score on the same rows [B], for E-AURC.
        """
        return Sums(self, weights=weights, oracle=oracle)


class Sums:
    """Holds cumulated counts, failures and losses along a ranking, for each row of weights [B,N].

    Each made once. `Ranked.sums` makes it.
    """

    def __init__(self, data: Ranked, *, weights: Floats | None = None, oracle: Floats | None = None) -> None:
        self.data, self.ranking, self.weights, self.oracle = data, data.ranking, weights, oracle

    @cached_property
    def covered(self) -> Floats:
        """Returns the samples up to the end of each tie group, [B,G]."""
        if self.ordered_weights is None:
            return (self.ranking.ends + 1).astype(np.float64)[None]
        sums = np.cumsum(self.ordered_weights, axis=1)
        return sums if self.ranking.distinct else sums[:, self.ranking.ends]

    @property
    def samples(self) -> Floats:
        """Returns the number of samples, [B]."""
        return self.covered[:, -1]

    @cached_property
    def failures(self) -> Steps:
        """Returns what the tie groups with failures add."""
        return Steps(self, self.data.failures)

    @cached_property
    def losses(self) -> Steps:
        """Returns what the tie groups with losses add."""
        same = self.data.losses is self.data.__dict__.get("failures")
        return self.failures if same else Steps(self, self.data.losses)

    def cut(self, kept: Floats) -> NDArray[np.intp]:
        """Returns the tie group in which the first `kept` [B] samples end, [B,1]."""
        rows, groups = self.covered.shape
        if _SEARCH_FROM * rows > groups:
            found = (self.covered < kept[:, None]).sum(axis=1)
        else:
            found = np.array([np.searchsorted(row, k) for row, k in zip(self.covered, kept, strict=True)])
        return np.asarray(np.minimum(found, groups - 1))

    @cached_property
    def ordered_weights(self) -> Floats | None:
        """Returns the weights along the order, [B,N]; None is one row of ones."""
        return None if self.weights is None else self.weights.take(self.ranking.order, axis=1)


def before(sums: Floats) -> Floats:
    """Returns what was there before each tie group: cumulated [B,G], one group later."""
    shifted = np.zeros_like(sums)
    shifted[:, 1:] = sums[:, :-1]
    return shifted
