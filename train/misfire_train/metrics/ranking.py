"""Sorts a score once, exactly and fast, and cumulates values along that order.

score [N] --rank_scores--> Ranking (ascending order, ends of tie groups)
failures, losses [N], weights [B,N] --Sums--> [B,G] sums up to the end of every tie group

Every metric of the judge is a formula on such cumulated sums. So a point estimate (one row of ones) and a
thousand bootstrap replicates (rows of counts) share one code, and tied scores are always one step.
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


class Sums:
    """Holds cumulated counts, failures and losses along a ranking, for each row of weights [B,N].

    Each made once.

    Args:
        ranking: of the score.
        failed: [N] bool.
        loss: [N].
        weights: whole counts [B,N], one row per resample; None is one row of ones.
        oracle: AURC of a perfect score on the same rows [B], for E-AURC.
    """

    def __init__(
        self,
        ranking: Ranking,
        *,
        failed: NDArray[np.bool_] | None = None,
        loss: Floats | None = None,
        weights: Floats | None = None,
        oracle: Floats | None = None,
    ) -> None:
        self.ranking, self.weights, self.oracle = ranking, weights, oracle
        self._failed, self._loss = failed, loss

    @cached_property
    def covered(self) -> Floats:
        """Returns the samples up to the end of each tie group, [B,G]."""
        if self._ordered_weights is None:
            return (self.ranking.ends + 1).astype(np.float64)[None]
        return self._at_ends(self._ordered_weights)

    @cached_property
    def positive(self) -> Floats:
        """Returns the failures up to the end of each tie group, [B,G]."""
        assert self._failed is not None
        return self._cumulated(self._failed)

    @cached_property
    def lost(self) -> Floats:
        """Returns the summed loss up to the end of each tie group, [B,G]."""
        return self._cumulated(self.loss)

    @property
    def loss(self) -> Floats:
        """Returns the losses in the order in which they were given, [N]."""
        assert self._loss is not None
        return self._loss

    @cached_property
    def _ordered_weights(self) -> Floats | None:
        return None if self.weights is None else self.weights.take(self.ranking.order, axis=1)

    def _cumulated(self, values: NDArray[Any]) -> Floats:
        ordered = values.take(self.ranking.order)[None].astype(np.float64, copy=False)
        return self._at_ends(ordered if self._ordered_weights is None else self._ordered_weights * ordered)

    def _at_ends(self, ordered: Floats) -> Floats:
        sums = np.cumsum(ordered, axis=1)
        return sums if self.ranking.distinct else sums[:, self.ranking.ends]


def before(sums: Floats) -> Floats:
    """Returns what was there before each tie group: cumulated [B,G], one group later."""
    shifted = np.zeros_like(sums)
    shifted[:, 1:] = sums[:, :-1]
    return shifted
