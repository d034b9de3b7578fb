"""Turns scores and truth into a Report with `evaluate`, from nothing but arrays.

scores, failures or losses, groups, shifts --Evidence--> every metric under every condition, with intervals
                                            --choose_score--> which score to trigger on
                                            --slice_report--> who fails and who is flagged
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from misfire_train.errors import JudgeError
from misfire_train.judge.evidence import CLEAN, Evidence
from misfire_train.judge.gate import GateRules, choose_score
from misfire_train.judge.report import (
    ALL,
    WITHOUT,
    Condition,
    Curve,
    FrameExample,
    LossCalibration,
    Report,
    ScoreRow,
)
from misfire_train.judge.slices import MIN_FRAMES, slice_report
from misfire_train.metrics.bootstrap import ROW_METRICS, estimate, point, replicate
from misfire_train.metrics.calibration import loss_reliability, reliability
from misfire_train.metrics.correlation import kendall, pair_accuracy, spearman
from misfire_train.metrics.counts import CountTable, count_table
from misfire_train.metrics.detection import BUDGETS, budget_table
from misfire_train.metrics.loss_curve import LossCurve, fit_loss_curve
from misfire_train.metrics.risk import augrc_references, aurc_references, risk_coverage_curve

# Slices compare who is flagged at one upload rate; at 5 % a slice of a few hundred frames has flags to count.
FLAG_BUDGET = 0.05
_FRAMES_SHOWN = 8
# Enough for a smooth curve in a plot of a few hundred pixels.
_CURVE_POINTS = 80


def evaluate(
    evidence: Evidence,
    rules: GateRules,
    *,
    slices: Mapping[str, ArrayLike] | None = None,
    loss_scales: Mapping[str, LossCurve | float | None] | None = None,
    loss_scales_from: str = "other frames",
    replicates: int = 300,
    min_frames: int = MIN_FRAMES,
    settings: Mapping[str, Any] | None = None,
) -> Report:
    """Judges scores [N] on data that neither the model nor a score was fitted on.

    Args:
        evidence: Scores, truth, and the origin of each row.
        rules: Which scores are free, and how the gate decides. A refitted score is in its condition's
            table beside the original, as "NAME without SHIFT".
        slices: {name: [N] labels} such as weather or camera, compared on clean rows.
        loss_scales: Scores that predict the loss: by a curve, or as c * exp(score) with this c; None fits
            a curve on half of the clean frames and judges it on the other half.
        loss_scales_from: Where given ones come from.
        replicates: Bootstrap resamples of the tables; `rules` has those of the gate.
        min_frames: Slices with fewer frames are listed, not compared.
        settings: Kept in the report.

    Raises:
        JudgeError: No free score, a slice of another length, or a loss scale of a score that is not there.

    >>> rng = np.random.default_rng(0)
    >>> loss = rng.exponential(size=1000)
    >>> scores = {"msp": loss + rng.normal(size=1000), "head": np.log(loss) + 0.3 * rng.normal(size=1000)}
    >>> evidence = Evidence.of(scores, loss=loss, failure_threshold=2.0)
    >>> rules = GateRules({"msp"}, replicates=100)
    >>> report = evaluate(evidence, rules, loss_scales={"head": None}, replicates=50)
    >>> report.gate.winner, report.conditions[0].failures
    ('head', 131)
    >>> round(report.condition("clean").score("msp").metrics["auroc"].value, 2)
    0.9
    """
    gate, seed = choose_score(evidence, rules), rules.seed
    names = sorted({str(shift) for shift in evidence.shifts}, key=lambda name: (name != CLEAN, name))
    rows = {name: np.flatnonzero(evidence.shifts == name) for name in names}
    if len(names) > 1:
        rows[ALL] = np.arange(len(evidence))
    conditions = tuple(
        _condition(
            name,
            evidence,
            where,
            rules.free,
            refitted={f"{s}{WITHOUT}{name}": np.asarray(v) for s, v in rules.refitted.get(name, {}).items()},
            against=gate.best_free,
            replicates=replicates,
            seed=seed,
        )
        for name, where in rows.items()
    )
    first = rows[names[0]]
    return Report(
        settings=dict(settings or {}) | {"failure_threshold": evidence.failure_threshold, "seed": seed},
        conditions=conditions,
        gate=gate,
        slices=_slices(
            evidence,
            first,
            slices or {},
            winner=gate.winner,
            min_frames=min_frames,
            replicates=replicates,
            seed=seed,
        ),
        calibrations=tuple(
            _calibration(name, evidence, first, scale=scale, source=loss_scales_from, seed=seed)
            for name, scale in (loss_scales or {}).items()
        ),
        curves=tuple(
            _curve(score, name, evidence, where)
            for name, where in rows.items()
            if name in (names[0], ALL)
            for score in evidence.scores
        ),
        frames=find_frames(evidence, gate.winner),
    )


def _condition(
    name: str,
    evidence: Evidence,
    rows: NDArray[np.intp],
    free: Collection[str],
    *,
    refitted: Mapping[str, NDArray[Any]],
    against: str,
    replicates: int,
    seed: int,
) -> Condition:
    failed, loss, risk = evidence.failed[rows], evidence.loss[rows], evidence.risk[rows]
    clusters, _ = evidence.clusters()
    parts = {score: values[rows] for score, values in {**evidence.scores, **refitted}.items()}
    drawn = replicate(
        parts,
        failed=failed,
        loss=risk,
        groups=clusters[rows],
        metrics=tuple(ROW_METRICS),
        replicates=replicates,
        seed=seed,
    )
    scores = tuple(
        ScoreRow(
            name=score,
            free=score in free,
            metrics={
                metric: estimate(point(values, failed=failed, loss=risk, metric=metric), drawn[score][metric])
                for metric in ROW_METRICS
            },
            agreement={
                "spearman": spearman(values, loss),
                "kendall": kendall(values, loss),
                "pair_accuracy": pair_accuracy(values, loss),
            },
            budgets=budget_table(values, failed, budgets=BUDGETS)
            if failed.any() and not failed.all()
            else (),
        )
        for score, values in parts.items()
    )
    return Condition(
        name=name,
        samples=len(rows),
        failures=int(failed.sum()),
        mean_loss=float(loss.mean()),
        aurc=aurc_references(risk),
        augrc=augrc_references(risk),
        scores=scores,
        counts=_counts(evidence, rows, parts, against=against, replicates=replicates, seed=seed),
    )


def _counts(
    evidence: Evidence,
    rows: NDArray[np.intp],
    scores: Mapping[str, NDArray[Any]],
    *,
    against: str,
    replicates: int,
    seed: int,
) -> CountTable | None:
    if not evidence.counts:
        return None
    return count_table(
        scores,
        {name: values[rows] for name, values in evidence.counts.items()},
        against=against,
        groups=evidence.clusters()[0][rows],
        replicates=replicates,
        seed=seed,
    )


def _slices(
    evidence: Evidence,
    rows: NDArray[np.intp],
    slices: Mapping[str, ArrayLike],
    *,
    winner: str,
    min_frames: int,
    replicates: int,
    seed: int,
) -> tuple[Any, ...]:
    score = evidence.scores[winner][rows]
    threshold = float(np.quantile(score, 1 - FLAG_BUDGET))
    clusters, _ = evidence.clusters()
    found = []
    for name, labels in slices.items():
        column = np.asarray(labels)
        if len(column) != len(evidence):
            raise JudgeError(f"slice {name!r} has {len(column)} labels for {len(evidence)} rows")
        found.append(
            slice_report(
                name,
                column[rows],
                score=score,
                failed=evidence.failed[rows],
                threshold=threshold,
                clusters=clusters[rows],
                min_frames=min_frames,
                replicates=replicates,
                seed=seed,
            )
        )
    return tuple(found)


def _calibration(
    name: str,
    evidence: Evidence,
    rows: NDArray[np.intp],
    *,
    scale: LossCurve | float | None,
    source: str,
    seed: int,
) -> LossCalibration:
    if name not in evidence.scores:
        raise JudgeError(f"no score {name!r} to calibrate; there are {', '.join(evidence.scores)}")
    score, loss = evidence.scores[name][rows], evidence.loss[rows]
    if scale is not None:
        return _reliable(name, source, scale, score, loss)
    # Whole groups go to one half: frames of one drive in both would make the curve look better than it is.
    labels, members = np.unique(evidence.clusters()[0][rows], return_inverse=True)
    half = np.random.default_rng(seed).permutation(len(labels)) < len(labels) // 2
    fitting = half[members]
    if not fitting.any() or fitting.all():
        raise JudgeError("one group cannot be halved: give the loss curve of another set")
    fitted = fit_loss_curve(score[fitting], loss[fitting])
    if fitted is None:
        raise JudgeError(f"{name} or the loss is the same on all of half of the frames: it has no loss curve")
    return _reliable(name, "the other half of the clean frames", fitted, score[~fitting], loss[~fitting])


def _reliable(
    name: str, source: str, fitted: LossCurve | float, score: NDArray[Any], loss: NDArray[Any]
) -> LossCalibration:
    found = (
        reliability(fitted.predict(score), loss)
        if isinstance(fitted, LossCurve)
        else loss_reliability(score, loss, scale=fitted)
    )
    return LossCalibration(
        score=name,
        fitted_on=source,
        reliability=found,
        curve=fitted if isinstance(fitted, LossCurve) else None,
        scale=None if isinstance(fitted, LossCurve) else fitted,
        within=found.within(),
        consistent=found.consistent(),
    )


def _curve(score: str, condition: str, evidence: Evidence, rows: NDArray[np.intp]) -> Curve:
    coverage, risk = risk_coverage_curve(
        evidence.scores[score][rows], evidence.risk[rows], points=_CURVE_POINTS
    )
    return Curve(score, condition, tuple(coverage.tolist()), tuple(risk.tolist()))


def find_frames(evidence: Evidence, score: str, *, shown: int = _FRAMES_SHOWN) -> tuple[FrameExample, ...]:
    """Returns the worst frames, the surprising ones (high loss, low score) and the false alarms.

    No photo twice.
    """
    percentile = _percentiles(evidence.scores[score])
    surprise = _percentiles(evidence.loss) - percentile
    wrong = evidence.failed
    rankings = {
        "worst": np.lexsort((evidence.scores[score], -evidence.loss)),
        # Successes sort to the end and are cut off; so do failures below.
        "missed": np.argsort(np.where(wrong, -surprise, np.inf), kind="stable")[: int(wrong.sum())],
        "false alarm": np.argsort(np.where(wrong, np.inf, surprise), kind="stable")[: int((~wrong).sum())],
    }
    found = []
    for kind, order in rankings.items():
        seen: set[str] = set()
        for row in order:
            frame = str(evidence.frames[row])
            # Corrupted copies of one photo would fill the list.
            if frame in seen:
                continue
            seen.add(frame)
            found.append(
                FrameExample(
                    kind=kind,
                    frame=frame,
                    shift=str(evidence.shifts[row]),
                    loss=float(evidence.loss[row]),
                    failed=bool(wrong[row]),
                    percentile=float(percentile[row]),
                )
            )
            if len(seen) == shown:
                break
    return tuple(found)


def _percentiles(values: NDArray[Any]) -> NDArray[np.float64]:
    """Returns the percentage of values at or below each, [N]."""
    ordered = np.sort(values)
    return np.asarray(100 * np.searchsorted(ordered, values, side="right") / len(values))
