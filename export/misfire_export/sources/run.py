"""A training run becomes a bundle: task, failure scores and embedding in one graph.

run + data --build scores--> ScoredModel --trace--> graph --assemble--> Bundle

The scores that need a bank or held-out gradients are fitted here, on the run's own training and holdout
parts; calibration uses a part that neither the network nor any score has seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from misfire_export.assemble import (
    GraphScore,
    Options,
    Precision,
    Source,
    assemble,
    require_free,
    require_options,
)
from misfire_export.errors import ExportError
from misfire_export.graph.check import require_small_scores
from misfire_export.graph.trace import PixelInput, trace
from misfire_export.measure.calibrate import require_frames
from misfire_export.measure.parity import TOLERANCE
from misfire_export.measure.trigger import Shifts
from misfire_export.precision.lower import Target
from misfire_runtime.bundle import Bundle, Lineage
from misfire_train import scores as scoring
from misfire_train.data import Examples
from misfire_train.heads.refit import refit_of_run
from misfire_train.runs import Run
from misfire_train.signals import Score, ScoredModel
from misfire_train.tasks import Task, as_task

HEAD = "learning_loss_pp"


def all_scores(task: str, *, head: bool) -> tuple[str, ...]:
    """The learned head and every score of a task that can stand in a graph."""
    return (*((HEAD,) if head else ()), *scoring.names_for(task, exportable=True))


def default_scores(task: str, *, head: bool) -> tuple[str, ...]:
    """What a bundle carries unless told: the learned head, and the free scores that every task has."""
    free = as_task(task).default_scores
    return (HEAD, *free) if head else free


def export_run(
    run: Run,
    *,
    calibration: Examples,
    out: Path,
    name: str,
    version: str,
    scores: Sequence[str] | None = None,
    precision: Precision = "fp32",
    target: Target = "onnxruntime-x86",
    fit: Examples | None = None,
    holdout: Examples | None = None,
    score_options: Mapping[str, Mapping[str, Any]] | None = None,
    default_score: str | None = None,
    failure_threshold: float | None = None,
    shifts: Shifts | None = None,
    tolerance: float = TOLERANCE,
    snapshot_id: str | None = None,
    seed: int = 0,
) -> Bundle:
    """Writes a verified, calibrated bundle of a run and returns it opened.

    calibration: held-out frames with labels; nothing may have been trained on them.
    scores: names, by default the run's head and the free scores of its task.
    fit, holdout: the run's training and holdout parts, for scores that need them (`misfire_train.scores`) and
    for fitting the head again without a corruption that the gate holds out.
    shifts: those corruptions; None takes one of each kind.
    Raises an ExportError (too few frames, parity, operators, NaN) or ScoreError; `out` then stays as it was.
    """
    require_free(Path(out))
    require_frames(len(calibration))
    names = (
        tuple(scores) if scores is not None else default_scores(run.record.task, head=run.head is not None)
    )
    options = Options(
        name=name,
        version=version,
        precision=precision,
        target=target,
        tolerance=tolerance,
        default_score=default_score,
        failure_threshold=failure_threshold,
        shifts=shifts or Shifts(),
        seed=seed,
    )
    require_options(options, names)
    task = run.task if failure_threshold is None else run.task.with_threshold(failure_threshold)
    built = build_scores(names, run, task=task, fit=fit, holdout=holdout, options=score_options or {})
    require_small_scores(built)
    model = ScoredModel(run.probe, built, output_name=task.output_name).eval()
    graph = trace(model, contract=run.contract)
    source = Source(
        graph=graph,
        contract=run.contract,
        task=task,
        output=task.output_name,
        scores=tuple(GraphScore(score.name, score.definition, score.free) for score in built),
        lineage=lineage_of(run, snapshot_id=snapshot_id),
        classes=tuple(run.record.classes),
        reference=PixelInput(model, contract=run.contract) if run.contract.dtype == "uint8" else model,
        refit=refit_of_run(run, train=fit, holdout=holdout),
        ranges=fit,
    )
    return assemble(source, calibration=calibration, out=Path(out), options=options)


def build_scores(
    names: Sequence[str],
    run: Run,
    *,
    task: Task,
    fit: Examples | None,
    holdout: Examples | None,
    options: Mapping[str, Mapping[str, Any]],
) -> list[Score]:
    """The run's head and registry scores by name, fitted. Raises ExportError on a name twice, or none.

    task: says what a failure is, to scores that learn from failures.
    """
    if not names or len(set(names)) != len(names):
        raise ExportError(
            f"scores must be named once each, and at least one: got {', '.join(names) or 'none'}"
        )
    if HEAD in names and run.head is None:
        raise ExportError(f"{run.path} has no learned head: train one, or leave out {HEAD}")
    others = [name for name in names if run.head is None or name != run.head.name]
    known = scoring.scores_of(task)
    unfit = [n for n in others if n in known and not known[n].exportable]
    if unfit:
        raise ExportError(f"{', '.join(unfit)} runs the model several times and cannot stand in a graph")
    sets = {"fit": fit, "holdout": holdout}
    needed = {known[n].needs for n in others if n in known}
    fitted = {
        key: _gather(run, part) if part is not None and (key in needed or "stacked" in others) else None
        for key, part in sets.items()
    }
    chosen = {name: dict(value) for name, value in options.items() if name in others}
    if "stacked" in others:
        chosen["stacked"] = {"task": task, **chosen.get("stacked", {})}
    built = scoring.build(others, task=run.task, fit=fitted["fit"], holdout=fitted["holdout"], **chosen)
    by_name = {score.name: score for score in built}
    if run.head is not None:
        by_name[run.head.name] = run.head
    return [by_name[name] for name in names]


def lineage_of(run: Run, *, snapshot_id: str | None = None) -> Lineage:
    """Where a run's model comes from."""
    record = run.record
    metrics = {k: float(v) for k, v in record.metrics.items() if isinstance(v, int | float)}
    return Lineage(
        run_id=record.run_id,
        parent_run_id=record.parent_run_id,
        dataset=record.dataset.name,
        dataset_sha256=record.dataset.sha256,
        snapshot_id=snapshot_id,
        git_commit=record.git_commit,
        config=record.config,
        metrics=metrics,
    )


def _gather(run: Run, part: Examples) -> scoring.FitSet:
    """Signals of at most so many frames, as the judge draws them."""
    part = scoring.spread(part, scoring.MAX_FIT)
    classes = len(run.record.classes) if run.task.by_class else None
    return scoring.gather(
        run.probe,
        part,
        run.task.collate(part.targets),
        classes=classes,
        contract=run.contract,
        batch=64,
        features=run.head is not None,
    )
