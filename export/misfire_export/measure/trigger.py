"""Chooses the score that a bundle triggers on: the judge's release gate, on what the shipped graph measured.

calibration frames, clean and under each corruption --graph--> scores, failures
                    a learned head on a family it was trained on --refitted without--> its scores there
                    --gate: held-out groups, held-out corruptions--> trigger score, verdict

A learned score must beat the best free one on both. A family that it was trained on counts only with a refit.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from misfire_export.errors import ExportError
from misfire_export.measure.run import Measurement
from misfire_runtime.bundle import RateScore
from misfire_train.data import Examples
from misfire_train.data.corruptions import FAMILIES, SEVERITIES, corrupt_all
from misfire_train.errors import JudgeError
from misfire_train.fitting.refit import Refit
from misfire_train.judge.evidence import CLEAN, Evidence
from misfire_train.judge.gate import MIN_FAILURES, GateResult, GateRules, choose_score
from misfire_train.scores.fitting import spread

SHIFTS = ("noise", "blur", "night", "fog", "jpeg")
"""One of each kind: sensor, lens, light, weather, link."""
# The middle of the five severities.
SEVERITY = 3
MAX_SHIFTED = 1_000
"""Frames under each corruption; spread evenly over the calibration set."""

Measure = Callable[[Examples], Measurement]


@dataclass(frozen=True)
class Shifts:
    """Specifies the corruptions that the gate holds out.

    families: of `misfire_train.data.corruptions`, empty for none.
    """

    families: tuple[str, ...] = SHIFTS
    severity: int = SEVERITY

    def require_known(self) -> None:
        """Raises ExportError on a family or severity that does not exist."""
        unknown = [name for name in self.families if name not in FAMILIES]
        if unknown:
            raise ExportError(f"there is no corruption {unknown[0]!r}; there are {', '.join(FAMILIES)}")
        if self.severity not in SEVERITIES:
            raise ExportError(f"severity {self.severity}: severities are 1 to 5")


def choose_trigger(
    clean: Measurement,
    frames: Examples,
    *,
    measure: Measure,
    free: Collection[str],
    fallback: str | None,
    refit: Refit | None,
    shifts: Shifts,
    seed: int,
    budget: float | None = None,
) -> tuple[str, dict[str, Any]]:
    """Returns the trigger score's name and the gate's report for the manifest.

    Args:
        clean: measurement of `frames`.
        frames: labelled calibration frames.
        measure: measures labelled frames through the graph, with failures as on the clean ones.
        free: scores that cost nothing, at least one.
        fallback: the free score if nothing can be decided.
        refit: how to fit the learned head again.
        shifts: corruptions to hold out.
        seed: of corruptions, folds and resamples.
        budget: share of frames that vehicles upload, None for AUROC and AURC.
    """
    families, notes = _held_out(clean, refit, shifts)
    part = spread(frames, MAX_SHIFTED)
    worse = {name: corrupt_all(part, name, severity=shifts.severity, seed=seed) for name in families}
    columns = {CLEAN: clean, **{name: measure(examples) for name, examples in worse.items()}}
    refitted = _refits(refit, worse, columns)
    try:
        result = _judge(columns, refitted, free=free, fallback=fallback, seed=seed, budget=budget)
    except JudgeError as error:
        chosen = fallback or next(name for name in clean.scores if name in free)
        return chosen, {"verdict": f"{error}; trigger on the free score {chosen}"}
    result = replace(result, notes=(*result.notes, *notes))
    facts = {
        "shifts": list(families),
        "severity": shifts.severity if families else None,
        "shifted_frames": len(part) if families else 0,
        "refitted": sorted(refitted),
    }
    return result.winner, {**result.to_dict(), **facts}


def _held_out(
    clean: Measurement, refit: Refit | None, shifts: Shifts
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns (families to hold out, notes on those that cannot be)."""
    failures = int(clean.failed.sum())
    if min(failures, len(clean) - failures) < MIN_FAILURES:
        return (), ()  # clean frames suffice for the gate to report that it cannot judge
    if not shifts.families:
        return (), ("No corruption was held out: only clean groups were judged.",)
    if refit is None or refit.name not in clean.scores or refit.possible:
        return shifts.families, ()
    unseen = tuple(name for name in shifts.families if name not in refit.families)
    seen = [name for name in shifts.families if name in refit.families]
    if not seen:
        return unseen, ()
    note = (
        f"{refit.name} was trained on {', '.join(seen)} and cannot be fitted again without them "
        f"({refit.why_not}): these corruptions were not held out."
    )
    return unseen, (note,)


def _refits(
    refit: Refit | None, worse: Mapping[str, Examples], columns: Mapping[str, Measurement]
) -> dict[str, dict[str, NDArray[np.float64]]]:
    """Returns {family: {score: [all rows]}}; only the family's own rows differ, and only they are read."""
    if refit is None or refit.name not in columns[CLEAN].scores:
        return {}
    starts = dict(zip(columns, np.cumsum([0, *map(len, columns.values())]), strict=False))
    found = {}
    for name, examples in worse.items():
        if name not in refit.families:
            continue
        values = np.concatenate([column.scores[refit.name] for column in columns.values()])
        values[starts[name] : starts[name] + len(examples)] = refit.scores(name, examples)
        found[name] = {refit.name: values}
    return found


def _judge(
    columns: Mapping[str, Measurement],
    refitted: Mapping[str, Mapping[str, NDArray[np.float64]]],
    *,
    free: Collection[str],
    fallback: str | None,
    seed: int,
    budget: float | None,
) -> GateResult:
    clean = columns[CLEAN]

    def joined(parts: Sequence[Any]) -> NDArray[Any]:
        return np.concatenate([np.asarray(part) for part in parts])

    every = list(columns.values())
    # Where a failure is a loss above a threshold, risk curves add up the loss itself, as the judge's do.
    decided = clean.threshold is None
    evidence = Evidence.of(
        {name: joined([column.scores[name] for column in every]) for name in clean.scores},
        failed=joined([column.failed for column in every]) if decided else None,
        loss=joined([column.loss for column in every]),
        failure_threshold=clean.threshold,
        groups=joined([column.groups for column in every]),
        frames=joined([column.ids for column in every]),
        shifts=np.repeat(np.array(list(columns)), [len(column) for column in every]),
    )
    return choose_score(evidence, GateRules(free, fallback, refitted, seed=seed, budget=budget))


def scores_by_rate(gate: Mapping[str, Any]) -> tuple[RateScore, ...]:
    """Returns the score to trigger on at each upload rate, of a gate's report; none if nothing was judged."""
    return tuple(
        RateScore(upload_rate=choice["budget"], score=choice["score"], reason=choice["why"])
        for choice in gate.get("budgets", ())
    )
