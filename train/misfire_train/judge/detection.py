"""How well a score finds failures: AUROC, average precision, FPR at a recall, and what an upload budget buys.

A frame is flagged where its score is at or above a threshold; failures are the positives. Tied scores cross a
threshold together (AUROC counts a tie as half a win, as the Mann-Whitney statistic does).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from misfire_train.judge.errors import JudgeError
from misfire_train.judge.ranking import (
    Floats,
    Ranking,
    as_failures,
    as_scores,
    counts,
    cumulate,
    rank_scores,
    same_length,
    steps,
)

BUDGETS = (0.001, 0.01, 0.05, 0.10)
"""Shares of all frames that a vehicle may upload."""


def auroc(score: ArrayLike, failed: ArrayLike) -> float:
    """Chance that a failure scores above a success; a tie is half. Raises JudgeError on one kind only."""
    ranking, failures = _prepare(score, failed)
    return float(auroc_rows(ranking, failures)[0])


def average_precision(score: ArrayLike, failed: ArrayLike) -> float:
    """Sum over thresholds of precision times the recall gained (no interpolation)."""
    ranking, failures = _prepare(score, failed)
    return float(average_precision_rows(ranking, failures)[0])


def fpr_at_tpr(score: ArrayLike, failed: ArrayLike, *, tpr: float = 0.95) -> float:
    """Share of successes flagged at the highest threshold that flags at least `tpr` of the failures."""
    if not 0 < tpr <= 1:
        raise JudgeError(f"tpr must lie in (0, 1], got {tpr}")
    ranking, failures = _prepare(score, failed)
    return float(fpr_at_tpr_rows(ranking, failures, tpr=tpr)[0])


@dataclass(frozen=True)
class BudgetRow:
    """What uploading the top `budget` share of frames finds.

    frames: how many that is.  recall: share of all failures among them.
    precision: share of failures in them.
    threshold: the lowest score uploaded.  Where the cut falls into ties, the expectation over a fair draw.
    """

    budget: float
    frames: int
    threshold: float
    recall: float
    precision: float


def budget_table(
    score: ArrayLike, failed: ArrayLike, *, budgets: Sequence[float] = BUDGETS
) -> tuple[BudgetRow, ...]:
    """Recall and precision at each upload budget; a budget below one frame is one frame."""
    ranking, failures = _prepare(score, failed)
    scores = as_scores(score)
    total = len(scores)
    rows = []
    for budget in budgets:
        if not 0 < budget <= 1:
            raise JudgeError(f"an upload budget is a share in (0, 1], got {budget}")
        frames = max(1, round(budget * total))
        found = float(found_rows(ranking, failures, frames=frames)[0])
        threshold = float(scores[ranking.order[total - frames]])
        rows.append(BudgetRow(budget, frames, threshold, found / int(failures.sum()), found / frames))
    return tuple(rows)


def auroc_rows(ranking: Ranking, failures: NDArray[np.bool_], weights: NDArray[Any] | None = None) -> Floats:
    """AUROC of each row of weights [B,N]: [B]; NaN in rows that hold only one kind."""
    positive = cumulate(ranking, failures, weights)
    negative_before, negative = steps(counts(ranking, weights) - positive)
    _, added = steps(positive)
    wins = (added * (negative_before + negative / 2)).sum(axis=1)
    pairs = positive[:, -1] * (negative_before[:, -1] + negative[:, -1])
    return _ratio(wins, pairs, pairs > 0)


def average_precision_rows(
    ranking: Ranking, failures: NDArray[np.bool_], weights: NDArray[Any] | None = None
) -> Floats:
    """Average precision of each row of weights [B,N]: [B]; NaN in rows without failures."""
    covered, positive = counts(ranking, weights), cumulate(ranking, failures, weights)
    covered_before, _ = steps(covered)
    positive_before, added = steps(positive)
    flagged = covered[:, -1:] - covered_before
    precision = np.divide(
        positive[:, -1:] - positive_before, flagged, out=np.zeros_like(flagged), where=flagged > 0
    )
    total = positive[:, -1]
    area = (added * precision).sum(axis=1)
    return _ratio(area, total, total > 0)


def fpr_at_tpr_rows(
    ranking: Ranking, failures: NDArray[np.bool_], weights: NDArray[Any] | None = None, *, tpr: float = 0.95
) -> Floats:
    """FPR at that TPR of each row of weights [B,N]: [B]; NaN in rows that hold only one kind."""
    positive = cumulate(ranking, failures, weights)
    negative = counts(ranking, weights) - positive
    positive_before, _ = steps(positive)
    negative_before, _ = steps(negative)
    total, successes = positive[:, -1:], negative[:, -1]
    enough = total - positive_before >= tpr * total - 1e-9 * total
    cut = enough.shape[1] - 1 - np.argmax(enough[:, ::-1], axis=1)
    flagged = successes - negative_before[np.arange(len(cut)), cut]
    valid = (successes > 0) & (total[:, 0] > 0)
    return _ratio(flagged, successes, valid)


def found_rows(
    ranking: Ranking, failures: NDArray[np.bool_], weights: NDArray[Any] | None = None, *, frames: int
) -> Floats:
    """Expected number of failures among the `frames` highest scores, per row of weights [B,N]: [B]."""
    covered, positive = counts(ranking, weights), cumulate(ranking, failures, weights)
    kept = covered[:, -1] - frames
    below = [
        float(np.interp(k, np.concatenate([[0.0], c]), np.concatenate([[0.0], p])))
        for k, c, p in zip(kept, covered, positive, strict=True)
    ]
    return np.asarray(positive[:, -1] - np.array(below))


def _ratio(above: Floats, below: Floats, valid: NDArray[np.bool_]) -> Floats:
    result: Floats = np.full(len(above), np.nan)
    np.divide(above, below, out=result, where=valid)
    return result


def _prepare(score: ArrayLike, failed: ArrayLike) -> tuple[Ranking, NDArray[np.bool_]]:
    scores, failures = as_scores(score), as_failures(failed)
    same_length(score=scores, failed=failures)
    if failures.all() or not failures.any():
        kind = "failed" if failures.all() else "succeeded"
        raise JudgeError(f"all {len(failures)} samples {kind}: a detector cannot be judged on one kind")
    return rank_scores(scores), failures
