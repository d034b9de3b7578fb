"""TensorRT's own parser and builder as judges, without a GPU: what they take, refuse, and never finish.

Every task's graph with all its scores, in every precision, is in test_every_task.py.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from misfire_export.errors import ConformanceError
from misfire_export.graph.trace import trace
from misfire_export.measure.conformance import check_conformance
from misfire_export.measure.run import open_session
from misfire_export.options import Options
from misfire_export.precision.fp16 import halve
from misfire_export.precision.int8 import quantize
from misfire_export.sources.frames import Frames
from misfire_export.sources.run import export_run
from misfire_runtime.preprocess import InputContract
from misfire_train.data import Examples
from misfire_train.heads import recipe_named
from misfire_train.heads.box_training import new_box_head
from misfire_train.heads.training import candidate_heads
from misfire_train.models import build_model
from misfire_train.runs import Run
from misfire_train.scores import build, gather, names_for
from misfire_train.signals import Probe, ScoredModel
from misfire_train.tasks import get_task
from misfire_train.tasks.detection import Detection
from proving_ground.pictures import view

pytestmark = pytest.mark.slow

if os.environ.get("MISFIRE_REQUIRE_SERVICES") != "1":
    pytest.importorskip("tensorrt_rtx", reason="pip install 'misfire[tensorrt-check]'")


def one_node(operator: str, name: str) -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node(operator, ["image"], ["answer"], name=name)],
        "small",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 4, 4])],
        [helper.make_tensor_value_info("answer", TensorProto.FLOAT, None)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def test_a_build_that_does_not_end_is_stopped_and_refused() -> None:
    """A tenth of a second is less than TensorRT needs to load: whatever hangs, the export does not."""
    with pytest.raises(ConformanceError, match=r"graph of 1 nodes within 0\.1 s"):
        check_conformance(one_node("Relu", "a"), time_limit_s=0.1)


def test_a_build_that_crashes_is_refused_with_what_it_said() -> None:
    with pytest.raises(ConformanceError, match=r"exit status 1\): AttributeError.*SM00"):
        check_conformance(one_node("Relu", "a"), capability="SM00")


def test_an_operator_that_tensorrt_lacks_is_named_with_its_node() -> None:
    with pytest.raises(ConformanceError, match=r"Det \(node the_determinant\)"):
        check_conformance(one_node("Det", "the_determinant"))


def test_a_bundle_for_tensorrt_carries_the_builders_report(
    digits_run: Run, digits_parts: dict[str, Examples], out: Path
) -> None:
    bundle = export_run(
        digits_run,
        Frames(digits_parts["calibration"], digits_parts["train"].take(range(300))),
        out=out,
        options=Options("digits", "1.0.0", scores=["entropy", "egl_pp"], precision="int8", target="tensorrt"),
    )
    report = bundle.manifest.extra["tensorrt"]
    assert report["engine_bytes"] > 0 and report["executed"] is False
    assert "tensorrt-rtx" in report["checked_with"]


def test_a_network_of_full_size_is_taken_with_its_scores_in_every_precision() -> None:
    contract = InputContract(height=224, width=224, resize="letterbox")
    torch.manual_seed(0)
    built = build_model("resnet18", task="classification", outputs=100, channels=3)
    probe = Probe(built.module.eval(), last_layer=built.last_layer, features=built.feature_layers).eval()
    names = tuple(map(str, range(12)))
    images = [view(number, width=48, height=96) for number in range(12)]
    known = Examples(images=images, targets=np.arange(12), ids=names, groups=names)
    fit = gather(probe, known, np.arange(12), classes=100, contract=contract, batch=4)
    names = [*names_for("classification", free=True), "wrong_prediction_approx", "egl_pp", "knn_distance"]
    scores = build(names, task="classification", fit=fit, holdout=fit, egl_pp={"sigma": "auto"})
    recipe, task = recipe_named("learning-loss-pp"), get_task("classification")
    head = candidate_heads(probe, recipe, contract=contract, task=task, train=known)[0]
    graph = trace(ScoredModel(probe, [head, *scores]).eval(), contract=contract)
    int8 = quantize(graph, target="tensorrt", frames=known, contract=contract, output="logits")
    for lowered in (graph, halve(graph, output="logits"), int8):
        report = check_conformance(lowered)
        assert report["layers"] > 100 and report["executed"] is False
        values = open_session(lowered).run(None, {"image": known.batch([0, 1], contract).numpy()})
        assert all(np.isfinite(value).all() for value in values)


def test_a_detector_is_taken_with_its_boxes_in_every_precision() -> None:
    contract, task = InputContract(height=64, width=96), get_task("detection")
    torch.manual_seed(0)
    built = build_model("detector-small", task=task, outputs=5, channels=3)
    probe = Probe(built.module, last_layer=built.last_layer, features=built.feature_layers).eval()
    names = tuple(map(str, range(8)))
    images = [view(number, width=96, height=64) for number in range(8)]
    empty = task.stack([np.zeros((0, 6), np.float32)] * 8)
    known = Examples(images=images, targets=empty, ids=names, groups=names)
    output = task.output_name
    graph = trace(ScoredModel(probe, [], output_name=output, answer=task.answer).eval(), contract=contract)
    int8 = quantize(graph, target="tensorrt", frames=known, contract=contract, output=output)
    for lowered in (graph, halve(graph, output=output), int8):
        assert check_conformance(lowered)["layers"] > 100
        (boxes,) = open_session(lowered).run([output], {"image": known.batch([0, 1], contract).numpy()})
        assert boxes.shape == (2, 100, 6) and np.isfinite(boxes).all()


def test_a_detector_is_taken_with_its_scores_in_every_precision() -> None:
    """Candidates, suppression, boxes, all one-pass scores and the head, and all of it equals torch."""
    contract, task = InputContract(height=96, width=160, resize="letterbox"), get_task("detection")
    assert isinstance(task, Detection)
    torch.manual_seed(0)
    built = build_model("detector-small", task="detection", outputs=3, channels=3)
    # Untrained logits are all alike, and no candidate would become a box.
    torch.nn.init.normal_(built.module.get_parameter("head.weight"), std=0.5)
    torch.nn.init.zeros_(built.module.get_parameter("head.bias"))
    probe = Probe(built.module.eval(), last_layer=built.last_layer, features=built.feature_layers).eval()
    names = tuple(map(str, range(8)))
    objects = task.stack([np.array([[8, 8, 60, 60, number % 3, 0]]) for number in range(8)])
    images = [view(number, width=160, height=96) for number in range(8)]
    known = Examples(images=images, targets=objects, ids=names, groups=names)
    targets = task.collate(objects)
    fit = gather(probe, known, targets, contract=contract, batch=4, lighten=task.lighten)
    kinds = [name for name in names_for("detection", exportable=True) if name != "stacked"]
    assert "silence" in kinds and "meta_detect" in kinds
    scores = build(kinds, task=task, fit=fit, holdout=fit)
    head = new_box_head(probe, task=task, recipe=recipe_named("learning-loss-pp"), contract=contract)
    torch.nn.init.normal_(head.correction.last, std=0.1)
    model = ScoredModel(probe, [head, *scores], output_name=task.output_name, answer=task.answer).eval()
    frames = known.batch([0, 1, 2], contract)
    with torch.no_grad():
        expected = model(frames)
    assert bool((expected["detections"][..., 4] > 0).any())
    graph = trace(model, contract=contract)
    values = open_session(graph).run(list(expected), {"image": frames.numpy()})
    for (name, wanted), value in zip(expected.items(), values, strict=True):
        np.testing.assert_allclose(value, wanted.numpy(), rtol=1e-4, atol=1e-4, err_msg=name)
    int8 = quantize(graph, target="tensorrt", frames=known, contract=contract, output=task.output_name)
    for lowered in (graph, halve(graph, output=task.output_name), int8):
        report = check_conformance(lowered)
        assert report["layers"] > 50 and report["executed"] is False
        values = open_session(lowered).run(None, {"image": frames.numpy()})
        assert all(np.isfinite(value).all() for value in values)
