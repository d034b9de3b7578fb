"""Computes losses of frames and boxes from matches: how wrong was a detector, and did it fail?

    loss = (sum of (1 - IoU)/(1 - tau) over right boxes + false boxes + missed objects)
           / (right boxes + false boxes + missed objects + 1)

This is LRP of one image (Oksuz et al., TPAMI 2021, arXiv:2011.10772) with 1 added below: without it, one
missed object of one would equal ten of ten, and an empty frame would be 0/0.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from misfire_runtime.boxes import BoxRule
from misfire_train.boxes.matching import Match

PRIOR = 1.0
"""n0 of the loss, in objects."""


def box_losses(match: Match, rule: BoxRule) -> NDArray[np.float64]:
    """Returns the loss of each box, [B]: (1 - IoU)/(1 - tau) of a right one, 1 of a false, NaN if ignored."""
    loss = np.where(match.right, (1 - match.overlap) / max(1 - rule.matching, 1e-9), 1.0)
    return np.where(match.ignored, np.nan, loss)


def frame_loss(match: Match, rule: BoxRule) -> float:
    """Returns the graded loss of a frame, in 0..1."""
    wrong = float(np.nansum(box_losses(match, rule))) + float(match.missed.sum())
    counted = float((~match.ignored).sum() + match.missed.sum())
    return wrong / (counted + PRIOR)


def frame_errors(match: Match) -> int:
    """Returns false boxes and missed objects of a frame; this favours crowded frames."""
    return int(match.false.sum() + match.missed.sum())


def frame_failed(match: Match, rule: BoxRule, *, relevant: Collection[int] = ()) -> bool:
    """Returns whether a relevant object was missed, or a false box has at least the score of an alarm.

    relevant: classes whose objects matter; empty means all.
    """
    missed = match.missed
    if relevant:
        missed = missed & np.isin(match.classes, list(relevant))
    return bool(missed.any() or (match.false & (match.score >= rule.alarm)).any())


def f1(matches: Sequence[Match]) -> float:
    """Returns 2 TP / (2 TP + FP + FN) over frames; 1 if there is nothing to find and nothing was found."""
    right = sum(int(m.right.sum()) for m in matches)
    wrong = sum(frame_errors(m) for m in matches)
    return 2 * right / (2 * right + wrong) if right + wrong else 1.0


def lrp(matches: Sequence[Match], rule: BoxRule) -> float:
    """Returns the LRP error of a set of frames at the deployed threshold, in 0..1; 0 if it is empty."""
    wrong = sum(float(np.nansum(box_losses(m, rule))) + float(m.missed.sum()) for m in matches)
    counted = sum(int((~m.ignored).sum() + m.missed.sum()) for m in matches)
    return wrong / counted if counted else 0.0
