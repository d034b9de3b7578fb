"""`misfire evaluate`: judge the failure scores of a run on data that it never saw."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import typer
from rich.console import Console

from misfire_train.data import load_dataset
from misfire_train.data.corruptions import FAMILIES
from misfire_train.errors import JudgeError
from misfire_train.judge.report import print_report
from misfire_train.judge.report.page import write_page
from misfire_train.judge.run_judging import Judging, judge_run
from misfire_train.judge.score_names import chosen_scores
from misfire_train.runs import load_run, read_record


def evaluate(
    *,
    run: str = typer.Argument(..., help="Folder of a training run."),
    out: str = typer.Option(..., help="Folder for report.json and report.html."),
    data: str | None = typer.Option(None, "--data", help="Folder of the data sets; else MISFIRE_DATA."),
    dataset: str | None = typer.Option(None, help="Data set; the run's own if not given."),
    scores: str = typer.Option(
        "all", help="Comma-separated: all, free (scores of the outputs), learning_loss_pp, or other names."
    ),
    shift: str = typer.Option("", help="Comma-separated corruptions, or all: " + ", ".join(FAMILIES)),
    severity: int = typer.Option(3, min=1, max=5, help="Severity of each corruption."),
    part: str = typer.Option("test", help="test, field or calibration: what nothing was fitted on."),
    limit: int | None = typer.Option(None, min=1, help="Judge on this many frames, drawn at random."),
    refit: bool = typer.Option(True, help="Fit the head again without each corruption it is judged on."),
    failure_threshold: float | None = typer.Option(None, help="A loss above this is a failure."),
    slices: str | None = typer.Option(None, help="CSV with a column id and one per kind of slice."),
    max_gap: float | None = typer.Option(
        None, help="Exit 1 where errors of slices differ by more, beyond chance and with the whole interval."
    ),
    replicates: int = typer.Option(300, min=50, help="Bootstrap resamples."),
    seed: int = typer.Option(0, help="Random seed of corruptions, resamples and sampled scores."),
    as_json: bool = typer.Option(False, "--json", help="Print the report as JSON."),
) -> None:
    """Judge every failure score on held-out data, and name the one to trigger on."""
    wanted, shifts = _names(scores), tuple(FAMILIES) if shift == "all" else _names(shift)
    chosen_scores(wanted, read_record(Path(run)))  # a wrong name is refused before the data are read
    _check_shifts(shifts)
    loaded = load_run(Path(run))
    source = load_dataset(dataset or loaded.record.dataset.name, root=Path(data) if data else None)
    judging = Judging(
        scores=wanted,
        shifts=shifts,
        severity=severity,
        part=part,
        limit=limit,
        refit=refit,
        failure_threshold=failure_threshold,
        slices=_read_slices(Path(slices)) if slices else None,
        replicates=replicates,
        seed=seed,
    )
    console = Console(stderr=True)
    report, evidence = judge_run(
        loaded, source, judging, progress=lambda text: console.print(text, style="dim", markup=False)
    )
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    report.write_json(folder / "report.json")
    write_page(report, evidence, folder / "report.html")
    if as_json:
        typer.echo(json.dumps(report.to_dict(), allow_nan=False))
    else:
        print_report(report)
        typer.echo(f"{folder / 'report.html'}")
    wide = [
        f"{slice_.name}: error differs by {gap.gap.value:.3f} between {gap.smallest} and {gap.largest}"
        for slice_ in report.slices
        for gap in slice_.gaps
        if max_gap is not None and gap.measure == "error" and gap.beyond_chance and gap.gap.low > max_gap
    ]
    if wide:
        typer.echo("\n".join(wide), err=True)
        sys.exit(1)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _check_shifts(names: Sequence[str]) -> None:
    unknown = next((name for name in names if name not in FAMILIES), None)
    if unknown is not None:
        raise JudgeError(f"unknown corruption {unknown}; there are all, {', '.join(FAMILIES)}")


def _read_slices(path: Path) -> dict[str, dict[str, str]]:
    """{column: {id: label}} of a CSV."""
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
    for number, row in enumerate(rows, start=2):
        if any(row[name] is None for name in columns):
            raise JudgeError(f"{path}, line {number}: fewer values than columns")
    return {name: {row["id"]: row[name] for row in rows} for name in columns}
