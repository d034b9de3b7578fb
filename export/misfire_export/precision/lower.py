"""Makes a graph of lower precision, and reports what that changed.

fp32 graph --halve | quantize--> graph --both over the same frames--> accuracy, rank correlation, AUROC

int8 is built for a named target: what x86 runs fast, TensorRT's parser refuses, and vice versa. Scores stay
fp32 in both; they change only with the outputs and features that they read.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from misfire_export.choices import Target
from misfire_export.errors import PrecisionError
from misfire_export.measure.run import Measurement
from misfire_export.precision.fp16 import halve
from misfire_export.precision.int8 import quantize
from misfire_runtime.preprocess import InputContract
from misfire_train.data import Examples
from misfire_train.metrics import auroc, spearman

GOALS = {"fp16": 0.999, "int8": 0.98}
"""Least rank correlation of a score with its fp32 self; the report marks scores below it."""


def lower(
    graph: onnx.ModelProto,
    *,
    precision: str,
    target: Target,
    ranges: Examples,
    contract: InputContract,
    output: str,
) -> onnx.ModelProto:
    """Returns the graph at a lower precision. `compare` reports what that changed.

    ranges: frames from which int8's activation ranges are read. Raises PrecisionError if it cannot be made.
    """
    if precision == "fp16":
        return halve(graph, output=output)
    if precision == "int8":
        return quantize(graph, target=target, frames=ranges, contract=contract, output=output)
    raise PrecisionError(f"unknown precision {precision!r}; expected fp32, fp16 or int8")


def compare(before: Measurement, after: Measurement, *, precision: str, target: str) -> dict[str, Any]:
    """Returns accuracy, and per score rank correlation and failure AUROC before and after.

    met: the goal holds.
    """
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
        "accuracy_before": before.accuracy if before.labelled else None,
        "accuracy_after": after.accuracy if after.labelled else None,
        "same_failures": float(np.mean(before.failed == after.failed)) if before.labelled else None,
        "scores": rows,
    }


def _auroc(measured: Measurement, name: str) -> float | None:
    # AUROC needs both failures and successes.
    if measured.failed.all() or not measured.failed.any():
        return None
    return auroc(measured.scores[name], measured.failed)
