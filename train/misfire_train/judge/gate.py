"""Decides which score a bundle triggers on, and whether a learned one has earned its place: the release gate.

A learned score is chosen only if, on data held out by group (drive, vehicle, track) and by corruption family,
it beats the best free score with the whole 95 % paired bootstrap interval, in every requested metric, and is
significantly worse in no single fold. Both sides of a fold are nominated on the other folds; beside its free
nominee the learned score has to beat the free score that is best in that very view. All conditions must hold
at once, so testing several of them makes the gate stricter, never luckier. Otherwise the bundle triggers on
the free score, and the verdict states it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from misfire_runtime.boxes import SILENCE
from misfire_train.errors import JudgeError
from misfire_train.judge.budget import BudgetChoice, choose_at_budgets
from misfire_train.judge.evidence import CLEAN, Evidence
from misfire_train.judge.folds import MIN_PER_FOLD, Table, group_folds, shift_folds, tabulate
from misfire_train.judge.plain import json_value
from misfire_train.judge.views import Candidate, View, build_view, list_candidates
from misfire_train.metrics.bootstrap import HIGHER_IS_BETTER
from misfire_train.metrics.detection import auroc
from misfire_train.metrics.ranking import as_scores

MIN_FAILURES = 30
"""Held-out failures (and successes) below which no score is judged at all."""
MOST_FAILURES = 100_000
"""More failures than anybody labels: a gain that needs so many is none."""


@dataclass(frozen=True)
class GateResult:
    """Holds the gate's decision.

    Attributes:
        winner: the score to trigger on.
        passed: a learned score earned it.
        verdict: one or two plain sentences.
        needed: failures that would settle it, if there were too few or the interval contains zero.
        budgets: the score to trigger on at each share of uploads.
    """

    winner: str
    winner_is_free: bool
    passed: bool
    verdict: str
    best_free: str
    best_learned: str | None
    samples: int
    failures: int
    needed: int | None = None
    views: tuple[View, ...] = ()
    candidates: tuple[Candidate, ...] = ()
    notes: tuple[str, ...] = ()
    budgets: tuple[BudgetChoice, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON and a manifest's `extra`."""
        values: dict[str, Any] = json_value(asdict(self))
        return values


@dataclass(frozen=True)
class GateRules:
    """Holds how the gate decides.

    Args:
        free: Names of the scores that cost nothing.
        apart: Names of scores with a trigger of their own, which never become the default score.
        fallback: Free score to ship if nothing can be decided. None: the first one.
        refitted: {group or family: {score: [N]}}: a score's values when fitted without that.
        known: Shifts that a learned score was trained on; they are not held out.
        metrics: The first one nominates; all must be won.
        replicates: Bootstrap resamples.
        max_folds: More groups than these share folds.
        min_failures: Failures, and successes, below which no score is judged at all.
        seed: Random seed of folds and resamples.
        budget: Declared share of frames that is uploaded, which then decides. None: AUROC and AURC do.
    """

    free: Collection[str]
    fallback: str | None = None
    refitted: Mapping[str, Mapping[str, ArrayLike]] = field(default_factory=dict)
    known: Collection[str] = ()
    metrics: Sequence[str] = ("auroc", "aurc")
    replicates: int = 1000
    max_folds: int = 10
    min_failures: int = MIN_FAILURES
    seed: int = 0
    apart: Collection[str] = (SILENCE,)
    budget: float | None = None


def choose_score(evidence: Evidence, rules: GateRules) -> GateResult:
    """Names the score to trigger on, from scores of data that nothing was fitted on.

    Args:
        evidence: Scores, truth, and the origin of each row.
        rules: Which scores are free, and how to decide.

    Raises:
        JudgeError: No free score is given.

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> failed = rng.random(2000) < 0.2
    >>> scores = {"msp": failed + rng.normal(size=2000), "learned": failed + 0.6 * rng.normal(size=2000)}
    >>> result = choose_score(Evidence.of(scores, failed=failed), GateRules({"msp"}, replicates=200))
    >>> result.winner, result.passed
    ('learned', True)
    """
    free_names = [name for name in evidence.scores if name in rules.free]
    learned_names = [name for name in evidence.scores if name not in rules.free and name not in rules.apart]
    if not free_names:
        raise JudgeError(
            f"the gate needs a free score to beat; got only {', '.join(evidence.scores) or 'none'}"
        )
    default = rules.fallback if rules.fallback in free_names else free_names[0]
    few = _too_few(evidence, rules.min_failures)
    if few is not None:
        return _undecided(default, evidence, few, needed=rules.min_failures)
    tables, left_out = [], []
    for folds in (
        group_folds(evidence, most=rules.max_folds, seed=rules.seed),
        shift_folds(evidence, known=rules.known),
    ):
        table = tabulate(
            folds,
            evidence,
            metrics=rules.metrics,
            replicates=rules.replicates,
            seed=rules.seed,
            refitted={
                fold: {n: as_scores(v) for n, v in per.items()} for fold, per in rules.refitted.items()
            },
        )
        if table.folds:
            few = _too_few_in(table, rules.min_failures)
            if few is not None:
                return _undecided(default, evidence, few, needed=rules.min_failures)
            tables.append(table)
            left_out.append(tuple(fold.name for fold in folds if not fold.usable))
    if not tables:
        return _undecided(default, evidence, "No group or corruption with enough failures can be held out.")
    contest = _Contest(tuple(tables), tuple(left_out), tuple(free_names), tuple(rules.metrics))
    views = contest.views(learned_names) if learned_names else ()
    best_free = contest.ranked(free_names)[0]
    ranked = contest.ranked(learned_names)
    earned = None
    if views and all(view.passed for view in views):
        # Nominees differ from fold to fold; what a bundle triggers on has to hold everywhere by itself.
        earned = next(
            (
                n
                for n in ranked
                if _beats_chance(evidence, n) and all(view.passed for view in contest.views([n]))
            ),
            None,
        )
    best_learned = earned or (ranked[0] if ranked else None)
    verdict, needed = _verdict(views, best_free, best_learned, earned=earned)
    result = GateResult(
        winner=earned or best_free,
        winner_is_free=earned is None,
        passed=earned is not None,
        verdict=verdict,
        best_free=best_free,
        best_learned=best_learned,
        samples=len(evidence),
        failures=int(evidence.failed.sum()),
        needed=needed,
        views=views,
        candidates=tuple(
            c for t in tables for c in list_candidates(t, free=free_names, metrics=rules.metrics)
        ),
        notes=(*evidence.clusters()[1], *one_sided(evidence)),
    )
    return _at_budgets(result, evidence, rules)


def _at_budgets(result: GateResult, evidence: Evidence, rules: GateRules) -> GateResult:
    """Returns the result with the choice at every budget; a declared one decides what ships."""
    choices = choose_at_budgets(
        evidence,
        free=[name for name in evidence.scores if name in rules.free and name not in rules.apart],
        learned=result.best_learned,
        declared=rules.budget,
        known=rules.known,
        refitted=rules.refitted,
        replicates=rules.replicates,
        seed=rules.seed,
    )
    result = replace(result, budgets=choices)
    declared = next((choice for choice in choices if choice.budget == rules.budget), None)
    if declared is None:
        return result
    return replace(
        result,
        winner=declared.score,
        winner_is_free=declared.score_is_free,
        passed=not declared.score_is_free,
        verdict=f"At the declared budget of {rules.budget:.3g} of the frames: {declared.why} "
        f"By AUROC and AURC: {result.verdict}",
    )


def _beats_chance(evidence: Evidence, name: str) -> bool:
    """Returns whether a score's AUROC on clean frames is above one half.

    If labels are misread, even the best free score falls below it, and a meaningless score would win.
    """
    failed = evidence.failed[evidence.clean]
    if failed.all() or not failed.any():
        return True
    return auroc(evidence.scores[name][evidence.clean], failed) > 0.5


def failures_needed(*, auroc: float = 0.85, half_width: float = 0.05) -> int:
    """Returns the failures needed for a 95 % interval of AUROC of that half width, with plenty of successes.

    Hanley & McNeil 1982: the variance per failure is AUROC / (2 - AUROC) - AUROC^2.
    """
    # 1.96 deviations to each side hold 95 % of a normal distribution.
    variance = auroc / (2 - auroc) - auroc**2
    return math.ceil(1.96**2 * variance / half_width**2)


def _too_few(evidence: Evidence, least: int) -> str | None:
    clean = evidence.failed[evidence.clean] if evidence.clean.size else evidence.failed
    failures = int(clean.sum())
    if failures < least:
        # The rate is (failures + 1) / (frames + 2), which is not zero without any failure.
        frames = math.ceil(least * (len(clean) + 2) / (failures + 1))
        return (
            f"Too few held-out errors to judge: {failures} among {len(clean)} frames; at least {least} are "
            f"needed, which is about {frames} held-out frames at this error rate."
        )
    if len(clean) - failures < least:
        return (
            f"Too few held-out successes to judge: {len(clean) - failures} among {len(clean)} frames; "
            f"at least {least} are needed."
        )
    return None


def _too_few_in(table: Table, least: int) -> str | None:
    """Returns why a kind of held-out data is not judged: the clean frames' rule holds for each."""
    kind = table.folds[0].kind
    failures = sum(fold.failures for fold in table.folds)
    successes = sum(len(fold.rows) for fold in table.folds) - failures
    for name, count in (("errors", failures), ("successes", successes)):
        if count < least:
            return f"Too few {name} on held-out {kind} to judge: {count}; at least {least} are needed."
    return None


def one_sided(evidence: Evidence) -> tuple[str, ...]:
    """Returns a sentence for each condition under which so few or so many frames fail that nothing shows."""
    notes = []
    for shift in sorted({str(name) for name in evidence.shifts}):
        rows = evidence.shifts == shift
        count, failures = int(rows.sum()), int(evidence.failed[rows].sum())
        if MIN_PER_FOLD <= failures <= count - MIN_PER_FOLD:
            continue
        many = failures > count / 2
        share = f"all {count}" if failures == count else f"{failures or 'none'} of {count}"
        # The severity of clean frames cannot be changed.
        advice = "" if shift == CLEAN else f"; judge it at a {'lower' if many else 'higher'} severity"
        notes.append(f"Under {shift} {share} frames fail, so no score can be compared there{advice}.")
    return tuple(notes)


def _undecided(default: str, evidence: Evidence, why: str, *, needed: int | None = None) -> GateResult:
    return GateResult(
        winner=default,
        winner_is_free=True,
        passed=False,
        verdict=f"{why} Trigger on the free score {default}.",
        best_free=default,
        best_learned=None,
        samples=len(evidence),
        failures=int(evidence.failed.sum()),
        needed=needed,
        notes=one_sided(evidence),
    )


@dataclass(frozen=True)
class _Contest:
    """Holds a table per kind of held-out data, and the folds that were too small."""

    tables: tuple[Table, ...]
    left_out: tuple[tuple[str, ...], ...]
    free: tuple[str, ...]
    metrics: tuple[str, ...]

    def views(self, learned: Sequence[str]) -> tuple[View, ...]:
        """Returns the best of these learned scores against the best free one, in each view."""
        return tuple(
            build_view(
                table,
                free=self.free,
                learned=learned,
                metrics=self.metrics,
                left_out=missing,
                beside=self.tables[0] if table is not self.tables[0] else None,
            )
            for table, missing in zip(self.tables, self.left_out, strict=True)
        )

    def ranked(self, names: Sequence[str]) -> list[str]:
        """Returns names, best first, by the mean over views, each view counting once."""
        metric = self.metrics[0]
        sign = -1 if metric in HIGHER_IS_BETTER else 1
        means = {name: sign * np.mean([table.mean(name, metric) for table in self.tables]) for name in names}
        return sorted(names, key=lambda name: float(means[name]))


def _verdict(
    views: Sequence[View], free: str, learned: str | None, *, earned: str | None
) -> tuple[str, int | None]:
    if learned is None:
        return f"No learned score was offered: trigger on the free score {free}, the best of its kind.", None
    if earned is not None:
        where = " and ".join(f"held-out {view.kind}" for view in views)
        text = f"Trigger on {earned}: it beats the best free score ({free}) on {where}."
        return f"{text}{_without_groups(views)}", None
    if all(view.passed for view in views):
        return f"Trigger on the free score {free}: no single learned score holds up everywhere.", None
    reasons, needed = [], []
    for view in views:
        for pooled in view.pooled:
            if pooled.a_wins:
                continue
            reasons.append(
                f"{pooled.metric} on held-out {view.kind}: {pooled.difference:+.4f} "
                f"[{pooled.low:+.4f}, {pooled.high:+.4f}]"
            )
            if pooled.difference > 0 and pooled.low < 0:
                failures = sum(fold.failures for fold in view.folds)
                needed.append(
                    # An interval's width falls with the root of the failures, so its lower end reaches zero
                    # at this many.
                    math.ceil(failures * ((pooled.difference - pooled.low) / pooled.difference) ** 2)
                )
        for best, pooled in zip(view.best_free, view.against_best, strict=True):
            # The nominees' own loss has been named already.
            if not pooled.a_wins and all(c.a_wins for c in view.pooled if c.metric == pooled.metric):
                reasons.append(
                    f"{best} is as good there: {pooled.metric} on held-out {view.kind} "
                    f"{pooled.difference:+.4f} [{pooled.low:+.4f}, {pooled.high:+.4f}]"
                )
        reasons.extend(f"worse on {view.kind} {name}" for name in view.worse)
    text = f"Trigger on the free score {free}: {learned} did not earn its place ({'; '.join(reasons)})."
    won = [f"{c.metric} on held-out {v.kind}: {c.difference:+.4f}" for v in views for c in v.won]
    if won:
        text += f" It does win in {', '.join(won)}."
    text += _without_groups(views)
    if not needed:
        return text, None
    if max(needed) > MOST_FAILURES:
        alike = "If no gain is shown, the two are too much alike for more failures to tell them apart."
        return f"{text} {alike}", None
    return (
        f"{text} A gain of this size would need about {max(needed)} held-out failures to show.",
        max(needed),
    )


def _without_groups(views: Sequence[View]) -> str:
    """Returns a sentence if the clean folds were single frames, "" if they were groups."""
    if all(view.kind != "frames" for view in views):
        return ""
    return " No groups are known: frames were held out, not drives, which does not show the next drive."
