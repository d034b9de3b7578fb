"""A three-class network in five nodes, what others put behind it, and coloured frames that it tells apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from export_cases import examples_of
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from misfire_export.measure.trigger import Shifts
from misfire_export.options import Options
from misfire_export.sources.facts import ModelFacts
from misfire_export.sources.frames import Frames
from misfire_export.sources.onnx.exporting import export_onnx
from misfire_runtime.bundle import Bundle
from misfire_runtime.preprocess import InputContract
from misfire_train.data import Examples

PLAIN = InputContract(height=8, width=8)
CLASSES = ("red", "green", "blue")
OPTIONS = Options(name="foreign", version="1.0.0", shifts=Shifts(()))
WEIGHT = np.array([[14, -6, -5], [-6, 13, -7], [-5, -6, 12]], np.float32)
BIAS = np.array([0.3, -0.2, 0.1], np.float32)


def coloured(count: int, *, seed: int = 0, prefix: str = "frame") -> Examples:
    """Noisy 8 x 8 frames that are a little redder, greener or bluer; now and then hardly so."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    tint = rng.choice([4.0, 40.0], count, p=[0.35, 0.65])
    images = rng.normal(110, 40, (count, 8, 8, 3)) + rng.normal(0, 6, (count, 1, 1, 3))
    images[np.arange(count), :, :, labels] += tint[:, None, None]
    return examples_of(np.clip(images, 0, 255).astype(np.uint8), labels.astype(np.int64), prefix=prefix)


def network(
    path: Path,
    tail: Sequence[NodeProto] = (),
    *,
    outputs: Sequence[str] = ("z",),
    kinds: Sequence[int] = (TensorProto.FLOAT,),
    opset: int = 17,
    inside: int = TensorProto.FLOAT,
    names: dict[str, str] | None = None,
    constants: dict[str, NDArray[Any]] | None = None,
    input_shape: Sequence[int | str] = ("n", 3, 8, 8),
    input_type: int = TensorProto.FLOAT,
    weight: NDArray[np.float32] = WEIGHT,
    bias: NDArray[np.float32] = BIAS,
    metadata: dict[str, str] | None = None,
) -> Path:
    """pixels --mean over places--> f --Gemm--> z --tail--> outputs. names: other names of its tensors."""
    kind = helper.tensor_dtype_to_np_dtype(inside)
    cast = [helper.make_node("Cast", ["pixels"], ["x"], to=inside)]
    nodes = [
        *cast,
        helper.make_node("ReduceSum", ["x", "places"], ["pooled"], keepdims=0),
        helper.make_node("Mul", ["pooled", "share"], ["f"]),
        helper.make_node("Gemm", ["f", "w", "b"], ["z"], "fc", transB=1),
        *tail,
    ]
    held = {
        "w": weight.astype(kind),
        "b": bias.astype(kind),
        "places": np.array([2, 3], np.int64),
        "share": np.array(1 / 64, kind),
        **(constants or {}),
    }
    new = names or {}
    for node in nodes:
        node.input[:] = [new.get(name, name) for name in node.input]
        node.output[:] = [new.get(name, name) for name in node.output]
    graph = helper.make_graph(
        nodes,
        "theirs",
        [helper.make_tensor_value_info(new.get("pixels", "pixels"), input_type, input_shape)],
        [helper.make_tensor_value_info(new.get(n, n), k, None) for n, k in zip(outputs, kinds, strict=True)],
        [numpy_helper.from_array(value, new.get(name, name)) for name, value in held.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    if opset > 20:
        model.ir_version = 10
    helper.set_model_props(model, metadata or {})
    onnx.save(model, path)
    return path


def export(path: Path, out: Path, *, frames: Examples | None = None, **more: Any) -> Bundle:
    """The bundle of a graph on coloured frames. One score unless told: tracing all takes twice as long."""
    options = replace(more.pop("options", OPTIONS), scores=more.pop("scores", ["entropy"]))
    holdout = coloured(60, seed=5, prefix="held")
    given = Frames(frames or coloured(300), holdout=holdout, classes=more.pop("classes", CLASSES))
    facts = ModelFacts(more.pop("contract", PLAIN), classes=more.pop("model_classes", ()), **more)
    return export_onnx(path, given, facts, out=out, options=options)


def answers_of(bundle: Bundle, frames: Examples) -> dict[str, NDArray[Any]]:
    """{output: values} of a bundle's graph, frame by frame if its batch is fixed."""
    session = ort.InferenceSession(bundle.model_path, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    images = frames.batch(range(len(frames)), bundle.manifest.input).numpy()
    size = session.get_inputs()[0].shape[0]
    size = size if isinstance(size, int) else len(frames)
    rows = [session.run(names, {"image": images[i : i + size]}) for i in range(0, len(frames), size)]
    return {name: np.concatenate(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}


def true_logits(frames: Examples) -> NDArray[np.float64]:
    """What the five nodes give, computed here."""
    pixels = frames.batch(range(len(frames)), PLAIN).numpy().astype(np.float64)
    return np.asarray(pixels.mean(axis=(2, 3)) @ WEIGHT.T.astype(np.float64) + BIAS)


def entropy_of(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of softmax(logits), in nats."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    p = powers / powers.sum(axis=1, keepdims=True)
    return np.asarray(-(p * np.log(p)).sum(axis=1))
