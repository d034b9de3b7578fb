"""Measures how well a score finds failures: AUROC, average precision, FPR at a recall, and upload budgets.

A frame is flagged if its score is at or above a threshold; failures are the positives. Tied scores cross a
threshold together (AUROC counts a tie as half a win, as the Mann-Whitney statistic does).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from misfire_train.errors import JudgeError
from misfire_train.metrics.ranking import (
    Floats,
    Marks,
    Ranked,
    Steps,
    Sums,
    as_failures,
    as_scores,
    rank_scores,
    same_length,
)

BUDGETS = (0.001, 0.005, 0.01, 0.02, 0.05, 0.10)
"""Shares of all frames that a vehicle may upload."""


def auroc(score: ArrayLike, failed: ArrayLike) -> float:
    """Returns the chance that a failure scores above a success; a tie is half.

    Args:
        score: [N], higher meaning that a failure is likelier.
        failed: [N] bool.

    Raises:
        JudgeError: all samples failed or all succeeded, a score is NaN, or lengths differ.
    """
    return float(auroc_rows(_prepare(score, failed))[0])


def average_precision(score: ArrayLike, failed: ArrayLike) -> float:
    """Returns the sum over thresholds of precision times the recall gained (no interpolation).

    Args:
        score: [N], higher meaning that a failure is likelier.
        failed: [N] bool.

    Raises:
        JudgeError: as `auroc` does.
    """
    return float(average_precision_rows(_prepare(score, failed))[0])


def fpr_at_tpr(score: ArrayLike, failed: ArrayLike, *, tpr: float = 0.95) -> float:
    """Returns the share of successes flagged if at least `tpr` of the failures are.

    The threshold is the highest that flags so many failures.
    """
    if not 0 < tpr <= 1:
        raise JudgeError(f"tpr must lie in (0, 1], got {tpr}")
    return float(fpr_at_tpr_rows(_prepare(score, failed), tpr=tpr)[0])


@dataclass(frozen=True)
class BudgetRow:
    """Holds what uploading the top `budget` share of frames finds.

    If the cut falls into ties, recall and precision are expectations over a fair draw.

    Attributes:
        frames: number of frames uploaded.
        threshold: the lowest score uploaded.
        recall: share of all failures among them.
        precision: share of failures in them.
    """

    budget: float
    frames: int
    threshold: float
    recall: float
    precision: float


def budget_table(
    score: ArrayLike, failed: ArrayLike, *, budgets: Sequence[float] = BUDGETS
) -> tuple[BudgetRow, ...]:
    """Returns recall and precision at each upload budget; a budget below one frame is one frame.

    Args:
        score: [N], higher meaning that a failure is likelier.
        failed: [N] bool.
        budgets: shares of all frames, in (0, 1].

    Raises:
        JudgeError: as `auroc` does, or a budget is outside (0, 1].
    """
    sums, scores = _prepare(score, failed), as_scores(score)
    total, failures = len(scores), float(sums.failures.total[0])
    rows = []
    for budget in budgets:
        if not 0 < budget <= 1:
            raise JudgeError(f"an upload budget is a share in (0, 1], got {budget}")
        frames = _frames(budget, sums)
        found = float(found_rows(sums, frames=frames)[0])
        threshold = float(scores[sums.ranking.order[total - frames]])
        rows.append(BudgetRow(budget, frames, threshold, found / failures, found / frames))
    return tuple(rows)


def auroc_rows(sums: Sums) -> Floats:
    """Returns the AUROC of each row of weights, [B]; NaN in rows that hold only one kind."""
    failures = sums.failures.total
    # Each failure beats the samples below it, half of those it ties with, and by this count half of all pairs
    # of failures too, which are taken off.
    wins = sums.failures.halfway - failures**2 / 2
    pairs = failures * (sums.samples - failures)
    return _ratio(wins, pairs, pairs > 0)


def average_precision_rows(sums: Sums) -> Floats:
    """Returns the average precision of each row of weights, [B]; NaN in rows without failures."""
    steps = sums.failures
    flagged = sums.samples[:, None] - steps.start
    found = steps.total[:, None] - steps.earlier
    precision = np.divide(found, flagged, out=np.zeros_like(flagged), where=flagged > 0)
    return _ratio(np.einsum("bt,bt->b", steps.added, precision), steps.total, steps.total > 0)


def fpr_at_tpr_rows(sums: Sums, *, tpr: float = 0.95) -> Floats:
    """Returns the FPR at that TPR of each row of weights, [B]; NaN in rows that hold only one kind."""
    steps = sums.failures
    total, successes = steps.total, sums.samples - steps.total
    if not steps.added.shape[1]:
        return np.full(len(total), np.nan)
    # The tolerance keeps the rounding of tpr * total from asking for one failure more.
    enough = total[:, None] - steps.earlier >= (tpr - 1e-9) * total[:, None]
    # The highest threshold that flags enough is at a failure. argmax finds the first True, so the row is
    # reversed to find the last.
    cut = (np.arange(len(total)), enough.shape[1] - 1 - np.argmax(enough[:, ::-1], axis=1))
    flagged = successes - (steps.start[cut] - steps.earlier[cut])
    return _ratio(flagged, successes, (successes > 0) & (total > 0))


def found_rows(sums: Sums, *, frames: int) -> Floats:
    """Returns the expected number of failures among the `frames` highest scores, [B].

    Ties at the cut are drawn fairly.
    """
    return found_values(sums, sums.failures, sums.data.failures, frames=frames)


def found_values(sums: Sums, steps: Steps, marks: Marks, *, frames: int) -> Floats:
    """Returns how much of a value (failures, missed objects) the `frames` highest scores hold, [B].

    It is the expectation over a fair draw among ties at the cut.
    """
    kept = sums.samples - frames
    cut = sums.cut(kept)
    rows = np.arange(len(kept))
    stop = sums.covered[rows, cut]
    start = np.where(cut > 0, sums.covered[rows, cut - 1], 0.0)
    share = np.divide(kept - start, stop - start, out=np.zeros_like(start), where=stop > start)
    # The marked group at the cut, or the next one above it.
    place = np.searchsorted(marks.groups, cut)
    padded = np.concatenate([steps.earlier, steps.total[:, None]], axis=1)
    at_cut = np.append(marks.groups, -1)[place] == cut
    inside = np.where(
        at_cut, padded[rows, np.minimum(place + 1, padded.shape[1] - 1)] - padded[rows, place], 0
    )
    return np.asarray(steps.total - padded[rows, place] - share * inside)


def recall_at_budget_rows(sums: Sums, *, budget: float) -> Floats:
    """Returns the share of all failures among the top `budget` share of frames, [B]; NaN without failures."""
    total = sums.failures.total
    return _ratio(found_rows(sums, frames=_frames(budget, sums)), total, total > 0)


def precision_at_budget_rows(sums: Sums, *, budget: float) -> Floats:
    """Returns the share of failures among the top `budget` share of frames, [B]."""
    frames = _frames(budget, sums)
    return found_rows(sums, frames=frames) / frames


def _frames(budget: float, sums: Sums) -> int:
    return max(1, round(budget * len(sums.ranking.order)))


def _ratio(above: Floats, below: Floats, valid: NDArray[np.bool_]) -> Floats:
    result: Floats = np.full(len(above), np.nan)
    np.divide(above, below, out=result, where=valid)
    return result


def _prepare(score: ArrayLike, failed: ArrayLike) -> Sums:
    scores, failures = as_scores(score), as_failures(failed)
    same_length(score=scores, failed=failures)
    if failures.all() or not failures.any():
        kind = "failed" if failures.all() else "succeeded"
        raise JudgeError(f"all {len(failures)} samples {kind}: a detector cannot be judged on one kind")
    return Ranked(rank_scores(scores), failed=failures).sums()
