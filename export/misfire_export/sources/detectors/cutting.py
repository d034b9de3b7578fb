"""Finds the post-processing part of a detector's graph, and where it may be cut.

outputs, or inputs of a plug-in node --back through everything but layers with weights--> tensors, by distance
last TopK or suppression --forward--> what it has chosen; all other tensors still hold all candidates

A plug-in that ONNX Runtime lacks (EfficientNMS_TRT) is removed: what it read becomes the graph's outputs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from misfire_export.errors import GraphError
from misfire_export.graph.check import require_operators
from misfire_export.graph.regions import HEAVY, constant_names
from misfire_export.graph.rename import own_name, subgraphs
from misfire_export.graph.tidy import constant_values, drop_unused

PLUGINS = (
    "EfficientNMS_TRT",
    "EfficientNMS_ONNX_TRT",
    "EfficientNMSX_TRT",
    "EfficientNMS_Explicit_TF_TRT",
    "BatchedNMS_TRT",
    "BatchedNMSDynamic_TRT",
    "TRT_NonMaxSuppression",
    "YoloNMS",
)
"""Suppressions as plug-ins: their first inputs are boxes and scores."""
SELECTIONS = ("NonMaxSuppression", "TopK", "NonZero")
MOST_TENSORS = 160
"""Post-processing has some dozen nodes; more are the network itself."""


@dataclass(frozen=True)
class Tail:
    """Holds the post-processing part of a graph.

    Attributes:
        model: the graph without plug-ins; its outputs are `outputs`.
        outputs: of the file, or what its plug-ins read.
        tensors: of the part, the nearest to the outputs first.
        before: those that no final selection has chosen from.
        makers: operator by tensor.
        cut: operator of the final selection, "" if there is none.
        suppression, threshold: IoU and score of the file's own suppression, None if unknown.
        inputs: names of the file's inputs.
        notes: what was changed.
    """

    model: onnx.ModelProto
    outputs: tuple[str, ...]
    tensors: tuple[str, ...]
    before: frozenset[str]
    makers: Mapping[str, str]
    cut: str
    suppression: float | None
    threshold: float | None
    inputs: tuple[str, ...]
    notes: tuple[str, ...]


def find_tail(given: onnx.ModelProto, *, width: int, height: int) -> Tail:
    """Returns the post-processing part. Raises GraphError on operators and inputs that nothing here knows."""
    model = onnx.ModelProto()
    model.CopyFrom(given)
    inputs = tuple(value.name for value in _own_inputs(model.graph))
    notes = [*_cut_plugins(model), *_fix_sizes(model, width=width, height=height)]
    require_operators(model)
    plugin = next((node for node in given.graph.node if node.op_type in PLUGINS), None)
    outputs = tuple(value.name for value in model.graph.output)
    makers = {name: node for node in model.graph.node for name in node.output}
    constants = constant_values(model.graph)
    tensors = _backward(outputs, makers, constants)
    selections = _final_selections(tensors, makers, model.graph, constants)
    final = selections[0] if selections else None
    chosen = {name for node in selections for name in _forward(node, model.graph)}
    suppression, threshold = _limits(plugin or final, constants)
    return Tail(
        model=model,
        outputs=outputs,
        tensors=tuple(tensors),
        before=frozenset(name for name in tensors if name not in chosen),
        makers={name: makers[name].op_type for name in tensors if name in makers},
        cut=plugin.op_type if plugin is not None else final.op_type if final is not None else "",
        suppression=suppression,
        threshold=threshold,
        inputs=inputs,
        notes=tuple(notes),
    )


def keep_outputs(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """Returns a copy that computes these tensors only. Their types are left to ONNX Runtime."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    drop_unused(copy.graph)
    return copy


def feature_maps(model: onnx.ModelProto, tensors: Sequence[str]) -> tuple[str, ...]:
    """Returns what the last layers with weights before these tensors read, the nearest first.

    These are the feature maps of a detector's levels and branches; decoding has no weights.
    """
    makers = {name: node for node in model.graph.node for name in node.output}
    # Without those of the input, nothing depends on a picture: weights, also behind a DequantizeLinear.
    fixed, values = constant_names(model.graph), constant_values(model.graph)
    queue, seen, found = deque(tensors), set[str](), dict[str, None]()
    while queue and len(seen) < MOST_TENSORS:
        name = queue.popleft()
        if name in seen or name in fixed or name not in makers:
            continue
        seen.add(name)
        node = makers[name]
        learned = node.op_type in HEAVY and any(weight in fixed for weight in node.input[:2])
        if learned and not _integrates(node, values):
            found.update(dict.fromkeys(each for each in node.input[:2] if each not in fixed))
        else:
            queue.extend(item for item in _reads(node) if item)
    return tuple(found)


def _own_inputs(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    held = {item.name for item in graph.initializer}
    return [value for value in graph.input if value.name not in held]


def _cut_plugins(model: onnx.ModelProto) -> list[str]:
    """Removes plug-in suppressions in place; what they read becomes output."""
    nodes = [node for node in model.graph.node if node.op_type in PLUGINS]
    if not nodes:
        return []
    made = {name for node in nodes for name in node.output}
    read = [name for node in nodes for name in node.input if name]
    others = [value for value in model.graph.output if value.name not in made]
    left = [node for node in model.graph.node if node.op_type not in PLUGINS]
    produced = {name for node in left for name in node.output}
    del model.graph.node[:]
    model.graph.node.extend(left)
    # What followed the plug-in cannot be computed any more.
    reachable = [value for value in others if not _depends(value.name, made, left)]
    del model.graph.output[:]
    model.graph.output.extend(
        onnx.ValueInfoProto(name=name) for name in dict.fromkeys(read) if name in produced
    )
    model.graph.output.extend(reachable)
    _drop_dangling(model.graph, made)
    drop_unused(model.graph)
    listed = ", ".join(dict.fromkeys(node.op_type for node in nodes))
    return [f"{listed} is a plug-in: the graph was cut before it, and its suppression is done anew"]


def _depends(name: str, gone: set[str], nodes: Sequence[onnx.NodeProto]) -> bool:
    makers = {output: node for node in nodes for output in node.output}
    stack, seen = [name], set()
    while stack:
        current = stack.pop()
        if current in gone:
            return True
        if current in seen or current not in makers:
            continue
        seen.add(current)
        stack.extend(makers[current].input)
    return False


def _drop_dangling(graph: onnx.GraphProto, gone: set[str]) -> None:
    """Removes nodes that read what is gone, and those that read what these made."""
    lost, kept = set(gone), []
    for node in graph.node:
        if lost.intersection(node.input):
            lost.update(node.output)
        else:
            kept.append(onnx.NodeProto.FromString(node.SerializeToString()))
    del graph.node[:]
    graph.node.extend(kept)


def _fix_sizes(model: onnx.ModelProto, *, width: int, height: int) -> list[str]:
    """Gives inputs other than the picture the network's own size, in place: boxes are then in its pixels.

    Raises GraphError on an input whose meaning is unknown.
    """
    graph, notes = model.graph, []
    pictures = [v for v in _own_inputs(graph) if len(v.type.tensor_type.shape.dim) == 4]
    if len(pictures) != 1:
        return []  # whoever connects the input says what is wrong
    for value in _own_inputs(graph):
        if value is pictures[0] or value.name == pictures[0].name:
            continue
        numbers = _known_input(value.name, width=width, height=height)
        if numbers is None:
            raise GraphError(
                f"a bundle takes one picture; input {own_name(value.name)} is none of those that are known: "
                "orig_target_sizes, im_shape, image_shape, scale_factor"
            )
        kind = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        row, one, shape = (f"misfire/{part}/{value.name}" for part in ("row", "batch", "shape"))
        graph.initializer.append(numpy_helper.from_array(np.array([numbers], kind), row))
        graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), f"{one}/two"))
        nodes = [
            helper.make_node("Shape", [pictures[0].name], [f"{one}/count"], f"{one}/count", start=0, end=1),
            helper.make_node("Concat", [f"{one}/count", f"{one}/two"], [shape], shape, axis=0),
            helper.make_node("Expand", [row, shape], [value.name], f"{one}/expand"),
        ]
        for node in reversed(nodes):
            graph.node.insert(0, node)
        notes.append(
            f"input {own_name(value.name)} is the network's own size inside the graph, so that boxes come in "
            "its pixels"
        )
    kept = [value for value in graph.input if value.name == pictures[0].name or _is_held(graph, value.name)]
    del graph.input[:]
    graph.input.extend(kept)
    if notes:
        _at_least(model, 15)
    return notes


def _is_held(graph: onnx.GraphProto, name: str) -> bool:
    return any(item.name == name for item in graph.initializer)


def _at_least(model: onnx.ModelProto, version: int) -> None:
    """Raises the opset, if it is lower, for Shape's start and end."""
    current = next((item.version for item in model.opset_import if item.domain == ""), version)
    if current >= version:
        return
    for node in model.graph.node:
        if node.op_type == "Shape" and node.name.startswith("misfire/"):
            # Older: the whole shape, of which the first is gathered.
            whole = f"{node.output[0]}/whole"
            first = f"{node.output[0]}/first"
            model.graph.initializer.append(numpy_helper.from_array(np.array([0], np.int64), first))
            position = list(model.graph.node).index(node)
            gather = helper.make_node("Gather", [whole, first], [node.output[0]], f"{whole}/gather", axis=0)
            node.output[0] = whole
            del node.attribute[:]
            model.graph.node.insert(position + 1, gather)
            _at_least(model, version)
            return


def _known_input(name: str, *, width: int, height: int) -> tuple[float, float] | None:
    plain = own_name(name).lower()
    if "scale" in plain:
        return 1.0, 1.0
    if "orig" in plain and "size" in plain:
        return float(width), float(height)
    if "shape" in plain:
        return float(height), float(width)
    return None


def _backward(
    outputs: Sequence[str], makers: Mapping[str, onnx.NodeProto], constants: Mapping[str, NDArray[Any]]
) -> list[str]:
    """Returns the tensors from the outputs back to the layers with weights, nearest first."""
    queue = deque(outputs)
    found: dict[str, None] = {}
    while queue and len(found) < MOST_TENSORS:
        name = queue.popleft()
        if name in found or name in constants or name not in makers:
            continue
        node = makers[name]
        if node.op_type != "Constant":
            found[name] = None
        if node.op_type in HEAVY and not _integrates(node, constants):
            continue
        queue.extend(item for item in _reads(node) if item)
    return list(found)


def _reads(node: onnx.NodeProto) -> list[str]:
    names = list(node.input)
    for inner in subgraphs(node):
        made = {name for part in inner.node for name in part.output}
        names += [name for part in inner.node for name in part.input if name not in made]
    return names


def _integrates(node: onnx.NodeProto, constants: Mapping[str, NDArray[Any]]) -> bool:
    """Returns whether a layer is the mean of a distribution, with weights 0, 1, 2, ...

    A DFL head writes it as a convolution or a product. A product of two computed tensors has no weights.
    """
    weight = constants.get(node.input[1])
    if weight is None:
        return constants.get(node.input[0]) is None
    flat = np.sort(weight.reshape(-1))
    return bool(len(flat) <= 64 and np.allclose(flat, np.arange(len(flat))))


def _final_selections(
    tensors: Sequence[str],
    makers: Mapping[str, onnx.NodeProto],
    graph: onnx.GraphProto,
    constants: Mapping[str, NDArray[Any]],
) -> list[onnx.NodeProto]:
    """Returns the selections that no layer with weights follows, the nearest to the outputs first.

    A transformer's encoder chooses its queries by a TopK, too; the decoder's layers follow that one.
    """
    found = []
    for name in tensors:
        node = makers[name]
        inner = [part.op_type for body in subgraphs(node) for part in body.node]
        if node.op_type not in SELECTIONS and not any(kind in SELECTIONS for kind in inner):
            continue
        after = _forward(node, graph)
        layers = (n for n in graph.node if n.op_type in HEAVY and not _integrates(n, constants))
        if not any(after.intersection(layer.input) for layer in layers):
            found.append(node)
    return found


def _forward(node: onnx.NodeProto, graph: onnx.GraphProto) -> set[str]:
    """Returns all tensors that depend on a node's outputs."""
    lost = set(node.output)
    for other in graph.node:
        if lost.intersection(_reads(other)):
            lost.update(other.output)
    return lost


def _limits(
    node: onnx.NodeProto | None, constants: Mapping[str, NDArray[Any]]
) -> tuple[float | None, float | None]:
    """Returns the IoU and score thresholds of a suppression, None for what is unknown."""
    if node is None or node.op_type == "TopK":
        return None, None
    given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    found = []
    for place, names in ((3, ("iou_threshold", "iouThreshold")), (4, ("score_threshold", "scoreThreshold"))):
        value = next((given[name] for name in names if name in given), None)
        if value is None and node.op_type == "NonMaxSuppression" and len(node.input) > place:
            constant = constants.get(node.input[place])
            value = None if constant is None or not constant.size else float(constant.reshape(-1)[0])
        found.append(value if isinstance(value, float) and 0 < value < 1 else None)
    return found[0], found[1]


def first_float(model: onnx.ModelProto) -> bool:
    """Returns whether the picture comes as floats."""
    pictures = [v for v in _own_inputs(model.graph) if len(v.type.tensor_type.shape.dim) == 4]
    return not pictures or pictures[0].type.tensor_type.elem_type != TensorProto.UINT8
