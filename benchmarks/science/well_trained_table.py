"""What well_trained.py says of its observations: points, paired intervals, goals, and a table in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.science.detection_table import Observed
from misfire_train.metrics.bootstrap import interval, point, replicate
from misfire_train.scores import names_for

Floats = NDArray[np.float64]
HEAD = "learning_loss_pp"
LEFT_OUT = f"{HEAD}, left out"
FREE = tuple(names_for("classification", free=True))
ENSEMBLES = ("ensemble_entropy", "ensemble_msp", "ensemble_answer")
METRICS = ("auroc", "recall_at_1.0%", "recall_at_5.0%")
RECALLS = METRICS[1:]
PRECISIONS = ("precision_at_1.0%", "precision_at_5.0%")
LEAST_FAILURES = 30
"""Failures, and successes, below which a family is shown and not counted as the worst."""
ACCURACY = {"fashion-mnist": 0.93, "mnist": 0.99}
GOALS = {"clean": 0.01, "left_out_mean": 0.05, "left_out_worst": 0.02}
"""Gains in AUROC over the best free score."""


@dataclass(frozen=True)
class Measured:
    """One view of all seeds. value: {score: {metric: [S]}}. drawn: {score: {metric: [S,R]}}, paired."""

    value: Mapping[str, Mapping[str, Floats]]
    drawn: Mapping[str, Mapping[str, Floats]]
    failures: float
    successes: float


def measure(seeds: Sequence[Observed], *, replicates: int) -> Measured:
    """Every score of a view; the same resamples of images serve all scores, seeds and views."""
    names = list(seeds[0].scores)
    value: dict[str, dict[str, Floats]] = {name: {} for name in names}
    for name in names:
        for metric in (*METRICS, *PRECISIONS):
            each = [point(s.scores[name], failed=s.failed, metric=metric) for s in seeds]
            value[name][metric] = np.array(each)
    rows = [
        replicate(s.scores, failed=s.failed, groups=s.image, metrics=METRICS, replicates=replicates)
        for s in seeds
    ]
    drawn = {
        name: {metric: np.stack([row[name][metric] for row in rows]) for metric in METRICS} for name in names
    }
    failed = [int(s.failed.sum()) for s in seeds]
    return Measured(
        value, drawn, float(np.mean(failed)), float(np.mean([len(s.failed) for s in seeds]) - np.mean(failed))
    )


def mean_of(views: Sequence[Measured], name: str, metric: str) -> float:
    """The mean over views and seeds."""
    return float(np.nanmean([view.value[name][metric] for view in views]))


def best_of(views: Sequence[Measured], names: Sequence[str], metric: str) -> str:
    """The score that is best in these views, in hindsight."""
    return max(names, key=lambda name: mean_of(views, name, metric))


def difference(views: Sequence[Measured], head: str, other: str, metric: str) -> dict[str, Any]:
    """Head minus another score, the mean over views and seeds, with its paired interval."""
    drawn = np.nanmean([view.drawn[head][metric] - view.drawn[other][metric] for view in views], axis=(0, 1))
    low, high, _ = interval(drawn)
    value = mean_of(views, head, metric) - mean_of(views, other, metric)
    return {"difference": value, "low": low, "high": high, "above": low > 0, "below": high < 0}


def block(views: Sequence[Measured], head: str) -> dict[str, Any]:
    """All scores in the mean of these views, and the head against each."""
    names = [name for name in views[0].value if name in (head, *FREE, *ENSEMBLES)]
    shown = {n: {m: mean_of(views, n, m) for m in (*METRICS, *PRECISIONS)} for n in names}
    others = [name for name in names if name != head]
    return {
        "scores": shown,
        "best_free": {metric: best_of(views, FREE, metric) for metric in METRICS},
        "best_ensemble": {metric: best_of(views, ENSEMBLES, metric) for metric in METRICS},
        "head_against": {n: {m: difference(views, head, n, m) for m in METRICS} for n in others},
    }


def of_family(view: Measured, head: str) -> dict[str, Any]:
    """AUROC of the head and of the free score that is best in this family."""
    free = best_of([view], FREE, "auroc")
    return {
        "failures": view.failures,
        "counted": min(view.failures, view.successes) >= LEAST_FAILURES,
        "best_free": free,
        "free": mean_of([view], free, "auroc"),
        "head": mean_of([view], head, "auroc"),
        "ensemble": max(mean_of([view], name, "auroc") for name in ENSEMBLES),
        **difference([view], head, free, "auroc"),
    }


def summarise(judged: Mapping[str, Sequence[Observed]], *, replicates: int) -> dict[str, Any]:
    """Everything of one data set. judged: "clean" and families, one observation per seed each."""
    measured = {name: measure(seeds, replicates=replicates) for name, seeds in judged.items()}
    families = {name: view for name, view in measured.items() if name != "clean"}
    heads = {"known": HEAD, "left out": LEFT_OUT}
    single = {
        view: {family: of_family(seen, head) for family, seen in families.items()}
        for view, head in heads.items()
    }
    worst = {}
    for view, found in single.items():
        # With a handful of failures a family's difference is noise; it is shown all the same.
        counted = {family: one for family, one in found.items() if one["counted"]} or found
        least = min(counted, key=lambda family: counted[family]["difference"])
        gains = [one["difference"] for one in counted.values()]
        worst[view] = {
            "family": least,
            "difference": min(gains),
            "mean_over_best_of_each": float(np.mean(gains)),
        }
    return {
        "views": {
            "clean": block([measured["clean"]], HEAD),
            **{view: block(list(families.values()), head) for view, head in heads.items()},
        },
        "families": single,
        "over_families": worst,
    }


def reached(sets: Mapping[str, Any]) -> dict[str, dict[str, bool]]:
    """Which goals each data set reached."""
    goals = {}
    for name, found in sets.items():
        views, worst = found["views"], found["over_families"]["left out"]
        clean = views["clean"]
        against = {view: one["head_against"] for view, one in views.items()}
        goals[name] = {
            "accuracy": min(found["accuracy"]) >= ACCURACY.get(name, 0.0),
            "clean": against["clean"][clean["best_free"]["auroc"]]["auroc"]["difference"] >= GOALS["clean"],
            "left_out_mean": worst["mean_over_best_of_each"] >= GOALS["left_out_mean"],
            "left_out_worst": worst["difference"] >= GOALS["left_out_worst"],
            **{
                f"{metric} {view}": all(each[free][metric]["difference"] > 0 for free in FREE)
                for view, each in against.items()
                for metric in RECALLS
            },
            "ensemble_clean": all(against["clean"][e]["auroc"]["difference"] >= 0 for e in ENSEMBLES),
            "ensemble_clean_within_interval": not any(
                against["clean"][e]["auroc"]["below"] for e in ENSEMBLES
            ),
        }
    return goals


def markdown(sets: Mapping[str, Any]) -> str:
    """A table of gains per data set and view."""
    lines = [
        "| data | view | best free | its AUROC | head, points | to the ensemble | recall at 1 % | at 5 % |",
        "|---" * 8 + "|",
    ]
    for name, found in sets.items():
        for view, one in found["views"].items():
            best, ensemble = one["best_free"], one["best_ensemble"]["auroc"]
            against = one["head_against"]
            cells = (
                *(name, view, best["auroc"], f"{100 * one['scores'][best['auroc']]['auroc']:.1f}"),
                *(points(against[best["auroc"]]["auroc"]), points(against[ensemble]["auroc"])),
                *(points(against[best[metric]][metric]) for metric in RECALLS),
            )
            lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| data | family left out | free | known | left out |", "|---" * 5 + "|"]
    for name, found in sets.items():
        for family, one in found["families"]["left out"].items():
            known = found["families"]["known"][family]
            lines.append(f"| {name} | {family} | {100 * one['free']:.1f} | {points(known)} | {points(one)} |")
    return "\n".join(lines)


def points(one: Mapping[str, Any]) -> str:
    """A difference with its interval, in points."""
    return f"{100 * one['difference']:+.1f} ({100 * one['low']:+.1f} .. {100 * one['high']:+.1f})"
