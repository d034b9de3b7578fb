"""What the detector benchmarks share: points, paired intervals over seeds, and a table in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from misfire_train.heads.data import LossSet
from misfire_train.metrics.bootstrap import HIGHER_IS_BETTER, interval, point, replicate

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Observed:
    """One seed's test images in one view. scores: [N] each; failed: bool [N]; loss: [N]; image: [N].

    image: which test image a row shows; an image's corrupted copies are drawn together.
    """

    scores: Mapping[str, Floats]
    failed: NDArray[np.bool_]
    loss: Floats
    image: NDArray[np.int64]


@dataclass
class View:
    """Test images in one weather: parts for heads, one-pass scores, truth."""

    data: LossSet
    scores: dict[str, Floats]


def pool(views: Sequence[Observed]) -> Observed:
    """All rows of several views of the same scores."""
    names = views[0].scores
    return Observed(
        scores={name: np.concatenate([view.scores[name] for view in views]) for name in names},
        failed=np.concatenate([view.failed for view in views]),
        loss=np.concatenate([view.loss for view in views]),
        image=np.concatenate([view.image for view in views]),
    )


def points(seeds: Sequence[Observed], *, metrics: Sequence[str]) -> dict[str, dict[str, float]]:
    """{score: {metric: mean over seeds}}."""
    table: dict[str, dict[str, float]] = {}
    for name in seeds[0].scores:
        table[name] = {
            metric: float(
                np.mean([point(s.scores[name], failed=s.failed, loss=s.loss, metric=metric) for s in seeds])
            )
            for metric in metrics
        }
    return table


def differences(
    seeds: Sequence[Observed],
    *,
    winner: str,
    references: Sequence[str],
    metrics: Sequence[str],
    replicates: int,
) -> dict[str, dict[str, dict[str, Any]]]:
    """{reference: {metric: difference, low, high, wins}}: above zero means that `winner` is better.

    The same resamples of images serve every score and every seed; a replicate is the mean over seeds.
    """
    rows: dict[str, dict[str, list[Floats]]] = {}
    for observed in seeds:
        names = [winner, *references]
        found = replicate(
            {name: observed.scores[name] for name in names},
            failed=observed.failed,
            loss=observed.loss,
            groups=observed.image,
            metrics=metrics,
            replicates=replicates,
        )
        for name in names:
            for metric in metrics:
                rows.setdefault(name, {}).setdefault(metric, []).append(found[name][metric])
    value = points(seeds, metrics=metrics)
    result: dict[str, dict[str, dict[str, Any]]] = {}
    for reference in references:
        result[reference] = {}
        for metric in metrics:
            sign = 1.0 if metric in HIGHER_IS_BETTER else -1.0
            gain = np.mean(rows[winner][metric], 0) - np.mean(rows[reference][metric], 0)
            low, high, _ = interval(sign * gain)
            result[reference][metric] = {
                "difference": sign * (value[winner][metric] - value[reference][metric]),
                "low": low,
                "high": high,
                "wins": low > 0,
            }
    return result


def markdown(views: Mapping[str, Mapping[str, Mapping[str, float]]], *, metrics: Sequence[str]) -> str:
    """Scores by row, best first in the first view; metrics in per cent."""
    names = list(next(iter(views.values())))
    first = next(iter(views.values()))
    best_last = metrics[0] in HIGHER_IS_BETTER
    names.sort(key=lambda name: first[name][metrics[0]], reverse=best_last)
    head = " | ".join(f"{view} {metric.upper()}" for view in views for metric in metrics)
    lines = [f"| score | {head} |", "|---" * (1 + len(views) * len(metrics)) + "|"]
    for name in names:
        cells = [
            f"{100 * table[name][metric]:.2f}" if name in table else "-"
            for table in views.values()
            for metric in metrics
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
