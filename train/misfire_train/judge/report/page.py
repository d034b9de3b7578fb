"""Writes the HTML report: one file, no network, no script; pictures and plots are inside.

Report + Evidence --plots--> SVG --templates/report.html.j2--> report.html
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from misfire_runtime import __version__
from misfire_runtime.files import write_durably
from misfire_train.judge.evidence import CLEAN, Evidence
from misfire_train.judge.report import plots
from misfire_train.judge.report.report import ALL, COUNTED, Report, by_auroc
from misfire_train.metrics.bootstrap import Comparison, Estimate
from misfire_train.metrics.counts import COUNT_BUDGETS, CountTable

_CURVES_SHOWN = 5
_KINDS = {
    "missed": "Most surprising: high loss, low score",
    "worst": "Worst: highest loss",
    "false alarm": "False alarms: high score, no failure",
}
_ERROR_KINDS = {
    "missed": "objects missed",
    "class": "boxes of a wrong class",
    "place": "boxes in a wrong place",
    "both": "boxes of a wrong class in a wrong place",
    "duplicate": "duplicates",
    "background": "boxes on background",
}


def write_page(report: Report, evidence: Evidence, path: Path) -> None:
    """Writes report.html, whole or not at all."""
    write_durably(path, render(report, evidence).encode())


def render(report: Report, evidence: Evidence) -> str:
    """Returns the page as text."""
    environment = Environment(
        loader=PackageLoader("misfire_train.judge"),
        autoescape=select_autoescape(["html", "j2"]),
        # A misspelt name in the template raises instead of printing nothing.
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number,
        "estimate": estimate_text,
        "difference": difference_text,
        "amount": amount_text,
        "measure": measure_text,
        "points": lambda found: difference_text(found, 1, factor=100),
    }
    return environment.get_template("report.html.j2").render(
        report=report,
        version=__version__,
        all_name=ALL,
        ranked={condition.name: by_auroc(condition) for condition in report.conditions},
        plots=_plots(report, evidence),
        kinds=_KINDS,
        counted=COUNTED,
        error_kinds=_ERROR_KINDS,
        count_measures=count_measures,
    )


def number(value: float | None, digits: int = 3) -> str:
    """Returns a number as text, or a dash if it is not defined."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def estimate_text(found: Estimate, digits: int = 3, *, percent: bool = False) -> Markup:
    """Returns the value, and the interval in small print."""
    if not math.isfinite(found.value):
        return Markup("–")
    factor = 100.0 if percent else 1.0
    value, low, high = (f"{factor * v:.{digits}f}" for v in (found.value, found.low, found.high))
    return Markup("{}{} <small>{}–{}</small>").format(value, " %" if percent else "", low, high)


def difference_text(found: Comparison, digits: int = 4, *, factor: float = 1) -> Markup:
    """Returns the signed difference and interval, coloured if the interval excludes zero."""
    kind = "better" if found.a_wins else "worse" if found.b_wins else "open"
    value, low, high = (f"{factor * v:+.{digits}f}" for v in (found.difference, found.low, found.high))
    return Markup('<span class="{}">{}</span> <small>{} … {}</small>').format(kind, value, low, high)


def count_measures(table: CountTable) -> list[str]:
    """Returns the measures that the page has a column for; more would not fit beside each other."""
    wanted = [f"{kind}_at_{budget:.0%}" for kind in ("missed", "errors") for budget in COUNT_BUDGETS]
    wanted += ["errors_per_upload_at_5%", "errors_per_label_at_5%"]
    return [measure for measure in wanted if measure in table.random]


def measure_text(measure: str) -> str:
    """Returns the words of a measure: "missed_at_5%" is "missed at 5 %"."""
    return measure.replace("_", " ").replace("%", " %")


def amount_text(found: Estimate, measure: str) -> Markup:
    """Returns a share in percent, and a number for each upload or label as it is."""
    return estimate_text(found, 2) if "_per_" in measure else estimate_text(found, 0, percent=True)


def _plots(report: Report, evidence: Evidence) -> dict[str, Any]:
    names = [condition.name for condition in report.conditions]
    shown = [name for name in (CLEAN, ALL) if name in names] or names[:1]
    first = report.condition(shown[0])
    rows = evidence.clean if evidence.clean.size else slice(None)
    histograms = dict.fromkeys([report.gate.winner, report.gate.best_free, report.gate.best_learned or ""])
    return {
        "risk": [Markup(_risk_plot(report, name)) for name in shown],
        "forest": [Markup(plots.forest(report.condition(name), winner=report.gate.winner)) for name in shown],
        "histogram": [
            Markup(plots.histogram(evidence.scores[name][rows], evidence.failed[rows], name=name))
            for name in histograms
            if name in evidence.scores
        ],
        "reliability": [Markup(plots.reliability(calibration)) for calibration in report.calibrations],
        "shown": first.name,
    }


def _risk_plot(report: Report, condition: str) -> str:
    curves = {curve.score: curve for curve in report.curves if curve.condition == condition}
    references = report.condition(condition).aurc
    return plots.risk_coverage(
        [curves[score] for score in _interesting(report, condition)],
        oracle=references.oracle,
        random=references.random,
        title=condition,
    )


def _interesting(report: Report, condition: str) -> list[str]:
    """Returns the winner, the best free, the best learned, then the best others: few enough to tell apart."""
    ranked = [row.name for row in by_auroc(report.condition(condition))]
    first = [report.gate.winner, report.gate.best_free, report.gate.best_learned]
    ordered = dict.fromkeys([name for name in first if name is not None] + ranked)
    return list(ordered)[:_CURVES_SHOWN]
