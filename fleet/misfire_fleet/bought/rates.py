"""Computes what a stream of uploads found, for each label and each gigabyte, and how two streams compare.

failed [N], bytes [N], groups [N] --rates_of--> Rates        two Rates --ratio--> Estimate of their quotient

The interval of a rate is the wider one of Wilson's and of a bootstrap that draws whole groups. That of a
quotient is made of both rates' intervals (MOVER-R: Donner and Zou, 2012, eq. 9), which holds for rates near
zero, where a bootstrap does not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from misfire_train.judge.evidence import MIN_CLUSTERS
from misfire_train.metrics import Estimate, resample_weights, wilson
from misfire_train.metrics.bootstrap import estimate

GIGABYTE = 1e9


@dataclass(frozen=True)
class Rates:
    """Holds what a stream found.

    Attributes:
        labels, failures: that could be judged.
        groups: drives that they are of.
        per_label: failures per labelled sample.
        per_gb: failures per gigabyte of labelled samples.
    """

    labels: int
    failures: int
    groups: int
    per_label: Estimate
    per_gb: Estimate


def rates_of(
    failed: NDArray[np.bool_], size: NDArray[Any], groups: NDArray[Any], *, replicates: int, seed: int
) -> Rates:
    """Returns the rates of judged samples.

    Args:
        failed: [N] whether the sample shows a failure.
        size: [N] bytes.
        groups: [N] drives, which a resample draws whole if there are at least 20.
        replicates: number of resamples.
        seed: of the resamples.
    """
    count, hits, total = len(failed), int(failed.sum()), float(np.sum(size)) / GIGABYTE
    drives = len(set(groups.tolist()))
    if not count or total <= 0:
        nothing = Estimate(math.nan, math.nan, math.nan, 0.0)
        return Rates(count, hits, drives, nothing, nothing)
    low, high = wilson(hits, count)
    clusters = groups if drives >= MIN_CLUSTERS else np.arange(count)
    drawn: list[NDArray[np.float64]] = [np.zeros(0)]
    heavy: list[NDArray[np.float64]] = [np.zeros(0)]
    weighed = np.asarray(size, float) / GIGABYTE
    for weights in resample_weights(clusters, replicates=replicates, seed=seed):
        found = weights @ failed.astype(float)
        drawn.append(found / np.maximum(weights.sum(axis=1), 1e-12))
        heavy.append(found / np.maximum(weights @ weighed, 1e-12))
    return Rates(
        count,
        hits,
        drives,
        _joined(hits / count, np.concatenate(drawn), low, high),
        _joined(hits / total, np.concatenate(heavy), low * count / total, high * count / total),
    )


def _joined(value: float, drawn: NDArray[np.float64], low: float, high: float) -> Estimate:
    found = estimate(value, drawn)
    return Estimate(value, float(np.fmin(found.low, low)), float(np.fmax(found.high, high)), found.usable)


def quotient(above: Estimate, below: Estimate) -> Estimate:
    """Returns a quotient of independent rates with its interval; infinite above a rate that may be zero.

    >>> found = quotient(Estimate(0.4, 0.3, 0.5), Estimate(0.1, 0.05, 0.18))
    >>> round(found.value, 2), round(found.low, 2), round(found.high, 2)
    (4.0, 2.07, 8.24)
    """
    p, q = above.value, below.value
    if not (math.isfinite(p) and math.isfinite(q)):
        return Estimate(math.nan, math.nan, math.nan, 0.0)
    product = p * q
    # Rationalised, so that nothing is divided by a difference that may vanish.
    first = above.low * (2 * p - above.low)
    under = product + math.sqrt(max(0.0, product**2 - first * below.high * (2 * q - below.high)))
    low = first / under if under > 0 else 0.0
    last = below.low * (2 * q - below.low)
    if last <= 0:
        return Estimate(p / q if q > 0 else math.inf, low, math.inf)
    over = product + math.sqrt(max(0.0, product**2 - above.high * (2 * p - above.high) * last))
    return Estimate(p / q, low, over / last)
