"""Checks whether a vehicle can run a graph, before anything is measured.

It must be self-contained, with a known input in the contract's layout, the promised outputs, and only
operators that the engine has. Each refusal names the node, input or output.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import onnx
from torch import nn

from misfire_export.errors import GraphError
from misfire_runtime.preprocess import InputContract

MAX_GRAPH_BYTES = 1_900_000_000
"""A protobuf message holds at most 2 GiB."""
MAX_SCORE_BYTES = 256_000_000
"""Of one score: read on every frame, so a bank of this size would cost more than most networks."""
_STANDARD_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")
_TYPES = {"float32": onnx.TensorProto.FLOAT, "uint8": onnx.TensorProto.UINT8}


def check_graph(model: onnx.ModelProto, contract: InputContract, *, outputs: Sequence[str]) -> None:
    """Raises GraphError if the graph is not self-contained, or input, outputs or operators do not fit."""
    require_self_contained(model)
    require_input(model, contract)
    require_operators(model)
    present = {output.name for output in model.graph.output}
    missing = [name for name in outputs if name not in present]
    if missing:
        raise GraphError(f"the graph has no output {', '.join(missing)}; it has {', '.join(sorted(present))}")
    try:
        # Last: its message is about ONNX, those above are about the bundle.
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise GraphError(f"not a valid ONNX graph: {str(error).strip().splitlines()[0]}") from error


def require_self_contained(model: onnx.ModelProto) -> None:
    """Raises GraphError if weights are outside the file, or the file would be too large."""
    outside = [t.name for t in model.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
    if outside:
        raise GraphError(
            f"weights are outside the graph ({outside[0]} and {len(outside) - 1} more); save one file"
        )
    if model.ByteSize() > MAX_GRAPH_BYTES:
        raise GraphError(
            f"the graph has {model.ByteSize() / 1e9:.1f} GB; one file holds at most "
            f"{MAX_GRAPH_BYTES / 1e9:.1f} GB: use a smaller bank or network"
        )


def require_small_scores(scores: Iterable[nn.Module], *, most: int = MAX_SCORE_BYTES) -> None:
    """Raises GraphError that names a score, and its size, whose bank would not fit on a vehicle."""
    for score in scores:
        tensors = [*score.buffers(), *score.parameters()]
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        if size > most:
            raise GraphError(
                f"score {getattr(score, 'name', '?')} carries {size / 1e6:.0f} MB of constants; at most "
                f"{most / 1e6:.0f} MB go into a graph: use a smaller bank (--score-options, size)"
            )


def require_input(model: onnx.ModelProto, contract: InputContract) -> None:
    """Raises GraphError if the image input is missing, of another type, or of another layout."""
    # Older exporters list weights as inputs, too.
    held = {item.name for item in model.graph.initializer}
    inputs = {item.name: item for item in model.graph.input if item.name not in held}
    if contract.name not in inputs:
        raise GraphError(f"the graph has no input {contract.name!r}; it has {', '.join(inputs) or 'none'}")
    if len(inputs) > 1:
        extra = ", ".join(name for name in inputs if name != contract.name)
        raise GraphError(f"the graph takes more than an image: {extra}")
    tensor = inputs[contract.name].type.tensor_type
    if tensor.elem_type != _TYPES[contract.dtype]:
        found = onnx.TensorProto.DataType.Name(tensor.elem_type)
        raise GraphError(f"input {contract.name} is {found}; the input contract says {contract.dtype}")
    require_layout([d.dim_value for d in tensor.shape.dim], contract)


def require_layout(dims: Sequence[int], contract: InputContract, *, shown: str = "") -> None:
    """Raises GraphError if dims are not [N,C,H,W] as agreed.

    dims: of the graph's input, 0 if dynamic. shown: the file's own name of the input.
    """
    name, wanted = shown or contract.name, (contract.channels, contract.height, contract.width)
    if len(dims) != 4:
        raise GraphError(f"input {name} has {len(dims)} dimensions; expected [N,C,H,W]")
    # Of [N,H,W,C] the last number is the small one.
    channels = dims[3] if 0 < dims[3] < min(dims[1:3]) else dims[1]
    if channels not in (0, 1, 3, 4):
        raise GraphError(
            f"input {name} is {list(dims)}, {channels} channels: a bundle takes 3 channels of 8 bits "
            "(RGB or BGR), 1 (grey), or 4 (RGB and a fourth, from image files). Further channels (several "
            "frames, spectra) cannot be fed: export a model of the picture alone, or score it with attach()"
        )
    if any(found not in (0, want) for found, want in zip(dims[1:], wanted, strict=True)):
        raise GraphError(f"input {name} is {list(dims)}; the input contract says {['N', *wanted]}")
    if dims[0] not in (0, 1):
        raise GraphError(f"input {name} takes batches of {dims[0]} only; make the batch dynamic, or 1")


def channels_last(dims: Sequence[int], channels: int) -> bool:
    """Returns whether an input is [N,H,W,C]. dims: 0 for an open axis. channels: of the image.

    >>> channels_last([0, 224, 224, 3], 3), channels_last([1, 3, 224, 224], 3)
    (True, False)
    """
    return len(dims) == 4 and dims[3] == channels and dims[1] != channels


def opset_of(model: onnx.ModelProto) -> int:
    """Returns the version of ONNX's own operators."""
    return next((item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), 1)


def require_operators(model: onnx.ModelProto) -> None:
    """Raises GraphError that names every operator that no engine here has, and its first node."""
    local = {(function.domain, function.name) for function in model.functions}
    versions = {item.domain: item.version for item in model.opset_import}
    unknown: dict[str, str] = {}
    for node in model.graph.node:
        # "ai.onnx" and the empty name are the same domain.
        domain = "" if node.domain == "ai.onnx" else node.domain
        if (node.domain, node.op_type) in local or domain == "com.microsoft":
            continue
        if node.domain not in _STANDARD_DOMAINS or not _exists(
            node.op_type, versions.get(node.domain, 1), domain
        ):
            name = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
            unknown.setdefault(name, node.name or node.output[0])
    if unknown:
        listed = ", ".join(f"{name} (node {node})" for name, node in unknown.items())
        raise GraphError(f"unsupported operators: {listed}")


def _exists(op_type: str, version: int, domain: str) -> bool:
    try:
        onnx.defs.get_schema(op_type, max_inclusive_version=version, domain=domain)
    except onnx.defs.SchemaError:
        return False
    return True
