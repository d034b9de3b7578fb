"""Detectors that nobody here made: what is recognised and refused, and that boxes and scores are right."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor
from typer.testing import CliRunner

from misfire_export.errors import ExportError, GraphError, LabelError, OutputError
from misfire_export.measure.run import open_session
from misfire_export.measure.trigger import Shifts
from misfire_export.options import Options
from misfire_export.sources.detectors.cutting import keep_outputs
from misfire_export.sources.detectors.exporting import export_detector
from misfire_export.sources.detectors.labelled import in_detectors_terms, order_known_classes
from misfire_export.sources.detectors.recognising import Recognised, recognise
from misfire_export.sources.facts import ModelFacts
from misfire_export.sources.frames import Frames
from misfire_export.sources.onnx.opening import load_graph
from misfire_runtime.bundle import Bundle
from misfire_runtime.cli import app
from misfire_runtime.errors import ConfigError
from misfire_runtime.placement import Placement
from misfire_runtime.preprocess import InputContract
from misfire_train.data import Examples
from misfire_train.scores.registry import SCORES, register
from misfire_train.signals import Score, Signals
from misfire_train.tasks.detection import Detection
from proving_ground.detector_truth import CLASSES, HEIGHT, WIDTH, kept, plain_scores
from proving_ground.detector_zoo import (
    BY_NAME,
    CASES,
    Case,
    Yolo5,
    expected,
    file_of,
    pictures,
    save,
    seeded,
    with_suppression,
)

# The layout states the input; this one is not read.
PLACEHOLDER = InputContract(height=8, width=8)
FREE = (
    "box_count",
    "entropy_sum",
    "entropy_max",
    "entropy_mean",
    "box_gradient_unweighted",
    "expected_errors",
    "expected_lrp",
)
OPTIONS = Options(name="theirs", version="1.0.0", shifts=Shifts(()), scores=["summed"])


@pytest.fixture
def summed() -> Iterator[str]:
    """A free score of this test: the sum of all candidates' probabilities."""

    @register(tasks=("detection",), source="here")
    class Summed(Score):
        name, definition, free = "summed", "sum of all scores", True

        def forward(self, signals: Signals) -> Tensor:
            return torch.sigmoid(signals.outputs[..., 4:-4].amax(2)).sum(1)

        def details(self, signals: Signals) -> Mapping[str, Tensor]:
            return {"box.best": torch.sigmoid(signals.outputs[..., 4:-4].amax(2))[:, :5]}

    yield "summed"
    SCORES.remove("summed")


def seen(path: Path, **more: Any) -> Recognised:
    return recognise(load_graph(path), pictures(10), more.pop("image", {}), **more)


def answers(bundle: Bundle, frames: Examples) -> dict[str, np.ndarray[Any, Any]]:
    """All outputs of a bundle, frame by frame: some exporters fix the batch at one."""
    session = ort.InferenceSession(bundle.model_path, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    images = frames.batch(range(len(frames)), bundle.manifest.input).numpy()
    rows = [session.run(names, {"image": image[None]}) for image in images]
    return {name: np.concatenate(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}


def assert_same_boxes(got: np.ndarray[Any, Any], truth: np.ndarray[Any, Any]) -> None:
    """Each box of one is in the other: numpy and the graph may order two of nearly one score differently."""
    assert len(got) == len(truth) > 0
    gaps = np.abs(got[:, None] - truth[None]).max(2)
    assert max(gaps.min(0).max(), gaps.min(1).max()) <= 1e-4


def names_of(case: Case) -> tuple[str, ...]:
    """Class names, where the file's own shape fits two layouts."""
    return tuple("abc") if case.name == "yolox-decoded" else ()


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_every_layout_is_recognised_and_decoded_as_numpy_reads_it(case: Case, tmp_path: Path) -> None:
    path = file_of(case, tmp_path / "m.onnx")
    found = seen(path, classes=len(names_of(case)), layout=case.stated)
    reading, contract = found.fit.reading, found.contract
    assert reading.layout == case.layout and reading.final is case.final
    assert found.said.startswith(f"layout {case.layout}: ") and f"input {WIDTH}x{HEIGHT}" in found.said
    session = open_session(keep_outputs(found.graph, reading.tensors))
    some = pictures(3, seed=9)
    for row in range(3):
        image = some.batch([row], contract).numpy()
        raw = [torch.from_numpy(value.astype(np.float32)) for value in session.run(None, {"image": image})]
        dense = reading.decoder(*raw).numpy()[0]
        boxes, scores = expected(case, path, image, tmp_path)
        np.testing.assert_allclose(dense[:, :4], boxes, atol=1e-4)
        np.testing.assert_allclose(1 / (1 + np.exp(-dense[:, 4:-4])), scores, atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["yolov8", "yolox", "rt-detr", "ssd"])
def test_a_bundle_answers_as_numpy_reads_the_file(name: str, summed: str, tmp_path: Path) -> None:
    case = BY_NAME[name]
    path, out = file_of(case, tmp_path / "m.onnx"), tmp_path / "bundle"
    frames, facts = Frames(pictures(60), labelled=False), ModelFacts(PLACEHOLDER)
    options = replace(OPTIONS, scores=[summed, *FREE])
    bundle = export_detector(path, frames, facts, out=out, options=options)
    manifest = bundle.manifest
    surgery, rule = manifest.extra["surgery"], manifest.detection
    assert surgery["layout"] == case.layout and surgery["misses_visible"] is not case.final
    assert any("misses cannot be seen" in note for note in manifest.extra["notes"]) is case.final
    assert manifest.task == "detection" and rule is not None and rule.suppression == case.suppression
    kinds = {output.name: output.kind for output in manifest.outputs}
    assert kinds["detections"] == "boxes" and kinds["box.best"] == "box"

    some = pictures(3, seed=9)
    found = answers(bundle, some)
    for row in range(3):
        image = some.batch([row], manifest.input).numpy()
        boxes, scores = expected(case, path, image, tmp_path)
        truth = kept(boxes, scores, suppression=case.suppression)
        got = found["detections"][row]
        got = got[got[:, 4] > 0]
        assert_same_boxes(got, truth)
        best = np.sort(scores.max(1))[::-1][: rule.candidates]
        assert found["score.summed"][row] == pytest.approx(best.sum(), abs=1e-4)
        for score, value in plain_scores(boxes, scores, rule).items():
            assert found[f"score.{score}"][row] == pytest.approx(value, abs=1e-4), score


@pytest.mark.slow
@pytest.mark.parametrize("plugin", [False, True])
def test_a_suppression_inside_the_file_is_cut_away_and_done_anew_with_its_thresholds(
    plugin: bool, summed: str, tmp_path: Path
) -> None:
    path = save(seeded(Yolo5), tmp_path / "m.onnx", outputs=("output0",))
    raw = path.read_bytes()
    with_suppression(path, plugin=plugin)
    bundle = export_detector(
        path,
        Frames(pictures(60), labelled=False),
        ModelFacts(PLACEHOLDER),
        out=tmp_path / "bundle",
        options=OPTIONS,
        rule={"max_boxes": 20},
    )
    rule = bundle.manifest.detection
    assert rule is not None and rule.max_boxes == 20
    assert (round(rule.suppression, 4), round(rule.score_threshold, 4)) == (
        (0.5, 0.35) if plugin else (0.45, 0.25)
    )
    assert not {"NonMaxSuppression", "EfficientNMS_TRT"} & {
        node.op_type for node in onnx.load(bundle.model_path).graph.node
    }
    assert bundle.manifest.extra["surgery"]["misses_visible"]
    (tmp_path / "raw.onnx").write_bytes(raw)
    some = pictures(2, seed=9)
    got = answers(bundle, some)["detections"]
    for row in range(2):
        image = some.batch([row], bundle.manifest.input).numpy()
        boxes, scores = expected(BY_NAME["yolov5"], tmp_path / "raw.onnx", image, tmp_path)
        truth = kept(boxes, scores, threshold=rule.score_threshold, suppression=rule.suppression)[:20]
        assert_same_boxes(got[row][: len(truth)], truth)


def test_where_two_layouts_fit_the_user_is_asked(tmp_path: Path) -> None:
    maps = save(seeded(lambda: Yolo5(maps=True)), tmp_path / "maps.onnx", outputs=("a", "b", "c"))
    with pytest.raises(GraphError, match=r"Two fit: yolov5 .* or yolov7 .*--layout"):
        seen(maps)
    assert seen(maps, layout="yolov7").fit.reading.layout == "yolov7"
    across = file_of(BY_NAME["yolox-decoded"], tmp_path / "x.onnx")
    with pytest.raises(GraphError, match=r"Two fit: ultralytics .* or yolox"):
        seen(across)
    assert seen(across, classes=CLASSES).fit.reading.layout == "yolox"
    assert seen(across, classes=CLASSES + 1).fit.reading.layout == "ultralytics"
    with pytest.raises(ConfigError, match="there is no layout 'yolo'; there are"):
        seen(across, layout="yolo")


def test_what_was_recognised_and_the_input_are_told_and_can_be_overridden(tmp_path: Path) -> None:
    path = file_of(BY_NAME["yolox"], tmp_path / "m.onnx")
    found = seen(path)
    for text in ("layout yolox", "boxes raw", "strides 8, 16, 32", "bgr", "letterbox-topleft with 114"):
        assert text in found.said
    other = seen(path, image={"color": "rgb", "std": [1.0], "resize": "stretch"}).contract
    assert (other.color, other.std, other.resize, other.width) == ("rgb", (1.0,), "stretch", WIDTH)


def test_distributions_inside_a_graph_become_the_spread_of_boxes(tmp_path: Path) -> None:
    assert any(
        "spread is known" in note
        for note in seen(file_of(BY_NAME["yolov8"], tmp_path / "a")).fit.reading.notes
    )


def constant(path: Path, outputs: Mapping[str, np.ndarray[Any, Any]]) -> Path:
    """A graph that answers these numbers to every picture."""
    nodes = [
        helper.make_node("ReduceMean", ["images"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
        *(helper.make_node("Add", [f"{name}/held", "nothing"], [name]) for name in outputs),
    ]
    held = [
        numpy_helper.from_array(value.astype(np.float32), f"{name}/held") for name, value in outputs.items()
    ]
    graph = helper.make_graph(
        nodes,
        "constant",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, HEIGHT, WIDTH])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.array(0, np.float32), "zero"), *held],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def flat(rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """A sound answer [1,4+C,126] of boxes around the cells."""
    from proving_ground.detector_truth import cells

    grid = cells((8, 16, 32), offset=0.5)
    boxes = np.concatenate((grid[:, :2], grid[:, 2:].repeat(2, 1)), 1)
    return np.concatenate((boxes, rng.random((len(grid), CLASSES))), 1).T[None]


def test_nonsense_is_refused_in_one_sentence(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sound = flat(rng)
    assert seen(constant(tmp_path / "m", {"o": sound})).fit.reading.layout == "ultralytics"
    above = sound.copy()
    above[:, 4:] *= 13
    with pytest.raises(GraphError, match=r"scores go from 0\.?\S* to 1[23](\.\d+)? where"):
        seen(constant(tmp_path / "m", {"o": above}))
    broken = sound.copy()
    broken[0, 2, 5] = np.nan
    with pytest.raises(OutputError, match="output o is NaN or infinite for image picture-0"):
        seen(constant(tmp_path / "m", {"o": broken}))
    turned = np.stack((sound[0, 0] + 9, sound[0, 1] + 9, sound[0, 0] - 9, sound[0, 1] - 9), 0)
    turned = np.concatenate((turned, sound[0, 4:]))[None]
    with pytest.raises(GraphError, match=r"outside the picture|x1 < x0"):
        seen(constant(tmp_path / "m", {"o": turned}))
    with pytest.raises(GraphError, match="these are boxes without scores"):
        seen(constant(tmp_path / "m", {"o": rng.random((1, 50, 4))}))
    with pytest.raises(GraphError, match=r"output o has shape \[17, 6\] for 1 frame: its first axis"):
        seen(constant(tmp_path / "m", {"o": rng.random((17, 6))}))
    with pytest.raises(GraphError, match=r"no layout of a detector has these outputs: o \[8, 10\]"):
        seen(constant(tmp_path / "m", {"o": rng.random((1, 10))}))


@pytest.mark.slow
def test_thousands_of_chosen_boxes_are_read_and_the_best_hundred_shown(summed: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    first = rng.random((5000, 2)) * (WIDTH / 2, HEIGHT / 2)
    rows = np.concatenate((first, first + 9, rng.random((5000, 1)), rng.integers(0, 3, (5000, 1))), 1)
    bundle = export_detector(
        constant(tmp_path / "m", {"o": rows[None]}),
        Frames(pictures(50), labelled=False),
        ModelFacts(PLACEHOLDER),
        out=tmp_path / "bundle",
        options=OPTIONS,
    )
    got = answers(bundle, pictures(1))["detections"][0]
    assert got.shape == (100, 6)
    np.testing.assert_allclose(got[:, 4], np.sort(rows[:, 4])[::-1][:100], atol=1e-4)


def test_an_unknown_second_input_and_an_unknown_plug_in_are_named(tmp_path: Path) -> None:
    path = file_of(BY_NAME["rt-detr"], tmp_path / "m.onnx")
    model = onnx.load(path)
    for value in model.graph.input:
        if value.name == "orig_target_sizes":
            value.name = "mystery"
    for node in model.graph.node:
        node.input[:] = ["mystery" if name == "orig_target_sizes" else name for name in node.input]
    onnx.save(model, path)
    with pytest.raises(GraphError, match="input mystery is none of those that are known"):
        seen(path)
    path = with_suppression(save(seeded(Yolo5), path, outputs=("output0",)), plugin=True)
    model = onnx.load(path)
    model.graph.node[-1].op_type = "SomethingElse"
    onnx.save(model, path)
    with pytest.raises(GraphError, match=r"unsupported operators: TRT\.SomethingElse"):
        seen(path)


def test_a_reduced_precision_and_a_wrong_rule_are_refused(summed: str, tmp_path: Path) -> None:
    path = file_of(BY_NAME["yolov8"], tmp_path / "m.onnx")
    frames, facts = Frames(pictures(50), labelled=False), ModelFacts(PLACEHOLDER)
    with pytest.raises(ExportError, match="lower the file itself"):
        export_detector(
            path,
            frames,
            facts,
            out=tmp_path / "b",
            options=Options(name="a", version="1.0.0", precision="fp16"),
        )
    with pytest.raises(ExportError, match="score_threshold"):
        export_detector(path, frames, facts, out=tmp_path / "b", options=OPTIONS, rule={"score_threshold": 2})
    with pytest.raises(ExportError, match="the calibration set has 8 frames"):
        export_detector(path, Frames(pictures(8), labelled=False), facts, out=tmp_path / "b", options=OPTIONS)
    assert not (tmp_path / "b").exists()


DATA = InputContract(height=32, width=48)
"""Of the data set: its boxes are in other pixels than the detector's."""


def labelled(case: Case, path: Path, count: int, *, seed: int, tmp: Path, drop: int) -> Examples:
    """Pictures of another shape, labelled with the detector's own boxes above .8; every `drop`-th lacks one.

    Classes are c, a, b in the data and a, b, c in the detector.
    """
    frames = pictures(count, height=60, width=120, seed=seed)
    contract = InputContract(height=HEIGHT, width=WIDTH, resize="letterbox", pad=114)
    network, data = (Placement.of(120, 60, c) for c in (contract, DATA))
    rows = []
    for position in range(count):
        image = frames.batch([position], contract).numpy()
        boxes, scores = expected(case, path, image, tmp)
        truth = kept(boxes, scores, threshold=0.8)[1 if position % drop == 0 else 0 :]
        target = np.zeros((len(truth), 6), np.float32)
        target[:, :4] = data.to_network(network.to_image(truth[:, :4]))
        target[:, 4] = (truth[:, 5] + 1) % CLASSES
        rows.append(target)
    return replace(frames, targets=Detection().stack(rows), ids=tuple(f"{seed}-{i}" for i in range(count)))


@pytest.mark.slow
def test_labels_are_brought_into_the_detectors_pixels_and_classes(tmp_path: Path) -> None:
    case = BY_NAME["yolov8"]
    path = file_of(case, tmp_path / "m.onnx")
    frames = Frames(
        labelled(case, path, 100, seed=1, tmp=tmp_path, drop=4),
        holdout=labelled(case, path, 60, seed=2, tmp=tmp_path, drop=4),
        classes=("c", "a", "b"),
        contract=DATA,
        task="detection",
    )
    options = replace(OPTIONS, scores=["expected_errors", "box_count"])
    rule = {"score_threshold": 0.8, "min_side": 0}
    bundle = export_detector(
        path,
        frames,
        ModelFacts(PLACEHOLDER, classes=("a", "b", "c")),
        out=tmp_path / "bundle",
        options=options,
        rule=rule,
    )
    found = bundle.manifest.extra["calibration"]
    assert bundle.manifest.classes == ("a", "b", "c")
    shown = (answers(bundle, frames.calibration)["detections"][..., 4] > 0).sum(1)
    lacking = sum(len(rows) < count for rows, count in zip(frames.calibration.targets, shown, strict=True))
    assert found["labelled"] and found["failures"] == lacking and 20 <= lacking <= 25
    assert 0.8 < found["accuracy"] < 1
    assert "box.p_tp" in {output.name for output in bundle.manifest.outputs}
    with pytest.raises(LabelError, match="another order of the classes explains the answers far better"):
        export_detector(
            path, frames, ModelFacts(PLACEHOLDER), out=tmp_path / "other", options=options, rule=rule
        )
    with pytest.raises(LabelError, match="needs labelled boxes"):
        wrong = replace(frames, calibration=replace(frames.calibration, targets=np.zeros(100, np.int64)))
        export_detector(
            path,
            wrong,
            ModelFacts(PLACEHOLDER),
            out=tmp_path / "other",
            options=options,
        )


def test_classes_that_the_detector_lacks_are_left_out_and_named() -> None:
    order = order_known_classes(("car", "tram", "bike"), 3, stated=("bike", "car", "sign"), metadata=())
    assert order.index == (1, -1, 0) and order.names == ("bike", "car", "sign")
    assert order.note == "the detector has no class for tram: such objects are left out of the labels"
    rows = np.array([[0, 0, 9, 9, label, 0] for label in (0, 1, 2)], np.float32)
    frames = replace(pictures(1), targets=Detection().stack([rows]))
    contract = InputContract(height=HEIGHT, width=WIDTH)
    placed = in_detectors_terms(Frames(frames, contract=contract), contract, order, Detection())
    assert placed.calibration.targets[0][:, 4].tolist() == [1, 0]
    with pytest.raises(LabelError, match="does not have: tram"):
        order_known_classes(("tram",), 3, stated=("bike", "car", "sign"), metadata=())


def test_a_detector_of_another_normalisation_is_noticed(tmp_path: Path) -> None:
    case = BY_NAME["yolov8"]
    path = file_of(case, tmp_path / "m.onnx")
    frames = labelled(case, path, 60, seed=1, tmp=tmp_path, drop=4)
    moved = [np.concatenate((rows[:, :4] * 0 + (0, 0, 3, 3), rows[:, 4:]), 1) for rows in frames.targets]
    given = Frames(
        replace(frames, targets=Detection().stack(moved)),
        classes=("a", "b", "c"),
        contract=DATA,
        task="detection",
    )
    bundle = export_detector(
        path,
        given,
        ModelFacts(PLACEHOLDER),
        out=tmp_path / "bundle",
        options=replace(OPTIONS, scores=["box_count"]),
        rule={"min_side": 0},
    )
    assert any("labelled objects, whatever their class" in note for note in bundle.manifest.extra["notes"])


def test_the_command_takes_layout_and_rule(tmp_path: Path) -> None:
    path = file_of(BY_NAME["yolox"], tmp_path / "m.onnx")
    (tmp_path / "pictures").mkdir()
    for position, image in enumerate(pictures(50).images):
        cv2.imwrite(str(tmp_path / "pictures" / f"{position:02}.png"), np.asarray(image)[:, :, ::-1])
    where = ["--dataset", f"images:{tmp_path / 'pictures'}", "--out", str(tmp_path / "bundle")]
    command = ["export", "--onnx", str(path), *where]
    more = ["--layout", "yolox", "--box-rule", '{"score_threshold": 0.5}', "--scores", "box_count"]
    result = CliRunner().invoke(app, [*command, "--task", "detection", *more, "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["task"] == "detection" and found["default_score"] == "box_count"
    assert found["notes"][0].startswith("layout yolox") and not any("assumed" in n for n in found["notes"])
    rule = Bundle.open(tmp_path / "bundle").manifest.detection
    assert rule is not None and rule.score_threshold == 0.5
    for wrong, said in (
        (["--task", "classification", "--layout", "yolox"], "--layout and --box-rule are for --onnx"),
        (["--task", "detection", "--box-rule", "[1]"], "--box-rule is"),
        (["--task", "detection", "--scores", "egl"], "'egl' cannot be appended"),
    ):
        refused = CliRunner().invoke(app, [*command, *wrong])
        assert refused.exit_code == 1 and said in str(refused.exception)
