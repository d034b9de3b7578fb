"""Writes small real detection bundles: a graph that finds bright rectangles, or one of constant answers.

The finder divides the picture into a grid and boxes every cell that holds bright pixels, tightly; it knows
two classes, "lamp" (bright) and "wall" (bright and larger than half a cell). Its P(TP) falls with the score.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from misfire_runtime.boxes import BoxRule
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
from misfire_runtime.preprocess import InputContract

CLASSES = ("lamp", "wall")
GRID = 4
SCORES = ("expected_errors", "box_count")


def finder_graph(*, width: int, height: int) -> onnx.ModelProto:
    """Makes a graph: image [N,3,H,W] -> detections [N,16,6], box.p_tp [N,16], two scores, embedding [N,16].

    A pixel is bright from 0.7 on. A cell's score is 0.5 plus half its share of bright pixels.
    """
    cell_w, cell_h = width // GRID, height // GRID
    columns = np.broadcast_to(np.arange(width, dtype=np.float32), (1, 1, height, width))
    rows = np.broadcast_to(np.arange(height, dtype=np.float32)[:, None], (1, 1, height, width))
    constants: dict[str, NDArray[np.generic]] = {
        "bright_from": np.float32([0.7]),
        "columns": np.ascontiguousarray(columns),
        "rows": np.ascontiguousarray(rows),
        "one": np.float32([1]),
        "half": np.float32([0.5]),
        "zero": np.float32([0]),
        "tiny": np.float32([1e-6]),
        "far": np.float32([10_000]),
        "axis1": np.int64([1]),
        "as_rows": np.int64([0, -1, 1]),
        "flat": np.int64([0, -1]),
        "best": np.int64([GRID * GRID]),
    }
    pool = {"kernel_shape": [cell_h, cell_w], "strides": [cell_h, cell_w]}
    node = helper.make_node
    nodes = [
        node("ReduceMean", ["image", "axis1"], ["grey"], keepdims=1),
        node("GreaterOrEqual", ["grey", "bright_from"], ["is_bright"]),
        node("Cast", ["is_bright"], ["bright"], to=TensorProto.FLOAT),
        node("AveragePool", ["bright"], ["share"], **pool),
        node("Greater", ["share", "zero"], ["occupied"]),
        node("Mul", ["share", "half"], ["half_share"]),
        node("Add", ["half_share", "half"], ["lifted"]),
        node("Where", ["occupied", "lifted", "zero"], ["score"]),
        node("Greater", ["share", "half"], ["is_wall"]),
        node("Cast", ["is_wall"], ["label"], to=TensorProto.FLOAT),
        # Right and bottom: the largest place of a bright pixel plus one. Left and top: by the negative.
        node("Add", ["columns", "one"], ["columns1"]),
        node("Add", ["rows", "one"], ["rows1"]),
        node("Sub", ["far", "columns"], ["columns_left"]),
        node("Sub", ["far", "rows"], ["rows_left"]),
    ]
    for side, values in (("x1", "columns1"), ("y1", "rows1"), ("rx", "columns_left"), ("ry", "rows_left")):
        nodes.append(node("Mul", ["bright", values], [f"{side}.all"]))
        nodes.append(node("MaxPool", [f"{side}.all"], [side], **pool))
    for side, reverse in (("x0", "rx"), ("y0", "ry")):
        nodes.append(node("Sub", ["far", reverse], [f"{side}.free"]))
        nodes.append(node("Where", ["occupied", f"{side}.free", "zero"], [side]))
    for name in ("x0", "y0", "x1", "y1", "score", "label"):
        nodes.append(node("Reshape", [name, "as_rows"], [f"{name}.column"]))
    nodes += [
        node("Concat", [f"{n}.column" for n in ("x0", "y0", "x1", "y1", "score", "label")], ["any"], axis=2),
        node("Reshape", ["score", "flat"], ["scores"]),
        node("TopK", ["scores", "best"], ["sorted", "order"], axis=1),
        node("Unsqueeze", ["order", "axis2"], ["order3"]),
        node("Expand", ["order3", "six"], ["order6"]),
        node("GatherElements", ["any", "order6"], ["detections"], axis=1),
        node("Mul", ["sorted", "sorted"], ["box.p_tp"]),
        node("Greater", ["sorted", "zero"], ["is_box"]),
        node("Cast", ["is_box"], ["is_box.f"], to=TensorProto.FLOAT),
        node("Sub", ["is_box.f", "box.p_tp"], ["wrong"]),
        node("ReduceSum", ["wrong", "axis1"], ["score.expected_errors"], keepdims=0),
        node("ReduceSum", ["is_box.f", "axis1"], ["score.box_count"], keepdims=0),
        node("ReduceL2", ["scores", "axis1"], ["length"], keepdims=1),
        node("Add", ["length", "tiny"], ["length1"]),
        node("Div", ["scores", "length1"], ["embedding"]),
    ]
    constants |= {"axis2": np.int64([2]), "six": np.int64([1, 1, 6])}
    return _model(nodes, constants, width=width, height=height, boxes=GRID * GRID, embedding=GRID * GRID)


def constant_graph(
    rows: NDArray[np.float32], *, width: int, height: int, p_tp: NDArray[np.float32] | None = None
) -> onnx.ModelProto:
    """Makes a graph that answers every picture with the same detections, [M,6] in network pixels."""
    count = len(rows)
    constants: dict[str, NDArray[np.generic]] = {
        "rows": rows.astype(np.float32)[None],
        "p": (np.full(count, 0.5) if p_tp is None else p_tp).astype(np.float32)[None],
        "zero": np.float32([0]),
        "axes": np.int64([1, 2, 3]),
        "shape3": np.int64([-1, 1, 1]),
        "flat": np.int64([-1, 1]),
    }
    node = helper.make_node
    nodes = [
        node("ReduceMean", ["image", "axes"], ["mean"], keepdims=0),
        node("Mul", ["mean", "zero"], ["nothing"]),
        node("Reshape", ["nothing", "shape3"], ["nothing3"]),
        node("Reshape", ["nothing", "flat"], ["nothing2"]),
        node("Add", ["rows", "nothing3"], ["detections"]),
        node("Add", ["p", "nothing2"], ["box.p_tp"]),
        node("Identity", ["mean"], ["score.expected_errors"]),
        node("Identity", ["nothing"], ["score.box_count"]),
        node("Identity", ["nothing2"], ["embedding"]),
    ]
    return _model(nodes, constants, width=width, height=height, boxes=count, embedding=1)


def write_detection_bundle(
    path: Path,
    *,
    width: int = 96,
    height: int = 64,
    graph: onnx.ModelProto | None = None,
    resize: str = "letterbox",
    pad: int = 0,
    version: str = "1.0.0",
    inputs: dict[str, str] | None = None,
) -> Bundle:
    """Writes a bundle around a graph of this module; by default the finder of bright rectangles.

    Scores are calibrated as uniform: `expected_errors` between 0 and 4, `box_count` between 0 and 16.
    """
    path.mkdir(parents=True, exist_ok=True)
    made = graph or finder_graph(width=width, height=height)
    onnx.save(made, path / MODEL)
    shapes = {
        output.name: tuple(
            d.dim_value if d.HasField("dim_value") else -1 for d in output.type.tensor_type.shape.dim
        )
        for output in made.graph.output
    }
    kinds = {"detections": "boxes", "box.p_tp": "box", "embedding": "embedding"}
    scores = [
        ScoreSpec(
            name=name,
            definition="of the boxes",
            free=True,
            calibration=Calibration(
                engine="onnxruntime-cpu",
                precision="fp32",
                quantiles=QuantileTable(levels=(0.0, 1.0), values=(0.0, top), count=2),
            ),
        )
        for name, top in zip(SCORES, (4.0, 16.0), strict=True)
    ]
    manifest = Manifest(
        name="lamps",
        version=version,
        task="detection",
        created_at="2025-01-01T00:00:00Z",
        input=InputContract.model_validate(
            {"width": width, "height": height, "resize": resize, "pad": pad, "inputs": inputs or {}}
        ),
        outputs=tuple(
            OutputSpec.model_validate({"name": name, "kind": kinds.get(name, "score"), "shape": shape})
            for name, shape in shapes.items()
        ),
        classes=CLASSES,
        detection=BoxRule(),
        scores=tuple(scores),
        default_score=SCORES[0],
        lineage=Lineage(run_id="none", dataset="none", dataset_sha256="0" * 64),
        files=hash_files(path),
    )
    write_manifest(path, manifest)
    return Bundle.open(path)


def lamps(
    *rectangles: tuple[int, int, int, int], width: int = 192, height: int = 96, seed: int = 0
) -> NDArray[np.uint8]:
    """Draws white rectangles (x0, y0, x1, y1) on a dark, noisy picture, [H,W,3] uint8 RGB."""
    image = np.random.default_rng(seed).integers(0, 60, (height, width, 3)).astype(np.uint8)
    for x0, y0, x1, y1 in rectangles:
        image[y0:y1, x0:x1] = 255
    return image


def _model(
    nodes: list[onnx.NodeProto],
    constants: dict[str, NDArray[np.generic]],
    *,
    width: int,
    height: int,
    boxes: int,
    embedding: int,
) -> onnx.ModelProto:
    shapes: dict[str, list[str | int]] = {
        "detections": ["N", boxes, 6],
        "box.p_tp": ["N", boxes],
        "score.expected_errors": ["N"],
        "score.box_count": ["N"],
        "embedding": ["N", embedding],
    }
    graph = helper.make_graph(
        nodes,
        "detector",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, height, width])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return model
