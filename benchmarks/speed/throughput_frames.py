"""Frames per second of a whole vehicle against a bare loop, on a network of ResNet-18's shape.

The weights are random and seeded: they cost what trained ones cost. Both loops run the same file through one
thread of ONNX Runtime; the vehicle also scores, triggers, encodes, and writes its spool to the disk.
"""

from __future__ import annotations

import threading
import time
from functools import partial
from pathlib import Path

import av
import numpy as np
import onnx
import onnxruntime as ort
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
from misfire_runtime.config.tables import parse_config
from misfire_runtime.engines.scoring import Scorer
from misfire_runtime.preprocess import InputContract, to_tensor
from misfire_runtime.sources import open_source
from misfire_runtime.spool import Spool
from misfire_runtime.vehicle.pipeline import Vehicle
from proving_ground.services import data_root

SIZE, CLASSES = 224, 10
CLIP = "solidWhiteRight.mp4"
CONTRACT = InputContract(height=SIZE, width=SIZE, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


class Graph:
    """Collects nodes and seeded weights."""

    def __init__(self, seed: int = 0) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._rng = np.random.default_rng(seed)

    def constant(self, value: np.ndarray) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(value, name))
        return name

    def add(self, kind: str, *inputs: str, output: str | None = None, **attributes: object) -> str:
        name = output or f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def conv(self, x: str, fan_in: int, out: int, *, kernel: int, stride: int = 1) -> str:
        scale = np.sqrt(2.0 / (fan_in * kernel * kernel))
        weight = self.constant(self._rng.normal(0, scale, (out, fan_in, kernel, kernel)).astype(np.float32))
        pad = kernel // 2
        return self.add("Conv", x, weight, strides=[stride, stride], pads=[pad] * 4)

    def block(self, x: str, fan_in: int, out: int, stride: int) -> str:
        y = self.add("Relu", self.conv(x, fan_in, out, kernel=3, stride=stride))
        y = self.conv(y, out, out, kernel=3)
        if stride > 1 or fan_in != out:
            x = self.conv(x, fan_in, out, kernel=1, stride=stride)
        return self.add("Relu", self.add("Add", x, y))

    def dense(self, x: str, fan_in: int, out: int, output: str) -> str:
        weight = self.constant(self._rng.normal(0, 0.02, (fan_in, out)).astype(np.float32))
        return self.add("MatMul", x, weight, output=output)


def write_bundle(path: Path) -> Bundle:
    """image [N,3,224,224] -> logits, score.entropy, score.msp, embedding, with a calibration."""
    path.mkdir(parents=True)
    onnx.save(_resnet18(), path / MODEL)
    levels = tuple(float(v) for v in np.linspace(0, 1, 21))
    scores = [
        ScoreSpec(
            name=name,
            definition="of softmax",
            free=True,
            calibration=Calibration(
                engine="onnxruntime-cpu",
                precision="fp32",
                quantiles=QuantileTable(levels=levels, values=tuple(top * v for v in levels), count=100),
            ),
        )
        for name, top in (("entropy", float(np.log(CLASSES))), ("msp", 1.0))
    ]
    manifest = Manifest(
        name="resnet18-shape",
        version="1.0.0",
        task="classification",
        created_at="2025-01-01T00:00:00Z",
        input=CONTRACT,
        outputs=(
            OutputSpec(name="logits", kind="logits", shape=(-1, CLASSES)),
            OutputSpec(name="score.entropy", kind="score", shape=(-1,)),
            OutputSpec(name="score.msp", kind="score", shape=(-1,)),
            OutputSpec(name="embedding", kind="embedding", shape=(-1, 512)),
        ),
        classes=tuple(f"class {number}" for number in range(CLASSES)),
        scores=tuple(scores),
        default_score="entropy",
        lineage=Lineage(run_id="none", dataset="none", dataset_sha256="0" * 64),
        files=hash_files(path),
    )
    write_manifest(path, manifest)
    return Bundle.open(path)


def _resnet18() -> onnx.ModelProto:
    g = Graph()
    x = g.add("Relu", g.conv("image", 3, 64, kernel=7, stride=2))
    x = g.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    width = 64
    for stage, out in enumerate((64, 128, 256, 512)):
        x = g.block(x, width, out, 1 if stage == 0 else 2)
        x, width = g.block(x, out, out, 1), out
    flat = g.add("Flatten", g.add("GlobalAveragePool", x))
    p = g.add("Softmax", g.dense(flat, 512, CLASSES, "logits"))
    axis, tiny = g.constant(np.int64([1])), g.constant(np.float32([1e-9]))
    surprise = g.add("Mul", p, g.add("Log", g.add("Add", p, tiny)))
    g.add("Neg", g.add("ReduceSum", surprise, axis, keepdims=0), output="score.entropy")
    top = g.add("ReduceMax", p, axis, keepdims=0)
    g.add("Sub", g.constant(np.float32([1.0])), top, output="score.msp")
    g.add("Div", flat, g.add("ReduceL2", flat, axis, keepdims=1), output="embedding")
    kind = TensorProto.FLOAT
    outputs = [
        helper.make_tensor_value_info("logits", kind, ["N", CLASSES]),
        helper.make_tensor_value_info("score.entropy", kind, ["N"]),
        helper.make_tensor_value_info("score.msp", kind, ["N"]),
        helper.make_tensor_value_info("embedding", kind, ["N", 512]),
    ]
    image = helper.make_tensor_value_info("image", kind, ["N", 3, SIZE, SIZE])
    graph = helper.make_graph(g.nodes, "resnet18-shape", [image], outputs, g.weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return model


def run_rounds(folder: Path, *, rounds: int) -> dict[str, list[float]]:
    """Frames per second of both, alternating, after a round to warm up; and per second of processor time."""
    bundle = write_bundle(folder / "bundle")
    clip = data_root() / "dashcam" / CLIP
    result: dict[str, list[float]] = {"misfire": [], "bare": [], "misfire_cpu": [], "bare_cpu": []}
    for number in range(rounds + 1):
        order = [
            ("bare", partial(_bare, bundle, clip)),
            ("misfire", partial(_vehicle, bundle, clip, folder, number)),
        ]
        for name, run in order if number % 2 else reversed(order):
            wall, processor = time.perf_counter(), time.process_time()
            frames = run()
            if number:
                result[name].append(round(frames / (time.perf_counter() - wall), 2))
                result[f"{name}_cpu"].append(round(frames / (time.process_time() - processor), 2))
    return result


def _bare(bundle: Bundle, clip: Path) -> int:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(str(bundle.model_path), options, providers=["CPUExecutionProvider"])
    frames = 0
    with av.open(str(clip)) as container:
        for picture in container.decode(video=0):
            image = picture.to_ndarray(format="rgb24")
            session.run(None, {"image": to_tensor(image, CONTRACT)})
            frames += 1
    return frames


def _vehicle(bundle: Bundle, clip: Path, folder: Path, number: int) -> int:
    config = parse_config("[random]\nrate = 0.01\nseed = 1")
    with Spool(folder / f"spool-{number}", reserve_bytes=0) as spool:
        vehicle = Vehicle(
            config,
            scorer=Scorer.load(bundle),
            store=spool,
            sources=[open_source(str(clip))],
            state_dir=folder / f"state-{number}",
        )
        report = vehicle.run(threading.Event())
        vehicle.close()
    return int(report.frames)
