"""Divides examples into parts: groups stay whole, classes spread evenly, the same seed gives the same parts.

A frame of a drive looks like its neighbours, so a split that divides a drive flatters every score that is
judged on it. Groups are assigned largest first, each to the part that lacks its classes most.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from misfire_runtime.errors import ConfigError
from misfire_train.data.examples import Examples
from misfire_train.errors import DatasetError

_GROUP_REMEDY = (
    ", name smaller groups with group=REGEX behind the path, or split without groups: group=none behind the "
    "path, or split.by_group = false in the training configuration"
)


def split(
    examples: Examples, *, fractions: Mapping[str, float], seed: int, by_group: bool = True
) -> dict[str, Examples]:
    """Returns parts by name, each of about fraction * N examples in the order of `examples`.

    The result depends only on ids, groups, classes and the seed, not on the order of the examples.

    Args:
        examples: N labelled images.
        fractions: share of each part, above zero, summing to at most 1; the remainder is in no part.
        seed: decides which examples go where.
        by_group: keep groups whole; else every example is assigned by itself.

    Raises:
        ConfigError: the fractions are not positive or sum to more than 1.
        DatasetError: a part would be empty.

    >>> from misfire_train.data import load_dataset
    >>> digits = load_dataset("digits").train
    >>> {name: len(part) for name, part in split(digits, fractions={"a": 0.5, "b": 0.5}, seed=0).items()}
    {'a': 676, 'b': 676}
    """
    _check_fractions(fractions)
    names = list(fractions)
    shares = np.array([fractions[name] for name in names], np.float64)
    units = examples.groups if by_group else examples.ids
    classes = _strata(examples.targets)
    if len(set(units)) == len(units):
        part_of = _deal_singles(units, classes, shares, seed)
    else:
        part_of = _deal_groups(units, classes, shares, seed)
    parts = {name: examples.take(np.flatnonzero(part_of == k)) for k, name in enumerate(names)}
    empty = [name for name, part in parts.items() if len(part) == 0]
    if empty:
        wanted = ", ".join(f"{name} {value:.2g}" for name, value in fractions.items())
        few = (
            f"{len(set(units))} groups of {len(examples)} examples" if by_group else f"{len(units)} examples"
        )
        raise DatasetError(
            f"{few} are too few for the split {wanted}: {', '.join(empty)} would be empty; "
            "use more data or fewer parts" + (_GROUP_REMEDY if by_group else "")
        )
    return parts


def fraction_of(name: str) -> float:
    """Returns a number of [0,1) that depends only on the name, so it is the same in every generation."""
    # Python's own hash of a text differs between processes.
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return float(int.from_bytes(digest, "big")) / 2.0**64


def _check_fractions(fractions: Mapping[str, float]) -> None:
    if not fractions:
        raise ConfigError("a split needs at least one part")
    for name, value in fractions.items():
        if not (math.isfinite(value) and value > 0):
            raise ConfigError(f"the fraction of {name!r} is {value}; it must be above zero")
    # Fractions such as 0.7 + 0.2 + 0.1 may exceed 1 by rounding.
    if sum(fractions.values()) > 1 + 1e-9:
        raise ConfigError(f"the fractions sum to {sum(fractions.values()):.4g}; at most 1 is there to divide")


def _strata(targets: NDArray[np.generic]) -> NDArray[np.int64]:
    """Returns classes as 0..K-1 if targets are classes, else one stratum."""
    if targets.ndim == 1 and np.issubdtype(targets.dtype, np.integer):
        return np.asarray(np.unique(targets, return_inverse=True)[1], np.int64)
    return np.zeros(len(targets), np.int64)


def _shuffled(names: list[str], seed: int) -> list[int]:
    """Returns a permutation that depends only on the seed and the names, not on their order."""
    keys = [hashlib.blake2b(f"{seed}\x00{name}".encode(), digest_size=16).digest() for name in names]
    return sorted(range(len(names)), key=keys.__getitem__)


def _with_rest(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the shares and the remainder as one more part; they sum to 1."""
    return np.append(shares, max(0.0, 1 - float(shares.sum())))


def _deal_singles(
    units: tuple[str, ...], classes: NDArray[np.int64], shares: NDArray[np.float64], seed: int
) -> NDArray[np.int64]:
    """Assigns single examples class by class by largest remainder.

    Rounding debts carry over to the next class.
    """
    weights = _with_rest(shares)
    part_of = np.full(len(units), -1, np.int64)
    order = np.array(_shuffled(list(units), seed), np.int64)
    owed: NDArray[np.float64] = np.zeros(len(weights))
    for value in range(int(classes.max(initial=-1)) + 1):
        members = order[classes[order] == value]
        wanted = weights * len(members) + owed
        # The tolerance keeps 2.9999999 from becoming 2.
        counts = np.floor(wanted + 1e-9).clip(0).astype(np.int64)
        while (room := len(members) - int(counts.sum())) != 0:
            step = 1 if room > 0 else -1
            counts[int(np.argmax((wanted - counts) * step + np.where(counts + step < 0, -np.inf, 0)))] += step
        # Carried over, so that many small classes do not all round in favour of the same part.
        owed = wanted - counts
        part_of[members] = np.repeat(np.arange(len(weights)), counts)
    return np.where(part_of < len(shares), part_of, -1)


def _deal_groups(
    units: tuple[str, ...], classes: NDArray[np.int64], shares: NDArray[np.float64], seed: int
) -> NDArray[np.int64]:
    """Assigns groups, largest first, each to the part whose lack of its classes it fills best."""
    names, member_of = np.unique(np.array(units), return_inverse=True)
    counts: NDArray[np.float64] = np.zeros((len(names), int(classes.max(initial=0)) + 1))
    np.add.at(counts, (member_of, classes), 1)
    weights = _with_rest(shares)
    # Fractions that sum to 1 leave only a rounding error, which is not a part.
    weights = weights[: len(shares) + int(weights[-1] > 1e-9)]
    lack: NDArray[np.float64] = weights[:, None] * counts.sum(0)
    part_of_group = np.empty(len(names), np.int64)
    # The sort is stable, so groups of one size stay shuffled. Small groups come last to even out the parts.
    for group in sorted(_shuffled([str(name) for name in names], seed), key=lambda g: -counts[g].sum()):
        gain = np.minimum(lack, counts[group]).sum(1)
        emptiness = lack.sum(1) / weights
        # The last key of lexsort counts first: the gain, then emptiness. Rounding lets equal gains tie.
        part = int(np.lexsort((-emptiness, -np.round(gain, 6)))[0])
        part_of_group[group] = part
        lack[part] = np.maximum(lack[part] - counts[group], 0)
    _fill_empty(part_of_group, counts.sum(1), parts=len(shares))
    part_of = part_of_group[member_of]
    return np.where(part_of < len(shares), part_of, -1)


def _fill_empty(part_of_group: NDArray[np.int64], sizes: NDArray[np.float64], *, parts: int) -> None:
    """Gives each empty part the smallest group of a part that has several, in place."""
    for part in range(parts):
        if (part_of_group == part).any():
            continue
        held = np.bincount(part_of_group, minlength=parts + 1)
        spare = np.flatnonzero((held[part_of_group] > 1) | (part_of_group >= parts))
        if len(spare):
            part_of_group[spare[int(np.argmin(sizes[spare]))]] = part
