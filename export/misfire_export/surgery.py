"""Appends failure scores to a graph that we did not make.

found logits and phi --ScoreHead traced by torch--> small graph --graft--> one graph: task, scores, embedding

The scores are the very modules that score a pool in torch; they are traced with logits and phi as inputs and
their nodes joined to the foreign graph, whose own nodes stay untouched.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from torch import Tensor, nn

from misfire_export.last_layer import Found
from misfire_export.tidying import drop_unused, tidy
from misfire_export.tracing import MAX_BATCH, export_module
from misfire_train.signals import Score, Signals

PREFIX = "misfire/"
_SCORES = "misfire/scores/"
"""Of grafted names only: torch calls a node "log" as readily as we do."""


class ScoreHead(nn.Module):
    """Scores from the answer and, if there is one, the last layer's input: (outputs, phi) -> {name: [N]}."""

    weight: Tensor | None
    bias: Tensor | None

    def __init__(self, scores: Sequence[Score], *, found: Found) -> None:
        super().__init__()
        self.scores = nn.ModuleList(scores)
        layer = found.layer
        self.register_buffer("weight", None if layer is None else torch.from_numpy(layer.weight))
        self.register_buffer("bias", None if layer is None else torch.from_numpy(layer.bias))

    def signals(self, outputs: Tensor, features: Tensor | None) -> Signals:
        """As a Probe would give them; without a last layer the answer stands in for its input."""
        return Signals(outputs, outputs if features is None else features, {}, self.weight, self.bias)

    def forward(self, outputs: Tensor, features: Tensor | None = None) -> dict[str, Tensor]:
        """All scores, and the embedding where there are features."""
        signals = self.signals(outputs, features)
        result = {f"score.{score.name}": score(signals).float() for score in self.scores}
        if features is not None:
            result["embedding"] = signals.embedding.float()
        return result


def expose(model: onnx.ModelProto, found: Found, *, output: str) -> onnx.ModelProto:
    """A copy whose outputs are the task's answer as `output`, `phi` where found, and what it gave before.

    The answer is made [N,K] (or stays [N,K,h,w]); phi of a layer over one pixel becomes [N,C].
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    shapes = _shapes(copy)
    source = found.logits
    if found.probabilities:
        graph.initializer.append(numpy_helper.from_array(np.float32(1e-12), f"{PREFIX}floor"))
        graph.node.append(helper.make_node("Max", [source, f"{PREFIX}floor"], [f"{PREFIX}floored"]))
        graph.node.append(helper.make_node("Log", [f"{PREFIX}floored"], [f"{PREFIX}log"]))
        source = f"{PREFIX}log"
    _add_output(graph, source, output, flat=_is_one_pixel(shapes.get(found.logits)))
    if found.layer is not None:
        flat = _is_one_pixel(shapes.get(found.layer.features))
        _add_output(graph, found.layer.features, "phi", flat=flat)
    kept = [v for v in graph.output if v.name not in (found.logits, output)]
    answers = [v for v in kept if v.name in (output, "phi")]
    del graph.output[:]
    graph.output.extend([helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, None)])
    graph.output.extend(v for v in kept if v not in answers)
    return copy


def append_scores(
    model: onnx.ModelProto,
    head: ScoreHead,
    *,
    answer: NDArray[np.float32],
    phi: NDArray[np.float32] | None,
    output: str,
) -> onnx.ModelProto:
    """Grafts the scores onto an exposed graph. answer, phi: what it gave for two frames, for their shapes."""
    inputs = [torch.from_numpy(np.repeat(answer[:1], 2, axis=0))]
    names = [output]
    if phi is not None:
        inputs.append(torch.from_numpy(np.repeat(phi[:1], 2, axis=0)))
        names.append("phi")
    batch = torch.export.Dim("batch", min=1, max=MAX_BATCH)
    with torch.no_grad():
        outputs = list(head(*inputs))
    small = export_module(
        head.eval(),
        tuple(inputs),
        input_names=names,
        output_names=outputs,
        dynamic_shapes=tuple({0: batch} for _ in inputs),
    )
    joined = onnx.ModelProto()
    joined.CopyFrom(model)
    free = bool(joined.graph.input[0].type.tensor_type.shape.dim[0].dim_param)
    _set_shape(joined.graph, output, ["batch" if free else 1, *answer.shape[1:]])
    graft(joined, small, shared=names)
    return tidy(joined)


def graft(model: onnx.ModelProto, small: onnx.ModelProto, *, shared: Sequence[str]) -> None:
    """Adds a graph's nodes, weights and outputs; names get a prefix but for shared inputs and the outputs."""
    public = {value.name for value in small.graph.output} | set(shared)

    def renamed(name: str) -> str:
        return name if not name or name in public else _SCORES + name

    for item in small.graph.initializer:
        copy = model.graph.initializer.add()
        copy.CopyFrom(item)
        copy.name = renamed(item.name)
    for node in small.graph.node:
        new = model.graph.node.add()
        new.CopyFrom(node)
        new.name = _SCORES + (node.name or node.output[0])
        new.input[:] = [renamed(name) for name in node.input]
        new.output[:] = [renamed(name) for name in node.output]
    model.graph.output.extend(small.graph.output)
    domains = {item.domain for item in model.opset_import}
    model.opset_import.extend(item for item in small.opset_import if item.domain not in domains)
    model.ir_version = max(model.ir_version, small.ir_version)


def hide(model: onnx.ModelProto, name: str) -> None:
    """Takes a tensor off the outputs; its nodes stay where a score needs them."""
    kept = [value for value in model.graph.output if value.name != name]
    del model.graph.output[:]
    model.graph.output.extend(kept)
    drop_unused(model.graph)


def _add_output(graph: onnx.GraphProto, tensor: str, name: str, *, flat: bool) -> None:
    operator = helper.make_node("Flatten", [tensor], [name], f"{PREFIX}{name}", axis=1) if flat else None
    graph.node.append(operator or helper.make_node("Identity", [tensor], [name], f"{PREFIX}{name}"))


def _set_shape(graph: onnx.GraphProto, name: str, shape: Sequence[int | str]) -> None:
    """Declares an output's shape, as it was seen."""
    for value in graph.output:
        if value.name == name:
            value.CopyFrom(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, list(shape)))


def _shapes(model: onnx.ModelProto) -> dict[str, list[int]]:
    typed = onnx.shape_inference.infer_shapes(model).graph
    known = [*typed.input, *typed.output, *typed.value_info]
    return {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in known}


def _is_one_pixel(shape: list[int] | None) -> bool:
    return shape is not None and len(shape) == 4 and shape[2:] == [1, 1]
