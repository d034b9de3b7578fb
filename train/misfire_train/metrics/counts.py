"""Measures what an upload finds of things that are counted in each frame: missed objects, errors.

counts [N] of missed objects, errors, objects --budget_counts--> shares found in the top 1, 5, 10 % of frames
                                              --replicate_counts--> the same on resamples, for intervals

A frame that fails may hold one missed object or ten, so recall of failed frames does not say how many misses
are uploaded. Tied scores at the cut count as the expectation over a fair draw.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from misfire_train.errors import JudgeError
from misfire_train.metrics.bootstrap import Comparison, Estimate, estimate, interval, resample_weights
from misfire_train.metrics.detection import found_values
from misfire_train.metrics.ranking import (
    Floats,
    Marks,
    Ranked,
    Steps,
    as_losses,
    as_scores,
    rank_scores,
    same_length,
)

COUNTS = ("errors", "missed", "false", "objects")
"""What is counted in a frame: false boxes and missed objects together, each, and objects that count."""
COUNT_BUDGETS = (0.01, 0.05, 0.10)
"""Shares of all frames that are uploaded."""


@dataclass(frozen=True)
class CountTable:
    """Holds what uploads of each score find, on the rows of one condition.

    Measures, at 1, 5 and 10 % of frames, such as "missed_at_5%": share of all missed objects in the uploaded
    frames; "errors_at_5%": of all errors; "errors_per_upload_at_5%"; "errors_per_label_at_5%": errors for
    each object that has to be labelled there.

    Attributes:
        totals: {count: sum over all frames}.
        random: {measure: what uploads at random find on average}.
        oracle: {measure: what uploads of the frames with the most find}.
        scores: {score: {measure: value with interval}}.
        against: the free score that the others are compared with.
        gains: {score: {measure: value minus that of `against`, on the same resamples}}.
    """

    totals: Mapping[str, int]
    random: Mapping[str, float]
    oracle: Mapping[str, Estimate]
    scores: Mapping[str, Mapping[str, Estimate]]
    against: str
    gains: Mapping[str, Mapping[str, Comparison]]


def as_counts(counts: Mapping[str, ArrayLike]) -> dict[str, Floats]:
    """Returns {count: [N]}. Raises JudgeError on an unknown name, or values that are no counts."""
    found = {}
    for name, values in counts.items():
        if name not in COUNTS:
            raise JudgeError(f"there is no count {name!r}; there are {', '.join(COUNTS)}")
        try:
            found[name] = as_losses(values)
        except JudgeError as error:
            raise JudgeError(f"count {name!r}: {error}") from error
    return found


def count_table(
    scores: Mapping[str, ArrayLike],
    counts: Mapping[str, Floats],
    *,
    against: str,
    groups: ArrayLike | None = None,
    replicates: int = 300,
    seed: int = 0,
) -> CountTable:
    """Returns what uploads by each score find.

    Args:
        scores: {name: [N]}.
        counts: {count: [N]}, of COUNTS.
        against: a score, the best free one.
        groups: [N] what a resample draws whole. Default: frames.
        replicates: number of resamples.
        seed: of the resamples.

    Raises:
        JudgeError: lengths differ.

    >>> missed = np.array([0.0, 3.0, 0.0, 1.0] * 10)
    >>> table = count_table({"best": missed, "blind": np.zeros(40)}, {"missed": missed}, against="blind")
    >>> table.totals["missed"], table.random["missed_at_5%"], table.scores["best"]["missed_at_5%"].value
    (40, 0.05, 0.15)
    """
    arrays = {name: as_scores(values, what=f"score {name!r}") for name, values in scores.items()}
    same_length(**arrays, **counts)
    ranked = {name: _Counted.of(values, counts) for name, values in arrays.items()}
    # The best order for one count is not the best for another: each measure has its own oracle.
    perfect = {name: _Counted.of(values, counts) for name, values in counts.items() if name != "objects"}
    measures = _measures(counts)
    drawn: dict[str, dict[str, list[Floats]]] = {name: {m: [] for m in measures} for name in ranked}
    best: dict[str, list[Floats]] = {m: [] for m in measures}
    labels = np.arange(len(next(iter(counts.values())))) if groups is None else np.asarray(groups)
    for weights in resample_weights(labels, replicates=replicates, seed=seed):
        for name, values in _all(ranked, weights).items():
            for measure in measures:
                drawn[name][measure].append(values[measure])
        for measure, rows in _oracle(perfect, measures, weights).items():
            best[measure].append(rows)
    joined = {name: {m: np.concatenate(rows) for m, rows in per.items()} for name, per in drawn.items()}
    points = {
        name: {m: float(v[0]) for m, v in values.items()} for name, values in _all(ranked, None).items()
    }
    found = {name: {m: estimate(points[name][m], joined[name][m]) for m in measures} for name in ranked}
    oracle = _oracle(perfect, measures, None)
    return CountTable(
        totals={name: int(values.sum()) for name, values in counts.items()},
        random=_random(counts),
        oracle={m: estimate(float(oracle[m][0]), np.concatenate(best[m])) for m in oracle},
        scores=found,
        against=against,
        gains={
            name: {
                m: _gain(m, points[name][m] - points[against][m], joined[name][m] - joined[against][m])
                for m in measures
            }
            for name in ranked
            if name != against
        },
    )


def _gain(measure: str, difference: float, replicates: Floats) -> Comparison:
    low, high, usable = interval(replicates)
    return Comparison(measure, difference, low, high, usable)


@dataclass(frozen=True)
class _Counted:
    """Holds counts along one ranking."""

    ranked: Ranked
    marks: Mapping[str, Marks]

    @classmethod
    def of(cls, score: NDArray[np.floating], counts: Mapping[str, Floats]) -> _Counted:
        ranking = rank_scores(score)
        return cls(Ranked(ranking), {name: Marks.of(ranking, values) for name, values in counts.items()})

    def measure(self, weights: Floats | None) -> dict[str, Floats]:
        """Returns {measure: [B]}."""
        sums = self.ranked.sums(weights)
        steps = {name: Steps(sums, marks) for name, marks in self.marks.items()}
        found = {}
        for budget in COUNT_BUDGETS:
            frames = max(1, round(budget * len(sums.ranking.order)))
            at = f"at_{budget:.0%}"
            hits = {n: found_values(sums, steps[n], m, frames=frames) for n, m in self.marks.items()}
            for name in ("missed", "errors", "false"):
                if name in hits:
                    found[f"{name}_{at}"] = _divide(hits[name], steps[name].total)
            if "errors" in hits:
                found[f"errors_per_upload_{at}"] = hits["errors"] / frames
            if "errors" in hits and "objects" in hits:
                found[f"errors_per_label_{at}"] = _divide(hits["errors"], hits["objects"])
        return found


def _all(ranked: Mapping[str, _Counted], weights: Floats | None) -> dict[str, dict[str, Floats]]:
    return {name: each.measure(weights) for name, each in ranked.items()}


def _measures(counts: Mapping[str, Floats]) -> list[str]:
    names = [name for name in ("missed", "errors", "false") if name in counts]
    if "errors" in counts:
        names.append("errors_per_upload")
    if "errors" in counts and "objects" in counts:
        names.append("errors_per_label")
    return [f"{name}_at_{budget:.0%}" for budget in COUNT_BUDGETS for name in names]


def _oracle(
    perfect: Mapping[str, _Counted], measures: list[str], weights: Floats | None
) -> dict[str, Floats]:
    """Returns the measures of sorting by the count itself; errors per label have no such order."""
    values = {name: each.measure(weights) for name, each in perfect.items()}
    return {
        measure: values[measure.split("_")[0]][measure]
        for measure in measures
        if not measure.startswith("errors_per_label")
    }


def _random(counts: Mapping[str, Floats]) -> dict[str, float]:
    found = {}
    for measure in _measures(counts):
        name, _, share = measure.partition("_at_")
        if name == "errors_per_upload":
            found[measure] = float(counts["errors"].mean())
        elif name == "errors_per_label":
            objects = float(counts["objects"].sum())
            found[measure] = float(counts["errors"].sum()) / objects if objects else float("nan")
        else:
            found[measure] = float(share.rstrip("%")) / 100
    return found


def _divide(above: Floats, below: Floats) -> Floats:
    return np.asarray(np.divide(above, below, out=np.full(len(above), np.nan), where=below > 0))
