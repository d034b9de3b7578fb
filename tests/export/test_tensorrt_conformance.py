"""TensorRT's own parser and builder take every kind of graph, in fp32, fp16 and int8, without a GPU."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from export_cases import examples_of, seeded_images
from onnx import TensorProto, helper
from torch import Tensor, nn

from misfire_export.conformance import check_conformance
from misfire_export.errors import ConformanceError
from misfire_export.exporting import export_run
from misfire_export.halving import halve
from misfire_export.quantizing import quantize
from misfire_export.tracing import trace
from misfire_runtime.preprocess import InputContract
from misfire_train.data import Examples
from misfire_train.runs import Run
from misfire_train.scores import build, gather, names_for
from misfire_train.signals import Probe, ScoredModel
from misfire_train.tasks import get_task

if os.environ.get("MISFIRE_REQUIRE_SERVICES") != "1":
    pytest.importorskip("tensorrt_rtx", reason="pip install 'misfire[tensorrt-check]'")

CONTRACT = InputContract(height=16, width=16)
OUTPUTS = 3


def network(task: str) -> nn.Module:
    torch.manual_seed(0)
    body: list[nn.Module] = [
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(),
    ]
    if task in ("classification", "regression"):
        return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, OUTPUTS)).eval()
    return nn.Sequential(*body, nn.Conv2d(8, OUTPUTS, 1)).eval()


def targets(task: str, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    if task == "classification":
        return torch.arange(count) % OUTPUTS
    if task == "regression":
        return torch.randn(count, OUTPUTS, generator=generator)
    if task == "keypoints":
        places = torch.rand(count, OUTPUTS, 2, generator=generator) * 15
        return torch.cat([places, torch.ones(count, OUTPUTS, 1)], 2)
    return torch.randint(0, OUTPUTS, (count, 16, 16), generator=generator, dtype=torch.uint8)


def graph_of(task: str) -> onnx.ModelProto:
    """A graph with every exportable score of a task, `stacked` of others among them."""
    model = network(task)
    last = str(len(model) - 1)  # type: ignore[arg-type]
    probe = Probe(model, last_layer=last)
    fit = gather(probe, torch.randn(60, 3, 16, 16), targets(task, 60))
    names = names_for(task, exportable=True)
    # One EGL++ searches its bandwidth in the graph, the other has it fixed: both forms are built.
    scores = build(names, task=task, fit=fit, holdout=fit, egl_pp_unweighted={"sigma": "auto"})
    return trace(ScoredModel(probe, scores, output_name=get_task(task).output_name), contract=CONTRACT)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["classification", "regression", "keypoints", "segmentation"])
def test_every_kind_of_graph_is_parsed_and_built_in_every_precision(task: str) -> None:
    graph = graph_of(task)
    report = check_conformance(graph)
    assert report["engine_bytes"] > 0 and report["layers"] >= 5 and report["executed"] is False
    frames = examples_of(seeded_images(32), np.zeros(32, np.int64))
    output = get_task(task).output_name
    lowered = quantize(graph, target="tensorrt", frames=frames, contract=CONTRACT, output=output)
    assert check_conformance(lowered)["engine_bytes"] > 0
    assert check_conformance(halve(graph, output=output))["engine_bytes"] > 0


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
        calibration=digits_parts["calibration"],
        fit=digits_parts["train"].take(range(300)),
        out=out,
        name="digits",
        version="1.0.0",
        scores=["entropy", "egl_pp"],
        precision="int8",
        target="tensorrt",
    )
    report = bundle.manifest.extra["tensorrt"]
    assert report["engine_bytes"] > 0 and report["executed"] is False
    assert "tensorrt-rtx" in report["checked_with"]
