"""A detector with further answers: each has scores of its own beside those of the boxes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from shape_cases import binary_entropy, entropy, softmax

from misfire_export.errors import ExportError
from misfire_export.measure.trigger import Shifts
from misfire_export.options import Options
from misfire_export.sources.detectors.exporting import export_detector
from misfire_export.sources.facts import ModelFacts
from misfire_export.sources.frames import Frames
from misfire_runtime.bundle import Bundle
from misfire_runtime.engines.scoring import Scorer
from misfire_runtime.preprocess import InputContract
from proving_ground.detector_zoo import BY_NAME, file_of, pictures

pytestmark = pytest.mark.slow

OPTIONS = Options(name="theirs", version="1.0.0", shifts=Shifts(()), scores=["box_count", "expected_errors"])
FACTS = ModelFacts(InputContract(height=8, width=8), also={"scene": "classification", "road": "segmentation"})


def with_heads(path: Path) -> Path:
    """A YOLOv8 file with a class of the whole picture (logits) and a map of one sigmoid beside its boxes."""
    model = onnx.load(file_of(BY_NAME["yolov8"], path))
    rng = np.random.default_rng(0)
    held = {
        "scene/w": rng.normal(0, 3, (2, 3)),
        "scene/b": rng.normal(0, 0.1, 2),
        "road/w": rng.normal(0, 2, (1, 3, 1, 1)),
        "road/b": rng.normal(0, 0.1, 1),
    }
    picture = model.graph.input[0].name
    model.graph.initializer.extend(
        numpy_helper.from_array(v.astype(np.float32), name) for name, v in held.items()
    )
    model.graph.node.extend(
        [
            helper.make_node("GlobalAveragePool", [picture], ["scene/g"]),
            helper.make_node("Flatten", ["scene/g"], ["scene/f"], axis=1),
            helper.make_node("Gemm", ["scene/f", "scene/w", "scene/b"], ["scene"], transB=1),
            helper.make_node("Conv", [picture, "road/w", "road/b"], ["road/z"]),
            helper.make_node("Sigmoid", ["road/z"], ["road"]),
        ]
    )
    model.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("scene", "road")
    )
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_heads(tmp_path_factory.mktemp("file") / "m.onnx")


@pytest.fixture(scope="module")
def bundle(path: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export_detector(
        path,
        Frames(pictures(50), labelled=False),
        FACTS,
        out=tmp_path_factory.mktemp("out") / "bundle",
        options=OPTIONS,
    )


def test_scores_of_boxes_and_of_further_answers_are_in_one_graph(path: Path, bundle: Bundle) -> None:
    manifest = bundle.manifest
    names = [score.name for score in manifest.scores]
    assert names[:2] == ["box_count", "expected_errors"]
    assert {"scene_entropy", "scene_egl", "road_entropy", "road_egl"} <= set(names)
    assert manifest.task == "detection" and manifest.default_score in names[:2]
    kinds = [(answer.name, answer.kind) for answer in manifest.further]
    assert [name for name, _ in kinds] == ["scene", "road"]
    assert manifest.parity is not None and max(manifest.parity.max_abs.values()) < 1e-4
    assert any("scene, road: scores with quantiles only" in note for note in manifest.extra["notes"])
    theirs = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    ours = ort.InferenceSession(bundle.model_path, providers=["CPUExecutionProvider"])
    images = pictures(4).batch(range(4), manifest.input).numpy()
    for image in images:
        scene, road = theirs.run(["scene", "road"], {theirs.get_inputs()[0].name: image[None]})
        wanted = ["detections", "score.scene_entropy", "score.road_entropy"]
        boxes, of_scene, of_road = ours.run(wanted, {manifest.input.name: image[None]})
        assert boxes.shape[2] == 6
        assert of_scene == pytest.approx(entropy(softmax(scene)), abs=1e-4)
        assert of_road == pytest.approx(binary_entropy(road[:, 0]).mean(axis=(1, 2)), abs=1e-4)


def test_a_vehicle_runs_it(bundle: Bundle) -> None:
    scorer = Scorer.load(bundle)
    try:
        scored = scorer.score(np.asarray(pictures(1).images[0]))
    finally:
        scorer.close()
    assert {"box_count", "scene_entropy", "road_entropy"} <= set(scored.scores)


@pytest.mark.parametrize(
    ("also", "text"),
    [
        ({"depth": "classification"}, "--also: the graph has no output 'depth'; it has .*scene, road"),
        ({"output0": "classification"}, "--also: output output0 is part of the detector's own answer"),
        ({"scene": "keypoints"}, "a foreign graph can be a"),
    ],
)
def test_what_cannot_be_scored_beside_is_refused(
    path: Path, tmp_path: Path, also: dict[str, str], text: str
) -> None:
    with pytest.raises(ExportError, match=text):
        export_detector(
            path,
            Frames(pictures(50), labelled=False),
            replace(FACTS, also=also),
            out=tmp_path / "b",
            options=OPTIONS,
        )
    assert not (tmp_path / "b").exists()
