"""`misfire train`: options over a TOML file, a run folder out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from misfire_train.fit import command_line, train_run
from misfire_train.progress import Reporter
from misfire_train.runs import Run
from misfire_train.train_config import parse_train_config, read_train_config


def train(
    *,
    out: Annotated[Path, typer.Option(help="Folder for the run.")],
    dataset: Annotated[str | None, typer.Option(help="See `misfire data list`; default digits.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of the published data sets.")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file; options override it.")] = None,
    model: Annotated[str | None, typer.Option(help="Network; default by task.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Maximum number of epochs.")] = None,
    seed: Annotated[int | None, typer.Option(help="Random seed.")] = None,
    field: Annotated[
        float | None, typer.Option(help="Share of the training data set aside as the field.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Use only so many training examples.")] = None,
    head: Annotated[str | None, typer.Option(help="Recipe of the failure score, or none.")] = None,
    failure_threshold: Annotated[
        float | None,
        typer.Option(
            help="A loss above this is a failure (keypoints, segmentation, regression); "
            "else the worst fifth of the clean held-out images."
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an interrupted run stopped.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Train a task network and a failure score that predicts where it goes wrong."""
    overrides: dict[str, Any] = {
        "dataset": dataset,
        "data": str(data) if data is not None else None,
        "model.name": model,
        "training.epochs": epochs,
        "seed": seed,
        "split.field": field,
        "split.limit": limit,
        "head.recipe": head,
        "failure.threshold": failure_threshold,
    }
    chosen = (
        read_train_config(config, overrides=overrides)
        if config
        else parse_train_config({}, overrides=overrides)
    )
    run = train_run(chosen, out=out, resume=resume, command=command_line(), reporter=Reporter())
    typer.echo(json.dumps(summary(run)) if as_json else describe(run))


def summary(run: Run) -> dict[str, Any]:
    """What --json prints."""
    record = run.record
    return {
        "run": str(run.path),
        "run_id": record.run_id,
        "dataset": record.dataset.name,
        "task": record.task,
        "model": record.model.name,
        "counts": record.dataset.counts,
        "notes": list(record.dataset.notes),
        "failure": None if record.failure is None else record.failure.model_dump(),
        "metrics": {key: value for key, value in record.metrics.items() if key != "history"},
        "warnings": list(record.warnings),
    }


def describe(run: Run) -> str:
    """What a person reads."""
    record, metrics = run.record, run.record.metrics
    lines = [
        f"run {record.run_id} in {run.path}",
        f"{record.model.name} on {record.dataset.name}: test accuracy {100 * metrics['test_accuracy']:.2f} % "
        f"after {metrics['epochs']} epochs (best {metrics['best_epoch']})",
    ]
    if record.failure is not None:
        lines.append(f"a failure is a loss above {record.failure.threshold:.4g}: {record.failure.source}")
    report = metrics.get("head")
    if report:
        stands = f" on {report['base']}" if report["base"] else ""
        lines.append(
            f"failure score: {report['recipe']}{stands}, held-out pair accuracy {report['pair_accuracy']:.3f}"
            + (f", AUROC {report['auroc']:.3f}" if report["auroc"] is not None else "")
            + (
                f" against {report['auroc_base']:.3f} of the free score"
                if report["auroc_base"] is not None
                else ""
            )
        )
    lines += [f"warning: {text}" for text in record.warnings]
    lines.append(f"next: misfire export {run.path} --out bundle")
    return "\n".join(lines)
