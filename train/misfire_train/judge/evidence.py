"""Holds the evidence of a judgement: scores, truth, and the origin of each row, checked once.

A row is one frame under one condition. `frames` names the photo (a clean row and its corrupted copies
share it), `groups` the drive, vehicle or track, `shifts` the corruption family, "clean" for none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from misfire_train.errors import JudgeError
from misfire_train.metrics.counts import as_counts
from misfire_train.metrics.ranking import Floats, as_failures, as_losses, as_scores, same_length

CLEAN = "clean"
MIN_CLUSTERS = 20
"""With fewer groups a bootstrap over groups has too little to draw from: frames are drawn instead."""


@dataclass(frozen=True)
class Evidence:
    """Holds equal-length columns.

    Attributes:
        scores: {name: [N]}.
        failed: [N] bool.
        loss: [N] >= 0.
        risk: [N] what risk curves add up: the loss if a failure is a loss above a threshold, else failures.
        groups, frames, shifts: [N] labels.
        failure_threshold: that threshold, None if failures were given.
        counts: {name: [N]} of things in each frame: errors, missed, false, objects; those that are known.
    """

    scores: Mapping[str, NDArray[Any]]
    failed: NDArray[np.bool_]
    loss: Floats
    risk: Floats
    groups: NDArray[Any]
    frames: NDArray[Any]
    shifts: NDArray[Any]
    failure_threshold: float | None = None
    counts: Mapping[str, Floats] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.failed)

    @classmethod
    def of(
        cls,
        scores: Mapping[str, ArrayLike],
        *,
        failed: ArrayLike | None = None,
        loss: ArrayLike | None = None,
        failure_threshold: float | None = None,
        groups: ArrayLike | None = None,
        frames: ArrayLike | None = None,
        shifts: ArrayLike | None = None,
        counts: Mapping[str, ArrayLike] | None = None,
    ) -> Evidence:
        """Checks and fills in: failures from the loss, the loss from failures, a frame as its own group.

        Args:
            scores: {name: [N]}; a higher score means that a failure is likelier.
            failed: [N] whether the frame failed; or else a `loss` with a `failure_threshold`.
            loss: [N] losses >= 0. With a threshold, AURC adds up the loss itself.
            failure_threshold: Loss above which a frame failed.
            groups: [N] drive, vehicle or track, never split between folds.
            frames: [N] the photo that a row shows; its corrupted copies share it.
            shifts: [N] corruption family, "clean" for none.
            counts: {name: [N]} of errors, missed and false boxes and objects, as far as they are known.

        Raises:
            JudgeError: NaN (named by frame), lengths that differ, or neither failures nor a thresholded loss.
        """
        names = None if frames is None else [str(frame) for frame in np.asarray(frames)]
        arrays = {name: as_scores(v, what=f"score {name!r}", ids=names) for name, v in scores.items()}
        losses = None if loss is None else as_losses(loss, ids=names)
        if failed is not None:
            failures = as_failures(failed)
        elif losses is not None and failure_threshold is not None:
            failures = losses > failure_threshold
        else:
            raise JudgeError(
                "need `failed`, or a `loss` and the `failure_threshold` above which it is a failure"
            )
        count = len(failures)
        # Without names every row is a photo of its own.
        frame_labels = np.arange(count) if frames is None else np.asarray(frames)
        evidence = cls(
            scores=arrays,
            failed=failures,
            loss=failures.astype(np.float64) if losses is None else losses,
            risk=failures.astype(np.float64) if losses is None or failed is not None else losses,
            groups=frame_labels if groups is None else np.asarray(groups),
            frames=frame_labels,
            shifts=np.full(count, CLEAN) if shifts is None else np.asarray(shifts),
            failure_threshold=failure_threshold,
            counts=as_counts(counts or {}),
        )
        columns = {name: getattr(evidence, name) for name in ("failed", "loss", "groups", "frames", "shifts")}
        same_length(**columns, **arrays, **{f"count {n!r}": v for n, v in evidence.counts.items()})
        return evidence

    @property
    def clean(self) -> NDArray[np.intp]:
        """Returns the rows without corruption."""
        return np.flatnonzero(self.shifts == CLEAN)

    def clusters(self) -> tuple[NDArray[Any], tuple[str, ...]]:
        """Returns labels [N] of what a bootstrap draws whole, and a note if that has to be frames."""
        count = len(np.unique(self.groups))
        if count >= MIN_CLUSTERS:
            return self.groups, ()
        if count == 1:
            return self.frames, ()
        return self.frames, (
            f"{count} groups are too few to draw whole groups: intervals are over frames within them and "
            "do not say how much the next group may differ.",
        )
