"""Writes a small real bundle: convolution, pooling, logits, two scores and an embedding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from misfire_runtime.bundle import (
    MODEL,
    Bundle,
    Calibration,
    Lineage,
    Manifest,
    OutputSpec,
    QuantileTable,
    ScoreSpec,
    hash_files,
    write_manifest,
)
from misfire_runtime.preprocess import InputContract, decode_image, to_tensor
from proving_ground.pictures import write_stills

CLASSES = ("road", "sky", "tree", "car")


def small_graph(*, size: int, seed: int = 0, poison: str | None = None) -> onnx.ModelProto:
    """Makes a graph: image [N,3,size,size] -> logits [N,4], score.entropy, score.msp [N], embedding [N,8].

    poison: name of a score that gives NaN for every image brighter than half on average.
    """
    rng = np.random.default_rng(seed)
    constants = {
        "kernel": rng.normal(0, 0.3, (8, 3, 5, 5)).astype(np.float32),
        "head": rng.normal(0, 4.0, (8, 4)).astype(np.float32),
        "one": np.float32([1.0]),
        "tiny": np.float32([1e-9]),
        "half": np.float32([0.5]),
        "zero": np.float32([0.0]),
        "axis1": np.int64([1]),
        "axes123": np.int64([1, 2, 3]),
    }
    nodes = [
        helper.make_node("Conv", ["image", "kernel"], ["features"], strides=[2, 2], pads=[2, 2, 2, 2]),
        helper.make_node("Relu", ["features"], ["active"]),
        helper.make_node("GlobalAveragePool", ["active"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "head"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["p"], axis=1),
        # The logarithm of zero would be minus infinity, and 0 * -inf is NaN.
        helper.make_node("Add", ["p", "tiny"], ["p_safe"]),
        helper.make_node("Log", ["p_safe"], ["log_p"]),
        helper.make_node("Mul", ["p", "log_p"], ["p_log_p"]),
        helper.make_node("ReduceSum", ["p_log_p", "axis1"], ["negative"], keepdims=0),
        helper.make_node("Neg", ["negative"], ["clean.entropy"]),
        helper.make_node("ReduceMax", ["p", "axis1"], ["top"], keepdims=0),
        helper.make_node("Sub", ["one", "top"], ["clean.msp"]),
        helper.make_node("ReduceL2", ["flat", "axis1"], ["length"], keepdims=1),
        helper.make_node("Add", ["length", "tiny"], ["length_safe"]),
        helper.make_node("Div", ["flat", "length_safe"], ["embedding"]),
        helper.make_node("ReduceMean", ["image", "axes123"], ["brightness"], keepdims=0),
        helper.make_node("Greater", ["brightness", "half"], ["bright"]),
        helper.make_node("Div", ["zero", "zero"], ["nan"]),
    ]
    for name in ("entropy", "msp"):
        if poison == name:
            nodes.append(helper.make_node("Where", ["bright", "nan", f"clean.{name}"], [f"score.{name}"]))
        else:
            nodes.append(helper.make_node("Identity", [f"clean.{name}"], [f"score.{name}"]))
    float_type = TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("image", float_type, ["N", 3, size, size])],
        [
            helper.make_tensor_value_info("logits", float_type, ["N", 4]),
            helper.make_tensor_value_info("score.entropy", float_type, ["N"]),
            helper.make_tensor_value_info("score.msp", float_type, ["N"]),
            helper.make_tensor_value_info("embedding", float_type, ["N", 8]),
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return model


def write_bundle(
    path: Path, *, size: int = 64, seed: int = 0, version: str = "1.0.0", **options: Any
) -> Bundle:
    """Writes a bundle calibrated on photographs through ONNX Runtime."""
    import onnxruntime as ort

    path.mkdir(parents=True, exist_ok=True)
    onnx.save(small_graph(size=size, seed=seed, **options), path / MODEL)
    contract = InputContract(height=size, width=size)
    session = ort.InferenceSession(str(path / MODEL), providers=["CPUExecutionProvider"])
    stills = write_stills(path.parent / f"stills-of-{path.name}")
    names = ["score.entropy", "score.msp"]
    rows = [
        [
            float(v[0])
            for v in session.run(names, {"image": to_tensor(decode_image(p.read_bytes()), contract)})
        ]
        for p in stills
    ]
    measured = np.nan_to_num(np.asarray(rows))
    levels = tuple(float(v) for v in np.linspace(0, 1, 21))
    scores = [
        ScoreSpec(
            name=name.removeprefix("score."),
            definition="of softmax",
            free=True,
            calibration=Calibration(
                engine="onnxruntime-cpu",
                precision="fp32",
                quantiles=QuantileTable(
                    levels=levels,
                    values=tuple(float(v) for v in np.quantile(measured[:, column], levels)),
                    count=len(rows),
                ),
            ),
        )
        for column, name in enumerate(names)
    ]
    manifest = Manifest(
        name="small",
        version=version,
        task="classification",
        created_at="2025-01-01T00:00:00Z",
        input=contract,
        outputs=(
            OutputSpec(name="logits", kind="logits", shape=(-1, 4)),
            OutputSpec(name="score.entropy", kind="score", shape=(-1,)),
            OutputSpec(name="score.msp", kind="score", shape=(-1,)),
            OutputSpec(name="embedding", kind="embedding", shape=(-1, 8)),
        ),
        classes=CLASSES,
        scores=tuple(scores),
        default_score="entropy",
        lineage=Lineage(run_id="none", dataset="none", dataset_sha256="0" * 64),
        files=hash_files(path),
    )
    write_manifest(path, manifest)
    return Bundle.open(path)
