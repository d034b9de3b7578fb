"""Draws the report's pictures as SVG: risk against coverage, scores with intervals, histograms, reliability.

It uses matplotlib's own canvas, so nothing depends on a display or on state that others have set.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from misfire_train.judge.report.report import Condition, Curve, LossCalibration, by_auroc

INK, FAINT, FREE, LEARNED, BAD = "#1c2733", "#9aa7b4", "#3b6ea8", "#c2571a", "#b3261e"
_CHANCE = 0.5
_LINES = ("#c2571a", "#3b6ea8", "#2f8f5b", "#8a56ac", "#b08900", "#4aa3b5")
_STYLE: Any = {
    "svg.hashsalt": "misfire",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["Inter", "Helvetica", "Arial", "DejaVu Sans"],
    "font.size": 10,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


def risk_coverage(curves: Sequence[Curve], *, oracle: float, random: float, title: str) -> str:
    """Draws curves of one condition; the dotted line is the mean loss (no triage at all)."""
    figure, axes = _axes(5.2, 3.6)
    for index, curve in enumerate(curves):
        axes.plot(curve.coverage, curve.risk, color=_LINES[index % len(_LINES)], lw=1.8, label=curve.score)
    axes.axhline(random, color=FAINT, ls=":", lw=1.2, label="chance")
    axes.set(xlabel="coverage: share of frames kept, lowest scores first", ylabel="mean risk of what is kept")
    axes.set_title(f"{title} (oracle's AURC {oracle:.4f})", loc="left", fontsize=10.5)
    axes.set_xlim(0, 1)
    lowest = min((min(curve.risk) for curve in curves), default=0.0)
    # Losses of maps have a floor that no score gets below; from zero, all curves would be one line.
    axes.set_ylim(bottom=0 if lowest < random / 2 else lowest - 0.1 * (random - lowest))
    axes.legend(frameon=False, fontsize=9, loc="best")
    return _svg(figure)


def forest(condition: Condition, *, winner: str) -> str:
    """Draws AUROC of every score with its interval, best on top; free scores blue, learned ones orange."""
    rows = [row for row in by_auroc(condition) if np.isfinite(row.metrics["auroc"].value)]
    figure, axes = _axes(5.2, 0.9 + 0.27 * max(len(rows), 2))
    for place, row in enumerate(reversed(rows)):
        found, colour = row.metrics["auroc"], FREE if row.free else LEARNED
        axes.plot([found.low, found.high], [place, place], color=colour, lw=2, solid_capstyle="round")
        axes.plot(found.value, place, "o", color=colour, ms=7 if row.name == winner else 4.5)
    axes.set_yticks(range(len(rows)), [row.name for row in reversed(rows)])
    for label in axes.get_yticklabels():
        if label.get_text() == winner:
            label.set_fontweight("bold")
    lowest = min((row.metrics["auroc"].low for row in rows), default=1.0)
    if lowest < _CHANCE:
        # A score worse than chance would squeeze all others together: it stays at the edge, as an arrow.
        axes.set_xlim(left=_CHANCE - 0.02)
        for place, row in enumerate(reversed(rows)):
            if row.metrics["auroc"].value < _CHANCE:
                axes.plot(_CHANCE - 0.01, place, "<", color=FREE if row.free else LEARNED, ms=6)
    axes.set_xlabel("failure AUROC, 95 % interval")
    axes.set_title(condition.name, loc="left", fontsize=10.5)
    axes.grid(axis="x", color="#e8ecf0", lw=0.8)
    axes.tick_params(axis="y", length=0)
    return _svg(figure)


def histogram(score: NDArray[Any], failed: NDArray[np.bool_], *, name: str) -> str:
    """Draws densities of a score among successes and failures, over its central 99.8 %."""
    figure, axes = _axes(5.2, 2.9)
    # A single outlier would squeeze all other bins into one.
    low, high = np.quantile(score[np.isfinite(score)], [0.001, 0.999])
    bins = np.linspace(low, high if high > low else low + 1, 50)
    clipped = np.clip(score, low, bins[-1])
    for where, colour, label in ((~failed, FREE, "no failure"), (failed, BAD, "failure")):
        if where.any():
            axes.hist(
                clipped[where],
                bins=bins.tolist(),
                density=True,
                color=colour,
                alpha=0.55,
                label=f"{label} ({where.sum()})",
            )
    axes.set(xlabel=name, ylabel="density")
    axes.legend(frameon=False, fontsize=9)
    return _svg(figure)


def reliability(calibration: LossCalibration) -> str:
    """Draws predicted against observed mean loss, both on a log axis."""
    figure, axes = _axes(4.2, 3.6)
    bins = calibration.reliability.bins
    predicted = np.array([row.predicted for row in bins])
    observed = np.array([row.observed for row in bins])
    spread = np.array([[row.observed - max(row.low, 0), row.high - row.observed] for row in bins]).T
    spread = np.where(np.isfinite(spread), np.maximum(spread, 0), 0)
    positive = np.concatenate([predicted[predicted > 0], observed[observed > 0]])
    limits = (positive.min() / 1.5, positive.max() * 1.5) if positive.size else (0.01, 1.0)
    axes.plot(limits, limits, color=FAINT, ls=":", lw=1.2)
    axes.errorbar(predicted, observed, yerr=spread, fmt="o", color=LEARNED, ms=4.5, lw=1.4, capsize=2)
    axes.set(xscale="log", yscale="log", xlim=limits, ylim=limits)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
    axes.set(xlabel="predicted loss, mean of a tenth", ylabel="true loss, mean and 95 % interval")
    axes.set_title(calibration.score, loc="left", fontsize=10.5)
    return _svg(figure)


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _svg(figure: Figure) -> str:
    """Returns inline SVG, without the XML prologue, the same bytes for the same data."""
    with mpl.rc_context(_STYLE):
        buffer = io.StringIO()
        canvas = FigureCanvasSVG(figure)
        canvas.print_svg(buffer, metadata={"Date": None, "Creator": None})  # type: ignore[no-untyped-call]
    text = buffer.getvalue()
    return text[text.index("<svg") :]
