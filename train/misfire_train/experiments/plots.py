"""Draws the experiments' results off screen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def plot_wrong_prediction(result: dict[str, Any], path: Path) -> None:
    """Draws wrong % among the selected and test accuracy %, per step, with the standard error over seeds."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    seeds = max(len(result["seeds"]), 1)
    for name, row in result["methods"].items():
        for axis, what, first in ((left, "wrong", 1), (right, "accuracy", 0)):
            mean = np.asarray(row[f"{what}_mean"])
            error = np.asarray(row[f"{what}_std"]) / np.sqrt(seeds)
            steps = np.arange(first, first + len(mean))
            (line,) = axis.plot(steps, mean, label=name, marker=".")
            axis.fill_between(steps, mean - error, mean + error, color=line.get_color(), alpha=0.15)
    left.set(xlabel="step", ylabel="% wrong among the selected", title=f"{result['dataset']}, {seeds} seeds")
    right.set(xlabel="step", ylabel="test accuracy %", title="what is learned from them")
    left.legend(fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
