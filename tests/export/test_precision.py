"""fp16 and int8: same answers as far as promised, scores untouched, and each target its own operators."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from export_cases import CONTRACT, examples_of, seeded_images, tiny_classifier
from onnx import TensorProto, numpy_helper

from misfire_export.errors import PrecisionError
from misfire_export.graph.regions import score_node_names, task_nodes
from misfire_export.graph.trace import trace
from misfire_export.measure.run import open_session
from misfire_export.options import Options
from misfire_export.precision.fp16 import halve
from misfire_export.precision.int8 import quantize
from misfire_export.sources.frames import Frames
from misfire_export.sources.run import export_run
from misfire_runtime.preprocess import InputContract
from misfire_train.data import Examples
from misfire_train.models import build_model
from misfire_train.runs import Run
from misfire_train.scores import build
from misfire_train.signals import Probe, ScoredModel
from misfire_train.tasks import get_task

FRAMES = examples_of(seeded_images(64), np.arange(64) % 3)


@pytest.fixture(scope="module")
def graph() -> onnx.ModelProto:
    probe = Probe(tiny_classifier(), last_layer="4")
    return trace(ScoredModel(probe, build(["entropy", "msp"], task="classification")), contract=CONTRACT)


def run(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    session = open_session(model)
    names = [output.name for output in session.get_outputs()]
    return dict(
        zip(names, session.run(names, {"image": FRAMES.batch(range(8), CONTRACT).numpy()}), strict=True)
    )


def test_regions_part_the_graph_into_task_and_scores(graph: onnx.ModelProto) -> None:
    model = onnx.ModelProto.FromString(graph.SerializeToString())
    from misfire_export.graph.regions import name_nodes

    name_nodes(model.graph)
    task = [node.op_type for node in task_nodes(model.graph, "logits")]
    assert task == ["Conv", "Relu", "GlobalAveragePool", "Reshape", "Gemm"] or "Conv" in task
    scores = set(score_node_names(model.graph, "logits"))
    assert len(task) + len(scores) == len(model.graph.node)


def test_fp16_keeps_input_outputs_and_scores_in_fp32(graph: onnx.ModelProto) -> None:
    halved = halve(graph, output="logits")
    types = {item.name: item.data_type for item in halved.graph.initializer}
    assert TensorProto.FLOAT16 in types.values()
    assert halved.graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT
    plain, after = run(graph), run(halved)
    for name, value in plain.items():
        assert after[name].dtype == np.float32
        np.testing.assert_allclose(after[name], value, atol=5e-3)


def test_fp16_keeps_the_boxes_of_a_detector_in_fp32() -> None:
    """The area of 256x256 pixels is above fp16's largest number, and there is no half pixel above 1024."""
    task, contract = get_task("detection"), InputContract(height=32, width=64)
    torch.manual_seed(0)
    built = build_model("detector-small", task=task, outputs=2, channels=3, width=4, tower=8)
    probe = Probe(built.module, last_layer=built.last_layer).eval()
    scored = ScoredModel(probe, [], output_name="detections", answer=task.answer).eval()
    lowered = halve(trace(scored, contract=contract), output="detections")
    half = {name for node in lowered.graph.node if node.op_type == "Conv" for name in node.output}
    assert half and all(name.endswith("/fp16") for name in half)
    chosen = [name for node in lowered.graph.node if node.op_type == "TopK" for name in node.input]
    assert chosen and not any(name.endswith("/fp16") for name in chosen)
    (found,) = open_session(lowered).run(["detections"], {"image": np.zeros((1, 3, 32, 64), np.float32)})
    # 42 cells.
    assert found.shape == (1, 42, 6) and np.isfinite(found).all()


def test_fp16_refuses_weights_beyond_its_range(graph: onnx.ModelProto) -> None:
    model = onnx.ModelProto.FromString(graph.SerializeToString())
    for item in model.graph.initializer:
        if numpy_helper.to_array(item).ndim == 4:
            item.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(item) * np.float32(1e7), item.name))
    with pytest.raises(PrecisionError, match=r"reaches .* fp16 ends at 65504"):
        halve(model, output="logits")


@pytest.mark.parametrize("target", ["onnxruntime-x86", "tensorrt"])
def test_int8_is_built_for_its_target(graph: onnx.ModelProto, target: str) -> None:
    lowered = quantize(graph, target=target, frames=FRAMES, contract=CONTRACT, output="logits")
    zero_points = {
        item.name: item.data_type for item in lowered.graph.initializer if item.name.endswith("_zero_point")
    }
    kinds = set(zero_points.values())
    assert kinds == (
        {TensorProto.INT8} if target == "tensorrt" else {TensorProto.INT8, TensorProto.UINT8}
    ) or (target == "onnxruntime-x86" and TensorProto.UINT8 in kinds)
    if target == "tensorrt":
        assert TensorProto.INT32 not in kinds, "TensorRT's parser refuses int32 biases"
    plain, after = run(graph), run(lowered)
    np.testing.assert_allclose(after["logits"], plain["logits"], atol=0.1)


def test_int8_of_a_network_with_one_layer_is_refused() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16 * 16 * 3, 3)).eval()
    graph = trace(
        ScoredModel(Probe(model, last_layer="1"), build(["msp"], task="classification")), contract=CONTRACT
    )
    with pytest.raises(PrecisionError, match="nothing to quantise"):
        quantize(graph, target="tensorrt", frames=FRAMES, contract=CONTRACT, output="logits")


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "goal"), [("fp16", 0.999), ("int8", 0.98)])
def test_the_report_says_what_precision_changed_and_thresholds_are_measured_anew(
    precision: str,
    goal: float,
    digits_run: Run,
    digits_parts: dict[str, Examples],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    bundle = export_run(
        digits_run,
        Frames(digits_parts["calibration"]),
        out=tmp_path_factory.mktemp("lowered") / precision,
        options=Options("digits", "1.0.0", precision=precision),  # type: ignore[arg-type]
    )
    report = bundle.manifest.extra["precision"]
    assert report["goal"] == goal
    for row in report["scores"].values():
        assert row["rank_correlation"] >= goal and row["met"]
        assert abs(row["auroc_after"] - row["auroc_before"]) < 0.05
    assert abs(report["accuracy_after"] - report["accuracy_before"]) < 0.05
    assert {s.calibration.precision for s in bundle.manifest.scores} == {precision}
    golden = np.load(bundle.path / "golden.npz")
    session = open_session(onnx.load(bundle.model_path))
    entropy = session.run(["score.entropy"], {"image": golden["image"]})[0]
    np.testing.assert_allclose(golden["output.score.entropy"], entropy, atol=1e-6)
