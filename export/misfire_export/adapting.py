"""Makes a foreign graph look like one of ours: one image input [N,C,H,W], opset 18, a free batch dimension.

file --load--> newer opset --> input renamed (flattened where it wants [N,F]) --> batch freed and proven

Nothing here changes what the graph computes; the batch is freed only where two frames together give what each
gives alone.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper, version_converter

from misfire_export.checking import require_layout, require_operators
from misfire_export.errors import GraphError
from misfire_export.measuring import open_session
from misfire_export.tidying import drop_unused
from misfire_export.tracing import OPSET
from misfire_runtime.preprocess import InputContract

MAX_FILE_BYTES = 1_900_000_000


def load_graph(path: Path) -> onnx.ModelProto:
    """The graph with its external data inside. Raises GraphError where the file is none, or too large."""
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
    return model


def adapt(model: onnx.ModelProto, contract: InputContract) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """The adapted graph and what must be said of it. Raises GraphError on what cannot be adapted."""
    require_operators(model)
    model = _newer(model)
    _drop_input_weights(model.graph)
    _rename_input(model, contract)
    drop_unused(model.graph)
    freed = _free_batch(model, contract)
    if freed is not None:
        return freed, ()
    return model, ("the graph takes one frame at a time: its batch is fixed at 1",)


def _newer(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph in opset 18, in which scores are appended."""
    version = next((item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), 1)
    result = onnx.ModelProto()
    result.CopyFrom(model)
    # Before IR 4 a weight had to be listed as an input too; the converter reads the rest by that rule.
    result.ir_version = max(result.ir_version, 8)
    if version != OPSET:
        try:
            result = version_converter.convert_version(result, OPSET)
        except Exception as error:
            reason = str(error).strip().splitlines()[0][:300]
            raise GraphError(f"opset {version} cannot be converted to {OPSET}: {reason}") from error
    return result


def _drop_input_weights(graph: onnx.GraphProto) -> None:
    """Old files list weights as inputs too; a vehicle feeds an image only."""
    held = {item.name for item in graph.initializer}
    kept = [value for value in graph.input if value.name not in held]
    del graph.input[:]
    graph.input.extend(kept)


def _rename_input(model: onnx.ModelProto, contract: InputContract) -> None:
    graph = model.graph
    if len(graph.input) != 1:
        names = ", ".join(value.name for value in graph.input)
        raise GraphError(f"a bundle takes one image; this graph has inputs {names or 'none'}")
    value = graph.input[0]
    tensor = value.type.tensor_type
    if tensor.elem_type != onnx.TensorProto.FLOAT:
        raise GraphError(
            f"input {value.name} is {onnx.TensorProto.DataType.Name(tensor.elem_type)}; expected FLOAT"
        )
    # Some exporters write a free dimension as -1, which ONNX Runtime takes for one too.
    dims = [max(0, dim.dim_value) for dim in tensor.shape.dim]
    old = value.name
    pixels = contract.channels * contract.height * contract.width
    if len(dims) == 2:
        if dims[1] not in (0, pixels):
            raise GraphError(f"input {old} takes {dims[1]} numbers; an image of the contract has {pixels}")
        inner = old if old != contract.name else f"{old}/flat"
        _rename(graph, old, inner)
        graph.node.insert(0, helper.make_node("Flatten", [contract.name], [inner], "flatten_image", axis=1))
        old = ""
    else:
        require_layout(dims, contract)
    if old and old != contract.name:
        _rename(graph, old, contract.name)
    batch = dims[0] if len(dims) == 4 and dims[0] else "batch"
    shape = [batch, contract.channels, contract.height, contract.width]
    del graph.input[:]
    graph.input.append(helper.make_tensor_value_info(contract.name, onnx.TensorProto.FLOAT, shape))


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        for position, name in enumerate(node.input):
            if name == old:
                node.input[position] = new


def _free_batch(model: onnx.ModelProto, contract: InputContract) -> onnx.ModelProto | None:
    """The graph with a free batch dimension, or None where two frames do not give what each gives alone."""
    free = onnx.ModelProto()
    free.CopyFrom(model)
    free.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    for value in free.graph.output:
        if value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].dim_param = "batch"
    del free.graph.value_info[:]
    _copy_batch_in_reshapes(free.graph)
    try:
        session = open_session(free)
        shape = (contract.channels, contract.height, contract.width)
        frames = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
        together = session.run(None, {contract.name: frames})
        for i in range(2):
            alone = session.run(None, {contract.name: frames[i : i + 1]})
            for whole, part in zip(together, alone, strict=True):
                if not np.allclose(whole[i], part[0], rtol=1e-3, atol=1e-5, equal_nan=True):
                    return None
    except Exception:  # noqa: BLE001  (whatever the reason, the batch then stays as it is)
        return None
    return free


def _copy_batch_in_reshapes(graph: onnx.GraphProto) -> None:
    """A Reshape to a constant [1, ...] takes its batch from its input instead."""
    constants = {item.name: item for item in graph.initializer}
    for node in graph.node:
        if node.op_type != "Reshape" or node.input[1] not in constants or node.input[0] in constants:
            continue
        shape = numpy_helper.to_array(constants[node.input[1]]).copy()
        if shape.ndim == 1 and len(shape) > 1 and shape[0] == 1:
            shape[0] = 0
            name = f"{node.output[0]}/shape"
            graph.initializer.append(numpy_helper.from_array(shape, name))
            node.input[1] = name
