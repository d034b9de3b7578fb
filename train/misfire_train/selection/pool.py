"""Keeps the rows that can be chosen.

A row is excluded if it is labelled, was chosen, or its class or group has its share. Every method takes one
index at a time from a `Pool`, so no index comes twice and quotas hold for all methods. Quotas are equal
shares. What a small group cannot fill goes to the others; nothing is cut off.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from misfire_train.errors import SelectionError


class Pool:
    """Keeps the rows that can be chosen, those that were chosen, and the quotas.

    Args:
        size: rows of the pool.
        k: number of rows to choose.
        excluded: rows that are labelled already.
        balance: [size] class or group of each row for equal shares, or None.
        seed: breaks ties between shares.

    Raises:
        SelectionError: k is not in 1..available.
    """

    def __init__(
        self,
        size: int,
        *,
        k: int,
        excluded: NDArray[np.int64] | None = None,
        balance: ArrayLike | None = None,
        seed: int = 0,
    ) -> None:
        self.k = k
        self.available = np.ones(size, np.bool_)
        if excluded is not None:
            self.available[excluded] = False
        left = int(self.available.sum())
        if k < 1:
            raise SelectionError(f"k must be at least 1, got {k}")
        if left == 0:
            raise SelectionError("the pool is empty: every row is labelled already")
        if k > left:
            raise SelectionError(f"k is {k}, but only {left} rows can be chosen")
        self.chosen: list[int] = []
        self._members: NDArray[np.intp] | None = None
        if balance is not None:
            self._members, self._quota = _quotas(balance, self.available, k=k, seed=seed)
            # Groups without a share are closed from the start.
            self._close(np.flatnonzero(self._quota == 0))

    @property
    def open(self) -> bool:
        """Returns whether more rows are to be chosen."""
        return len(self.chosen) < self.k

    def take(self, index: int) -> NDArray[np.intp]:
        """Chooses a row. Returns the rows that can no longer be chosen from now on, itself included."""
        if not self.available[index]:
            raise SelectionError(f"row {index} cannot be chosen (any more)")
        self.chosen.append(index)
        self.available[index] = False
        if self._members is None:
            return np.array([index])
        group = self._members[index]
        self._quota[group] -= 1
        return self._close(np.array([group])) if self._quota[group] == 0 else np.array([index])

    def result(self) -> NDArray[np.int64]:
        """Returns the chosen rows in the order of choice."""
        return np.array(self.chosen, np.int64)

    def _close(self, groups: NDArray[np.intp]) -> NDArray[np.intp]:
        assert self._members is not None
        rows = np.flatnonzero(np.isin(self._members, groups))
        self.available[rows] = False
        return rows


def _quotas(
    balance: ArrayLike, available: NDArray[np.bool_], *, k: int, seed: int
) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
    labels = np.asarray(balance)
    if labels.shape != available.shape:
        raise SelectionError(f"balance needs one label per row: {labels.shape} for {available.shape}")
    _, members = np.unique(labels, return_inverse=True)
    sizes = np.bincount(members, weights=available).astype(np.int64)
    return members, equal_shares(sizes, k=k, seed=seed)


def equal_shares(sizes: NDArray[np.int64], *, k: int, seed: int = 0) -> NDArray[np.int64]:
    """Returns shares of k over groups of those sizes.

    They are as equal as the sizes allow and sum to min(k, total).
    """
    shares = np.zeros(len(sizes), np.int64)
    # Shuffled, so that a remainder does not always go to the first groups.
    order = np.random.default_rng(seed).permutation(len(sizes))
    left = min(k, int(sizes.sum()))
    while left:
        hungry = order[shares[order] < sizes[order]]
        each = left // len(hungry)
        # Fewer are left than groups: the first in the shuffled order get one each.
        if each == 0:
            shares[hungry[:left]] += 1
            break
        given = np.minimum(each, sizes[hungry] - shares[hungry])
        shares[hungry] += given
        left -= int(given.sum())
    return shares
