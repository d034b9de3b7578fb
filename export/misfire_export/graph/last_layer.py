"""Finds the last linear or 1x1-convolution layer of a foreign graph, and reports what it could not find.

output <--Softmax, Sigmoid, Reshape, Resize, Quantize, ...-- logits <--Gemm | MatMul+Add | Conv 1x1-- phi

Only operations that keep the logits' order may be between the last layer and the output. After anything else
(a Relu, a pooling) the closed-form gradients do not hold, and they are left out. The result is a claim about
operators; `onnx_proof` proves it on numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from misfire_export.graph.regions import HEAVY
from misfire_export.graph.rename import own_name
from misfire_export.graph.tidy import constant_values

_SHAPERS = ("Flatten", "Reshape", "Squeeze", "Unsqueeze", "Dropout", "Identity", "Cast")
_QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")
_ACTIVATIONS = {"Softmax": "softmax", "LogSoftmax": "log-softmax", "Sigmoid": "sigmoid"}
Kind = Literal["linear", "conv"]
Take = Literal["as-is", "log", "log-odds"]


@dataclass(frozen=True)
class LastLayer:
    """Describes the layer.

    Attributes:
        features: the tensor phi that it reads, [N,C] or [N,C,h,w].
        answer: the tensor that it returns.
        weight, bias: [K,C] and [K].
    """

    node: str
    kind: Kind
    features: str
    answer: str
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]


@dataclass(frozen=True)
class Found:
    """Holds what a walk back from the output found.

    Attributes:
        logits: the tensor before the activation (softmax, log-softmax, sigmoid or none), or the output.
        quantized: an 8-bit step is on the way.
        layer: None if the last layer cannot be used.
        take: how the tensor `logits` becomes logits.
        notes: one sentence for each thing not found.
    """

    output: str
    logits: str
    layer: LastLayer | None
    activation: str = "none"
    quantized: bool = False
    take: Take = "as-is"
    notes: tuple[str, ...] = ()


def find_last_layer(model: onnx.ModelProto, output: str) -> Found:
    """Returns what a walk back from an output to logits and the last layer finds; it never raises."""
    makers = {name: node for node in model.graph.node for name in node.output}
    constants = constant_values(model.graph)
    tensor, logits, activation = output, output, "none"
    seen: list[str] = []
    while tensor in makers:
        node = makers[tensor]
        quantized = any(name in _QUANTIZERS for name in seen)
        # Only the last activation is one of the answer; an earlier one is part of the network.
        if node.op_type in _ACTIVATIONS and activation == "none" and not _resized(seen):
            activation = _ACTIVATIONS[node.op_type]
            tensor = logits = node.input[0]
            continue
        layer = _as_layer(node, makers, constants)
        if layer is not None:
            return Found(output, logits, layer, activation, quantized)
        passed = node.op_type in (*_SHAPERS, *_QUANTIZERS)
        if passed or (node.op_type in ("Resize", "Upsample") and activation == "none"):
            seen.append(node.op_type)
            tensor = node.input[0]
            continue
        return Found(output, logits, None, activation, quantized, notes=(_not_found(node),))
    note = f"output {own_name(output)} does not come from any layer"
    return Found(output, logits, None, activation, any(n in _QUANTIZERS for n in seen), notes=(note,))


def _resized(operators: list[str]) -> bool:
    """Returns whether a resize was passed.

    It mixes the pixels of a softmax before it, whose logits are then not those of the output.
    """
    return "Resize" in operators or "Upsample" in operators


def _not_found(node: onnx.NodeProto) -> str:
    name = node.name or node.output[0]
    if node.op_type in HEAVY or node.domain == "ai.onnx.ml":
        return (
            f"no last layer: {node.op_type} (node {name}) is no plain linear or 1x1-convolution layer with "
            "constant weights, so gradient scores and the embedding are left out"
        )
    return (
        f"no last layer: {node.op_type} (node {name}) stands between the last linear or 1x1-convolution "
        "layer and the output, so gradient scores and the embedding are left out"
    )


def _as_layer(
    node: onnx.NodeProto, makers: dict[str, onnx.NodeProto], constants: dict[str, NDArray[Any]]
) -> LastLayer | None:
    """Returns the node as a last layer with its parameters, or None."""
    if node.op_type == "Gemm":
        return _gemm(node, constants)
    if node.op_type == "MatMul":
        return _product(node, node, constants, bias=None)
    if node.op_type == "Add":
        # Exporters write the bias on either side.
        for data, other in ((0, 1), (1, 0)):
            inner = makers.get(node.input[data])
            bias = constants.get(node.input[other])
            if inner is not None and inner.op_type == "MatMul" and bias is not None:
                return _product(inner, node, constants, bias=bias)
    if node.op_type == "Conv":
        return _conv(node, constants)
    return None


def _gemm(node: onnx.NodeProto, constants: dict[str, NDArray[Any]]) -> LastLayer | None:
    options = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    weight = constants.get(node.input[1])
    # transA would take the batch for the features.
    if weight is None or options.get("transA", 0):
        return None
    if not options.get("transB", 0):
        # Here weights are [K,C], as in torch; Gemm without transB has [C,K].
        weight = weight.T
    weight = weight * options.get("alpha", 1.0)
    bias = constants.get(node.input[2]) if len(node.input) > 2 else None
    if bias is not None:
        bias = bias * options.get("beta", 1.0)
    return _layer(node, node.output[0], "linear", weight, bias)


def _product(
    node: onnx.NodeProto,
    last: onnx.NodeProto,
    constants: dict[str, NDArray[Any]],
    *,
    bias: NDArray[Any] | None,
) -> LastLayer | None:
    weight = constants.get(node.input[1])
    if weight is None or weight.ndim != 2 or (bias is not None and bias.size not in (1, weight.shape[1])):
        return None
    return _layer(node, last.output[0], "linear", weight.T, bias)


def _conv(node: onnx.NodeProto, constants: dict[str, NDArray[Any]]) -> LastLayer | None:
    weight = constants.get(node.input[1])
    options = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    plain = (
        options.get("group", 1) == 1
        and not any(options.get("pads", []))
        # Only such a convolution is W phi + b at every pixel.
        and set(options.get("strides", [1])) == {1}
    )
    if weight is None or weight.shape[2:] != (1, 1) or not plain:
        return None
    bias = constants.get(node.input[2]) if len(node.input) > 2 else None
    return _layer(node, node.output[0], "conv", weight[:, :, 0, 0], bias)


def _layer(
    node: onnx.NodeProto, answer: str, kind: Kind, weight: NDArray[Any], bias: NDArray[Any] | None
) -> LastLayer:
    full = np.zeros(len(weight)) if bias is None else np.broadcast_to(bias.reshape(-1), (len(weight),))
    return LastLayer(
        node=node.name or node.output[0],
        kind=kind,
        features=node.input[0],
        answer=answer,
        weight=np.array(weight, np.float32, order="C"),
        bias=np.array(full, np.float32, order="C"),
    )
