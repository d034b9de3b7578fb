"""Collects from a training run what the judge needs: every score, the true loss, and the origin of each row.

Run, Dataset --build (fitted on train and holdout)--> scores
test images, clean and under each shift --compute, sample_loss--> columns --evaluate--> Report with pictures

For each shift in the head's corruption library, the head is fitted again without that family, and the gate
judges that refit there: else "held-out corruption" would be a corruption that the head has seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from misfire_train.data import Dataset, Examples
from misfire_train.data.corruptions import corrupt_all
from misfire_train.errors import JudgeError
from misfire_train.fitting.failures import settle_failures
from misfire_train.fitting.frames import frames_to_fit, signals_to_fit
from misfire_train.fitting.refit import refit_of_run
from misfire_train.fitting.severity import adapt_severity
from misfire_train.judge.columns import (
    Column,
    LossColumns,
    find_column_parts,
    slices_of,
    some_of,
    stack,
)
from misfire_train.judge.evaluating import evaluate
from misfire_train.judge.evidence import CLEAN, Evidence
from misfire_train.judge.files.kept import KeptColumns
from misfire_train.judge.gate import GateRules
from misfire_train.judge.parts import with_parts
from misfire_train.judge.report import FrameExample, Report
from misfire_train.judge.score_names import chosen_scores
from misfire_train.metrics.loss_curve import LossCurve, fit_loss_curve
from misfire_train.runs import Run, run_splits
from misfire_train.scores import ScoreError, build, compute, names_for, scores_of
from misfire_train.scores.fitting import batches, evaluating
from misfire_train.signals import Score
from misfire_train.tasks import Task
from misfire_train.train_config import FailureTable


@dataclass(frozen=True)
class Judging:
    """Specifies what to judge.

    Attributes:
        scores: "all", "free" and names, in any combination.
        shifts: corruption families.
        severity: 1..5, of each family; 0 adapts it to each, so that a tenth to a half of the frames fail.
        part: "test", or a part of the run that nothing was fitted on ("field").
        limit: maximum number of frames, None for all.
        refit: fit the head again without each shift of its library.
        failure_threshold: of tasks whose failure is a loss; None takes the run's own.
        slices: {name: {id: label}}.
        budget: share of frames that is uploaded, which then decides the gate; None for AUROC and AURC.
        keep: folder in which each condition is kept as soon as it is scored, None for none.
        collected: called with all scores and the gate's rules before anything is judged.
    """

    scores: Sequence[str] = ("all",)
    shifts: Sequence[str] = ()
    severity: int = 3
    part: str = "test"
    limit: int | None = None
    refit: bool = True
    failure_threshold: float | None = None
    slices: Mapping[str, Mapping[str, str]] | None = None
    replicates: int = 300
    seed: int = 0
    budget: float | None = None
    keep: Path | None = None
    collected: Callable[[Evidence, GateRules], None] = lambda _evidence, _rules: None


def judge_run(
    run: Run, dataset: Dataset, judging: Judging, *, progress: Callable[[str], None] = lambda _text: None
) -> tuple[Report, Evidence]:
    """Judges a run on data that it never saw. progress: called with a line before each slow step.

    Raises JudgeError on an unknown part or score, and whatever the scores or the data raise.
    """
    parts = run_splits(run, dataset)
    examples = _part(parts, judging)
    task, meaning = _failures(run, parts, judging)
    severities = _severities(run, parts, task, judging)
    images = {CLEAN: examples} | {
        name: corrupt_all(examples, name, severity=severity, seed=judging.seed)
        for name, severity in severities.items()
    }
    scoring = _Scoring(run, parts, task, judging, progress)
    columns = {name: scoring.column(name, rows) for name, rows in images.items()}
    skipped = scoring.skipped
    refitted, known, notes = _refit(run, task, parts, images, judging, progress=progress)
    evidence = stack(columns, examples, task)
    rules = GateRules(
        free=set(_free_names(run)),
        fallback=task.default_free_score,
        refitted=_stack_refits(refitted, columns, evidence.scores),
        known=known,
        seed=judging.seed,
        budget=judging.budget,
    )
    judging.collected(evidence, rules)
    progress("judging")
    report = evaluate(
        evidence,
        rules,
        slices=slices_of(
            run.task, examples, run.record.classes, stated=judging.slices or {}, repeats=len(columns)
        ),
        loss_scales=_loss_curves(run, parts, judging),
        loss_scales_from="the run's calibration part",
        replicates=judging.replicates,
        settings=_settings(run, dataset, judging, examples, meaning) | {"severity": _stated(severities)},
    )
    found = find_column_parts(columns, examples, task, contract=run.contract, classes=run.record.classes)
    report = with_parts(report, evidence, found, replicates=judging.replicates, seed=judging.seed)
    report = replace(
        report,
        skipped=skipped,
        gate=replace(report.gate, notes=(*report.gate.notes, *notes)),
        frames=tuple(_with_picture(frame, run, examples, images) for frame in report.frames),
        legend=run.task.legend(run.record.classes),
    )
    return report, evidence


def _part(parts: Mapping[str, Examples], judging: Judging) -> Examples:
    if judging.part not in parts:
        raise JudgeError(f"the run has no part {judging.part!r}; there are {', '.join(parts)}")
    if judging.part in ("train", "validation", "holdout"):
        raise JudgeError(f"model or scores were fitted on the {judging.part} part; judge on test or field")
    return some_of(parts[judging.part], limit=judging.limit, seed=judging.seed)


def _severities(run: Run, parts: Mapping[str, Examples], task: Task, judging: Judging) -> dict[str, int]:
    """Returns {family: severity}, adapted on frames that are not judged if none is stated."""
    if judging.severity:
        return dict.fromkeys(judging.shifts, judging.severity)
    others = [name for name in ("holdout", "calibration") if name in parts and name != judging.part]
    if not others:
        raise JudgeError(
            "the severity can only be adapted on held-out frames, and the run has none: state it"
        )
    return {
        name: adapt_severity(
            run.probe, task, parts[others[0]], name, contract=run.contract, seed=judging.seed
        )
        for name in judging.shifts
    }


def _build_scores(
    run: Run, parts: Mapping[str, Examples], task: Task, judging: Judging
) -> tuple[list[Score], dict[str, str]]:
    """Returns score modules, and {name: why it was left out}."""
    names = chosen_scores(judging.scores, run.record)
    head, frames = run.head, frames_to_fit(run, parts)
    fit, holdout = signals_to_fit(run, frames.fit), signals_to_fit(run, frames.holdout)
    modules: list[Score] = []
    skipped = {}
    for name in names:
        if head is not None and name == head.name:
            continue
        try:
            options = {"stacked": {"task": task}} if name == "stacked" else {}
            modules.extend(build([name], task=run.task, fit=fit, holdout=holdout, **options))
        except ScoreError as error:
            if name in judging.scores:  # asked for by name, not as one of many
                raise
            skipped[name] = str(error)
    if head is not None and head.name in names:
        modules.append(head)
    known = scores_of(run.task)
    if not any(known[m.name].free for m in modules if m.name in known):
        raise JudgeError("the gate needs a free score to beat: add one of " + ", ".join(_free_names(run)))
    return modules, skipped


def _free_names(run: Run) -> list[str]:
    return names_for(run.task, free=True)


class _Scoring:
    """Scores condition by condition, or reads what an earlier call kept; then no score is fitted again."""

    def __init__(
        self,
        run: Run,
        parts: Mapping[str, Examples],
        task: Task,
        judging: Judging,
        progress: Callable[[str], None],
    ) -> None:
        self._run, self._parts, self._task, self._judging = run, parts, task, judging
        self._progress = progress
        self._built: tuple[list[Score], dict[str, str]] | None = None
        names = chosen_scores(judging.scores, run.record)
        self._kept = KeptColumns(judging.keep, _identity(run, task, judging, names))

    def column(self, name: str, rows: Examples) -> Column:
        """Returns the scores, losses and failures of one condition."""
        kept = self._kept.get(name)
        if kept is None:
            modules, skipped = self._modules()
            self._progress(f"scoring {len(rows)} frames, {name}")
            kept = _column(self._run, rows, modules, task=self._task, seed=self._judging.seed)
            self._kept.put(name, kept, skipped=skipped)
        return kept

    @property
    def skipped(self) -> dict[str, str]:
        """Returns {score: why it was left out}."""
        return self._kept.skipped if self._built is None else self._built[1]

    def _modules(self) -> tuple[list[Score], dict[str, str]]:
        if self._built is None:
            self._progress("fitting scores")
            self._built = _build_scores(self._run, self._parts, self._task, self._judging)
        return self._built


def _identity(run: Run, task: Task, judging: Judging, names: Sequence[str]) -> dict[str, Any]:
    """Returns everything that decides a frame's scores and losses."""
    return {
        "run": run.record.run_id,
        "files": run.record.files,
        "dataset": run.record.dataset.sha256,
        "part": judging.part,
        "limit": judging.limit,
        "severity": judging.severity,
        "seed": judging.seed,
        "scores": list(names),
        "failure": task.failure_threshold,
    }


def _column(run: Run, examples: Examples, modules: Sequence[Score], *, task: Task, seed: int) -> Column:
    scores = compute(run, examples, modules, batch=task.score_batch, seed=seed) if modules else {}
    losses = LossColumns(task)
    with evaluating(run.probe), torch.no_grad():
        for rows, image in batches(examples, contract=run.contract, size=task.score_batch):
            losses.add(run.probe(image).outputs, task.collate(examples.targets[rows]))
    return losses.column({module.name: scores[module.name] for module in modules})


def _failures(run: Run, parts: Mapping[str, Examples], judging: Judging) -> tuple[Task, str]:
    """Returns the task with its failures defined, and their meaning in words.

    No judged frame influences it.
    """
    stated = judging.failure_threshold
    if stated is not None:
        return run.task.with_threshold(stated), f"loss above {stated:g}, stated with this evaluation"
    if run.record.failure is not None:
        found = run.record.failure
        return run.task, f"loss above {found.threshold:.4g}, of the run: {found.source}"
    # A run that recorded none: by the default rule, on frames that its network never fitted.
    part = "calibration" if run.config.head.folds else "holdout"
    task, settled = settle_failures(
        run.probe, run.task, parts[part], contract=run.contract, table=FailureTable(), part=part
    )
    if settled is None:
        return task, task.failure_text
    return task, f"loss above {settled.threshold:.4g}: {settled.source}"


def _refit(
    run: Run,
    task: Task,
    parts: Mapping[str, Examples],
    images: Mapping[str, Examples],
    judging: Judging,
    *,
    progress: Callable[[str], None],
) -> tuple[dict[str, dict[str, NDArray[Any]]], tuple[str, ...], tuple[str, ...]]:
    """Returns scores of refitted heads, the shifts that are not held out, and notes.

    The scores are {shift: {head: [n]}}, by a head that never saw the family.
    """
    frames = frames_to_fit(run, parts)
    refit = refit_of_run(run, train=frames.fit, holdout=frames.holdout, task=task)
    seen = tuple(name for name in judging.shifts if refit is not None and name in refit.families)
    if refit is None or not seen:
        return {}, (), ()
    why = refit.why_not if judging.refit else "as asked"
    if why:
        note = f"The head was trained on {', '.join(seen)} and not fitted again ({why}): "
        return {}, seen, (f"{note}these shifts are not held out.",)
    found = {}
    for name in seen:
        progress(f"fitting the head without {name}")
        found[name] = {refit.name: refit.scores(name, images[name])}
    return found, (), (f"On {', '.join(seen)} the gate judges heads fitted without that corruption.",)


def _stack_refits(
    refitted: Mapping[str, Mapping[str, NDArray[Any]]],
    columns: Mapping[str, Column],
    stacked: Mapping[str, NDArray[Any]],
) -> dict[str, dict[str, NDArray[Any]]]:
    result: dict[str, dict[str, NDArray[Any]]] = {}
    starts = {name: index * len(column.loss) for index, (name, column) in enumerate(columns.items())}
    for shift, scores in refitted.items():
        for name, values in scores.items():
            if name not in stacked:
                continue
            # The gate takes whole columns; only this condition's rows are replaced.
            whole = stacked[name].copy()
            whole[starts[shift] : starts[shift] + len(values)] = values
            result.setdefault(shift, {})[name] = whole
    return result


def _loss_curves(run: Run, parts: Mapping[str, Examples], judging: Judging) -> dict[str, LossCurve]:
    names = chosen_scores(judging.scores, run.record)
    if run.head is None or run.head.name not in names or "calibration" not in parts:
        return {}
    # The judged frames must not set the curve that is judged on them.
    column = _column(run, parts["calibration"], [run.head], task=run.task, seed=0)
    curve = fit_loss_curve(column.scores[run.head.name], column.loss)
    return {} if curve is None else {run.head.name: curve}


def _stated(severities: Mapping[str, int]) -> int | str | None:
    """Returns the severity for the report: one number if all are alike."""
    if len(set(severities.values())) < 2:
        return next(iter(severities.values()), None)
    return ", ".join(f"{name} {severity}" for name, severity in severities.items())


def _settings(
    run: Run, dataset: Dataset, judging: Judging, examples: Examples, meaning: str
) -> dict[str, Any]:
    return {
        "run": run.record.run_id,
        "dataset": dataset.name,
        "dataset_sha256": dataset.sha256,
        "part": judging.part,
        "frames": len(examples),
        "groups": len(set(examples.groups)),
        "failure": meaning,
        "shifts": ", ".join(judging.shifts) or "none",
        "head": run.record.head.recipe if run.record.head else None,
        "replicates": judging.replicates,
        "data_notes": "; ".join(note.rstrip(".") for note in dataset.notes) or None,
    }


def _with_picture(
    frame: FrameExample, run: Run, examples: Examples, images: Mapping[str, Examples]
) -> FrameExample:
    """Returns the frame as the network saw it, with truth and answer; the network runs on it once more."""
    shown = images[frame.shift]
    row = int(examples.positions([frame.frame])[0])
    with evaluating(run.probe), torch.no_grad():
        outputs = run.probe(shown.batch(np.array([row]), run.contract)).outputs
    drawing = run.task.draw(
        shown.images[row],
        outputs,
        examples.targets[row],
        classes=run.record.classes,
        contract=run.contract,
    )
    return replace(frame, picture=drawing.picture, truth=drawing.truth, predicted=drawing.predicted)
