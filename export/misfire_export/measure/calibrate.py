"""Measures what a score's values mean on this engine.

Measurement --quantile_table--> percentiles        --operating_points--> threshold, recall, precision
            --fit_loss_curve--> expected loss by score, in the task's units

What ships is set on all frames. Statements about it (recall, precision, reliability) are cross-fitted: each
fold of the frames is judged by thresholds and by a curve that the other folds set. Another engine or
precision shifts every value, so all of this is measured anew on each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from misfire_export.errors import CalibrationError
from misfire_export.measure.folds import Folds
from misfire_export.measure.run import Measurement
from misfire_runtime.bundle import Calibration, Interval, LossTable, OperatingPoint, QuantileTable
from misfire_train.judge.evidence import Evidence
from misfire_train.judge.gate import MIN_FAILURES
from misfire_train.metrics import (
    auroc,
    fit_loss_curve,
    fit_loss_scale,
    reliability,
    resample_weights,
    risk_coverage_curve,
    wilson,
)

WARNING = "WARNING: "
"""Begins a note on a model that looks wrong on the frames given; a summary shows these first."""
LEAST_FRAMES = 50
"""A threshold for a 2 % upload rate needs one frame above it."""
RATES = (0.005, 0.01, 0.02, 0.05, 0.10, 0.20)
# Finer at the top, where the thresholds of small upload rates are.
_LEVELS = (*(i / 100 for i in range(100)), 0.995, 0.999, 1.0)
_CURVE_POINTS = 101
_HISTOGRAM_BINS = 40
_CONSTANT = 1e-4
"""Share of a score's size below which values differ only by rounding."""


def require_frames(frames: int, *, least: int = LEAST_FRAMES) -> None:
    """Raises CalibrationError that names the number of frames needed, if a calibration set is too small."""
    if frames < least:
        raise CalibrationError(
            f"the calibration set has {frames} frames; at least {least} are needed "
            f"(a threshold for the top {100 / least:g} % needs one frame above it)"
        )


def quantile_table(values: NDArray[np.float64]) -> QuantileTable:
    """Returns quantiles of [N] values at 1 % steps and finer at the top."""
    # Interpolation may round a quantile below its neighbour; the table must not fall.
    quantiles = np.maximum.accumulate(np.quantile(values, _LEVELS))
    return QuantileTable(levels=_LEVELS, values=tuple(float(q) for q in quantiles), count=len(values))


def calibrate(
    name: str, measured: Measurement, *, engine: str, precision: str, predicts_loss: bool
) -> Calibration:
    """Returns the calibration of one score. predicts_loss: the score is a log-loss up to a constant."""
    values = measured.scores[name]
    # Without labels the mean loss is NaN, which is not above zero either.
    scale = fit_loss_scale(values, measured.loss) if predicts_loss and measured.loss.mean() > 0 else None
    curve = fit_loss_curve(values, measured.loss) if measured.labelled else None
    return Calibration(
        engine=engine,
        precision=precision,
        quantiles=quantile_table(values),
        loss_scale=scale,
        expected_loss=None if curve is None else LossTable(scores=curve.scores, losses=curve.losses),
    )


def operating_points(
    name: str,
    measured: Measurement,
    *,
    folds: Folds,
    rates: Sequence[float] = RATES,
    replicates: int = 1000,
    seed: int = 0,
) -> tuple[OperatingPoint, ...]:
    """Returns thresholds for these upload rates, with recall, precision and 95 % bootstrap intervals.

    The threshold is set on all frames. upload_rate, recall and precision are of frames judged by thresholds
    that the other folds set. Whole groups are resampled if there are enough of them. Rates finer than one
    frame are left out. Without failures, or without successes, recall means nothing and there are no points.
    Without labels there are thresholds and upload rates, but neither recall nor precision.
    """
    values, failed = measured.scores[name], measured.failed
    if measured.labelled and (failed.all() or not failed.any()):
        return ()
    # The smallest set from which a threshold is read.
    least = min(int(others.sum()) for _, others in folds)
    usable = [rate for rate in rates if rate * least >= 1]
    thresholds = _thresholds(values, usable)
    flagged = np.zeros((len(usable), len(values)), bool)
    for inside, others in folds:
        flagged[:, inside] = values[None, inside] >= _thresholds(values[others], usable)[:, None]
    if not measured.labelled:
        return tuple(
            OperatingPoint(threshold=float(threshold), upload_rate=float(row.mean()))
            for threshold, row in zip(thresholds, flagged, strict=True)
        )
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


def _thresholds(values: NDArray[np.float64], rates: Sequence[float]) -> NDArray[np.float64]:
    """Returns for each rate the value that this share of the frames reaches."""
    ordered = np.sort(values)
    return np.array([ordered[len(values) - max(1, round(rate * len(values)))] for rate in rates])


def report(name: str, measured: Measurement, *, folds: Folds, predicts_loss: bool) -> dict[str, Any]:
    """Returns AUROC, risk by coverage, a histogram and the reliability of a score's loss, for a report."""
    values, failed = measured.scores[name], measured.failed
    edges = np.linspace(*_span(values), _HISTOGRAM_BINS + 1)
    if not measured.labelled:
        counts = np.histogram(values, edges)[0].tolist()
        return {"auroc": None, "histogram": {"edges": _plain(edges), "frames": counts}}
    both = bool(failed.any() and not failed.all())
    coverage, risk = risk_coverage_curve(values, measured.loss, points=_CURVE_POINTS)
    result: dict[str, Any] = {
        "auroc": auroc(values, failed) if both else None,
        "risk_coverage": {"coverage": _plain(coverage), "risk": _plain(risk)},
        "histogram": {
            "edges": _plain(edges),
            "right": np.histogram(values[~failed], edges)[0].tolist(),
            "failed": np.histogram(values[failed], edges)[0].tolist(),
        },
    }
    if predicts_loss:
        result["reliability"] = _reliability(values, measured.loss, folds)
    return result


def score_notes(measured: Measurement, trigger: str) -> tuple[str, ...]:
    """Returns warnings of uninformative scores.

    They are the same on all frames, or the trigger ranks failures last.
    """
    notes = []
    for name, values in measured.scores.items():
        if float(np.ptp(values)) <= _CONSTANT * max(float(np.abs(values).max()), 1e-12):
            constant = float(np.median(values))
            notes.append(
                f"{WARNING}{name} is {constant:.4g} on all {len(values)} frames: it cannot tell them apart"
            )
    values, failed = measured.scores[trigger], measured.failed
    if min(failed.sum(), (~failed).sum()) >= MIN_FAILURES and auroc(values, failed) < 0.5:
        notes.append(
            f"{WARNING}the trigger {trigger} scores failures below successes (AUROC "
            f"{auroc(values, failed):.3f}): the answers, their classes or the normalisation are probably "
            "misread"
        )
    return tuple(notes)


def _reliability(values: NDArray[np.float64], loss: NDArray[np.float64], folds: Folds) -> dict[str, Any]:
    """Returns predicted against true loss, each fold's prediction by the curve of the other folds."""
    predicted = np.zeros(len(values))
    for inside, others in folds:
        curve = fit_loss_curve(values[others], loss[others])
        predicted[inside] = loss[others].mean() if curve is None else curve.predict(values[inside])
    found = reliability(predicted, loss)
    return {
        "cross_fitted": folds.about,
        "error": found.error,
        "relative_error": found.relative_error,
        "bias": found.bias,
        "within": found.within(),
        "consistent": found.consistent(),
        "bins": [asdict(b) for b in found.bins if math.isfinite(b.low)],
    }


def _clusters(measured: Measurement) -> NDArray[Any]:
    """Returns what the bootstrap draws whole: groups if there are enough, else frames."""
    evidence = Evidence.of({}, failed=measured.failed, groups=np.asarray(measured.groups))
    return np.asarray(evidence.clusters()[0])


def _counts(
    flagged: NDArray[np.bool_], failed: NDArray[np.bool_], weights: NDArray[np.float64]
) -> Mapping[str, NDArray[np.float64]]:
    """Returns weighted hits, uploads and failures: [B, thresholds] each."""
    hits = weights @ (flagged & failed).T.astype(np.float64)
    uploads = weights @ flagged.T.astype(np.float64)
    failures = np.repeat((weights @ failed.astype(np.float64))[:, None], len(flagged), axis=1)
    return {"hits": hits, "uploads": uploads, "failures": failures}


def _interval(
    hits: float, total: float, hit_rows: NDArray[np.float64], total_rows: NDArray[np.float64]
) -> Interval:
    """Returns a share with its bootstrap interval, or Wilson's if no resample differs from another.

    Of nothing (no fold's threshold was reached) it is 0, with an interval of 0 to 1.
    """
    shares = hit_rows[total_rows > 0] / total_rows[total_rows > 0]
    value = hits / total if total else 0.0
    low, high = np.quantile(shares, [0.025, 0.975]) if shares.size else (value, value)
    if low == high:
        low, high = wilson(hits, total)
    return Interval(value=value, low=float(min(low, value)), high=float(max(high, value)))


def _span(values: NDArray[np.float64]) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _plain(values: NDArray[Any]) -> list[float]:
    return [float(value) for value in values]
