"""Learned heads and silence on models that nobody here made: fitted on what the original file answers."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from foreign_cases import CLASSES, PLAIN, answers_of, coloured, network
from numpy.typing import NDArray
from onnx import helper
from shape_cases import roads, save
from test_foreign_detectors import DATA, PLACEHOLDER, labelled

from misfire_export.errors import ExportError
from misfire_export.measure.conformance import check_conformance
from misfire_export.measure.run import open_session
from misfire_export.measure.trigger import Shifts
from misfire_export.options import Options
from misfire_export.sources.detectors.cutting import feature_maps, keep_outputs
from misfire_export.sources.detectors.exporting import SEEN, export_detector
from misfire_export.sources.detectors.recognising import recognise
from misfire_export.sources.facts import ModelFacts
from misfire_export.sources.frames import Frames
from misfire_export.sources.onnx import outputs as onnx_outputs
from misfire_export.sources.onnx.exporting import export_onnx
from misfire_export.sources.onnx.opening import load_graph
from misfire_runtime.bundle import Bundle
from misfire_runtime.preprocess import InputContract
from misfire_train.data import Examples
from misfire_train.scores.boxes.silence import whitening
from proving_ground.detector_zoo import BY_NAME, file_of, pictures

pytestmark = pytest.mark.slow

OPTIONS = Options(name="theirs", version="1.0.0", shifts=Shifts(()))
HEAD = "learning_loss_pp"


def mean_features(path: Path, frames: Examples, contract: InputContract) -> NDArray[np.float64]:
    """The means of the original file's last feature maps, by numpy."""
    found = recognise(load_graph(path), pictures(10), {})
    tensors = found.fit.reading.tensors
    session = open_session(keep_outputs(found.graph, feature_maps(found.graph, tensors)))
    name = session.get_inputs()[0].name
    rows = []
    for image in frames.batch(range(len(frames)), contract).numpy():
        maps = session.run(None, {name: image[None]})
        rows.append(np.concatenate([np.asarray(each, np.float64)[0].mean((1, 2)) for each in maps]))
    return np.stack(rows)


def test_silence_without_labels_reads_the_files_own_feature_maps(tmp_path: Path) -> None:
    path = file_of(BY_NAME["yolov8"], tmp_path / "m.onnx")
    frames = pictures(120)
    bundle = export_detector(
        path,
        Frames(frames, labelled=False),
        ModelFacts(PLACEHOLDER),
        out=tmp_path / "bundle",
        options=replace(OPTIONS, scores=["box_count", "silence"]),
    )
    manifest = bundle.manifest
    # What is usual was learned on frames that set no threshold.
    assert manifest.score("silence").calibration.quantiles.count == round(120 * (1 - SEEN))
    assert any("frames show silence what is usual" in note for note in manifest.extra["notes"])
    assert {o.name: o.kind for o in manifest.outputs}["embedding"] == "embedding"
    some = pictures(3, seed=9)
    found = one_by_one(bundle, some)
    features = mean_features(path, some, manifest.input)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    assert found["embedding"] == pytest.approx(unit, abs=1e-5)
    # The whitener is fitted on the frames set aside, so any will do to see that distances are of features.
    assert np.isfinite(found["score.silence"]).all()


def one_by_one(bundle: Bundle, frames: Examples) -> dict[str, Any]:
    session = ort.InferenceSession(bundle.model_path, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    images = frames.batch(range(len(frames)), bundle.manifest.input).numpy()
    rows = [session.run(names, {"image": image[None]}) for image in images]
    return {name: np.concatenate(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}


def test_a_head_is_fitted_on_the_boxes_of_the_original_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Fewer versions than usual: what is shown here does not depend on them.
    monkeypatch.setattr(onnx_outputs, "COPIES", 1)
    case = BY_NAME["yolov8"]
    path = file_of(case, tmp_path / "m.onnx")
    held = labelled(case, path, 40, seed=2, tmp=tmp_path, drop=3)
    frames = Frames(
        labelled(case, path, 60, seed=1, tmp=tmp_path, drop=3),
        holdout=held,
        classes=("c", "a", "b"),
        contract=DATA,
        task="detection",
    )
    bundle = export_detector(
        path,
        frames,
        ModelFacts(PLACEHOLDER, classes=("a", "b", "c")),
        out=tmp_path / "bundle",
        options=replace(OPTIONS, scores=[HEAD, "expected_lrp", "silence"]),
        rule={"score_threshold": 0.8, "min_side": 0},
    )
    manifest = bundle.manifest
    kinds = {output.name: output.kind for output in manifest.outputs}
    assert kinds["box.p_tp"] == kinds["box.iou"] == "box" and kinds["embedding"] == "embedding"
    head = manifest.score(HEAD)
    assert not head.free and head.calibration.loss_scale is not None
    # Of so few failures the gate judges nothing, so the free score triggers.
    assert manifest.default_score == "expected_lrp" and "Too few" in manifest.extra["gate"]["verdict"]
    some = frames.calibration.take(np.arange(4))
    found = one_by_one(bundle, some)
    there = found["detections"][..., 4] > 0
    assert there.any() and ((found["box.p_tp"] > 0) == there).all()
    assert (found["box.iou"][there] >= manifest.detection.matching).all()  # type: ignore[union-attr]
    # silence is the distance of the original file's features to those of the held-out frames.
    spread = mean_features(path, held, manifest.input)
    whitener, center = whitening(torch.from_numpy(spread).float())
    features = mean_features(path, some, manifest.input).astype(np.float32)
    strange = np.square(features @ whitener.numpy() - center.numpy()).sum(1)
    wanted = np.log(strange) - 0.5 * np.log1p(there.sum(1))
    assert found["score.silence"] == pytest.approx(wanted, abs=2e-3)
    if os.environ.get("MISFIRE_REQUIRE_SERVICES") != "1":
        pytest.importorskip("tensorrt_rtx", reason="pip install 'misfire[tensorrt-check]'")
    assert check_conformance(load_graph(bundle.model_path))


def test_without_labels_a_head_is_refused_and_few_frames_have_no_silence(tmp_path: Path) -> None:
    path = file_of(BY_NAME["yolov8"], tmp_path / "m.onnx")
    frames, facts = Frames(pictures(60), labelled=False), ModelFacts(PLACEHOLDER)
    with pytest.raises(ExportError, match="score 'learning_loss_pp' cannot be appended"):
        export_detector(path, frames, facts, out=tmp_path / "b", options=replace(OPTIONS, scores=[HEAD]))
    bundle = export_detector(
        path, frames, facts, out=tmp_path / "b", options=replace(OPTIONS, scores=["box_count"])
    )
    assert any(
        note.startswith("silence is left out: it needs 100 frames") for note in bundle.manifest.extra["notes"]
    )


def test_a_classifier_file_gets_a_head_on_its_answers(tmp_path: Path) -> None:
    bundle = export_onnx(
        network(tmp_path / "m.onnx"),
        Frames(
            coloured(300),
            fit=coloured(200, seed=8, prefix="fit"),
            holdout=coloured(200, seed=5, prefix="held"),
            classes=CLASSES,
        ),
        ModelFacts(PLAIN),
        out=tmp_path / "bundle",
        options=replace(OPTIONS, scores=["entropy", HEAD]),
    )
    head = bundle.manifest.score(HEAD)
    assert not head.free and head.calibration.loss_scale is not None
    assert bundle.manifest.parity is not None and bundle.manifest.parity.max_abs[f"score.{HEAD}"] < 1e-4
    auroc = bundle.manifest.extra["scores"][HEAD]["auroc"]
    assert auroc > 0.7
    found = answers_of(bundle, coloured(20, seed=3))
    assert np.isfinite(found[f"score.{HEAD}"]).all()
    with pytest.raises(ExportError, match="labelled held-out frames"):
        export_onnx(
            network(tmp_path / "m.onnx"),
            Frames(coloured(60), classes=CLASSES),
            ModelFacts(PLAIN),
            out=tmp_path / "other",
            options=replace(OPTIONS, scores=[HEAD]),
        )


def test_a_segmenter_file_gets_a_head_of_its_tiles(tmp_path: Path) -> None:
    weight = np.array([[0.0, 0.0, 0.0], [4.0, -5.0, 3.0]], np.float32)[:, :, None, None]
    path = save(
        tmp_path / "m.onnx",
        [helper.make_node("Conv", ["pixels", "w", "b"], ["map"], "head")],
        {"w": weight, "b": np.array([0.0, -1.0], np.float32)},
        outputs={"map": None},
        shape=("n", 3, 8, 12),
    )
    bundle = export_onnx(
        path,
        Frames(
            roads(80),
            fit=roads(60, seed=8, prefix="fit"),
            holdout=roads(60, seed=5, prefix="held"),
            classes=("verge", "road"),
        ),
        ModelFacts(InputContract(height=8, width=12), task="segmentation"),
        out=tmp_path / "bundle",
        options=replace(OPTIONS, scores=["entropy", HEAD]),
    )
    assert bundle.manifest.parity is not None and bundle.manifest.parity.max_abs[f"score.{HEAD}"] < 1e-4
