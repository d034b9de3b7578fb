"""Measures what the scores of a refitted head mean in the field, on frames of the unbiased stream alone.

labelled frames of the stream --> expected loss, recall, precision    all of them --> quantiles, thresholds

An upload was chosen by its score, so quantiles of uploads would be too high. Frames that the head was fitted
on count with the score of a head that never saw their group.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from misfire_export.assemble import ENGINE
from misfire_export.measure.calibrate import (
    calibrate,
    operating_points,
    quantile_table,
    report,
    require_frames,
)
from misfire_export.measure.folds import deal
from misfire_export.measure.run import Measurement
from misfire_runtime.bundle import OperatingPoint, ScoreSpec

FEW = 500
"""Frames of the stream below which the thresholds of small upload rates rest on a handful of them."""
_LABELLED = 20
"""Labelled frames below which no expected loss is fitted."""


@dataclass(frozen=True)
class StreamFrames:
    """Holds frames of the unbiased stream: their scores and, of the labelled ones, what happened.

    scores, loss, failed: [N].  groups, ids: [N].  unlabelled: [M] scores of frames without a label.
    """

    scores: NDArray[np.float64]
    loss: NDArray[np.float64]
    failed: NDArray[np.bool_]
    groups: tuple[str, ...]
    ids: tuple[str, ...]
    unlabelled: NDArray[np.float64]

    @property
    def all(self) -> NDArray[np.float64]:
        """Returns the scores of labelled and unlabelled frames."""
        return np.concatenate((self.scores, self.unlabelled))


def field_spec(
    old: ScoreSpec, stream: StreamFrames, *, precision: str, seed: int
) -> tuple[ScoreSpec, dict[str, Any], list[str]]:
    """Returns the score with its calibration in the field, the report of its curves, and notes.

    Args:
        old: the score as the bundle has it.
        stream: frames of the unbiased stream.
        precision: of the graph.
        seed: of folds and resamples.

    Raises:
        CalibrationError: the stream has too few frames.
    """
    name, values = old.name, stream.all
    require_frames(len(values))
    notes = []
    if len(values) < FEW:
        notes.append(
            f"calibrated on {len(values)} frames of the random stream: a threshold for the top "
            f"{100 * 10 / len(values):.0f} % rests on ten of them, smaller rates on fewer"
        )
    measured = Measurement(
        scores={name: stream.scores},
        loss=stream.loss,
        failed=stream.failed,
        groups=stream.groups,
        ids=stream.ids,
        accuracy=float("nan"),
        threshold=None,
    )
    blank = np.full(len(values), np.nan)
    everything = Measurement(
        scores={name: values},
        loss=blank,
        failed=np.zeros(len(values), bool),
        groups=tuple(f"{i}" for i in range(len(values))),
        ids=tuple(f"{i}" for i in range(len(values))),
        accuracy=float("nan"),
        threshold=None,
        labelled=False,
    )
    enough = len(measured) >= _LABELLED
    folds = deal(measured.groups, seed=seed) if enough else None
    predicts = old.calibration.loss_scale is not None
    calibration = calibrate(
        name, measured if enough else everything, engine=ENGINE, precision=precision, predicts_loss=predicts
    ).model_copy(update={"quantiles": quantile_table(values)})
    points = operating_points(name, everything, folds=deal(everything.groups, seed=seed), seed=seed)
    curves = report(name, everything, folds=deal(everything.groups, seed=seed), predicts_loss=False)
    if enough and folds is not None:
        shown = operating_points(name, measured, folds=folds, seed=seed)
        points = _with_recall(points, shown)
        if not shown:
            notes.append("no labelled frame of the random stream failed: recall and precision are not known")
        loss_known = calibration.expected_loss is not None
        curves = report(name, measured, folds=folds, predicts_loss=loss_known)
    else:
        notes.append(
            f"{len(measured)} labelled frames of the random stream are too few for an expected loss "
            f"({_LABELLED} are needed)"
        )
    spec = old.model_copy(update={"calibration": calibration, "operating_points": points})
    return spec, curves, notes


def _with_recall(
    points: tuple[OperatingPoint, ...], shown: tuple[OperatingPoint, ...]
) -> tuple[OperatingPoint, ...]:
    """Returns points with recall and precision as the labelled frames show them at the same rates.

    Both go up to the same rate; fewer labelled frames lack the smallest ones.
    """
    known = dict(zip(range(len(points) - 1, -1, -1), reversed(shown), strict=False))
    return tuple(
        point.model_copy(
            update={
                "failure_recall": known[place].failure_recall,
                "failure_precision": known[place].failure_precision,
            }
        )
        if place in known
        else point
        for place, point in enumerate(points)
    )


def join_streams(*parts: StreamFrames) -> StreamFrames:
    """Returns the frames of all parts."""
    first, *others = parts
    for other in others:
        first = replace(
            first,
            scores=np.concatenate((first.scores, other.scores)),
            loss=np.concatenate((first.loss, other.loss)),
            failed=np.concatenate((first.failed, other.failed)),
            groups=first.groups + other.groups,
            ids=first.ids + other.ids,
            unlabelled=np.concatenate((first.unlabelled, other.unlabelled)),
        )
    return first
