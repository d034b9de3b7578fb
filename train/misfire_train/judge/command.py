"""Implements `misfire evaluate`: judges failure scores on data that nothing was fitted on.

    misfire evaluate RUN                            the scores of a training run
    misfire evaluate --bundle BUNDLE --dataset D    the scores of a bundle, by the vehicle's engine
    misfire evaluate --scores table.parquet         scores that were computed elsewhere, or by --scores-out

All three give the same report, page, JSON and gate. Each condition is kept in OUT/conditions as soon as it is
scored: the same command goes on where an interrupted one stopped.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from misfire_train.errors import JudgeError
from misfire_train.options import AsJson, CorruptionName, DataFolder, JudgedPart

if TYPE_CHECKING:
    from misfire_train.judge.evidence import Evidence
    from misfire_train.judge.gate import GateRules
    from misfire_train.judge.report import Report
    from misfire_train.judge.run_judging import Judging
    from misfire_train.judge.tables import TableJudging


def evaluate(
    run: Annotated[Path | None, typer.Argument(help="Judge the training run in this folder.")] = None,
    *,
    out: Annotated[Path, typer.Option(help="Write report.json and report.html to this folder.")],
    bundle: Annotated[
        Path | None, typer.Option(help="Judge the bundle in this folder on --dataset, instead of a run.")
    ] = None,
    scores: Annotated[
        str,
        typer.Option(
            help="Judge these scores, comma-separated: all, free (scores of the outputs), learning_loss_pp, "
            "or other names. Or judge the table of scores in this file, instead of a run: .parquet, .csv or "
            ".npz with columns id, failed or loss, group, and any scores."
        ),
    ] = "all",
    data: DataFolder = None,
    dataset: Annotated[
        str | None,
        typer.Option(help="Judge on this data set. Default: the run's own; a bundle needs one."),
    ] = None,
    task: Annotated[
        str, typer.Option(help="With --bundle: the task of a custom bundle, as module:task.")
    ] = "",
    shift: Annotated[
        str,
        typer.Option(
            help="Judge under these corruptions, too, comma-separated: all, or of "
            + ", ".join(get_args(CorruptionName))
            + ". Default: none."
        ),
    ] = "",
    severity: Annotated[
        int,
        typer.Option(
            min=0,
            max=5,
            help="Severity of each corruption, 1 to 5. 0 adapts it, so that 10 to 50 % of the frames fail.",
        ),
    ] = 3,
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
        float | None,
        typer.Option(
            help="Count a loss above this as a failure. Default: the run's or bundle's own; of a table, its "
            "column failed."
        ),
    ] = None,
    slices: Annotated[
        Path | None, typer.Option(help="Compare slices by this CSV: a column id, and one per kind of slice.")
    ] = None,
    columns: Annotated[
        str,
        typer.Option(
            help="With a table: name columns by role, such as failed=wrong,group=drive. Roles: id, failed, "
            "loss, group, shift, and the counts errors, missed, false, objects. Default: named as their role."
        ),
    ] = "",
    score_columns: Annotated[
        str,
        typer.Option(help="With a table: judge these columns, comma-separated. Default: all other numbers."),
    ] = "",
    free: Annotated[
        str,
        typer.Option(
            help="With a table: name the scores that cost nothing, comma-separated. Default: those that "
            "misfire knows as free, such as msp and entropy."
        ),
    ] = "",
    slice_columns: Annotated[
        str,
        typer.Option(help="With a table: compare the values of these columns, comma-separated, as slices."),
    ] = "",
    scores_out: Annotated[
        Path | None,
        typer.Option(
            help="Write a row per frame and condition (id, group, shift, loss, failed, every score) to this "
            ".parquet, .csv or .npz, before the judging. --scores and misfire select read it."
        ),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(
            min=0.0001,
            max=0.9999,
            help="Choose the score that finds most in the uploads of this share of the frames, such as 0.02. "
            "Default: a bundle's own upload rate, else by AUROC and AURC.",
        ),
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

    from misfire_train.judge.files.score_table import TABLES, require_table_name
    from misfire_train.judge.tables import TableJudging, is_table

    _require_one(run, bundle, scores, tables=TABLES)
    if scores_out is not None:
        require_table_name(scores_out)
    labels = _read_slices(slices) if slices else {}
    for_tables = {"columns": columns, "score-columns": score_columns, "free": free}
    if is_table(scores):
        # Silence would suggest that an option took effect.
        _refuse(
            {"dataset": dataset, "task": task, "shift": shift, "limit": limit}, "a table holds no pictures"
        )
        _refuse({"scores-out": scores_out}, "--scores names a table already")
        judging = TableJudging(
            columns=_pairs(columns),
            scores=_names(score_columns),
            free=_names(free) or None,
            slices=_names(slice_columns),
            slice_labels=labels,
            failure_threshold=failure_threshold,
            replicates=replicates,
            seed=seed,
            budget=budget,
        )
        report, evidence = _judge_table(Path(scores), judging)
    else:
        # Imported here: it loads torch, which a table does not need.
        from misfire_train.judge.run_judging import Judging

        _refuse(for_tables | {"slice-columns": slice_columns}, "it is for --scores TABLE")
        shifts = get_args(CorruptionName) if shift == "all" else _names(shift)
        _check_shifts(shifts)
        wanted = Judging(
            scores=_names(scores),
            shifts=shifts,
            severity=severity,
            part=part,
            limit=limit,
            refit=refit,
            failure_threshold=failure_threshold,
            slices=labels or None,
            replicates=replicates,
            seed=seed,
            budget=budget,
            keep=out / "conditions",
        )
        table = _TableFile(scores_out)
        wanted = replace(wanted, collected=table.write)
        console = Console(stderr=True)

        def progress(text: str) -> None:
            console.print(text, style="dim", markup=False)

        if run is not None:
            report, evidence = _judge_run(run, wanted, dataset=dataset, data=data, progress=progress)
        else:
            assert bundle is not None
            if dataset is None:
                raise JudgeError("--bundle needs --dataset: labelled frames that it has not seen")
            report, evidence = _judge_bundle(
                bundle, wanted, dataset=dataset, task=task, data=data, progress=progress
            )
        table.finish(report)
    _publish(report, evidence, out, as_json=as_json)
    _check_gaps(report, max_gap)


class _TableFile:
    """Writes --scores-out twice: as soon as all scores are there, and with the gate's choice at the end."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._judged: tuple[Evidence, GateRules] | None = None

    def write(self, evidence: Evidence, rules: GateRules) -> None:
        """Writes all scores, before they are judged."""
        from misfire_train.judge.files.score_table import write_score_table

        if self._path is not None:
            self._judged = evidence, rules
            write_score_table(self._path, evidence, rules)

    def finish(self, report: Report) -> None:
        """Writes the table again, with what the report says of it."""
        from misfire_train.judge.files.score_table import write_score_table

        if self._path is not None and self._judged is not None:
            failure = str(report.settings.get("failure") or "")
            write_score_table(self._path, *self._judged, failure=failure, trigger=report.gate.winner)


def _require_one(run: Path | None, bundle: Path | None, scores: str, *, tables: Sequence[str]) -> None:
    """Raises JudgeError unless one thing to judge is named, and named by the option that takes it."""
    table = scores if Path(scores).suffix.lower() in tables else ""
    if run is not None and run.suffix.lower() in tables and not run.is_dir():
        raise JudgeError(f"{run} is a table of scores, not a run: misfire evaluate --scores {run} --out ...")
    if run is not None and _is_bundle(run):
        raise JudgeError(
            f"{run} is a bundle, not a run: misfire evaluate --bundle {run} --dataset DATA --out ..."
        )
    if bundle is not None and _is_run(bundle):
        raise JudgeError(f"{bundle} is a run, not a bundle: misfire evaluate {bundle} --out ...")
    if sum((run is not None, bundle is not None, bool(table))) != 1:
        raise JudgeError(
            "name what to judge: a run's folder, --bundle FOLDER --dataset DATA, or --scores TABLE"
            + (f" ({', '.join(tables)})" if run is None and bundle is None else "; one of them")
        )


def _is_bundle(folder: Path) -> bool:
    from misfire_runtime.bundle import MANIFEST
    from misfire_train.runs import RECORD

    return (folder / MANIFEST).is_file() and not (folder / RECORD).is_file()


def _is_run(folder: Path) -> bool:
    from misfire_runtime.bundle import MANIFEST
    from misfire_train.runs import RECORD

    return (folder / RECORD).is_file() and not (folder / MANIFEST).is_file()


def _refuse(options: Mapping[str, object], why: str) -> None:
    """Raises JudgeError if one of these options is given."""
    given = next((name for name, value in options.items() if value), None)
    if given is not None:
        raise JudgeError(f"--{given} does not fit here: {why}")


def _judge_table(path: Path, judging: TableJudging) -> tuple[Report, Evidence]:
    from misfire_train.judge.tables import judge_table

    return judge_table(path, judging)


def _judge_run(
    path: Path,
    judging: Judging,
    *,
    dataset: str | None,
    data: Path | None,
    progress: Callable[[str], None],
) -> tuple[Report, Evidence]:
    from misfire_train.data import load_dataset
    from misfire_train.judge.run_judging import judge_run
    from misfire_train.judge.score_names import chosen_scores
    from misfire_train.runs import load_run, read_record

    chosen_scores(judging.scores, read_record(path))  # a wrong name is refused before the data are read
    run = load_run(path)
    source = load_dataset(dataset or run.record.dataset.name, root=data)
    return judge_run(run, source, judging, progress=progress)


def _judge_bundle(
    path: Path,
    judging: Judging,
    *,
    dataset: str,
    task: str,
    data: Path | None,
    progress: Callable[[str], None],
) -> tuple[Report, Evidence]:
    from misfire_train.judge.bundle_judging import judge_bundle, load_frames, open_bundle

    subject = open_bundle(path, task=task, scores=judging.scores)
    try:
        frames = load_frames(subject, dataset, data=data)
        return judge_bundle(subject, frames, judging, progress=progress)
    finally:
        subject.close()


def _publish(report: Report, evidence: Evidence, out: Path, *, as_json: bool) -> None:
    from misfire_train.judge.report import print_report
    from misfire_train.judge.report.page import write_page

    out.mkdir(parents=True, exist_ok=True)
    report.write_json(out / "report.json")
    write_page(report, evidence, out / "report.html")
    if as_json:
        typer.echo(json.dumps(report.to_dict(), allow_nan=False))
    else:
        print_report(report)
        typer.echo(f"{out / 'report.html'}")


def _check_gaps(report: Report, max_gap: float | None) -> None:
    """Exits with 1 if errors of two slices differ by more; the report, which shows them, is written."""
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


def _pairs(text: str) -> dict[str, str]:
    """Returns {role: column}."""
    found = {}
    for pair in _names(text):
        role, equals, column = pair.partition("=")
        if not equals:
            raise JudgeError(f"--columns is {text!r}; expected ROLE=COLUMN, such as failed=wrong,group=drive")
        found[role.strip()] = column.strip()
    return found


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
