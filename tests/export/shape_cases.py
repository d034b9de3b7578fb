"""Small networks in the shapes that other tools write them, and what their files answer, read by numpy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from export_cases import examples_of
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

from misfire_train.data import Examples


def seeded_weights(seed: int = 0, *, classes: int = 3, channels: int = 6) -> dict[str, NDArray[np.float32]]:
    """Weights of conv, relu, mean and a linear layer that tells colours apart."""
    rng = np.random.default_rng(seed)
    first = np.zeros((channels, 3, 3, 3))
    first[np.arange(channels), np.arange(channels) % 3, 1, 1] = 1.0
    first += rng.normal(0, 0.03, first.shape)
    last = np.zeros((classes, channels))
    last[:, :] = -4.0
    for k in range(classes):
        last[k, k % 3 :: 3] = 8.0
    return {
        "c": first.astype(np.float32),
        "w": (last + rng.normal(0, 0.2, last.shape)).astype(np.float32),
        "b": rng.normal(0, 0.2, classes).astype(np.float32),
    }


def convolutional(
    path: Path, tail: Sequence[NodeProto] = (), *, output: str = "z", classes: int = 3, product: bool = False
) -> Path:
    """pixels [n,3,8,8] --Conv, Relu, mean--> f --Gemm (or MatMul)--> z --tail--> output."""
    held = seeded_weights(classes=classes)
    if product:
        held["w"] = held["w"].T.copy()
    last = [helper.make_node("Gemm", ["f", "w", "b"], ["z"], "fc", transB=1)]
    if product:
        last = [
            helper.make_node("MatMul", ["f", "w"], ["zw"], "fc"),
            helper.make_node("Add", ["zw", "b"], ["z"], "fc_bias"),
        ]
    nodes = [
        helper.make_node("Conv", ["pixels", "c"], ["a"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["r"], "relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["g"], "pool"),
        helper.make_node("Flatten", ["g"], ["f"], "flatten", axis=1),
        *last,
        *tail,
    ]
    return save(path, nodes, held, outputs={output: None})


def save(
    path: Path,
    nodes: Sequence[NodeProto],
    held: dict[str, NDArray[Any]],
    *,
    outputs: dict[str, Sequence[int | str] | None],
    shape: Sequence[int | str] = ("n", 3, 8, 8),
    kind: int = TensorProto.FLOAT,
) -> Path:
    graph = helper.make_graph(
        list(nodes),
        "theirs",
        [helper.make_tensor_value_info("pixels", kind, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in held.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, images: NDArray[np.float32]) -> None:
        self._rows: Iterator[NDArray[np.float32]] = iter(images)

    def get_next(self) -> dict[str, Any] | None:
        row = next(self._rows, None)
        return None if row is None else {"pixels": row[None]}


def quantized(source: Path, path: Path, form: str, images: NDArray[np.float32]) -> Path:
    """What ONNX Runtime's own tool makes of a file. form: qdq, qoperator or dynamic."""
    if form == "dynamic":
        quantize_dynamic(source, path, weight_type=QuantType.QInt8)
        return path
    quantize_static(
        source,
        path,
        _Reader(images),
        quant_format=QuantFormat.QDQ if form == "qdq" else QuantFormat.QOperator,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=form == "qdq",
    )
    return path


def file_answers(path: Path, images: NDArray[Any], *, name: str = "pixels") -> dict[str, NDArray[Any]]:
    """The outputs of the file as it was given, frame by frame, with ONNX Runtime's rewriting switched off."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    rows = [session.run(names, {name: image[None]}) for image in images]
    return {n: np.concatenate(column) for n, column in zip(names, zip(*rows, strict=True), strict=True)}


def tensors_of(path: Path, names: Sequence[str], images: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Tensors inside the file as it was given, frame by frame."""
    model = onnx.load(path)
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    rows = [session.run(list(names), {"pixels": image[None]}) for image in images]
    return {n: np.concatenate(column) for n, column in zip(names, zip(*rows, strict=True), strict=True)}


def roads(count: int, *, seed: int = 0, prefix: str = "frame", size: tuple[int, int] = (8, 12)) -> Examples:
    """Noisy frames with a grey road of varying width below a green verge; masks: 1 is road."""
    rng = np.random.default_rng(seed)
    height, width = size
    masks = np.zeros((count, height, width), np.uint8)
    images = np.empty((count, height, width, 3))
    for i in range(count):
        left, wide = rng.integers(0, width // 2), rng.integers(2, width // 2)
        masks[i, height // 3 :, left : left + wide] = 1
        contrast = rng.choice([12.0, 60.0])
        green = np.array([110 - contrast, 110, 110 - contrast])
        images[i] = np.where(masks[i][..., None] == 1, [120, 110, 120], green)
    images += rng.normal(0, 18, images.shape)
    return examples_of(np.clip(images, 0, 255).astype(np.uint8), masks, prefix=prefix)


ROAD_WEIGHT = np.array([[14.0, -16.0, 13.0]], np.float32)
ROAD_BIAS = np.array([-4.2], np.float32)


def softmax(logits: NDArray[Any], axis: int = 1) -> NDArray[np.float64]:
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=axis, keepdims=True))
    return np.asarray(powers / powers.sum(axis=axis, keepdims=True))


def entropy(p: NDArray[Any], axis: int = 1) -> NDArray[np.float64]:
    """In nats; 0 log 0 is 0."""
    q = p.astype(np.float64)
    return np.asarray(-(q * np.log(np.maximum(q, 1e-300))).sum(axis=axis))


def binary_entropy(p: NDArray[Any]) -> NDArray[np.float64]:
    return entropy(np.stack([1 - p.astype(np.float64), p.astype(np.float64)], axis=1))
