"""Holds what the judge found, as values for JSON, the terminal's table, and the HTML page.

Report -> to_dict() -> report.json    print_report(report) -> table    page.write_page(report) -> report.html
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from misfire_runtime.files import write_durably
from misfire_train.drawing import Legend
from misfire_train.judge.gate import GateResult
from misfire_train.judge.plain import json_value
from misfire_train.judge.slices import SliceReport
from misfire_train.metrics.bootstrap import Comparison, Estimate
from misfire_train.metrics.calibration import Reliability
from misfire_train.metrics.counts import COUNT_BUDGETS, CountTable
from misfire_train.metrics.detection import BudgetRow
from misfire_train.metrics.loss_curve import LossCurve
from misfire_train.metrics.risk import References

ALL = "all conditions"
COUNTED = {"errors": "errors", "missed": "missed objects", "false": "false boxes", "objects": "objects"}
"""What is counted, in words."""
WITHOUT = " without "
"""Joins a score's name and the corruption that a head, fitted again, never saw."""
_WIDE = 110
_LAYOUT: dict[str, Any] = {
    "title_justify": "left",
    "box": None,
    "pad_edge": False,
    # One space between columns instead of two: eight of them fit a terminal of 80.
    "collapse_padding": True,
}


@dataclass(frozen=True)
class ScoreRow:
    """Holds one score under one condition.

    metrics: auroc, average_precision, fpr_at_95_tpr, aurc, e_aurc, augrc, recall and precision at budgets.
    agreement: spearman, kendall and pair_accuracy with the true loss.
    """

    name: str
    free: bool
    metrics: Mapping[str, Estimate]
    agreement: Mapping[str, float]
    budgets: tuple[BudgetRow, ...]


@dataclass(frozen=True)
class Condition:
    """Holds all scores on the rows of one shift, or of all.

    aurc, augrc: what the oracle and chance reach.  counts: what uploads find of things that are counted.
    """

    name: str
    samples: int
    failures: int
    mean_loss: float
    aurc: References
    augrc: References
    scores: tuple[ScoreRow, ...]
    counts: CountTable | None = None

    @property
    def error(self) -> float:
        """Returns the share of failures."""
        return self.failures / self.samples

    def score(self, name: str) -> ScoreRow:
        """Returns the row of that score."""
        return next(row for row in self.scores if row.name == name)


@dataclass(frozen=True)
class PartRow:
    """Holds the objects and false boxes with one label.

    share: of objects that are missed.  uploaded: share of those misses that lie in the uploaded frames, None
    without a miss.  false: number of false boxes.
    """

    value: str
    objects: int
    missed: int
    share: Estimate
    uploaded: float | None
    false: int


@dataclass(frozen=True)
class PartSlice:
    """Holds all labels of one kind, those with the most misses first."""

    name: str
    rows: tuple[PartRow, ...]


@dataclass(frozen=True)
class PartReport:
    """Holds what is right and wrong within the frames of one condition.

    summary: {measure: value}, such as AP and LRP.  kinds: {kind of error: count}.
    """

    condition: str
    summary: Mapping[str, float]
    kinds: Mapping[str, int]
    slices: tuple[PartSlice, ...]


@dataclass(frozen=True)
class LossCalibration:
    """Holds how a score predicts the loss, and its reliability on frames that did not fit that.

    Attributes:
        score: its name.
        fitted_on: in words.
        curve: expected loss by score; None predicts scale * exp(score).
        scale: None with a curve.
        within: of ten bins, those whose prediction is within a factor of 1.25 of the truth.
        consistent: the same of the truth's 95 % interval.
    """

    score: str
    fitted_on: str
    reliability: Reliability
    curve: LossCurve | None
    scale: float | None
    within: int
    consistent: int


@dataclass(frozen=True)
class Curve:
    """Holds risk against coverage of one score under one condition."""

    score: str
    condition: str
    coverage: tuple[float, ...]
    risk: tuple[float, ...]


@dataclass(frozen=True)
class FrameExample:
    """Holds a notable frame. kind: worst (highest loss), missed (high loss, low score), false alarm.

    truth, predicted: in words. picture: PNG as a data URL, or None.
    """

    kind: str
    frame: str
    shift: str
    loss: float
    failed: bool
    percentile: float
    truth: str = ""
    predicted: str = ""
    picture: str | None = None


@dataclass(frozen=True)
class Report:
    """Holds everything that was measured. settings: on what and how, so that it can be repeated.

    legend: how to read what is drawn into the frames' pictures, None if nothing is.
    parts: what is missed within frames, of tasks whose frames have objects.
    """

    settings: Mapping[str, Any]
    conditions: tuple[Condition, ...]
    gate: GateResult
    slices: tuple[SliceReport, ...] = ()
    calibrations: tuple[LossCalibration, ...] = ()
    curves: tuple[Curve, ...] = ()
    frames: tuple[FrameExample, ...] = ()
    skipped: Mapping[str, str] | None = None
    legend: Legend | None = None
    parts: tuple[PartReport, ...] = ()

    def condition(self, name: str) -> Condition:
        """Returns the condition of that name."""
        return next(condition for condition in self.conditions if condition.name == name)

    def to_dict(self, *, pictures: bool = False) -> dict[str, Any]:
        """Returns plain JSON values; NaN and infinity become None. Pictures are left to the HTML page."""
        values = asdict(self)
        # As data URLs they would be most of the file.
        if not pictures:
            for frame in values["frames"]:
                del frame["picture"]
        cleaned: dict[str, Any] = json_value(values)
        return cleaned

    def write_json(self, path: Path) -> None:
        """Writes the report without pictures, whole or not at all."""
        write_durably(path, (json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n").encode())


def print_report(report: Report, *, console: Console | None = None) -> None:
    """Prints one table per condition, the best AUROC first, and the gate's verdict."""
    out = console or Console()
    if report.settings.get("failure"):
        out.print(f"a failure: {report.settings['failure']}", markup=False, highlight=False)
    if report.settings.get("shifts") and report.settings.get("severity"):
        out.print(f"severity of corruptions: {report.settings['severity']}", markup=False, highlight=False)
    for condition in report.conditions:
        out.print(condition_table(condition, winner=report.gate.winner, wide=out.width >= _WIDE))
        if condition.counts is not None:
            out.print(count_rows(condition, winner=report.gate.winner))
    if report.gate.budgets:
        out.print(budget_rows(report))
    for part in report.parts:
        values = ", ".join(f"{name} {value:.3f}" for name, value in part.summary.items())
        out.print(f"{part.condition}: {values}", markup=False, highlight=False)
    for found in report.calibrations:
        bins = found.reliability.bins
        ends = [f"{one.predicted:.2g} (observed {one.observed:.2g})" for one in (bins[0], bins[-1])]
        text = (
            f"expected loss by {found.score}, lowest and highest of {len(bins)} parts of the frames: "
            f"{' and '.join(ends)}; within a factor of 1.25 in {found.within} of them, and of the 95 % "
            f"interval in {found.consistent}"
        )
        out.print(text, markup=False, highlight=False)
    for name, reason in (report.skipped or {}).items():
        out.print(f"left out: {name}: {reason}", markup=False, highlight=False, soft_wrap=True)
    for note in report.gate.notes:
        out.print(note, markup=False, highlight=False)
    out.print(report.gate.verdict, style="bold", markup=False, highlight=False)


def condition_table(condition: Condition, *, winner: str, wide: bool) -> Table:
    """Returns AUROC with interval, AP, AURC, recall at 1 and 5 % uploads.

    If wide, also FPR95, AUGRC, Spearman.
    """
    columns: dict[str, Callable[[ScoreRow], str]] = {
        "score": lambda row: _short(row.name) + (" (free)" if row.free else ""),
        "AUROC": lambda row: f"{row.metrics['auroc'].value:.3f}",
        "95 %": lambda row: f"{row.metrics['auroc'].low:.3f}-{row.metrics['auroc'].high:.3f}",
        "AP": lambda row: f"{row.metrics['average_precision'].value:.3f}",
        "AURC": lambda row: f"{row.metrics['aurc'].value:.4f}",
        "at 1 %": lambda row: f"{100 * row.metrics['recall_at_1.0%'].value:.0f} %",
        "at 5 %": lambda row: f"{100 * row.metrics['recall_at_5.0%'].value:.0f} %",
    }
    if wide:
        columns |= {
            "FPR95": lambda row: f"{row.metrics['fpr_at_95_tpr'].value:.3f}",
            "AUGRC": lambda row: f"{row.metrics['augrc'].value:.4f}",
            "Spearman": lambda row: f"{row.agreement['spearman']:.3f}",
        }
    failures = f"{condition.failures} failures among {condition.samples}; recall at 1 and 5 % uploads"
    table = Table(title=f"{condition.name}: {failures}", **_LAYOUT)
    for heading in columns:
        table.add_column(heading, justify="left" if heading == "score" else "right", no_wrap=True)
    for row in by_auroc(condition):
        style = "bold" if row.name == winner else None
        table.add_row(*(cell(row) for cell in columns.values()), style=style)
    return table


def count_rows(condition: Condition, *, winner: str) -> Table:
    """Returns shares of missed objects and of errors in the uploaded 1, 5 and 10 % of frames."""
    found = condition.counts
    assert found is not None
    kinds = [kind for kind in ("missed", "errors") if kind in found.totals]
    totals = ", ".join(f"{found.totals[kind]} {COUNTED[kind]}" for kind in kinds)
    table = Table(title=f"of {totals}, found in uploads", **_LAYOUT)
    table.add_column("score", no_wrap=True)
    measures = [f"{kind}_at_{budget:.0%}" for kind in kinds for budget in COUNT_BUDGETS]
    for measure in measures:
        # Only the first column of a kind names it: six names do not fit a terminal.
        kind, _, share = measure.partition("_at_")
        heading = share if share != f"{COUNT_BUDGETS[0]:.0%}" else f"{kind} {share}"
        table.add_column(heading.replace("%", " %"), justify="right", no_wrap=True)
    rows = {row.name: found.scores[row.name] for row in by_auroc(condition)}
    for name, values in {**rows, "oracle": found.oracle}.items():
        cells = (f"{100 * values[m].value:.0f} %" for m in measures)
        table.add_row(_short(name), *cells, style="bold" if name == winner else None)
    return table


def budget_rows(report: Report) -> Table:
    """Returns the score to trigger on at each share of uploads, with what it finds on clean frames."""
    table = Table(title="to trigger on, by the share of frames that is uploaded (clean frames)", **_LAYOUT)
    for heading in ("uploads", "score", "recall", "precision", "gain of recall, points"):
        table.add_column(heading, justify="left" if heading == "score" else "right", no_wrap=True)
    for choice in report.gate.budgets:
        shown = choice.views[0] if choice.views else None
        name = choice.score if shown is None or choice.score in shown.recall else shown.free
        gain = choice.difference
        table.add_row(
            f"{100 * choice.budget:g} %",
            choice.score + (" (free)" if choice.score_is_free else ""),
            "" if shown is None else f"{100 * shown.recall[name]:.1f} %",
            "" if shown is None else f"{100 * shown.precision[name]:.0f} %",
            "" if gain is None else f"{100 * gain.difference:+.1f} ({_points(gain)})",
        )
    return table


def _points(gain: Comparison) -> str:
    return f"{100 * gain.low:+.1f} .. {100 * gain.high:+.1f}"


def _short(name: str) -> str:
    """Returns a score's name, or of a head that was fitted again only what it never saw."""
    _, without, shift = name.partition(WITHOUT)
    return f"  without {shift}" if without else name


def by_auroc(condition: Condition) -> list[ScoreRow]:
    """Returns rows, best first, undefined ones last; a head that was fitted again follows the head itself."""

    def place(row: ScoreRow) -> float:
        value = row.metrics["auroc"].value
        return -value if math.isfinite(value) else math.inf

    own = {row.name: row for row in condition.scores}
    base = {row.name: own.get(row.name.partition(WITHOUT)[0], row) for row in condition.scores}
    return sorted(condition.scores, key=lambda row: (place(base[row.name]), base[row.name].name, row.name))
