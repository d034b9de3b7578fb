"""A graph at lower precision, and a plain account of what that changed.

fp32 graph --halve | quantize--> graph --both over the same frames--> accuracy, rank correlation, AUROC

int8 is built for a named target: what x86 runs fast, TensorRT's parser refuses, and the other way round.
Scores stay fp32 in both; what changes them is the change of the outputs and features that they read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import onnx

from misfire_export.errors import PrecisionError
from misfire_export.measure.run import Measurement, measure, open_session
from misfire_export.precision.fp16 import halve
from misfire_export.precision.int8 import quantize
from misfire_runtime.preprocess import InputContract
from misfire_train.data import Examples
from misfire_train.judge.metrics import auroc, spearman
from misfire_train.tasks import Task

Target = Literal["onnxruntime-x86", "tensorrt"]
GOALS = {"fp16": 0.999, "int8": 0.98}
"""Least rank correlation of a score with its fp32 self; below it the report says so."""


def lower(
    graph: onnx.ModelProto,
    *,
    precision: str,
    target: Target,
    ranges: Examples,
    calibration: Examples,
    contract: InputContract,
    task: Task,
    output: str,
    scores: Sequence[str],
    failure_threshold: float | None = None,
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """The lowered graph and its report. Raises PrecisionError where it cannot be made.

    ranges: frames that int8's activation ranges are read off.  calibration: frames that the report is on.
    """
    if precision == "fp16":
        lowered = halve(graph, output=output)
    elif precision == "int8":
        lowered = quantize(graph, target=target, frames=ranges, contract=contract, output=output)
    else:
        raise PrecisionError(f"unknown precision {precision!r}; expected fp32, fp16 or int8")
    measured: list[Measurement] = []
    for model in (graph, lowered):
        measured.append(
            measure(
                open_session(model),
                calibration,
                contract=contract,
                task=task,
                output=output,
                scores=scores,
                threshold=failure_threshold if not measured else measured[0].threshold,
            )
        )
    return lowered, compare(*measured, precision=precision, target=target)


def compare(before: Measurement, after: Measurement, *, precision: str, target: str) -> dict[str, Any]:
    """Accuracy, and per score rank correlation and failure AUROC before and after. met: the goal holds."""
    goal = GOALS[precision]
    rows = {}
    for name in before.scores:
        correlation = spearman(before.scores[name], after.scores[name])
        rows[name] = {
            "rank_correlation": correlation,
            "met": bool(correlation >= goal),
            "auroc_before": _auroc(before, name),
            "auroc_after": _auroc(after, name),
        }
    return {
        "precision": precision,
        "target": target,
        "goal": goal,
        "accuracy_before": before.accuracy,
        "accuracy_after": after.accuracy,
        "same_failures": float(np.mean(before.failed == after.failed)),
        "scores": rows,
    }


def _auroc(measured: Measurement, name: str) -> float | None:
    if measured.failed.all() or not measured.failed.any():
        return None
    return auroc(measured.scores[name], measured.failed)
