"""Deals frames into folds, so that what is set on some frames is judged on others.

groups [N] --whole drives while there are enough--> fold of each frame [N]

A threshold or a scale that is judged on the frames that set it looks better than it is. Here each fold is
judged by what the other folds set; what ships is set on all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# What ships is set on all frames; each fold is judged by what four fifths of them set.
FOLDS = 5


@dataclass(frozen=True)
class Folds:
    """Holds members, [N] fold of each frame from 0 to count-1. whole: no group is in two folds."""

    members: NDArray[np.intp]
    count: int
    whole: bool

    def __iter__(self) -> Iterator[tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
        """Yields (the frames of a fold, all others) as masks [N]."""
        for fold in range(self.count):
            inside = self.members == fold
            yield inside, ~inside

    @property
    def about(self) -> str:
        """Returns the division in words, for a report."""
        return f"{self.count} folds of whole {'groups' if self.whole else 'frames'}"


def deal(groups: Sequence[str], *, count: int = FOLDS, seed: int = 0) -> Folds:
    """Deals whole groups if there are at least `count` and none has half the frames, else single frames.

    >>> deal(["a", "a", "b", "c"], count=3).members.tolist()
    [0, 0, 2, 1]
    """
    labels, members = np.unique(np.asarray(groups), return_inverse=True)
    sizes = np.bincount(members)
    whole = len(labels) >= count and int(sizes.max()) * 2 <= max(len(members), 2)
    rng = np.random.default_rng(seed)
    if not whole:
        dealt = np.empty(len(members), np.intp)
        dealt[rng.permutation(len(members))] = np.arange(len(members)) % count
        return Folds(dealt, count, False)
    # The largest first, each into the fold that has the fewest frames.
    fold_of_group, frames = np.empty(len(labels), np.intp), np.zeros(count)
    shuffled = rng.permutation(len(labels))
    for group in shuffled[np.argsort(-sizes[shuffled], kind="stable")]:
        fold_of_group[group] = int(frames.argmin())
        frames[fold_of_group[group]] += sizes[group]
    return Folds(fold_of_group[members], count, True)
