"""Appends failure scores to a foreign graph.

found logits and phi --ScoreHead traced by torch--> small graph --graft--> one graph: task, scores, embedding

The scores are the very modules that score a pool in torch. They are traced with logits and phi as inputs and
their nodes joined to the foreign graph, whose own nodes are not changed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper, version_converter
from torch import Tensor, nn

from misfire_export.graph.check import opset_of
from misfire_export.graph.last_layer import Found
from misfire_export.graph.tidy import drop_unused, tidy
from misfire_export.graph.trace import MAX_BATCH, OPSET, export_module
from misfire_export.sources.onnx.proof import Seen
from misfire_train.signals import Probe, Score, Signals

PREFIX = "misfire/"
_SCORES = "misfire/scores/"
"""Prefix of grafted names only: torch calls a node "log" as readily as we do."""


class ScoreHead(nn.Module):
    """Computes scores from the answer and, if there is one, the last layer's input.

    (outputs, phi) -> {name: [N]}
    """

    weight: Tensor | None
    bias: Tensor | None

    def __init__(self, scores: Sequence[Score], *, found: Found) -> None:
        super().__init__()
        self.scores = nn.ModuleList(scores)
        layer = found.layer
        self.register_buffer("weight", None if layer is None else torch.from_numpy(layer.weight))
        self.register_buffer("bias", None if layer is None else torch.from_numpy(layer.bias))

    def signals(self, outputs: Tensor, features: Tensor | None) -> Signals:
        """Returns signals as a Probe would; without a last layer the answer replaces its input."""
        return Signals(outputs, outputs if features is None else features, {}, self.weight, self.bias)

    def forward(self, outputs: Tensor, features: Tensor | None = None) -> dict[str, Tensor]:
        """Returns all scores, and the embedding if there are features."""
        signals = self.signals(outputs, features)
        result = {f"score.{score.name}": score(signals).float() for score in self.scores}
        if features is not None:
            result["embedding"] = signals.embedding.float()
        return result


class FileProbe(Probe):
    """Runs a foreign file by ONNX Runtime, as a head is fitted on it.

    Args:
        session: its first input is the picture.
        read: makes signals of the session's outputs, in their order.
    """

    def __init__(self, session: ort.InferenceSession, read: Callable[[Sequence[Tensor]], Signals]) -> None:
        nn.Module.__init__(self)
        self.session, self.made = session, read
        self.feature_names = ()
        # Whoever fits a head asks the parameters for their device.
        self.place = nn.Parameter(torch.zeros(1), requires_grad=False)

    def forward(self, image: Tensor) -> Signals:
        """Returns the Signals of pictures [N,C,H,W]."""
        given = self.session.get_inputs()[0]
        pixels = image.numpy().astype(np.uint8 if given.type == "tensor(uint8)" else np.float32)
        parts = [pixels[i : i + 1] for i in range(len(pixels))] if given.shape[0] == 1 else [pixels]
        rows = [self.session.run(None, {given.name: part}) for part in parts]
        return self.made([torch.from_numpy(np.concatenate(column)) for column in zip(*rows, strict=True)])


def expose(model: onnx.ModelProto, seen: Seen, *, output: str) -> onnx.ModelProto:
    """Returns a copy whose outputs are the task's logits as `output`, and the file's other ones.

    `phi` is made inside. The logits become [N,K] (or stay [N,K,h,w]) and fp32; phi of a layer over one pixel
    becomes [N,C].
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph, found = copy.graph, seen.found
    source = _take(graph, _viewed(graph, found.logits, seen), found)
    _add_output(graph, _of_two_classes(graph, source) if seen.single else source, output)
    if found.layer is not None:
        _add_output(graph, _viewed(graph, found.layer.features, seen), "phi")
    own = {found.output} - {found.logits}  # the file's probabilities stay beside the logits before them
    kept = [value for value in graph.output if value.name in seen.beside | own]
    del graph.output[:]
    graph.output.extend([helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, None), *kept])
    return copy


def _as_float(graph: onnx.GraphProto, tensor: str, seen: Seen) -> str:
    """Returns the tensor in fp32: scores compute in it, whatever the network's own nodes do."""
    if seen.types[tensor] == "tensor(float)":
        return tensor
    name = f"{PREFIX}float/{tensor}"
    if not any(name in node.output for node in graph.node):
        graph.node.append(helper.make_node("Cast", [tensor], [name], name, to=onnx.TensorProto.FLOAT))
    return name


def _viewed(graph: onnx.GraphProto, tensor: str, seen: Seen) -> str:
    """Returns the tensor as [N,K] or [N,K,h,w] in fp32."""
    source, view = _as_float(graph, tensor, seen), seen.views[tensor]
    if view == "as-is":
        return source
    name = f"{PREFIX}{view}/{tensor}"
    if any(name in node.output for node in graph.node):
        return name
    if view == "one-channel":
        graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), f"{name}/axis"))
        node = helper.make_node("Unsqueeze", [source, f"{name}/axis"], [name], name)
    elif view == "flat":
        node = helper.make_node("Flatten", [source], [name], name, axis=1)
    else:
        node = helper.make_node("Transpose", [source], [name], name, perm=(0, 3, 1, 2))
    graph.node.append(node)
    return name


def _of_two_classes(graph: onnx.GraphProto, logit: str) -> str:
    """Returns [0, logit] along axis 1, whose softmax is [1 - sigmoid, sigmoid]."""
    zero, both = f"{PREFIX}zero", f"{PREFIX}two_classes"
    graph.node.append(helper.make_node("Sub", [logit, logit], [zero], zero))
    graph.node.append(helper.make_node("Concat", [zero, logit], [both], both, axis=1))
    return both


def _take(graph: onnx.GraphProto, source: str, found: Found) -> str:
    """Returns logits of probabilities (their logarithms) or of sigmoids (log p - log(1 - p)).

    They are finite at both ends.
    """
    if found.take == "as-is":
        return source
    if found.take == "log":
        if found.scale != 1:
            graph.initializer.append(numpy_helper.from_array(np.float32(found.scale), f"{PREFIX}scale"))
            graph.node.append(helper.make_node("Div", [source, f"{PREFIX}scale"], [f"{PREFIX}share"]))
            source = f"{PREFIX}share"
        return _floored_log(graph, source, "log", floor=1e-12)
    graph.initializer.append(numpy_helper.from_array(np.float32(1), f"{PREFIX}one"))
    graph.node.append(helper.make_node("Sub", [f"{PREFIX}one", source], [f"{PREFIX}rest"]))
    # fp32 resolves steps of 6e-8 near 1, so 1 - p below 1e-7 is rounding.
    yes = _floored_log(graph, source, "log_yes", floor=1e-7)
    no = _floored_log(graph, f"{PREFIX}rest", "log_no", floor=1e-7)
    graph.node.append(helper.make_node("Sub", [yes, no], [f"{PREFIX}odds"]))
    return f"{PREFIX}odds"


def _floored_log(graph: onnx.GraphProto, source: str, name: str, *, floor: float) -> str:
    least, raised, result = f"{PREFIX}{name}/floor", f"{PREFIX}{name}/raised", f"{PREFIX}{name}"
    graph.initializer.append(numpy_helper.from_array(np.float32(floor), least))
    graph.node.append(helper.make_node("Max", [source, least], [raised]))
    graph.node.append(helper.make_node("Log", [raised], [result]))
    return result


def append_scores(
    model: onnx.ModelProto,
    head: ScoreHead,
    *,
    answer: NDArray[np.float32],
    phi: NDArray[np.float32] | None,
    output: str,
) -> onnx.ModelProto:
    """Grafts the scores onto an exposed graph. answer, phi: what it gave for a frame, for their shapes."""
    # Two frames: torch would take a batch of one for a constant.
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
    version = opset_of(joined)
    # All operators of one graph must be of one version.
    if version > OPSET:
        # Ours is raised to theirs: an older version may lack operators of the foreign graph.
        small = version_converter.convert_version(small, version)
    fixed = joined.graph.input[0].type.tensor_type.shape.dim[0].dim_value
    _set_shape(joined.graph, output, [fixed or "batch", *answer.shape[1:]])
    graft(joined, small, shared=names)
    if fixed:
        for value in joined.graph.output:
            if value.type.tensor_type.shape.dim:
                value.type.tensor_type.shape.dim[0].dim_value = fixed
    return tidy(joined)


def graft(model: onnx.ModelProto, small: onnx.ModelProto, *, shared: Sequence[str]) -> None:
    """Adds a graph's nodes, weights and outputs; names get a prefix, except shared inputs and the outputs."""
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
    """Removes a tensor from the outputs; its nodes stay if a score needs them."""
    kept = [value for value in model.graph.output if value.name != name]
    del model.graph.output[:]
    model.graph.output.extend(kept)
    drop_unused(model.graph)


def _add_output(graph: onnx.GraphProto, tensor: str, name: str) -> None:
    graph.node.append(helper.make_node("Identity", [tensor], [name], f"{PREFIX}{name}"))


def _set_shape(graph: onnx.GraphProto, name: str, shape: Sequence[int | str]) -> None:
    """Declares an output's shape, as it was seen."""
    for value in graph.output:
        if value.name == name:
            value.CopyFrom(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, list(shape)))
