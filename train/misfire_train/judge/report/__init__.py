"""Presents what the judge found: as values, as one HTML page and as pictures."""

from misfire_train.judge.report.report import (
    ALL,
    WITHOUT,
    Condition,
    Curve,
    FrameExample,
    LossCalibration,
    PartReport,
    PartRow,
    PartSlice,
    Report,
    ScoreRow,
    print_report,
)

__all__ = [
    "ALL",
    "WITHOUT",
    "Condition",
    "Curve",
    "FrameExample",
    "LossCalibration",
    "PartReport",
    "PartRow",
    "PartSlice",
    "Report",
    "ScoreRow",
    "print_report",
]
