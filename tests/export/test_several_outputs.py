"""A multi-task graph: one set of scores for each answer, named after it, and one trigger."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from foreign_cases import BIAS, CLASSES, OPTIONS, PLAIN, WEIGHT, answers_of, coloured
from onnx import helper
from shape_cases import binary_entropy, entropy, file_answers, save, softmax
from typer.testing import CliRunner

from misfire_export.errors import ExportError, GraphError
from misfire_export.sources.facts import ModelFacts
from misfire_export.sources.frames import Frames
from misfire_export.sources.onnx import export_onnx
from misfire_runtime.cli import app
from misfire_runtime.errors import ConfigError
from misfire_runtime.triggers.expression import compile_rule

pytestmark = pytest.mark.slow

FRAMES = coloured(20, seed=3)
NIGHT = np.array([[9.0, 7.0, 8.0], [-9.0, -7.0, -8.0]], np.float32)


def graph(path: Path) -> Path:
    """One body, three heads: a class, day or night (softmax), and a map of one sigmoid (road)."""
    nodes = [
        helper.make_node("GlobalAveragePool", ["pixels"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"], axis=1),
        helper.make_node("Gemm", ["f", "w", "b"], ["colour"], "colour_head", transB=1),
        helper.make_node("Gemm", ["f", "n", "nb"], ["nz"], "night_head", transB=1),
        helper.make_node("Softmax", ["nz"], ["time.of-day"], axis=1),
        helper.make_node("Conv", ["pixels", "r", "rb"], ["rz"], "road_head"),
        helper.make_node("Sigmoid", ["rz"], ["road"]),
    ]
    held = {
        "w": WEIGHT,
        "b": BIAS,
        "n": NIGHT,
        "nb": np.array([-10, 10], np.float32),
        "r": np.array([[4.0, -5.0, 3.0]], np.float32)[:, :, None, None],
        "rb": np.array([-1.0], np.float32),
    }
    return save(path, nodes, held, outputs={"colour": None, "time.of-day": None, "road": None})


def test_each_answer_has_scores_of_its_own_and_the_labelled_one_triggers(out: Path, tmp_path: Path) -> None:
    path = graph(tmp_path / "m.onnx")
    also = {"time.of-day": "classification", "road": "segmentation"}
    bundle = export_onnx(
        path,
        Frames(coloured(200), holdout=coloured(60, seed=5, prefix="held"), classes=CLASSES),
        ModelFacts(PLAIN, output="colour", also=also),
        out=out,
        options=replace(OPTIONS, scores=["entropy", "msp"]),
    )
    manifest = bundle.manifest
    names = {score.name: score for score in manifest.scores}
    assert {"entropy", "msp", "time_of_day_entropy", "time_of_day_egl", "road_entropy", "road_egl"} <= set(
        names
    )
    assert manifest.default_score in ("entropy", "msp")
    # Upload rates need no labels; recall does.
    assert names["entropy"].operating_points[0].failure_recall is not None
    assert names["road_entropy"].operating_points[0].failure_recall is None
    images = FRAMES.batch(range(20), PLAIN).numpy()
    theirs, found = file_answers(path, images), answers_of(bundle, FRAMES)
    assert found["score.entropy"] == pytest.approx(entropy(softmax(theirs["colour"])), abs=1e-4)
    assert found["score.time_of_day_entropy"] == pytest.approx(entropy(theirs["time.of-day"]), abs=1e-4)
    road = theirs["road"][:, 0].astype(np.float64)
    assert found["score.road_entropy"] == pytest.approx(binary_entropy(road).mean(axis=(1, 2)), abs=1e-4)
    energy = (np.square(images).sum(axis=1) + 1) / 3
    wanted = (2 * road * (1 - road) * energy).mean(axis=(1, 2))
    assert found["score.road_egl"] == pytest.approx(wanted, rel=1e-3)
    assert manifest.parity is not None and manifest.parity.max_abs["score.road_entropy"] < 1e-4
    assert any("quantiles only" in note for note in manifest.extra["notes"])
    compile_rule("time_of_day_entropy > 0.3 or percentile.road_entropy > 0.9", scores=list(names))


def test_further_outputs_must_exist_and_be_what_is_said(out: Path, tmp_path: Path) -> None:
    path = graph(tmp_path / "m.onnx")
    frames = Frames(coloured(60), classes=CLASSES)
    for also, text in (
        ({"depth": "classification"}, "no output 'depth'; it has colour"),
        ({"road": "classification"}, "an answer for each pixel"),
        ({"road": "keypoints"}, "a foreign graph can be a"),
    ):
        with pytest.raises(ExportError, match=text):
            export_onnx(path, frames, ModelFacts(PLAIN, output="colour", also=also), out=out, options=OPTIONS)
    with pytest.raises(GraphError, match="which output is the answer"):
        export_onnx(path, frames, ModelFacts(PLAIN), out=out, options=OPTIONS)
    command = ["export", "--torch", "a:b", "--also", "road", "--dataset", "digits", "--out", str(out)]
    failed = CliRunner().invoke(app, command).exception
    assert isinstance(failed, ConfigError | ExportError)
