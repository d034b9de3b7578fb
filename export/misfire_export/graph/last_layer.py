"""Finds the last linear or 1x1-convolution layer of a foreign graph, and reports what it could not find.

output <--Softmax, Sigmoid, Reshape, Resize, Quantize, ...-- logits <--Gemm | MatMul+Add | Conv 1x1-- phi

A layer of whole numbers (QLinearConv, QGemm, MatMulInteger, ...) is read as the linear layer that it rounds:
its weights are dequantised here, its bytes by a DequantizeLinear that `complete` adds to the graph.

Only operations that keep the logits' order may be between the last layer and the output. After anything else
(a Relu, a pooling) the closed-form gradients do not hold, and they are left out. The result is a claim about
operators; `sources.onnx.proof` proves it on numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from misfire_export.graph.regions import HEAVY
from misfire_export.graph.rename import own_name
from misfire_export.graph.tidy import constant_values, dequantized

_SHAPERS = ("Flatten", "Reshape", "Squeeze", "Unsqueeze", "Dropout", "Identity", "Cast", "Transpose")
_QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")
_BYTES = "misfire/real/"
"""Prefix of a tensor of bytes as numbers."""
_ACTIVATIONS = {
    "Softmax": "softmax",
    "LogSoftmax": "log-softmax",
    "Sigmoid": "sigmoid",
    "QLinearSoftmax": "softmax",
    "QLinearSigmoid": "sigmoid",
}
_INTEGER = ("QLinearConv", "QLinearMatMul", "QGemm", "QLinearAdd")
_SCALERS = ("Mul", "Div")
Kind = Literal["linear", "conv"]
Take = Literal["as-is", "log", "log-odds"]


@dataclass(frozen=True)
class Bytes:
    """Names a tensor of 8 bits and its scale and zero point."""

    tensor: str
    scale: str
    zero: str

    @property
    def real(self) -> str:
        """Returns the name of the same tensor as numbers."""
        return _BYTES + self.tensor


@dataclass(frozen=True)
class LastLayer:
    """Describes the layer.

    Attributes:
        features: the tensor phi that it reads, [N,C] or [N,C,h,w].
        answer: the tensor that it returns.
        weight, bias: [K,C] and [K].
        bytes: tensors that the claim needs as numbers.
    """

    node: str
    kind: Kind
    features: str
    answer: str
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    bytes: tuple[Bytes, ...] = ()


@dataclass(frozen=True)
class Found:
    """Holds what a walk back from the output found.

    Attributes:
        logits: the tensor before the activation (softmax, log-softmax, sigmoid or none), or the output.
        quantized: an 8-bit step is on the way.
        scaled: a constant factor stands behind the activation, as of percentages.
        layer: None if the last layer cannot be used.
        take: how the tensor `logits` becomes logits.
        scale: what the probabilities of a row sum to.
        bytes: of `logits`, if an activation reads bytes.
        notes: one sentence for each thing not found.
    """

    output: str
    logits: str
    layer: LastLayer | None
    activation: str = "none"
    quantized: bool = False
    scaled: bool = False
    take: Take = "as-is"
    scale: float = 1.0
    bytes: tuple[Bytes, ...] = ()
    notes: tuple[str, ...] = ()


def find_last_layer(model: onnx.ModelProto, output: str) -> Found:
    """Returns what a walk back from an output to logits and the last layer finds; it never raises."""
    makers = {name: node for node in model.graph.node for name in node.output}
    constants = constant_values(model.graph)
    # A clip or a factor behind a softmax does no harm; behind a bare linear layer it changes the logits.
    found = _walk(output, makers, constants, behind_activation=True)
    return found if found.activation != "none" else _walk(output, makers, constants)


def complete(model: onnx.ModelProto, found: Found) -> None:
    """Adds a DequantizeLinear, in place, for each tensor of bytes that the claim reads as numbers."""
    layer = () if found.layer is None else found.layer.bytes
    for each in dict.fromkeys((*found.bytes, *layer)):
        inputs = [name for name in (each.tensor, each.scale, each.zero) if name]
        model.graph.node.append(onnx.helper.make_node("DequantizeLinear", inputs, [each.real], each.real))


def _walk(
    output: str,
    makers: dict[str, onnx.NodeProto],
    constants: dict[str, NDArray[Any]],
    *,
    behind_activation: bool = False,
) -> Found:
    """Returns what is found from the output back. behind_activation: passes clips and constant factors."""
    tensor, logits, activation = output, output, "none"
    seen: list[str] = []
    read: tuple[Bytes, ...] = ()
    while tensor in makers:
        node = makers[tensor]
        quantized, scaled = (any(name in kinds for name in seen) for kinds in (_QUANTIZERS, _SCALERS))
        quantized = quantized or bool(read)
        # Only the last activation is one of the answer; an earlier one is part of the network.
        if node.op_type in _ACTIVATIONS and activation == "none" and not _resized(seen):
            activation = _ACTIVATIONS[node.op_type]
            tensor = logits = node.input[0]
            if node.op_type.startswith("QLinear"):
                read = (Bytes(*node.input[:3]),)
                logits = read[0].real
            continue
        layer = _as_layer(node, makers, constants)
        if layer is not None:
            quantized = quantized or bool(layer.bytes)
            return Found(output, logits, layer, activation, quantized, scaled, bytes=read)
        passed = node.op_type in (*_SHAPERS, *_QUANTIZERS)
        if passed or (node.op_type in ("Resize", "Upsample") and activation == "none"):
            seen.append(node.op_type)
            tensor = node.input[0]
            continue
        if behind_activation and activation == "none" and _keeps_order(node, constants):
            seen.append(node.op_type)
            tensor = node.input[0] if node.input[0] not in constants else node.input[1]
            continue
        notes = (_not_found(node),)
        return Found(output, logits, None, activation, quantized, scaled, bytes=read, notes=notes)
    note = f"output {own_name(output)} does not come from any layer"
    quantized = any(name in _QUANTIZERS for name in seen)
    return Found(output, logits, None, activation, quantized, bytes=read, notes=(note,))


def _keeps_order(node: onnx.NodeProto, constants: dict[str, NDArray[Any]]) -> bool:
    """Returns whether a node clips, or multiplies by one constant above zero."""
    if node.op_type == "Clip":
        return True
    if node.op_type == "Mul":
        factors = [constants[name] for name in node.input if name in constants]
    else:
        factors = [constants[node.input[1]]] if node.op_type == "Div" and node.input[1] in constants else []
    return len(factors) == 1 and factors[0].size == 1 and float(factors[0].reshape(-1)[0]) > 0


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
    if node.op_type in ("Gemm", "Conv"):
        return _gemm(node, constants) if node.op_type == "Gemm" else _conv(node, constants)
    if node.op_type in ("MatMul", *_INTEGER):
        bare = node.op_type == "MatMul"
        return _product(node, node, constants, bias=None) if bare else _integer(node, makers, constants)
    if node.op_type == "Mul":
        return _dynamic(node, node, makers, constants, bias=None)
    if node.op_type == "Add":
        # Exporters write the bias on either side.
        for data, other in ((0, 1), (1, 0)):
            inner = makers.get(_behind_quantizers(node.input[data], makers))
            bias = constants.get(node.input[other])
            if inner is not None and inner.op_type == "MatMul" and bias is not None:
                return _product(inner, node, constants, bias=bias)
            if inner is not None and inner.op_type == "Mul" and bias is not None:
                return _dynamic(inner, node, makers, constants, bias=bias)
    return None


def _behind_quantizers(tensor: str, makers: dict[str, onnx.NodeProto]) -> str:
    """Returns the tensor that quantise/dequantise pairs round."""
    while (node := makers.get(tensor)) is not None and node.op_type in _QUANTIZERS:
        tensor = node.input[0]
    return tensor


def _integer(
    node: onnx.NodeProto, makers: dict[str, onnx.NodeProto], constants: dict[str, NDArray[Any]]
) -> LastLayer | None:
    """Returns a layer whose input, weights and answer are bytes, each with a scale and a zero point."""
    if node.op_type == "QLinearAdd":
        return _integer_sum(node, makers, constants)
    weight = _real_weight(node.input[3:6], constants, axis=0 if node.op_type == "QLinearConv" else 1)
    gemm = node.op_type == "QGemm"
    step = node.input[7:9] if gemm else node.input[6:8]
    if weight is None or len(step) < 2 or not all(step):
        return None
    options = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    bias = constants.get(node.input[6 if gemm else 8]) if len(node.input) > (6 if gemm else 8) else None
    input_scale, weight_scale = constants.get(node.input[1]), constants.get(node.input[4])
    if bias is not None:
        if input_scale is None or weight_scale is None:
            return None
        # A bias of whole numbers counts steps of the product.
        bias = bias.astype(np.float32) * (input_scale.reshape(-1) * weight_scale.reshape(-1))
    if node.op_type == "QLinearConv":
        if weight.shape[2:] != (1, 1) or not _is_plain(options):
            return None
        weight = weight[:, :, 0, 0]
    elif weight.ndim != 2 or options.get("transA", 0):
        return None
    elif not options.get("transB", 0):
        weight = weight.T
    weight = weight * options.get("alpha", 1.0)
    kind: Kind = "conv" if node.op_type == "QLinearConv" else "linear"
    made = Bytes(node.output[0], step[0], step[1])
    read = Bytes(*node.input[:3])
    layer = _layer(node, made.real, kind, weight, bias)
    return replace(layer, features=read.real, bytes=(read, made))


def _integer_sum(
    node: onnx.NodeProto, makers: dict[str, onnx.NodeProto], constants: dict[str, NDArray[Any]]
) -> LastLayer | None:
    """Returns a product of bytes with a constant bias of bytes: QLinearAdd(QLinearMatMul(phi, W), b)."""
    for data, other in ((0, 3), (3, 0)):
        product = makers.get(node.input[data])
        bias = _real_weight(node.input[other : other + 3], constants, axis=0)
        if product is None or product.op_type != "QLinearMatMul" or bias is None:
            continue
        layer = _integer(product, makers, constants)
        if layer is None or bias.size not in (1, len(layer.bias)) or len(node.input) < 8:
            return None
        made = Bytes(node.output[0], node.input[6], node.input[7])
        whole = np.broadcast_to(bias.reshape(-1), layer.bias.shape).astype(np.float32)
        return replace(layer, answer=made.real, bias=np.array(whole), bytes=(layer.bytes[0], made))
    return None


def _dynamic(
    product: onnx.NodeProto,
    last: onnx.NodeProto,
    makers: dict[str, onnx.NodeProto],
    constants: dict[str, NDArray[Any]],
    *,
    bias: NDArray[Any] | None,
) -> LastLayer | None:
    """Returns a layer that quantises its input anew for each batch: Mul(Cast(MatMulInteger), scales)."""
    whole = next((n for n in map(makers.get, product.input) if n is not None and n.op_type == "Cast"), None)
    steps = next((n for n in map(makers.get, product.input) if n is not None and n.op_type == "Mul"), None)
    core = makers.get(whole.input[0]) if whole is not None else None
    if core is None or steps is None or core.op_type != "MatMulInteger":
        return None
    reader = makers.get(core.input[0])
    scale = next((name for name in steps.input if name in constants), "")
    if reader is None or reader.op_type != "DynamicQuantizeLinear" or not scale:
        return None
    weight = _real_weight([core.input[1], scale, *core.input[3:4]], constants, axis=1)
    if weight is None or weight.ndim != 2 or (bias is not None and bias.size not in (1, weight.shape[1])):
        return None
    layer = _layer(core, last.output[0], "linear", weight.T, bias)
    return replace(layer, features=reader.input[0])


def _real_weight(
    names: Sequence[str], constants: dict[str, NDArray[Any]], *, axis: int
) -> NDArray[np.float32] | None:
    """Returns constant weights from their bytes, scale and zero point; None if one of them is computed."""
    inputs = [constants.get(name) for name in names if name]
    if len(inputs) < 2 or any(value is None for value in inputs):
        return None
    return dequantized([value for value in inputs if value is not None], axis=axis)


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
    if weight is None or weight.shape[2:] != (1, 1) or not _is_plain(options):
        return None
    bias = constants.get(node.input[2]) if len(node.input) > 2 else None
    return _layer(node, node.output[0], "conv", weight[:, :, 0, 0], bias)


def _is_plain(options: dict[str, Any]) -> bool:
    """Returns whether a 1x1 convolution is W phi + b at every pixel."""
    one_group = options.get("group", 1) == 1
    return one_group and not any(options.get("pads", [])) and set(options.get("strides", [1])) == {1}


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
