"""Gives a foreign graph the form of one of ours: one image input, opset 18 or above, a batch that holds.

graph --newer opset--> input renamed (flattened if it takes [N,F], cast if it takes halves or doubles)
      --> batch freed and proven, or fixed at one frame

Nothing here changes what the graph computes. The batch is freed only if two frames together give what each
gives by itself; else it is fixed at 1 in the graph itself, so that calibration and vehicle run it alike.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper, version_converter

from misfire_export.errors import GraphError
from misfire_export.graph.check import opset_of, require_layout, require_operators
from misfire_export.graph.rename import make_room, own_name, rename
from misfire_export.graph.tidy import drop_unused
from misfire_export.graph.trace import OPSET
from misfire_export.measure.run import open_session
from misfire_runtime.preprocess import InputContract

_CAST = (TensorProto.FLOAT16, TensorProto.DOUBLE)


def adapt(model: onnx.ModelProto, contract: InputContract) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """Returns the adapted graph and notes. Raises GraphError on what cannot be adapted."""
    require_operators(model)
    model = _newer(model)
    _drop_input_weights(model.graph)
    make_room(model, names=frozenset({contract.name}))
    _connect_input(model, contract)
    drop_unused(model.graph)
    freed, why = _free_batch(model, contract)
    if freed is not None:
        return freed, ()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    return model, (f"the graph takes one frame at a time: {why}, so its batch is fixed at 1",)


def _newer(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns the graph in opset 18 at least. Newer ones stay: their operators may not exist in 18."""
    version = opset_of(model)
    result = onnx.ModelProto()
    result.CopyFrom(model)
    # Before IR 4 a weight had to be listed as an input too; the converter reads the rest by that rule.
    result.ir_version = max(result.ir_version, 8)
    if version < OPSET:
        try:
            result = version_converter.convert_version(result, OPSET)
        except Exception as error:
            reason = str(error).strip().splitlines()[0][:300]
            raise GraphError(
                f"opset {version} cannot be converted to {OPSET}: {reason}; export the model with opset "
                f"{OPSET} or above"
            ) from error
    return result


def _drop_input_weights(graph: onnx.GraphProto) -> None:
    """Removes weights that old files list as inputs: a vehicle feeds only an image."""
    held = {item.name for item in graph.initializer}
    kept = [value for value in graph.input if value.name not in held]
    del graph.input[:]
    graph.input.extend(kept)


def _connect_input(model: onnx.ModelProto, contract: InputContract) -> None:
    """Gives the graph's one input the contract's name, type and layout."""
    graph = model.graph
    if len(graph.input) != 1:
        names = ", ".join(own_name(value.name) for value in graph.input)
        raise GraphError(f"a bundle takes one image; this graph has inputs {names or 'none'}")
    value = graph.input[0]
    kind = value.type.tensor_type.elem_type
    _require_type(own_name(value.name), kind, contract)
    # Some exporters write a free dimension as -1, which ONNX Runtime takes for one too.
    dims = [max(0, dim.dim_value) for dim in value.type.tensor_type.shape.dim]
    pixels = contract.channels * contract.height * contract.width
    nodes, inner = [], contract.name
    if len(dims) == 2:
        if dims[1] not in (0, pixels):
            raise GraphError(
                f"input {own_name(value.name)} takes {dims[1]} numbers; an image of the contract has {pixels}"
            )
        inner = "misfire/flat"
        nodes.append(helper.make_node("Flatten", [contract.name], [inner], "flatten_image", axis=1))
    else:
        require_layout(dims, contract, shown=own_name(value.name))
    if kind in _CAST:
        nodes.append(helper.make_node("Cast", [inner], ["misfire/cast"], "cast_image", to=kind))
        inner = "misfire/cast"
    rename(graph, {value.name: inner})
    for node in reversed(nodes):
        graph.node.insert(0, node)
    batch = dims[0] if len(dims) == 4 and dims[0] else "batch"
    shape = [batch, contract.channels, contract.height, contract.width]
    held = TensorProto.UINT8 if contract.dtype == "uint8" else TensorProto.FLOAT
    del graph.input[:]
    graph.input.append(helper.make_tensor_value_info(contract.name, held, shape))


def _require_type(name: str, kind: int, contract: InputContract) -> None:
    found = TensorProto.DataType.Name(kind)
    if kind == TensorProto.UINT8 and contract.dtype != "uint8":
        raise GraphError(
            f"input {name} is UINT8, so the graph normalises by itself: state it with "
            '--image \'{"dtype": "uint8"}\''
        )
    if contract.dtype == "uint8" and kind != TensorProto.UINT8:
        raise GraphError(f"input {name} is {found}; the input contract says uint8")
    if kind not in (TensorProto.FLOAT, TensorProto.UINT8, *_CAST):
        raise GraphError(f"input {name} is {found}; expected FLOAT, FLOAT16, DOUBLE or UINT8")


def _free_batch(model: onnx.ModelProto, contract: InputContract) -> tuple[onnx.ModelProto | None, str]:
    """Returns the graph with a free batch dimension and "", or None and the reason."""
    free = onnx.ModelProto()
    free.CopyFrom(model)
    free.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    for value in free.graph.output:
        if value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].dim_param = "batch"
    # They state shapes with the fixed batch.
    del free.graph.value_info[:]
    _copy_batch_in_reshapes(free.graph)
    try:
        session = open_session(free)
        frames = _random_frames(contract)
        numeric = [
            v for v in session.get_outputs() if v.type.startswith("tensor(") and "string" not in v.type
        ]
        names = [value.name for value in numeric]
        together = session.run(names, {contract.name: frames})
        for i in range(2):
            alone = session.run(names, {contract.name: frames[i : i + 1]})
            for name, whole, part in zip(names, together, alone, strict=True):
                # Not exact: ONNX Runtime may sum in another order for another batch.
                if not np.allclose(whole[i], part[0], rtol=1e-3, atol=1e-5, equal_nan=True):
                    gap = float(np.abs(np.asarray(whole[i], np.float64) - part[0]).max())
                    return None, f"output {own_name(name)} changes by {gap:.2g} with a frame's neighbours"
    except Exception:  # noqa: BLE001  (whatever the reason, the batch then stays as it is)
        return None, "it does not take two together"
    return free, ""


def _random_frames(contract: InputContract) -> NDArray[np.generic]:
    # Two frames that differ: equal ones would hide a graph that mixes them.
    rng = np.random.default_rng(0)
    shape = (2, contract.channels, contract.height, contract.width)
    if contract.dtype == "uint8":
        return rng.integers(0, 256, shape).astype(np.uint8)
    return rng.normal(size=shape).astype(np.float32)


def _copy_batch_in_reshapes(graph: onnx.GraphProto) -> None:
    """Lets a Reshape to a constant [1, ...] take its batch from its input instead."""
    constants = {item.name: item for item in graph.initializer}
    for node in graph.node:
        if node.op_type != "Reshape" or node.input[1] not in constants or node.input[0] in constants:
            continue
        shape = numpy_helper.to_array(constants[node.input[1]]).copy()
        if shape.ndim == 1 and len(shape) > 1 and shape[0] == 1:
            if (shape != 0).all():
                # With `allowzero` a zero would mean an empty axis and not "as the input has it".
                del node.attribute[:]
            shape[0] = 0
            name = f"{node.output[0]}/shape"
            graph.initializer.append(numpy_helper.from_array(shape, name))
            node.input[1] = name
