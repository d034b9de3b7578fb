"""Cuts all frames into strata of their score, and deals labels to them.

histogram of the score --rank of each bin --failure_curve--> assumed P(failure) --cut--> strata of equal worth

A frame is worth sqrt(f (1 - f)) labels (Neyman 1934), f being the probability of failure at its rank. The
curve is fixed in advance, and depends on no label: a wrong curve costs some width (docs/field-truth.md has
numbers), while one that was fitted to the labels could bend the estimate. A part of the worth is equal for
all frames, so that no stratum goes without labels if the score is worthless.
"""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

from misfire_fleet.truth.intervals import Array

STRATA = 8
_LEVEL, _SLOPE = -4.0, 1.6
"""Log-odds of failure at the median, and per standard deviation of the rank: about 4.5 % failures at an AUROC
of .86. Chosen on simulated scores (2 to 30 % failures, AUROC .7 to .96), never on a data set."""
_EQUAL = 0.5
"""Part of the worth that all frames have alike, so that a wrong curve starves no stratum."""


def ranks(counts: ArrayLike) -> Array:
    """Returns the share of frames below each bin and half of its own, [B]. counts: [B], rising score."""
    c = np.asarray(counts, float)
    return np.asarray((np.cumsum(c) - c / 2) / max(c.sum(), 1e-300))


def failure_curve(rank: ArrayLike) -> Array:
    """Returns the assumed probability of failure of frames at these ranks of the score, 0..1."""
    inverse = np.frompyfunc(NormalDist().inv_cdf, 1, 1)
    z = inverse(np.clip(np.asarray(rank, float), 1e-6, 1 - 1e-6)).astype(float)
    return np.asarray(1 / (1 + np.exp(-(_LEVEL + _SLOPE * z))))


def worth(counts: ArrayLike) -> Array:
    """Returns the share of the labels that each bin of the score deserves, [B]. counts: [B], rising score."""
    c = np.asarray(counts, float)
    f = failure_curve(ranks(c))
    spread = c * np.sqrt(f * (1 - f))
    return np.asarray((1 - _EQUAL) * spread / spread.sum() + _EQUAL * c / c.sum())


def cut(values: ArrayLike, counts: ArrayLike, *, strata: int = STRATA) -> Array:
    """Returns the edges of strata of equal worth: a score is in the stratum of the edges not above it.

    Args:
        values: [B] scores of the bins, rising.
        counts: [B] frames of the bins.
        strata: wanted number; many equal scores make fewer.

    Returns:
        At most `strata` - 1 edges, each the score of a bin.
    """
    v, c = np.asarray(values, float), np.asarray(counts, float)
    if not c.sum() > 0:
        return np.zeros(0)
    filled = np.cumsum(worth(c))
    before = np.concatenate([[0.0], filled[:-1]])
    # A bin goes to the stratum that has its middle.
    place = np.minimum(np.floor((before + filled) / 2 * strata).astype(int), strata - 1)
    return np.asarray(v[1:][place[1:] > place[:-1]])


def stratum_of(scores: ArrayLike, edges: ArrayLike) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """Returns the number of the stratum of each score, 0 for the lowest."""
    return np.searchsorted(np.asarray(edges, float), np.asarray(scores, float), side="right").astype(np.int64)


def deal(
    labels: int, worths: ArrayLike, available: ArrayLike
) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """Returns how many labels each stratum gets: by worth, and at most what is there.

    Args:
        labels: wanted in all.
        worths: [K] shares of the labels that the strata deserve.
        available: [K] frames that can be labelled.
    """
    share, left = np.asarray(worths, float), np.asarray(available, np.int64).copy()
    given = np.zeros(len(left), np.int64)
    wanted = min(labels, int(left.sum()))
    while wanted > 0:
        open_ = np.where(left > 0, np.maximum(share, 1e-12), 0.0)
        ideal = wanted * open_ / open_.sum()
        now = np.minimum(np.floor(ideal).astype(np.int64), left)
        if not now.any():
            # The largest remainders get one each.
            order = np.argsort(-np.where(left > 0, ideal, -1.0), kind="stable")[:wanted]
            now[order] = np.minimum(1, left[order])
        given, left, wanted = given + now, left - now, wanted - int(now.sum())
    return given
