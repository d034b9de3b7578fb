"""Converts an fp32 graph to fp16: the task's nodes in half precision; input, outputs and scores in fp32.

image --cast--> [task nodes, weights fp16] --cast back, once per tensor--> outputs, scores in fp32

A squared feature norm of 256 channels at 16 is 65536, above fp16's largest number; so scores stay fp32. So do
a detector's boxes: the area of 256x256 pixels is 65536 as well, and places would be rounded to half a pixel.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from misfire_export.errors import PrecisionError
from misfire_export.graph.regions import name_nodes, network_nodes, task_nodes

# The largest finite number of half precision.
LARGEST = 65504.0
# Suffix of a tensor's half-precision twin; both exist if an fp32 node reads it, too.
_HALF = "/fp16"
_KEEP_FLOAT = {"Resize": (1, 2), "Upsample": (1,)}
"""Inputs that ONNX defines as fp32 whatever the data are: regions and scales."""


def halve(graph: onnx.ModelProto, *, output: str) -> onnx.ModelProto:
    """Returns a copy whose task nodes compute in fp16.

    Raises PrecisionError if a weight does not fit fp16.
    """
    model = onnx.ModelProto()
    model.CopyFrom(graph)
    name_nodes(model.graph)
    region = task_nodes(model.graph, output)
    # Only detectors choose among candidates.
    if any(node.op_type == "TopK" for node in region):
        region = network_nodes(model.graph, output)
    inside = {node.name for node in region}
    floats = _float_tensors(model)
    weights = {item.name: item for item in model.graph.initializer}
    made = {name for node in region for name in node.output if name in floats}
    casts = _cast_inputs(model.graph, region, floats - made - set(weights))
    halves = _halve_weights(region, weights)
    for node in region:
        for position, name in enumerate(node.input):
            if _keeps_float(node, position):
                continue
            if name in made or name in casts or name in halves:
                node.input[position] = name + _HALF
        for position, name in enumerate(node.output):
            if name in made:
                node.output[position] = name + _HALF
        _halve_attributes(node)
    nodes = [*casts.values()]
    wanted = {name for node in model.graph.node if node.name not in inside for name in node.input}
    # Outputs stay fp32: what a vehicle reads does not change with the precision.
    wanted |= {value.name for value in model.graph.output}
    for node in model.graph.node:
        nodes.append(node)
        if node.name not in inside:
            continue
        for name in node.output:
            plain = name.removesuffix(_HALF)
            if plain in made and plain in wanted:
                nodes.append(
                    helper.make_node("Cast", [name], [plain], f"{plain}/to_fp32", to=TensorProto.FLOAT)
                )
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    used = {name for node in kept for name in node.input}
    initializers = [item for item in [*weights.values(), *halves.values()] if item.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(initializers)
    # They state the old types.
    del model.graph.value_info[:]
    return model


def _float_tensors(model: onnx.ModelProto) -> set[str]:
    """Returns the names of all fp32 tensors, by shape inference."""
    typed = onnx.shape_inference.infer_shapes(model).graph
    known = [*typed.input, *typed.output, *typed.value_info]
    names = {v.name for v in known if v.type.tensor_type.elem_type == TensorProto.FLOAT}
    return names | {item.name for item in typed.initializer if item.data_type == TensorProto.FLOAT}


def _cast_inputs(
    graph: onnx.GraphProto, region: list[onnx.NodeProto], outside: set[str]
) -> dict[str, onnx.NodeProto]:
    """Returns a cast to fp16 for every fp32 tensor that enters the region from outside."""
    casts = {}
    entering = {value.name for value in graph.input} & outside
    for node in region:
        for position, name in enumerate(node.input):
            if name in entering and name not in casts and not _keeps_float(node, position):
                casts[name] = helper.make_node(
                    "Cast", [name], [name + _HALF], f"{name}/to_fp16", to=TensorProto.FLOAT16
                )
    return casts


def _halve_weights(
    region: list[onnx.NodeProto], weights: dict[str, onnx.TensorProto]
) -> dict[str, onnx.TensorProto]:
    halves: dict[str, onnx.TensorProto] = {}
    for node in region:
        for position, name in enumerate(node.input):
            item = weights.get(name)
            if item is None or item.data_type != TensorProto.FLOAT or _keeps_float(node, position):
                continue
            if name not in halves:
                halves[name] = _half(numpy_helper.to_array(item), name)
    return halves


def _half(value: NDArray[Any], name: str) -> onnx.TensorProto:
    largest = float(np.abs(value[np.isfinite(value)]).max(initial=0.0))
    if largest > LARGEST:
        raise PrecisionError(f"weight {name} reaches {largest:.3g}; fp16 ends at {LARGEST:g}")
    return numpy_helper.from_array(value.astype(np.float16), name + _HALF)


def _halve_attributes(node: onnx.NodeProto) -> None:
    """Converts constants and casts inside the region to fp16, too."""
    for attribute in node.attribute:
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
            attribute.i = TensorProto.FLOAT16
        elif attribute.name == "value" and attribute.t.data_type == TensorProto.FLOAT:
            attribute.t.CopyFrom(_half(numpy_helper.to_array(attribute.t), attribute.t.name))


def _keeps_float(node: onnx.NodeProto, position: int) -> bool:
    return position in _KEEP_FLOAT.get(node.op_type, ())
