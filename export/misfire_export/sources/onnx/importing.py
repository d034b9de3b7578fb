"""Gives a foreign graph the form of one of ours: one image input, opset 18 or above, a batch that holds.

graph --newer opset--> input renamed (flattened if it takes [N,F], transposed if [N,H,W,C], cast if it
                       takes halves or doubles, shifted if it takes signed bytes)
      --> batch freed and proven, or fixed at one frame

Nothing here changes what the graph computes. The batch is freed only if two frames together give what each
gives by itself; else it is fixed at 1 in the graph itself, so that calibration and vehicle run it alike.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper, version_converter

from misfire_export.errors import GraphError
from misfire_export.graph.check import channels_last, opset_of, require_layout, require_operators
from misfire_export.graph.rename import make_room, own_name, rename
from misfire_export.graph.tidy import drop_unused
from misfire_export.graph.trace import OPSET
from misfire_export.measure.run import open_session
from misfire_runtime.preprocess import InputContract

_CAST = (TensorProto.FLOAT16, TensorProto.DOUBLE)
_PIXELS = (TensorProto.UINT8, TensorProto.INT8)


def adapt(model: onnx.ModelProto, contract: InputContract) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """Returns the adapted graph and notes. Raises GraphError on what cannot be adapted."""
    require_operators(model)
    model = _newer(model)
    _drop_input_weights(model.graph)
    make_room(model, names=frozenset({contract.name}))
    _connect_input(model, contract)
    drop_unused(model.graph)
    fixed = model.graph.input[0].type.tensor_type.shape.dim[0].dim_value
    freed, why = _free_batch(model, contract)
    if freed is not None:
        return freed, ()
    if fixed > 1:
        raise GraphError(
            f"the graph takes batches of {fixed} only, and its batch cannot be made free ({why}); export the "
            "model with a dynamic batch, or a batch of 1"
        )
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    return model, (f"the graph takes one frame at a time: {why}, so its batch is fixed at 1",)


def fit_pixels(model: onnx.ModelProto, contract: InputContract) -> tuple[InputContract, tuple[str, ...]]:
    """Returns the contract of a graph that takes 8-bit pixels, and a note; any other contract as it is."""
    held = {item.name for item in model.graph.initializer}
    for value in model.graph.input:
        kind = value.type.tensor_type.elem_type
        if value.name not in held and kind in _PIXELS and contract.dtype != "uint8":
            note = (
                f"input {own_name(value.name)} is {TensorProto.DataType.Name(kind)}: the graph takes pixels "
                "and normalises by itself, so mean and std are not used"
            )
            return contract.model_copy(update={"dtype": "uint8", "mean": (0.0,), "std": (1.0,)}), (note,)
    return contract, ()


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
    elif channels_last(dims, contract.channels):
        require_layout([0, dims[3], *dims[1:3]], contract, shown=own_name(value.name))
        inner = "misfire/channels_last"
        nodes.append(helper.make_node("Transpose", [contract.name], [inner], inner, perm=(0, 2, 3, 1)))
    else:
        require_layout([0, *dims[1:]], contract, shown=own_name(value.name))
    for node in _typed(graph, inner, kind):
        nodes.append(node)
        inner = node.output[0]
    rename(graph, {value.name: inner})
    for node in reversed(nodes):
        graph.node.insert(0, node)
    batch = dims[0] if len(dims) == 4 and dims[0] else "batch"
    shape = [batch, contract.channels, contract.height, contract.width]
    held = TensorProto.UINT8 if contract.dtype == "uint8" else TensorProto.FLOAT
    del graph.input[:]
    graph.input.append(helper.make_tensor_value_info(contract.name, held, shape))


def _typed(graph: onnx.GraphProto, source: str, kind: int) -> Iterator[onnx.NodeProto]:
    """Yields the nodes that turn the contract's numbers into those of the graph's input."""
    if kind in _CAST:
        yield helper.make_node("Cast", [source], ["misfire/cast"], "cast_image", to=kind)
    if kind == TensorProto.INT8:
        # A pixel of 0..255 is -128..127 to a network with signed bytes.
        graph.initializer.append(numpy_helper.from_array(np.int32(128), "misfire/middle"))
        yield helper.make_node("Cast", [source], ["misfire/wide"], "misfire/wide", to=TensorProto.INT32)
        yield helper.make_node(
            "Sub", ["misfire/wide", "misfire/middle"], ["misfire/signed"], "misfire/signed"
        )
        yield helper.make_node("Cast", ["misfire/signed"], ["misfire/cast"], "cast_image", to=kind)


def _require_type(name: str, kind: int, contract: InputContract) -> None:
    found = TensorProto.DataType.Name(kind)
    if contract.dtype == "uint8" and kind not in _PIXELS:
        raise GraphError(f"input {name} is {found}; the input contract says uint8")
    if kind not in (TensorProto.FLOAT, *_PIXELS, *_CAST):
        raise GraphError(f"input {name} is {found}; expected FLOAT, FLOAT16, DOUBLE, UINT8 or INT8")


def _free_batch(model: onnx.ModelProto, contract: InputContract) -> tuple[onnx.ModelProto | None, str]:
    """Returns the graph with a free batch dimension and "", or None and the reason."""
    free = onnx.ModelProto()
    free.CopyFrom(model)
    fixed = model.graph.input[0].type.tensor_type.shape.dim[0].dim_value or 1
    free.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    for value in free.graph.output:
        if value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].dim_param = "batch"
    # They state shapes with the fixed batch.
    del free.graph.value_info[:]
    _copy_batch_in_reshapes(free.graph, fixed)
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


def _copy_batch_in_reshapes(graph: onnx.GraphProto, fixed: int) -> None:
    """Lets a Reshape to a constant [fixed, ...] take its batch from its input instead."""
    constants = {item.name: item for item in graph.initializer}
    for node in graph.node:
        if node.op_type != "Reshape" or node.input[1] not in constants or node.input[0] in constants:
            continue
        shape = numpy_helper.to_array(constants[node.input[1]]).copy()
        if shape.ndim == 1 and len(shape) > 1 and shape[0] == fixed:
            if (shape != 0).all():
                # With `allowzero` a zero would mean an empty axis and not "as the input has it".
                del node.attribute[:]
            shape[0] = 0
            name = f"{node.output[0]}/shape"
            graph.initializer.append(numpy_helper.from_array(shape, name))
            node.input[1] = name
