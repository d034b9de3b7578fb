"""What a score's values mean on this engine: quantiles, what thresholds cost and find, predicted loss.

Measurement --quantile_table--> percentiles        --operating_points--> threshold, recall, precision
            --fit_loss_scale--> c of c * exp(score)

Another engine or precision shifts every value, so all of this is measured anew on each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from misfire_export.errors import CalibrationError
from misfire_export.measuring import Measurement
from misfire_runtime.bundle import Calibration, Interval, OperatingPoint, QuantileTable
from misfire_train.judge.evidence import Evidence
from misfire_train.judge.metrics import (
    auroc,
    fit_loss_scale,
    loss_reliability,
    resample_weights,
    risk_coverage_curve,
)

LEAST_FRAMES = 50
"""A threshold for a 2 % upload rate needs one frame above it."""
RATES = (0.005, 0.01, 0.02, 0.05, 0.10, 0.20)
_LEVELS = (*(i / 100 for i in range(100)), 0.995, 0.999, 1.0)
_CURVE_POINTS = 101
_HISTOGRAM_BINS = 40


def require_frames(frames: int, *, least: int = LEAST_FRAMES) -> None:
    """Raises CalibrationError where a calibration set is too small, saying how many frames are needed."""
    if frames < least:
        raise CalibrationError(
            f"the calibration set has {frames} frames; at least {least} are needed "
            f"(a threshold for the top {100 / least:g} % needs one frame above it)"
        )


def quantile_table(values: NDArray[np.float64]) -> QuantileTable:
    """Quantiles of [N] values at 1 % steps and finer at the top."""
    quantiles = np.maximum.accumulate(np.quantile(values, _LEVELS))
    return QuantileTable(levels=_LEVELS, values=tuple(float(q) for q in quantiles), count=len(values))


def calibrate(
    name: str, measured: Measurement, *, engine: str, precision: str, predicts_loss: bool
) -> Calibration:
    """The calibration of one score. predicts_loss: the score is a log-loss up to a constant."""
    values = measured.scores[name]
    scale = fit_loss_scale(values, measured.loss) if predicts_loss and measured.loss.mean() > 0 else None
    return Calibration(
        engine=engine,
        precision=precision,
        quantiles=quantile_table(values),
        loss_scale=scale,
    )


def operating_points(
    name: str, measured: Measurement, *, rates: Sequence[float] = RATES, replicates: int = 1000, seed: int = 0
) -> tuple[OperatingPoint, ...]:
    """Thresholds for these upload rates, with recall and precision and their 95 % bootstrap intervals.

    Whole groups are resampled where there are enough of them. Rates finer than one frame are left out;
    without failures (or with nothing else) recall means nothing, and there are no points.
    """
    values, failed = measured.scores[name], measured.failed
    if failed.all() or not failed.any():
        return ()
    usable = [rate for rate in rates if rate * len(values) >= 1]
    ordered = np.sort(values)
    thresholds = np.array([ordered[len(values) - round(rate * len(values))] for rate in usable])
    flagged = values[None, :] >= thresholds[:, None]
    counts = _counts(flagged, failed, np.ones((1, len(values))))
    drawn = [
        _counts(flagged, failed, weights)
        for weights in resample_weights(_clusters(measured), replicates=replicates, seed=seed)
    ]
    replicas = {key: np.concatenate([block[key] for block in drawn]) for key in counts}
    points = []
    for i, threshold in enumerate(thresholds):
        hits, uploads, total = (float(counts[key][0, i]) for key in ("hits", "uploads", "failures"))
        points.append(
            OperatingPoint(
                threshold=float(threshold),
                upload_rate=uploads / len(values),
                failure_recall=_interval(hits, total, replicas["hits"][:, i], replicas["failures"][:, i]),
                failure_precision=_interval(hits, uploads, replicas["hits"][:, i], replicas["uploads"][:, i]),
            )
        )
    return tuple(points)


def report(name: str, measured: Measurement, *, loss_scale: float | None) -> dict[str, Any]:
    """What a person wants to see of a score: AUROC, risk by coverage, histogram, reliability of its loss."""
    values, failed = measured.scores[name], measured.failed
    both = bool(failed.any() and not failed.all())
    coverage, risk = risk_coverage_curve(values, measured.loss, points=_CURVE_POINTS)
    edges = np.linspace(*_span(values), _HISTOGRAM_BINS + 1)
    result: dict[str, Any] = {
        "auroc": auroc(values, failed) if both else None,
        "risk_coverage": {"coverage": _plain(coverage), "risk": _plain(risk)},
        "histogram": {
            "edges": _plain(edges),
            "right": np.histogram(values[~failed], edges)[0].tolist(),
            "failed": np.histogram(values[failed], edges)[0].tolist(),
        },
    }
    if loss_scale is not None:
        curve = loss_reliability(values, measured.loss, scale=loss_scale)
        result["reliability"] = {
            "error": curve.error,
            "relative_error": curve.relative_error,
            "bias": curve.bias,
            "bins": [
                {
                    "count": b.count,
                    "predicted": b.predicted,
                    "observed": b.observed,
                    "low": b.low,
                    "high": b.high,
                }
                for b in curve.bins
                if math.isfinite(b.low)
            ],
        }
    return result


def _clusters(measured: Measurement) -> NDArray[Any]:
    """What the bootstrap draws whole: groups where there are enough, else frames."""
    evidence = Evidence.of({}, failed=measured.failed, groups=np.asarray(measured.groups))
    return np.asarray(evidence.clusters()[0])


def _counts(
    flagged: NDArray[np.bool_], failed: NDArray[np.bool_], weights: NDArray[np.float64]
) -> Mapping[str, NDArray[np.float64]]:
    """Weighted hits, uploads and failures: [B, thresholds] each."""
    hits = weights @ (flagged & failed).T.astype(np.float64)
    uploads = weights @ flagged.T.astype(np.float64)
    failures = np.repeat((weights @ failed.astype(np.float64))[:, None], len(flagged), axis=1)
    return {"hits": hits, "uploads": uploads, "failures": failures}


def _interval(
    hits: float, total: float, hit_rows: NDArray[np.float64], total_rows: NDArray[np.float64]
) -> Interval:
    """A share with its bootstrap interval, or Wilson's where no resample differs from another."""
    shares = hit_rows[total_rows > 0] / total_rows[total_rows > 0]
    value = hits / total
    low, high = np.quantile(shares, [0.025, 0.975]) if shares.size else (value, value)
    if low == high:
        low, high = _wilson(hits, total)
    return Interval(value=value, low=float(min(low, value)), high=float(max(high, value)))


def _wilson(hits: float, total: float, *, z: float = 1.96) -> tuple[float, float]:
    share, square = hits / total, z * z / total
    centre = (share + square / 2) / (1 + square)
    half = z / (1 + square) * math.sqrt(share * (1 - share) / total + square / (4 * total))
    return max(0.0, centre - half), min(1.0, centre + half)


def _span(values: NDArray[np.float64]) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _plain(values: NDArray[Any]) -> list[float]:
    return [float(value) for value in values]
