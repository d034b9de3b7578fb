"""Computes Tables 1 and 2 of LearningLoss++ in closed form, for losses that are Gamma(k, Theta).

With u = delta / Theta and integer k, for X, Y independent:

    Table 1   P(|X - Y| <= delta) = 2 sum_j c_j gamma(j + 1, u),
              c_j = C(k-1, j) (2k-2-j)! / (2^(2k-1-j) (k-1)!^2)
    Table 2   E[min / (min + max) | |X - Y| = delta] = (1/2)(1 - u I_1 / I_0),
              I_m = integral over s > u of s^-m (s^2 - u^2)^(k-1) e^-s: incomplete gammas and E_1(u)

The published tables do not state k and Theta; k = 4, Theta = 0.0666 gives every printed digit, and no other
integer k does. `fit_gamma` fits both to any losses by maximum likelihood.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import comb, factorial, log

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special

from misfire_train.errors import ScoreError

SHAPE = 4
SCALE = 0.0666
TABLE_1_DELTAS = (0.02, 0.04, 0.06, 0.08, 0.10, 0.125, 0.15)
TABLE_2_DELTAS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)


def within(delta: ArrayLike, *, shape: int = SHAPE, scale: float = SCALE) -> NDArray[np.float64]:
    """Returns P(|X - Y| <= delta) of two Gamma(shape, scale) losses; LearningLoss++ Table 1.

    >>> float(within(0.02).round(3))
    0.094
    """
    u = _reduced(delta, shape, scale)
    total = np.zeros_like(u)
    for j in range(shape):
        weight = comb(shape - 1, j) * factorial(2 * shape - 2 - j)
        weight_over = 2 ** (2 * shape - 1 - j) * factorial(shape - 1) ** 2
        total += weight / weight_over * factorial(j) * special.gammainc(j + 1, u)
    return np.asarray(2 * total, np.float64)


def lower_share(delta: ArrayLike, *, shape: int = SHAPE, scale: float = SCALE) -> NDArray[np.float64]:
    """Returns E[p_i] of the sample with the lower loss, if the two losses differ by `delta`; Table 2.

    >>> float(lower_share(0.1).round(2))
    0.39
    """
    u = _reduced(delta, shape, scale)
    positive = np.where(u > 0, u, 1.0)
    first, zeroth = np.zeros_like(u), np.zeros_like(u)
    for m in range(shape):
        weight = comb(shape - 1, m) * (-(positive**2)) ** (shape - 1 - m)
        zeroth += weight * factorial(2 * m) * special.gammaincc(2 * m + 1, positive)
        upper = (
            special.exp1(positive) if m == 0 else factorial(2 * m - 1) * special.gammaincc(2 * m, positive)
        )
        first += weight * upper
    return np.asarray(np.where(u > 0, 0.5 * (1 - positive * first / zeroth), 0.5), np.float64)


def table_1() -> list[float]:
    """Returns the 7 probabilities of Table 1, unrounded."""
    return [float(value) for value in within(TABLE_1_DELTAS)]


def table_2() -> list[float]:
    """Returns the 6 expected shares of Table 2, unrounded."""
    return [float(value) for value in lower_share(TABLE_2_DELTAS)]


@dataclass(frozen=True)
class GammaFit:
    """Holds Gamma(k, Theta) fitted to losses: `shape` k, `scale` Theta, their product the mean loss."""

    shape: float
    scale: float
    count: int
    log_likelihood: float


def fit_gamma(losses: ArrayLike) -> GammaFit:
    """Fits k and Theta by maximum likelihood.

    losses: any shape, all finite and above zero, at least two different values; else ScoreError, which counts
    the wrong ones and locates the first.

    >>> fit = fit_gamma(np.random.default_rng(0).gamma(4.0, 0.0666, 20_000))
    >>> abs(fit.shape - 4) < 0.1, abs(fit.scale - 0.0666) < 0.002
    (True, True)
    """
    values = np.asarray(losses, np.float64).ravel()
    wrong = ~(np.isfinite(values) & (values > 0))
    if wrong.any():
        raise ScoreError(
            f"{int(wrong.sum())} of {values.size} losses are not finite and above zero; the first is "
            f"{values[int(wrong.argmax())]} at position {int(wrong.argmax())}"
        )
    if values.size < 2 or np.ptp(values) == 0:
        raise ScoreError(f"a gamma fit needs at least 2 different losses, got {values.size}")
    mean, mean_log = float(values.mean()), float(np.log(values).mean())
    # Almost equal losses have a gap that rounding may make negative.
    gap = max(log(mean) - mean_log, 1e-12)

    def slope(log_shape: float) -> float:
        shape = np.exp(log_shape)
        return float(log_shape - special.digamma(shape) - gap)

    # The usual closed approximation of the shape, a few per cent off; the bracket around it is wide.
    start = (3 - gap + np.sqrt((gap - 3) ** 2 + 24 * gap)) / (12 * gap)
    shape = float(np.exp(optimize.brentq(slope, np.log(start) - 3, np.log(start) + 3)))
    scale = mean / shape
    likelihood = values.size * (
        (shape - 1) * mean_log - mean / scale - special.gammaln(shape) - shape * log(scale)
    )
    return GammaFit(shape, scale, int(values.size), float(likelihood))


def _reduced(delta: ArrayLike, shape: int, scale: float) -> NDArray[np.float64]:
    if shape < 1 or scale <= 0:
        raise ScoreError(f"shape {shape} must be a positive integer and scale {scale} above zero")
    values = np.asarray(delta, np.float64)
    if np.any(values < 0) or not np.all(np.isfinite(values)):
        raise ScoreError("loss differences must be finite and at least 0")
    return values / scale
