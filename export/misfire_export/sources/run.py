"""Makes a bundle of a training run: task, failure scores and embedding in one graph.

run + data --build scores--> ScoredModel --trace--> graph --assemble--> Bundle

Scores that need a bank or held-out gradients are fitted here, on the run's own training and holdout parts;
calibration uses a part that neither the network nor any score has seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from misfire_export.assemble import GraphScore, Source, assemble, require_free
from misfire_export.errors import ExportError
from misfire_export.graph.check import require_small_scores
from misfire_export.graph.trace import PixelInput, trace
from misfire_export.graph.tunable import open_head
from misfire_export.measure.calibrate import require_frames
from misfire_export.options import Options, ScoreOptions, require_options
from misfire_export.sources.frames import Frames
from misfire_export.sources.score_names import HEAD, wanted_scores
from misfire_runtime.bundle import Bundle, Lineage
from misfire_train import scores as scoring
from misfire_train.fitting.frames import signals_to_fit
from misfire_train.fitting.refit import refit_of_run
from misfire_train.runs import Run
from misfire_train.signals import Score, ScoredModel
from misfire_train.tasks import Task


def export_run(run: Run, frames: Frames, *, out: Path, options: Options) -> Bundle:
    """Writes a verified, calibrated bundle of a run and returns it opened.

    Args:
        run: A training run.
        frames: Its parts, as `frames_of_run` gives them. Without `fit` and `holdout` some scores cannot be
            fitted, nor the head fitted again without a corruption that the gate holds out.
        out: Folder of the bundle.
        options: How to make it. Scores: by default the run's head and the free scores of its task.

    Raises:
        ExportError: Too few frames, parity, operators, NaN; `out` then stays as it was.
        ScoreError: A score cannot be fitted.
    """
    require_free(Path(out))
    require_frames(len(frames.calibration))
    threshold = options.failure_threshold
    task = run.task if threshold is None else run.task.with_threshold(threshold)
    names = wanted_scores(options.scores, task=task, head=run.head is not None)
    # Before scores are fitted, which can take minutes.
    require_options(options, names)
    built = build_scores(
        names, run, frames, task=task, options=options.score_options, refittable=options.refittable
    )
    require_small_scores(built)
    model = ScoredModel(run.probe, built, output_name=task.output_name, answer=task.answer).eval()
    graph = trace(model, contract=run.contract)
    source = Source(
        graph=graph,
        contract=run.contract,
        task=task,
        output=task.output_name,
        scores=tuple(GraphScore(score.name, score.definition, score.free) for score in built),
        lineage=lineage_of(run, snapshot_id=options.snapshot_id),
        classes=tuple(run.record.classes),
        reference=PixelInput(model, contract=run.contract) if run.contract.dtype == "uint8" else model,
        refit=refit_of_run(run, train=frames.fit, holdout=frames.holdout),
        ranges=frames.fit,
        head=next((score for score in built if score is run.head), None),
    )
    return assemble(source, calibration=frames.calibration, out=Path(out), options=options)


def build_scores(
    names: Sequence[str],
    run: Run,
    frames: Frames,
    *,
    task: Task,
    options: ScoreOptions,
    refittable: bool = False,
) -> list[Score]:
    """Returns the run's head and registry scores by name, fitted.

    refittable: see `Options`.

    Raises ExportError on a name twice, or none.

    task: defines failures for scores that learn from them.
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
    sets = {"fit": frames.fit, "holdout": frames.holdout}
    needed = {known[n].needs for n in others if n in known}
    fitted = {
        key: signals_to_fit(run, part) if key in needed or "stacked" in others else None
        for key, part in sets.items()
    }
    chosen = {name: dict(value) for name, value in options.items() if name in others}
    if "stacked" in others:
        # This task knows the run's failure threshold; the registry's does not.
        chosen["stacked"] = {"task": task, **chosen.get("stacked", {})}
    built = scoring.build(others, task=run.task, fit=fitted["fit"], holdout=fitted["holdout"], **chosen)
    by_name = {score.name: score for score in built}
    if run.head is not None:
        by_name[run.head.name] = open_head(run.head, refittable=refittable)
    return [by_name[name] for name in names]


def lineage_of(run: Run, *, snapshot_id: str | None = None) -> Lineage:
    """Returns where a run's model comes from."""
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
