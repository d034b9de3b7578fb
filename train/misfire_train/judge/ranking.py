"""Sorting a score once, exactly and fast, and cumulating anything along that order.

score [N] --rank_scores--> Ranking (ascending order, ends of tie groups)
values [N], weights [B,N] --cumulate--> [B,G] sums up to the end of every tie group

Every metric of the judge is a formula on such cumulated sums, so a point estimate (one row of ones) and a
thousand bootstrap replicates (rows of counts) are the same code, and tied scores are always one step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from misfire_train.judge.errors import JudgeError

Floats = NDArray[np.float64]
_RADIX_FROM = 4096
"""Below this many scores a plain argsort is faster than packing keys."""


@dataclass(frozen=True)
class Ranking:
    """order: [N] indices by rising score. ends: [G] last position of each group of equal scores."""

    order: NDArray[np.intp]
    ends: NDArray[np.intp]

    @property
    def distinct(self) -> bool:
        """True where no two scores are equal."""
        return len(self.ends) == len(self.order)


def as_scores(values: ArrayLike, *, what: str = "score", ids: Sequence[str] | None = None) -> NDArray[Any]:
    """[N] float32 or float64, checked. Raises JudgeError on NaN (named by id), a wrong shape or no values."""
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
    """[N] float64, finite and >= 0. Raises JudgeError that names the first offenders."""
    array = as_scores(values, what="loss", ids=ids).astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(array) | (array < 0))
    if bad.size:
        names = ", ".join(repr(ids[i]) if ids is not None else f"index {i}" for i in bad[:5])
        raise JudgeError(f"loss must be finite and >= 0; it is not for {names}")
    return array


def as_failures(values: ArrayLike) -> NDArray[np.bool_]:
    """[N] bool. Raises JudgeError where values are other than 0 and 1."""
    array = np.asarray(values)
    if array.ndim != 1 or array.size == 0:
        raise JudgeError(f"failed must be one flag per sample, got shape {array.shape}")
    if array.dtype != np.bool_ and not np.isin(array, (0, 1)).all():
        raise JudgeError("failed must hold only 0 and 1 (or False and True)")
    return array.astype(np.bool_)


def same_length(**arrays: NDArray[Any]) -> None:
    """Raises JudgeError where the arrays differ in length."""
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise JudgeError("lengths differ: " + ", ".join(f"{name} {n}" for name, n in lengths.items()))


def argsort_scores(score: NDArray[Any]) -> NDArray[np.intp]:
    """Indices by rising score: exact, ties in any order; 3-5 times faster than np.argsort on a million.

    A float32 key and the index share one uint64, so that a plain vectorised sort does the work and nothing is
    gathered. For float64 the key is rounded; the few runs that rounding merged are sorted again.
    """
    count = len(score)
    if count < _RADIX_FROM or count >= 1 << 32:
        return np.argsort(score, kind="stable")
    with np.errstate(over="ignore"):
        # Adding zero turns -0.0 into 0.0, which must tie with it.
        bits = (score.astype(np.float32) + np.float32(0)).view(np.uint32)
    keys = np.where(bits >> np.uint32(31), ~bits, bits | np.uint32(0x80000000))
    packed = keys.astype(np.uint64)
    packed <<= np.uint64(32)
    packed |= np.arange(count, dtype=np.uint64)
    packed.sort()
    order = (packed & np.uint64(0xFFFFFFFF)).astype(np.intp)
    if score.dtype == np.float32:
        return order
    return _resort_merged(order, score, (packed >> np.uint64(32)).astype(np.uint32))


def _resort_merged(order: NDArray[np.intp], score: Floats, keys: NDArray[np.uint32]) -> NDArray[np.intp]:
    ordered = score[order]
    if not (ordered[1:] < ordered[:-1]).any():
        return order
    same = keys[1:] == keys[:-1]
    merged = np.zeros(len(order), np.bool_)
    merged[1:] |= same
    merged[:-1] |= same
    places = np.flatnonzero(merged)
    # Runs are ordered among themselves already, so one sort of all of them keeps each run in its place.
    order[places] = order[places][np.argsort(ordered[places], kind="stable")]
    return order


def rank_scores(score: NDArray[Any]) -> Ranking:
    """Sorts once and finds the groups of equal scores."""
    order = argsort_scores(score)
    ordered = score[order]
    ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
    return Ranking(order, ends)


def cumulate(ranking: Ranking, values: NDArray[Any], weights: NDArray[Any] | None = None) -> Floats:
    """Weighted sums of `values` [N] up to the end of each tie group: [B,G]; B is 1 without weights [B,N]."""
    ordered = values[ranking.order][None].astype(np.float64, copy=False)
    if weights is not None:
        ordered = weights[:, ranking.order] * ordered
    sums = np.cumsum(ordered, axis=1)
    return sums if ranking.distinct else sums[:, ranking.ends]


def counts(ranking: Ranking, weights: NDArray[Any] | None = None) -> Floats:
    """How many (weighted) samples lie up to the end of each tie group: [B,G]."""
    if weights is None:
        return (ranking.ends + 1).astype(np.float64)[None]
    sums = np.cumsum(weights[:, ranking.order], axis=1, dtype=np.float64)
    return sums if ranking.distinct else sums[:, ranking.ends]


def steps(sums: Floats) -> tuple[Floats, Floats]:
    """From cumulated [B,G]: (what was there before each group, what each group adds)."""
    before = np.concatenate([np.zeros((len(sums), 1)), sums[:, :-1]], axis=1)
    return before, sums - before
