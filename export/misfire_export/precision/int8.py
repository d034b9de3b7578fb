"""Converts an fp32 graph to int8 with quantise/dequantise pairs, calibrated on real frames.

onnxruntime-x86  activations u8, weights s8 per channel: the fast int8 products of x86
tensorrt         activations and weights s8, symmetric, biases left fp32: what TensorRT's parser accepts

The last layer stays fp32: it is a thousandth of the work, and every score reads its answer.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)

from misfire_export.errors import PrecisionError
from misfire_export.graph.regions import name_nodes, score_node_names, tail_names, task_nodes
from misfire_runtime.preprocess import InputContract
from misfire_train.data import Examples
from misfire_train.scores.fitting import spread

FRAMES = 256
"""Number of frames from which activation ranges are read."""
# Of no influence on the ranges: MinMax takes the extremes of all frames.
_BATCH = 16


def quantize(
    graph: onnx.ModelProto, *, target: str, frames: Examples, contract: InputContract, output: str
) -> onnx.ModelProto:
    """Returns an int8 copy for a target; at most 256 of `frames` give the ranges of activations.

    Raises PrecisionError if there is nothing to quantise, or the tool refuses the graph.
    """
    if target not in ("onnxruntime-x86", "tensorrt"):
        raise PrecisionError(f"unknown target {target!r}; expected onnxruntime-x86 or tensorrt")
    model = onnx.ModelProto()
    model.CopyFrom(graph)
    name_nodes(model.graph)
    tail = set(tail_names(model.graph, output))
    chosen = [node for node in task_nodes(model.graph, output) if node.name not in tail]
    if not any(node.op_type in ("Conv", "Gemm", "MatMul") for node in chosen):
        raise PrecisionError(
            "there is nothing to quantise: the graph has no convolution or product but its last"
        )
    excluded = sorted({*score_node_names(model.graph, output), *tail})
    symmetric = target == "tensorrt"
    with tempfile.TemporaryDirectory() as folder, _quiet():
        source, result = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
        # The tool needs shapes; its own symbolic inference fails on graphs of torch's dynamo exporter.
        onnx.save(onnx.shape_inference.infer_shapes(model), source)
        try:
            quantize_static(
                source,
                result,
                _Frames(
                    frames,
                    contract,
                    batch=model.graph.input[0].type.tensor_type.shape.dim[0].dim_value or _BATCH,
                ),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QInt8 if symmetric else QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=excluded,
                calibrate_method=CalibrationMethod.MinMax,
                extra_options=_options(symmetric=symmetric),
            )
        except Exception as error:
            raise PrecisionError(f"int8 for {target}: {str(error).strip().splitlines()[0][:300]}") from error
        quantized = onnx.load(result)
    del quantized.graph.value_info[:]
    return quantized


def _options(*, symmetric: bool) -> dict[str, Any]:
    options: dict[str, Any] = {"WeightSymmetric": True, "ActivationSymmetric": symmetric}
    if symmetric:
        # TensorRT's parser refuses int32 biases.
        options["QuantizeBias"] = False
    return options


class _Frames(CalibrationDataReader):  # type: ignore[misc]
    """Feeds real frames, spread evenly over what was given."""

    def __init__(self, examples: Examples, contract: InputContract, *, batch: int) -> None:
        self._examples, self._contract, self._next = spread(examples, FRAMES), contract, 0
        self._batch = batch

    def get_next(self) -> dict[str, Any] | None:
        """Returns one batch under the input's name, None at the end."""
        part = np.arange(self._next, min(self._next + self._batch, len(self._examples)))
        self._next += self._batch
        if not len(part):
            return None
        return {self._contract.name: self._examples.batch(part, self._contract).numpy()}


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences the tool's advice to pre-process, which goes to the root logger.

    The graph here is tidy already.
    """
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
