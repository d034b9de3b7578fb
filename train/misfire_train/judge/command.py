"""Implements `misfire evaluate`: judges the failure scores of a run on data that it never saw."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, get_args

import typer

from misfire_train.errors import JudgeError
from misfire_train.options import AsJson, CorruptionName, DataFolder, JudgedPart


def evaluate(
    *,
    run: Annotated[Path, typer.Argument(help="Judge the training run in this folder.")],
    out: Annotated[Path, typer.Option(help="Write report.json and report.html to this folder.")],
    data: DataFolder = None,
    dataset: Annotated[
        str | None, typer.Option(help="Judge on this data set. Default: the run's own.")
    ] = None,
    scores: Annotated[
        str,
        typer.Option(
            help="Judge these scores, comma-separated: all, free (scores of the outputs), learning_loss_pp, "
            "or other names."
        ),
    ] = "all",
    shift: Annotated[
        str,
        typer.Option(
            help="Judge under these corruptions, too, comma-separated: all, or of "
            + ", ".join(get_args(CorruptionName))
            + ". Default: none."
        ),
    ] = "",
    severity: Annotated[int, typer.Option(min=1, max=5, help="Severity of each corruption.")] = 3,
    part: Annotated[
        JudgedPart, typer.Option(help="Judge on this part of the data, on which nothing was fitted.")
    ] = "test",
    limit: Annotated[
        int | None, typer.Option(min=1, help="Judge on this many frames, drawn at random. Default: all.")
    ] = None,
    refit: Annotated[
        bool, typer.Option(help="Fit the head again without each corruption that it is judged on.")
    ] = True,
    failure_threshold: Annotated[
        float | None, typer.Option(help="Count a loss above this as a failure. Default: the run's own.")
    ] = None,
    slices: Annotated[
        Path | None, typer.Option(help="Compare slices by this CSV: a column id, and one per kind of slice.")
    ] = None,
    max_gap: Annotated[
        float | None,
        typer.Option(
            help="Exit with 1 if errors of two slices differ by more, with the whole interval and beyond "
            "chance."
        ),
    ] = None,
    replicates: Annotated[int, typer.Option(min=50, help="Number of bootstrap resamples.")] = 300,
    seed: Annotated[int, typer.Option(help="Random seed of corruptions, resamples and sampled scores.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Judge every failure score on held-out data, and name the one to trigger on."""
    from rich.console import Console

    from misfire_train.data import load_dataset
    from misfire_train.judge.report import print_report
    from misfire_train.judge.report.page import write_page
    from misfire_train.judge.run_judging import Judging, judge_run
    from misfire_train.judge.score_names import chosen_scores
    from misfire_train.runs import load_run, read_record

    wanted, shifts = _names(scores), get_args(CorruptionName) if shift == "all" else _names(shift)
    chosen_scores(wanted, read_record(run))  # a wrong name is refused before the data are read
    _check_shifts(shifts)
    loaded = load_run(run)
    source = load_dataset(dataset or loaded.record.dataset.name, root=data)
    judging = Judging(
        scores=wanted,
        shifts=shifts,
        severity=severity,
        part=part,
        limit=limit,
        refit=refit,
        failure_threshold=failure_threshold,
        slices=_read_slices(slices) if slices else None,
        replicates=replicates,
        seed=seed,
    )
    console = Console(stderr=True)
    report, evidence = judge_run(
        loaded, source, judging, progress=lambda text: console.print(text, style="dim", markup=False)
    )
    out.mkdir(parents=True, exist_ok=True)
    report.write_json(out / "report.json")
    write_page(report, evidence, out / "report.html")
    if as_json:
        typer.echo(json.dumps(report.to_dict(), allow_nan=False))
    else:
        print_report(report)
        typer.echo(f"{out / 'report.html'}")
    wide = [
        f"{slice_.name}: error differs by {gap.gap.value:.3f} between {gap.smallest} and {gap.largest}"
        for slice_ in report.slices
        for gap in slice_.gaps
        if max_gap is not None and gap.measure == "error" and gap.beyond_chance and gap.gap.low > max_gap
    ]
    if wide:
        typer.echo("\n".join(wide), err=True)
        # After the report was written, which shows the slices that differ.
        sys.exit(1)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _check_shifts(names: Sequence[str]) -> None:
    known = get_args(CorruptionName)
    unknown = next((name for name in names if name not in known), None)
    if unknown is not None:
        raise JudgeError(f"unknown corruption {unknown}; there are all, {', '.join(known)}")


def _read_slices(path: Path) -> dict[str, dict[str, str]]:
    """Returns {column: {id: label}} of a CSV."""
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream))
    except OSError as error:
        raise JudgeError(f"{path}: cannot be read ({error.strerror})") from error
    if not rows or "id" not in rows[0]:
        raise JudgeError(f"{path}: expected a CSV with a column id and at least one row")
    columns = [name for name in rows[0] if name != "id"]
    if not columns:
        raise JudgeError(f"{path}: there is no column beside id")
    # Line 1 is the header.
    for number, row in enumerate(rows, start=2):
        if any(row[name] is None for name in columns):
            raise JudgeError(f"{path}, line {number}: fewer values than columns")
    return {name: {row["id"]: row[name] for row in rows} for name in columns}
