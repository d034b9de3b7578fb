"""Removes from a graph whatever does not run, and rewrites the few patterns that cost a vehicle time.

Dropped: node metadata, doc strings and value infos of the exporter (they contain paths of the machine that
traced), unused initialisers. Rewritten: a mean over both image axes becomes GlobalAveragePool, which stays in
the blocked layout of ONNX Runtime's convolutions, while ReduceMean makes it copy the whole map first. A
softplus loses torch's switch to the identity for large values, which runtimes make themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

PRODUCER = "misfire"
IDENTITY_FROM = 17.0
_FOLDED = ("Reshape", "Transpose", "Identity", "Cast", "DequantizeLinear")


def tidy(model: onnx.ModelProto) -> onnx.ModelProto:
    """Tidies a model in place, without changing what it computes, and returns it."""
    _drop_metadata(model)
    pool_means(model.graph)
    plain_softplus(model.graph)
    share_initialisers(model.graph)
    drop_unused(model.graph)
    # Without a version: the same graph gives the same bytes in every release.
    model.producer_name, model.producer_version = PRODUCER, ""
    return model


def pool_means(graph: onnx.GraphProto) -> None:
    """Replaces ReduceMean over axes (2, 3) of a 4-d map by GlobalAveragePool.

    Without keepdims a Flatten follows.
    """
    constants = constant_values(graph)
    ranks = _ranks(graph)
    nodes = []
    for node in graph.node:
        if not _is_pixel_mean(node, constants, ranks):
            nodes.append(node)
            continue
        keep = {a.name: a.i for a in node.attribute}.get("keepdims", 1)
        if keep:
            nodes.append(helper.make_node("GlobalAveragePool", [node.input[0]], [node.output[0]], node.name))
        else:
            inner = f"{node.output[0]}/pooled"
            nodes.append(helper.make_node("GlobalAveragePool", [node.input[0]], [inner], node.name))
            nodes.append(helper.make_node("Flatten", [inner], [node.output[0]], axis=1))
    del graph.node[:]
    graph.node.extend(nodes)


def plain_softplus(graph: onnx.GraphProto) -> None:
    """Replaces Where(x > c, x, Softplus(x)) by Softplus(x), which is x in fp32 from 17 on."""
    constants = constant_values(graph)
    made = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        if node.op_type != "Where":
            continue
        above, _value, other = (made.get(name) for name in node.input)
        if above is None or other is None or (above.op_type, other.op_type) != ("Greater", "Softplus"):
            continue
        limit = constants.get(above.input[1])
        same = above.input[0] == node.input[1] == other.input[0]
        if same and limit is not None and float(limit.min()) >= IDENTITY_FROM:
            softplus = helper.make_node("Softplus", [other.input[0]], [node.output[0]], node.name)
            node.CopyFrom(softplus)


def share_initialisers(graph: onnx.GraphProto) -> None:
    """Merges initialisers of equal values: the last layer's weight often occurs twice."""
    first: dict[tuple[object, ...], str] = {}
    alias: dict[str, str] = {}
    for item in graph.initializer:
        if is_apart(item.name):
            continue
        value = numpy_helper.to_array(item)
        key = (value.dtype.str, value.shape, value.tobytes())
        alias[item.name] = first.setdefault(key, item.name)
    outputs = {output.name for output in graph.output}
    for node in graph.node:
        for position, name in enumerate(node.input):
            # An initialiser that is an output keeps its name.
            if name in alias and name not in outputs:
                node.input[position] = alias[name]


def is_apart(name: str) -> bool:
    """Returns whether an initialiser belongs to a head (graph/tunable.py), and so to nothing else.

    >>> is_apart("misfire/scores/head/center"), is_apart("val_4")
    (True, False)
    """
    return "head" in name.split("/")[:-1]


def drop_unused(graph: onnx.GraphProto) -> None:
    """Drops nodes and initialisers that no output depends on."""
    needed = {output.name for output in graph.output}
    kept = []
    # From the outputs back, as every node follows those that it reads.
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(name for name in node.input if name)
            # Subgraphs read outer tensors without listing them among the node's inputs.
            needed.update(_captured(node))
    del graph.node[:]
    graph.node.extend(reversed(kept))
    used = [item for item in graph.initializer if item.name in needed]
    del graph.initializer[:]
    graph.initializer.extend(used)


def constant_values(graph: onnx.GraphProto) -> dict[str, NDArray[Any]]:
    """Returns initialisers and Constant nodes by name.

    Reshapes, casts and dequantisation of constants are computed.
    """
    values = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            values[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        elif _folds(node) and all(i in values for i in node.input if i):
            values[node.output[0]] = _moved(node, [values[name] for name in node.input if name])
    return values


def _folds(node: onnx.NodeProto) -> bool:
    """Returns whether the node's constants are read; scales of blocks (since opset 21) are not."""
    blocked = any(a.name == "block_size" and a.i for a in node.attribute)
    return node.op_type in _FOLDED and not blocked


def _moved(node: onnx.NodeProto, inputs: list[NDArray[Any]]) -> NDArray[Any]:
    """Returns a constant's values in another order or of another type."""
    if node.op_type == "DequantizeLinear":
        return dequantized(inputs, axis={a.name: a.i for a in node.attribute}.get("axis", 1))
    if node.op_type == "Cast":
        to = next(a.i for a in node.attribute if a.name == "to")
        return inputs[0].astype(helper.tensor_dtype_to_np_dtype(to))
    if node.op_type == "Transpose":
        order = {a.name: list(a.ints) for a in node.attribute}.get("perm")
        return inputs[0].transpose(order)
    if node.op_type == "Reshape":
        sizes = [inputs[0].shape[i] if size == 0 else int(size) for i, size in enumerate(inputs[1])]
        return inputs[0].reshape(sizes)
    return inputs[0]


def dequantized(inputs: Sequence[NDArray[Any]], *, axis: int) -> NDArray[Any]:
    """Returns (x - zero point) * scale, one scale for all or for each slice of an axis.

    inputs: x, scale and perhaps the zero point.
    """
    value, scale = inputs[0].astype(np.float32), inputs[1]
    zero = inputs[2].astype(np.float32) if len(inputs) > 2 else np.zeros_like(scale, np.float32)
    if scale.size > 1:
        shape = [1] * value.ndim
        shape[axis] = -1
        scale, zero = scale.reshape(shape), zero.reshape(shape) if zero.size > 1 else zero
    return np.asarray((value - zero) * scale)


def _is_pixel_mean(node: onnx.NodeProto, constants: dict[str, NDArray[Any]], ranks: dict[str, int]) -> bool:
    if node.op_type != "ReduceMean" or ranks.get(node.input[0]) != 4:
        return False
    axes: list[int] | None = None
    if len(node.input) > 1 and node.input[1] in constants:
        axes = [int(axis) for axis in constants[node.input[1]].reshape(-1)]
    for attribute in node.attribute:
        if attribute.name == "axes":
            axes = list(attribute.ints)
    return axes is not None and sorted(axis % 4 for axis in axes) == [2, 3]


def _ranks(graph: onnx.GraphProto) -> dict[str, int]:
    known = [*graph.input, *graph.output, *graph.value_info]
    ranks = {v.name: len(v.type.tensor_type.shape.dim) for v in known if v.type.tensor_type.HasField("shape")}
    for node in graph.node:
        if node.op_type in ("Conv", "MaxPool", "AveragePool", "BatchNormalization"):
            ranks.setdefault(node.output[0], 4)
    return ranks


def _captured(node: onnx.NodeProto) -> set[str]:
    """Returns the names that a node's subgraphs take from outside."""
    names: set[str] = set()
    for attribute in node.attribute:
        for sub in [attribute.g, *attribute.graphs]:
            for inner in sub.node:
                names.update(name for name in inner.input if name)
                names.update(_captured(inner))
    return names


def _drop_metadata(model: onnx.ModelProto) -> None:
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    model.doc_string = model.graph.doc_string = ""
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in [*model.graph.input, *model.graph.output, *model.graph.value_info]:
        del value.metadata_props[:]
        value.doc_string = ""
    for item in model.graph.initializer:
        del item.metadata_props[:]
        item.doc_string = ""
