"""Recognises a foreign graph's answer by its numbers on real frames: logits, probabilities or sigmoids.

values [n,K] or [n,K,h,w] --within 0..1?--> no: logits;  rows sum to about one: probabilities;  else: sigmoids

Operators do not show it: probabilities also come out of Clip, of Exp / ReduceSum / Div, of an average of
networks, or of a Softmax behind a quantiser. A softmax of probabilities is nearly flat, so every score and
every confidence would be wrong: logarithms of probabilities are used as logits, and sigmoids are refused
unless `--answer sigmoid` asks for their log-odds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
import onnx
from numpy.typing import NDArray

from misfire_export.choices import AnswerKind
from misfire_export.errors import GraphError
from misfire_export.graph.rename import own_name
from misfire_train.tasks import Task

ANSWERS: tuple[str, ...] = get_args(AnswerKind)
_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)


def choose_output(model: onnx.ModelProto, wanted: str = "") -> str:
    """Returns the output that is the task's answer: the named one, or the only one that can be it.

    wanted: the file's own name. Raises GraphError if several outputs could be it, or if it holds no numbers.
    """
    outputs = {value.name: value for value in model.graph.output}
    if wanted:
        found = next((name for name in outputs if own_name(name) == wanted or name == wanted), None)
        if found is None:
            raise GraphError(f"the graph has no output {wanted!r}; it has {_listed(outputs)}")
    elif len(outputs) == 1:
        found = next(iter(outputs))
    else:
        likely = [name for name, value in outputs.items() if _could_answer(value)]
        if len(likely) != 1:
            why = "".join(f"; {text}" for text in dict.fromkeys(map(_why_not, outputs.values())) if text)
            raise GraphError(
                "which output is the answer? name it with --output: "
                f"{_listed(outputs) or 'there is none'}{why}"
            )
        found = likely[0]
    why = _why_not(outputs[found])
    if why:
        raise GraphError(why)
    return str(found)


def _could_answer(value: onnx.ValueInfoProto) -> bool:
    tensor = value.type.tensor_type
    return tensor.elem_type in _FLOATS and len(tensor.shape.dim) != 1


def _why_not(value: onnx.ValueInfoProto) -> str:
    """Returns why an output cannot be the answer, and the way out; "" if it can."""
    name = own_name(value.name)
    if value.type.WhichOneof("value") in ("sequence_type", "map_type"):
        return (
            f"output {name} is a list of dictionaries, not a tensor; convert the model with zipmap=False "
            "(skl2onnx: options={'zipmap': False})"
        )
    kind = value.type.tensor_type.elem_type
    if kind and kind not in _FLOATS:
        return (
            f"output {name} is {onnx.TensorProto.DataType.Name(kind)}: class labels without scores; export "
            "the model without its last ArgMax, so that it gives logits or probabilities"
        )
    return ""


def _listed(outputs: Sequence[str] | dict[str, Any]) -> str:
    return ", ".join(own_name(name) for name in outputs)


def static_shape(model: onnx.ModelProto, output: str) -> tuple[int, ...] | None:
    """Returns the output's shape as the file states it, 0 for an open axis; None if it states none."""
    for value in model.graph.output:
        if value.name == output and value.type.tensor_type.HasField("shape"):
            return tuple(max(0, dim.dim_value) for dim in value.type.tensor_type.shape.dim)
    return None


def require_shape(shape: Sequence[int], *, output: str, task: Task) -> None:
    """Raises GraphError on an answer that the task cannot have, with a way out. shape: 0 if unknown."""
    name, rank = own_name(output), len(shape)
    start = f"the answer {name} has shape {list(shape)}"
    per_pixel = not task.by_frame
    wanted = "[N,K,H,W]" if per_pixel else "[N,K]"
    # A 1x1 convolution behind a global pooling answers for the frame.
    if rank == 4 and not per_pixel and (tuple(shape[2:]) == (1, 1) or tuple(shape[1:3]) == (1, 1)):
        rank = 2
    # One number for each place or frame is the second of two classes.
    if (rank == 3 and per_pixel) or (rank == 1 and not per_pixel):
        return
    if rank == 3:
        raise GraphError(
            f"{start}: several answers for each frame, as of a detector (boxes) or a sequence model; "
            f"expected {wanted}. For a detector give --task detection"
        )
    if rank == 4 and not per_pixel:
        raise GraphError(
            f"{start}: an answer for each pixel; expected {wanted}. For a segmentation network give "
            "--task segmentation and a data set of masks"
        )
    if rank == 2 and per_pixel:
        raise GraphError(
            f"{start}: one answer for each frame; expected {wanted}. Is it --task classification?"
        )
    if rank not in (2, 4):
        raise GraphError(f"{start}; expected {wanted}")


def classes_last(shape: Sequence[int], *, classes: int, size: tuple[int, int]) -> bool:
    """Returns whether an answer is [N,H,W,K] and not [N,K,H,W].

    classes: 0 if unknown. size: height and width of the input, which the answer then must have.

    >>> classes_last([2, 16, 20, 4], classes=4, size=(16, 20))
    True
    >>> classes_last([2, 4, 16, 4], classes=4, size=(16, 4))
    False
    """
    if len(shape) != 4 or shape[1] == shape[3]:
        return False
    if classes:
        # Of two classes a network may give one map.
        counts = (classes, 1) if classes == 2 else (classes,)
        return shape[1] not in counts and shape[3] in counts
    return tuple(shape[1:3]) == size and shape[3] < min(size)


def softmax(values: NDArray[Any]) -> NDArray[np.float64]:
    """Returns the softmax along axis 1."""
    # The largest exponent is 0, so exp cannot overflow.
    shifted = values.astype(np.float64) - values.max(axis=1, keepdims=True)
    powers = np.exp(shifted)
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))
