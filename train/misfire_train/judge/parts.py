"""Reports what is missed within frames: by class, size, place and drive, and whether uploads hold it.

Parts (a row for each object and false box) + the trigger's score --part_report--> PartReport

Shares are of objects, and resamples draw whole groups of frames: objects of one drive are missed together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from misfire_train.boxes.parts import Parts
from misfire_train.judge.evidence import Evidence
from misfire_train.judge.report import PartReport, PartRow, PartSlice, Report
from misfire_train.judge.slices import MAX_GROUPS_SHOWN
from misfire_train.metrics.bootstrap import Estimate, estimate, resample_weights, wilson
from misfire_train.metrics.ranking import Floats

UPLOADED = 0.05
"""Share of frames that count as uploaded, those with the highest score."""
# Classes of a large data set would fill pages; the ones with the most misses are shown.
_MOST_ROWS = 40


def with_parts(
    report: Report, evidence: Evidence, parts: Mapping[str, Parts], *, replicates: int, seed: int
) -> Report:
    """Returns the report with what is missed within frames. parts: {condition: of its frames, in order}."""
    made = tuple(
        part_report(
            name,
            found,
            score=evidence.scores[report.gate.winner][rows],
            groups=evidence.groups[rows],
            clusters=evidence.clusters()[0][rows],
            replicates=replicates,
            seed=seed,
        )
        for name, found in parts.items()
        for rows in [np.flatnonzero(evidence.shifts == name)]
    )
    return replace(report, parts=made)


def part_report(
    condition: str,
    parts: Parts,
    *,
    score: NDArray[np.floating],
    groups: NDArray[np.generic],
    clusters: NDArray[np.generic],
    replicates: int,
    seed: int,
) -> PartReport:
    """Returns the shares of missed objects by kind of slice.

    Args:
        condition: its name.
        parts: of N frames.
        score: [N] of the trigger.
        groups: [N] drive of each frame, a slice too if there are few.
        clusters: [N] what a resample draws whole.
        replicates: number of resamples.
        seed: of the resamples.
    """
    labels = {name: values.astype(str) for name, values in parts.slices.items()}
    if 1 < len(np.unique(groups)) <= MAX_GROUPS_SHOWN:
        labels["group"] = groups.astype(str)[parts.frame]
    uploaded = np.zeros(len(score), bool)
    uploaded[np.argsort(-score, kind="stable")[: max(1, round(UPLOADED * len(score)))]] = True
    weights = list(resample_weights(clusters, replicates=replicates, seed=seed))
    return PartReport(
        condition=condition,
        summary=dict(parts.summary),
        kinds=dict(parts.kinds),
        slices=tuple(
            PartSlice(name, _rows(parts, values, uploaded=uploaded, weights=weights))
            for name, values in labels.items()
        ),
    )


def _rows(
    parts: Parts, labels: NDArray[np.str_], *, uploaded: NDArray[np.bool_], weights: list[Floats]
) -> tuple[PartRow, ...]:
    rows = []
    for value in np.unique(labels):
        inside = labels == value
        objects = inside & parts.is_object
        missed = objects & parts.wrong
        held = int(missed.sum())
        rows.append(
            PartRow(
                value=str(value),
                objects=int(objects.sum()),
                missed=held,
                share=_share(parts.frame[objects], parts.frame[missed], len(uploaded), weights),
                uploaded=int((missed & uploaded[parts.frame]).sum()) / held if held else None,
                false=int((inside & ~parts.is_object).sum()),
            )
        )
    return tuple(sorted(rows, key=lambda row: (-row.missed, row.value))[:_MOST_ROWS])


def _share(
    objects: NDArray[np.int64], missed: NDArray[np.int64], frames: int, weights: list[Floats]
) -> Estimate:
    """Returns the share of missed objects, with the wider of the bootstrap's and Wilson's interval."""
    if not len(objects):
        return Estimate(float("nan"), float("nan"), float("nan"), 0.0)
    per_frame = [np.bincount(rows, minlength=frames).astype(float) for rows in (objects, missed)]
    drawn = []
    for block in weights:
        total = block @ per_frame[0]
        drawn.append(np.divide(block @ per_frame[1], total, out=np.full(len(block), np.nan), where=total > 0))
    found = estimate(len(missed) / len(objects), np.concatenate(drawn))
    low, high = wilson(len(missed), len(objects))
    return replace(found, low=float(np.fmin(found.low, low)), high=float(np.fmax(found.high, high)))
