"""Measures how a score agrees with the true loss: Spearman, Kendall's tau-b, pair accuracy; all O(N log N).

These describe a loss predictor. They do not decide which score triggers: softmax entropy orders almost all
pairs right and may still miss what fails, so the release gate uses AUROC and AURC instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from misfire_train.metrics.ranking import Floats, argsort_scores, as_scores, rank_scores, same_length


def spearman(score: ArrayLike, loss: ArrayLike) -> float:
    """Returns the Pearson correlation of average ranks; NaN if one side is constant."""
    a, b = _pair(score, loss)
    ranks_a, ranks_b = average_ranks(a), average_ranks(b)
    ranks_a -= ranks_a.mean()
    ranks_b -= ranks_b.mean()
    scale = np.sqrt((ranks_a @ ranks_a) * (ranks_b @ ranks_b))
    return float(ranks_a @ ranks_b / scale) if scale > 0 else float("nan")


def kendall(score: ArrayLike, loss: ArrayLike) -> float:
    """Returns Kendall's tau-b (ties corrected); NaN if one side is constant."""
    pairs = count_pairs(score, loss)
    # np.sqrt takes no integer beyond 64 bits, which the product of two pair counts soon exceeds.
    scale = float(pairs.total - pairs.tied_score) * float(pairs.total - pairs.tied_loss)
    return (pairs.concordant - pairs.discordant) / float(np.sqrt(scale)) if scale > 0 else float("nan")


def pair_accuracy(score: ArrayLike, loss: ArrayLike) -> float:
    """Returns the share of pairs with different losses that the score orders right.

    A tied score is half right.

    0.5 is chance; NaN if all losses are equal.
    """
    pairs = count_pairs(score, loss)
    comparable = pairs.total - pairs.tied_loss
    if comparable == 0:
        return float("nan")
    tied_score_only = comparable - pairs.concordant - pairs.discordant
    return (pairs.concordant + tied_score_only / 2) / comparable


@dataclass(frozen=True)
class PairCounts:
    """Splits all N(N-1)/2 pairs. A pair tied in both counts in tied_score and in tied_loss."""

    total: int
    concordant: int
    discordant: int
    tied_score: int
    tied_loss: int


def count_pairs(score: ArrayLike, loss: ArrayLike) -> PairCounts:
    """Counts pairs in O(N log N): sort by (score, loss), then count inversions of the loss."""
    a, b = _pair(score, loss)
    dense_a, dense_b = _dense_ranks(a), _dense_ranks(b)
    # One key for both ranks: sorting by it sorts by score, then by loss.
    both = dense_a.astype(np.int64) * (int(dense_b.max()) + 1) + dense_b
    order = np.argsort(both, kind="stable")
    total = len(a) * (len(a) - 1) // 2
    tied_a, tied_b, tied_both = _tied(dense_a), _tied(dense_b), _tied_sorted(both[order])
    discordant = count_inversions(dense_b[order])
    concordant = total - tied_a - tied_b + tied_both - discordant
    return PairCounts(total, concordant, discordant, tied_a, tied_b)


def count_inversions(values: NDArray[np.intp]) -> int:
    """Returns the number of i < j with values[i] > values[j]; values are integers >= 0.

    A stable radix split from the highest bit down: at each bit, within a block of equal higher bits, every 0
    is inverted with each 1 before it.
    """
    current = np.asarray(values, np.int64)
    inversions = 0
    for bit in range(int(current.max()).bit_length() - 1, -1, -1):
        block = current >> (bit + 1)
        ones = (current >> bit) & 1
        starts = np.flatnonzero(np.append(True, block[1:] != block[:-1]))
        lengths = np.diff(np.append(starts, len(current)))
        ones_before = np.cumsum(ones) - ones
        ones_before -= np.repeat(ones_before[starts], lengths)
        inversions += int(ones_before[ones == 0].sum())
        block_zeros = np.add.reduceat(1 - ones, starts)
        place_in_block = np.arange(len(current)) - np.repeat(starts, lengths)
        target = np.where(
            ones == 1, np.repeat(block_zeros, lengths) + ones_before, place_in_block - ones_before
        )
        following = np.empty_like(current)
        following[target + np.repeat(starts, lengths)] = current
        current = following
    return inversions


def average_ranks(values: NDArray[Any]) -> Floats:
    """Returns 1-based ranks; tied values share their mean rank."""
    ranking = rank_scores(values)
    starts = np.append(0, ranking.ends[:-1] + 1)
    mean = (starts + ranking.ends) / 2 + 1
    ranks = np.empty(len(values))
    ranks[ranking.order] = np.repeat(mean, ranking.ends - starts + 1)
    return ranks


def _dense_ranks(values: NDArray[Any]) -> NDArray[np.intp]:
    order = argsort_scores(values)
    ordered = values[order]
    ranks = np.empty(len(values), np.intp)
    ranks[order] = np.cumsum(np.append(False, ordered[1:] != ordered[:-1]))
    return ranks


def _tied(dense: NDArray[np.intp]) -> int:
    sizes = np.bincount(dense).astype(np.int64)
    return int((sizes * (sizes - 1) // 2).sum())


def _tied_sorted(values: NDArray[np.int64]) -> int:
    ends = np.flatnonzero(np.append(values[1:] != values[:-1], True))
    sizes = np.diff(np.append(-1, ends)).astype(np.int64)
    return int((sizes * (sizes - 1) // 2).sum())


def _pair(score: ArrayLike, loss: ArrayLike) -> tuple[NDArray[Any], NDArray[Any]]:
    a, b = as_scores(score), as_scores(loss, what="loss")
    same_length(score=a, loss=b)
    return a, b
