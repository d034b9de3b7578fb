"""Defines what the commands of this unit share: choices as types that `--help` prints, and common options.

This module imports nothing heavy, so that a command's help need not load torch. Each type of choices repeats
the keys of a table that does load it; a test compares them.
"""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Literal

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
DataFolder = Annotated[
    Path | None,
    typer.Option(
        "--data", help="Read data sets from this folder. Default: MISFIRE_DATA, else the user's cache."
    ),
]

HeadRecipeName = Literal[
    "learning-loss-pp", "learning-loss", "learning-loss-pp-paper", "rank-bce", "log-loss-regression", "none"
]
"""`heads.recipes.RECIPES`, and "none" for no learned score."""
JudgedPart = Literal["test", "field", "calibration"]
"""The parts of a run that nothing was fitted on."""
SelectionMethod = Literal[
    "random", "top-k", "k-center", "kmeans++", "badge", "typiclust", "probcover", "score-diversity"
]
"""`selection.choosing.METHODS`."""
CorruptionName = Literal[
    "noise",
    "shot",
    "blur",
    "motion",
    "night",
    "fog",
    "contrast",
    "glare",
    "exposure",
    "rain",
    "snow",
    "dirt",
    "drops",
    "jpeg",
    "pixelate",
]
"""`data.corruptions.FAMILIES`."""


class ExperimentMethod(str, Enum):
    """Lists `experiments.wrong_prediction.METHODS`. An Enum, because typer takes no list of Literals."""

    WRONG_PREDICTION = "wrong_prediction"
    WRONG_PREDICTION_APPROX = "wrong_prediction_approx"
    BALD = "bald"
    MC_DROPOUT = "mc_dropout"
    ENTROPY = "entropy"
    MARGIN = "margin"
    EGL = "egl"
    RANDOM = "random"
