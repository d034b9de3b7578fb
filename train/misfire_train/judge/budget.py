"""Chooses the score to trigger on at each share of frames that a fleet can upload.

Evidence --recall of the top 0.5 .. 20 %, clean and under each held-out corruption--> BudgetChoice per budget

AUROC and AURC judge a whole order; an upload is its top. At a budget a learned score triggers only if it
finds more failures there than the best free score: in the mean of all views with the whole paired 95 %
interval, in no kind of view fewer, and under no corruption significantly fewer. So a bundle may trigger on
one score at 1 % and on another at 10 %. At a fixed budget recall and precision differ by a factor that no
score changes; one comparison serves both.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from misfire_train.errors import JudgeError
from misfire_train.judge.evidence import CLEAN, Evidence
from misfire_train.judge.folds import MIN_PER_FOLD
from misfire_train.metrics.bootstrap import Comparison, interval, resample_weights
from misfire_train.metrics.detection import budget_table, recall_at_budget_rows
from misfire_train.metrics.ranking import Floats, Ranked, as_scores, rank_scores

BUDGETS = (0.005, 0.01, 0.02, 0.05, 0.10, 0.20)
"""Shares of all frames that vehicles upload."""
MIN_UPLOADED = 10
"""With fewer uploads in a view, one frame more or less would decide."""


@dataclass(frozen=True)
class BudgetView:
    """Holds one view at one budget: clean frames, or those under one corruption.

    Attributes:
        name: "clean" or the corruption.
        uploads: frames uploaded.
        free: the free score that finds most here; it is chosen on these frames, which flatters it.
        recall, precision: {score: value} of that one and of the learned score.
        difference: recall of the learned score minus that of the free one.
    """

    name: str
    uploads: int
    free: str
    recall: Mapping[str, float]
    precision: Mapping[str, float]
    difference: Comparison


@dataclass(frozen=True)
class BudgetChoice:
    """Holds which score to trigger on at one budget.

    Attributes:
        budget: share of all frames that are uploaded.
        score: the score to trigger on.
        free: the free score that finds most in the mean of all views.
        learned: the learned score that was compared, None without one.
        difference: recall of the learned score minus that of the best free one, mean over kinds of views.
        why: the reason in words.
    """

    budget: float
    score: str
    score_is_free: bool
    free: str
    learned: str | None
    difference: Comparison | None
    why: str
    views: tuple[BudgetView, ...] = ()


def choose_at_budgets(
    evidence: Evidence,
    *,
    free: Sequence[str],
    learned: str | None,
    declared: float | None = None,
    known: Collection[str] = (),
    refitted: Mapping[str, Mapping[str, ArrayLike]] | None = None,
    replicates: int = 1000,
    seed: int = 0,
) -> tuple[BudgetChoice, ...]:
    """Returns the score to trigger on at each budget; none if the clean frames are too few to upload from.

    Args:
        evidence: scores, truth, and the origin of each row.
        free: names of the scores that cost nothing.
        learned: the learned score to compare; None chooses among the free ones.
        declared: a budget to judge beside BUDGETS.
        known: shifts that the learned score was trained on, which show nothing.
        refitted: {shift: {score: [N]}} of scores that were fitted without it.
        replicates: bootstrap resamples.
        seed: of the resamples.

    Raises:
        JudgeError: the declared budget is no share.
    """
    budgets = BUDGETS if declared is None else tuple(sorted({*BUDGETS, declared}))
    if any(not 0 < budget < 1 for budget in budgets):
        raise JudgeError(f"a budget is a share of the frames between 0 and 1, got {declared}")
    names = list(free) if learned is None else [*free, learned]
    views = _views(evidence, names, known=known, refitted=refitted or {})
    if not views or not free:
        return ()
    table = _recalls(views, evidence, names, budgets, replicates=replicates, seed=seed)
    found = []
    for index, budget in enumerate(budgets):
        usable = [view for view in views if round(budget * len(view.rows)) >= MIN_UPLOADED]
        if usable and usable[0].name == views[0].name:
            found.append(_choose(budget, index, usable, table, free=free, learned=learned))
    return tuple(found)


@dataclass(frozen=True)
class _View:
    """Holds rows of one condition, and the scores that count there."""

    name: str
    rows: NDArray[np.intp]
    failed: NDArray[np.bool_]
    scores: Mapping[str, NDArray[Any]]
    ranked: Mapping[str, Ranked]


@dataclass(frozen=True)
class _Recalls:
    """Holds recalls [views, budgets] of every score, and their replicates [R, views, budgets]."""

    values: Mapping[str, Floats]
    rows: Mapping[str, Floats]
    order: Mapping[str, int]


def _views(
    evidence: Evidence,
    names: Sequence[str],
    *,
    known: Collection[str],
    refitted: Mapping[str, Mapping[str, ArrayLike]],
) -> list[_View]:
    shifts = sorted({str(shift) for shift in evidence.shifts} - {CLEAN, *known})
    views = []
    for name in (CLEAN, *shifts):
        rows = np.flatnonzero(evidence.shifts == name)
        failed = evidence.failed[rows]
        if not MIN_PER_FOLD <= int(failed.sum()) <= len(rows) - MIN_PER_FOLD:
            continue
        other = {key: as_scores(values) for key, values in refitted.get(name, {}).items()}
        scores = {key: other.get(key, evidence.scores[key])[rows] for key in names}
        ranked = {key: Ranked(rank_scores(values), failed=failed) for key, values in scores.items()}
        views.append(_View(name, rows, failed, scores, ranked))
    return views


def _recalls(
    views: Sequence[_View],
    evidence: Evidence,
    names: Sequence[str],
    budgets: Sequence[float],
    *,
    replicates: int,
    seed: int,
) -> _Recalls:
    """Returns recalls on the data, and on the same resamples for all scores, views and budgets."""
    values = {name: np.zeros((len(views), len(budgets))) for name in names}
    rows = {name: np.full((replicates, len(views), len(budgets)), np.nan) for name in names}
    for v, view in enumerate(views):
        for name in names:
            sums = view.ranked[name].sums()
            values[name][v] = [recall_at_budget_rows(sums, budget=budget)[0] for budget in budgets]
    clusters, _ = evidence.clusters()
    start = 0
    for weights in resample_weights(clusters, replicates=replicates, seed=seed):
        block = slice(start, start + len(weights))
        start += len(weights)
        for v, view in enumerate(views):
            inner = np.ascontiguousarray(weights[:, view.rows])
            # A resample without a failure of the view has no recall there.
            drawn = inner[:, view.failed].any(axis=1)
            if not drawn.any():
                continue
            for name in names:
                sums = view.ranked[name].sums(inner[drawn])
                for b, budget in enumerate(budgets):
                    rows[name][block, v, b][drawn] = recall_at_budget_rows(sums, budget=budget)
    return _Recalls(values, rows, {view.name: v for v, view in enumerate(views)})


def _choose(
    budget: float,
    index: int,
    views: Sequence[_View],
    table: _Recalls,
    *,
    free: Sequence[str],
    learned: str | None,
) -> BudgetChoice:
    places = [table.order[view.name] for view in views]
    weights = _kind_weights([view.name for view in views])
    means = {name: float(table.values[name][places, index] @ weights) for name in free}
    best = max(free, key=lambda name: means[name])
    if learned is None:
        return BudgetChoice(budget, best, True, best, None, None, f"{best} finds most of all free scores.")
    # An interval of one view is widened so that all together keep the 5 % chance of a false alarm.
    confidence = 1 - 0.05 / len(views)
    compared, gains, rows = [], [], []
    for view, place in zip(views, places, strict=True):
        rival = max(free, key=lambda name: float(table.values[name][place, index]))
        gain = float(table.values[learned][place, index] - table.values[rival][place, index])
        drawn = table.rows[learned][:, place, index] - table.rows[rival][:, place, index]
        gains.append(gain)
        rows.append(drawn)
        compared.append(_view(budget, view, rival, learned, _compare(gain, drawn, confidence=confidence)))
    pooled = _compare(float(np.array(gains) @ weights), np.stack(rows, axis=1) @ weights)
    fewer = [view.name for view in compared if view.difference.b_wins]
    kinds = {kind: gain for kind, gain in _kind_means([v.name for v in views], gains).items() if gain < 0}
    wins = pooled.a_wins and not fewer and not kinds
    return BudgetChoice(
        budget=budget,
        score=learned if wins else best,
        score_is_free=not wins,
        free=best,
        learned=learned,
        difference=pooled,
        why=_why(learned if wins else best, learned, pooled, fewer=fewer, kinds=list(kinds)),
        views=tuple(compared),
    )


def _compare(gain: float, rows: Floats, *, confidence: float = 0.95) -> Comparison:
    low, high, usable = interval(rows, confidence=confidence)
    return Comparison("recall", gain, low, high, usable)


def _view(budget: float, view: _View, rival: str, learned: str, difference: Comparison) -> BudgetView:
    rows = {
        name: budget_table(view.scores[name], view.failed, budgets=(budget,))[0] for name in (rival, learned)
    }
    return BudgetView(
        name=view.name,
        uploads=rows[rival].frames,
        free=rival,
        recall={name: row.recall for name, row in rows.items()},
        precision={name: row.precision for name, row in rows.items()},
        difference=difference,
    )


def _kind_weights(names: Sequence[str]) -> Floats:
    """Returns weights under which clean frames count as much as all corruptions together."""
    clean = np.array([name == CLEAN for name in names])
    if clean.all() or not clean.any():
        return np.full(len(names), 1 / len(names))
    return np.where(clean, 0.5, 0.5 / int((~clean).sum()))


def _kind_means(names: Sequence[str], gains: Sequence[float]) -> dict[str, float]:
    kinds: dict[str, list[float]] = {}
    for name, gain in zip(names, gains, strict=True):
        kinds.setdefault("clean frames" if name == CLEAN else "held-out corruptions", []).append(gain)
    return {kind: float(np.mean(values)) for kind, values in kinds.items()}


def _why(score: str, learned: str, pooled: Comparison, *, fewer: Sequence[str], kinds: Sequence[str]) -> str:
    gain = (
        f"{100 * pooled.difference:+.1f} points of recall "
        f"({100 * pooled.low:+.1f} .. {100 * pooled.high:+.1f})"
    )
    if score == learned:
        return f"trigger on {learned}, {gain} over the best free score."
    reasons = []
    if not pooled.a_wins:
        reasons.append(f"{gain} over the best free score")
    if fewer:
        reasons.append(f"fewer failures under {', '.join(fewer)}")
    if kinds:
        reasons.append(f"fewer failures on {' and '.join(kinds)}")
    return f"trigger on the free score {score}; {learned} shows {', '.join(reasons)}."
