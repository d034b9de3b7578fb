"""Reads a foreign ONNX file, before any data: nodes in order, one opset a domain, no clash of names.

file --load, sort, deduplicate, make room--> graph --> its input size, class names and precision
"""

from __future__ import annotations

import ast
import heapq
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import onnx

from misfire_export.errors import GraphError
from misfire_export.graph.rename import MOVED, make_room, own_name, subgraphs

# A protobuf message holds at most 2 GiB.
MAX_FILE_BYTES = 1_900_000_000
_INT8 = ("DequantizeLinear", "MatMulInteger", "ConvInteger", "DynamicQuantizeLinear")
_CHANNELS = (1, 3, 4)
_MAKE_BYTES = {"QuantizeLinear": (1, 2), "QLinearMatMul": (6, 7), "QLinearConv": (6, 7), "QGemm": (7, 8)}
"""Operators that give bytes, and where among their inputs scale and zero point of those are."""
_HALF = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)


def load_graph(path: Path) -> onnx.ModelProto:
    """Returns the graph with its external data inside, ready to be read and extended.

    Raises GraphError if the file is none, is too large, or has a loop.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise GraphError(f"{path}: larger than {MAX_FILE_BYTES / 1e9:.1f} GB")
        model = onnx.load(path)
    except OSError as error:
        raise GraphError(f"{path}: {error.strerror or error}") from error
    except GraphError:
        raise
    except Exception as error:
        raise GraphError(f"{path}: not an ONNX file ({str(error).strip().splitlines()[0][:200]})") from error
    if not model.graph.node:
        raise GraphError(f"{path}: not an ONNX file, or one with an empty graph")
    _one_opset_per_domain(model)
    sort_nodes(model.graph)
    make_room(model)
    dequantize_outputs(model.graph)
    return model


def dequantize_outputs(graph: onnx.GraphProto) -> None:
    """Appends a DequantizeLinear to every output of 8 bits that a quantiser made; it keeps its name."""
    makers = {name: node for node in graph.node for name in node.output}
    for value in graph.output:
        node = makers.get(value.name)
        if node is None or node.op_type not in _MAKE_BYTES:
            continue
        step = [node.input[i] for i in _MAKE_BYTES[node.op_type] if i < len(node.input)]
        if not step:
            continue
        inner = f"{MOVED}bytes/{value.name}"
        for each in graph.node:
            each.input[:] = [inner if name == value.name else name for name in each.input]
            each.output[:] = [inner if name == value.name else name for name in each.output]
        graph.node.append(
            onnx.helper.make_node("DequantizeLinear", [inner, *step], [value.name], f"{inner}/real")
        )
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT


def _one_opset_per_domain(model: onnx.ModelProto) -> None:
    """Keeps one opset per domain, the highest; "ai.onnx" is the default domain."""
    versions: dict[str, int] = {}
    for item in model.opset_import:
        domain = _domain(item.domain)
        versions[domain] = max(versions.get(domain, 0), item.version)
    del model.opset_import[:]
    model.opset_import.extend(onnx.helper.make_opsetid(name, number) for name, number in versions.items())
    _plain_domains(model.graph)


def _plain_domains(graph: onnx.GraphProto) -> None:
    for node in graph.node:
        node.domain = _domain(node.domain)
        for inner in subgraphs(node):
            _plain_domains(inner)


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name


def sort_nodes(graph: onnx.GraphProto) -> None:
    """Puts every node behind those it reads, in place; ONNX Runtime takes unsorted files, so some are.

    The order of a sorted graph stays as it is. Raises GraphError on a loop.
    """
    makers = {name: i for i, node in enumerate(graph.node) for name in node.output if name}
    waits = [{makers[name] for name in _reads(node) if name in makers} for node in graph.node]
    readers: list[list[int]] = [[] for _ in graph.node]
    for i, sources in enumerate(waits):
        for source in sources:
            readers[source].append(i)
    left = [len(sources) for sources in waits]
    ready = [i for i, count in enumerate(left) if count == 0]
    order: list[int] = []
    while ready:
        # The lowest number first, which keeps the file's own order wherever it can.
        i = heapq.heappop(ready)
        order.append(i)
        for reader in readers[i]:
            left[reader] -= 1
            if left[reader] == 0:
                heapq.heappush(ready, reader)
    if len(order) != len(graph.node):
        stuck = graph.node[next(i for i, count in enumerate(left) if count)]
        raise GraphError(f"the graph has a loop through node {stuck.name or stuck.output[0]}")
    if order != list(range(len(order))):
        nodes = [onnx.NodeProto.FromString(graph.node[i].SerializeToString()) for i in order]
        del graph.node[:]
        graph.node.extend(nodes)
    for node in graph.node:
        for inner in subgraphs(node):
            sort_nodes(inner)


def _reads(node: onnx.NodeProto) -> set[str]:
    """Returns the tensors that a node and its subgraphs read.

    A subgraph's own tensors are among them; they do no harm.
    """
    names = {name for name in node.input if name}
    for inner in subgraphs(node):
        for part in inner.node:
            names |= _reads(part)
    return names


def own_size(model: onnx.ModelProto) -> tuple[int, int, int] | None:
    """Returns (channels, height, width) of the image that the graph takes, None if one of them is open."""
    held = {item.name for item in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in held]
    if len(inputs) != 1:
        return None
    dims = [dim.dim_value for dim in inputs[0].type.tensor_type.shape.dim]
    if len(dims) != 4 or min(dims[1:]) <= 0:
        return None
    if dims[1] not in _CHANNELS and dims[3] in _CHANNELS:
        dims = [dims[0], dims[3], *dims[1:3]]
    return (dims[1], dims[2], dims[3]) if dims[1] in _CHANNELS else None


def class_names(model: onnx.ModelProto) -> tuple[str, ...]:
    """Returns class names in the graph's own order, from its metadata, or ().

    The key is `names`, as Ultralytics writes it. The text is a list of names or a mapping of 0..K-1 to names,
    as JSON or as Python writes it.
    """
    text = {item.key: item.value for item in model.metadata_props}.get("names", "")
    found: object = None
    for read in (json.loads, ast.literal_eval):
        try:
            found = read(text)
            break
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
    if isinstance(found, Mapping):
        try:
            numbered = {int(key): str(name) for key, name in found.items()}
        except ValueError:
            return ()
        return (
            tuple(numbered[i] for i in sorted(numbered)) if set(numbered) == set(range(len(numbered))) else ()
        )
    return tuple(str(name) for name in found) if isinstance(found, list | tuple) else ()


def precision_of(model: onnx.ModelProto) -> Literal["fp32", "fp16", "int8"]:
    """Returns the file's own arithmetic: int8 with quantised operators, fp16 if most weights are halves."""
    if any(node.op_type in _INT8 or node.op_type.startswith("QLinear") for node in model.graph.node):
        return "int8"
    sizes = {True: 0, False: 0}
    for item in model.graph.initializer:
        if item.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, *_HALF):
            count = 1
            for dim in item.dims:
                count *= dim
            sizes[item.data_type in _HALF] += count
    return "fp16" if sizes[True] > sizes[False] else "fp32"


def file_outputs(graph: onnx.ModelProto) -> tuple[str, ...]:
    """Returns the names of a graph's outputs as the file gives them, in order."""
    return tuple(own_name(value.name) for value in graph.graph.output)
