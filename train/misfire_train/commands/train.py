"""Implements `misfire train`: options override a TOML file; the result is a run folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from misfire_train.options import AsJson, DataFolder, HeadRecipeName

if TYPE_CHECKING:
    from misfire_train.runs import Run


def train(
    *,
    out: Annotated[Path, typer.Option(help="Write the run to this folder.")],
    dataset: Annotated[
        str | None, typer.Option(help="Train on this data set of `misfire data list`. Default: digits.")
    ] = None,
    data: DataFolder = None,
    config: Annotated[
        Path | None, typer.Option(help="Read this TOML file; options given here override it.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Train this network: resnet-small, resnet18, mobilenet-small, convnet-small, "
            "regressor-small, unet-small, keypoint-small, detector-small or timm:NAME. Default: the small "
            "one for the task."
        ),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Maximum number of epochs. Default: the task's, mostly 12.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Random seed. Default: 0.")] = None,
    field: Annotated[
        float | None,
        typer.Option(help="Set this share of the training data aside as the field. Default: 0."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Use this many training examples at most. Default: all.")
    ] = None,
    head: Annotated[
        HeadRecipeName | None,
        typer.Option(help="Train the failure score by this recipe. Default: learning-loss-pp."),
    ] = None,
    failure_threshold: Annotated[
        float | None,
        typer.Option(
            help="Count a loss above this as a failure (keypoints, segmentation, regression). "
            "Default: the worst fifth of the clean held-out images."
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue where an interrupted run stopped.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train a task network and a failure score that predicts where it goes wrong."""
    from misfire_train.fit import train_run
    from misfire_train.progress import Reporter
    from misfire_train.provenance import command_line
    from misfire_train.train_config import parse_train_config, read_train_config

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
    """Returns what --json prints."""
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
        # The history has a row per epoch; run.json has it.
        "metrics": {key: value for key, value in record.metrics.items() if key != "history"},
        "warnings": list(record.warnings),
    }


def describe(run: Run) -> str:
    """Returns the summary for people."""
    record, metrics = run.record, run.record.metrics
    lines = [
        f"run {record.run_id} in {run.path}",
        f"{record.model.name} on {record.dataset.name}: test accuracy {100 * metrics['test_accuracy']:.2f} % "
        f"after {metrics['epochs']} epochs (best {metrics['best_epoch']})",
    ]
    if record.failure is not None:
        lines.append(f"a failure is a loss above {record.failure.threshold:.4g}: {record.failure.source}")
    if metrics.get("head"):
        lines += describe_head(metrics["head"])
        lines.append(f"that is a check of the fit, not a result; for one: misfire evaluate {run.path}")
    lines += [f"warning: {text}" for text in record.warnings]
    lines.append(f"next: misfire export {run.path} --out bundle")
    return "\n".join(lines)


def describe_head(report: Mapping[str, Any]) -> list[str]:
    """Returns what a head is and what its own check showed, in words that do not read like a result."""
    stands = f" on {report['base']}" if report["base"] else ""
    choice = report.get("choice")
    if not choice:
        lines = [f"failure score: {report['recipe']}{stands}"]
        seen = "held-out images set aside"
    else:
        at_zero = (
            "the score is constant" if report["base"] == "none" else f"the score is the {report['base']}"
        )
        words = f"strength {choice['strength']:g} of 1, chosen over {choice['count']} {choice['by']}"
        # A detector's head has no sets of columns, and its choice names the free score.
        known = choice["strength"] and choice["columns"] != report["base"]
        columns = f", reads {choice['columns']}" if known else ""
        lines = [f"failure score: {report['recipe']}{stands}, {words}{columns}; at 0 {at_zero}"]
        seen = f"{choice['by']} left out"
        if choice["by"] == "images":
            lines.append("no groups in the data: what holds on the next drive was not checked")
    if report["auroc"] is None:
        lines.append(f"fit check on {seen}: too few clean failures or successes for an AUROC")
    elif report["auroc_base"] is None:
        lines.append(f"fit check on {seen}, clean frames: AUROC {100 * report['auroc']:.1f}")
    else:
        free = 100 * report["auroc_base"]
        gain = 100 * report["auroc"] - free
        lines.append(
            f"fit check on {seen}, clean frames: {gain:+.1f} points of AUROC to the free score's {free:.1f}"
        )
    return lines
