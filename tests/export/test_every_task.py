"""Every task, from a trained run to a vehicle that runs the bundle, and to TensorRT's builder.

Digits, and figures drawn over real photographs; small networks, every exportable score in one graph.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

import misfire_train.data
import misfire_train.fit
from misfire_export.measure.conformance import check_conformance
from misfire_export.measure.run import open_session
from misfire_export.precision.fp16 import halve
from misfire_export.precision.int8 import quantize
from misfire_runtime.bundle import Bundle
from misfire_runtime.cli import app
from misfire_runtime.preprocess import encode_png
from misfire_train.data import Dataset, load_dataset
from misfire_train.data.drawn.figures import Labels
from misfire_train.fit import train_run
from misfire_train.runs import Run
from misfire_train.scores import names_for
from misfire_train.train_config import parse_train_config
from proving_ground.pictures import drawn_figures

pytestmark = pytest.mark.slow

LABELS: dict[str, Labels] = {"keypoints": "keypoints", "segmentation": "parts", "regression": "boxes"}
OUTPUTS = {
    "classification": ("logits", (-1, 10)),
    "keypoints": ("heatmaps", (-1, 14, 12, 12)),
    "segmentation": ("segmentation", (-1, 5, 48, 48)),
    "regression": ("values", (-1, 4)),
}


def need_tensorrt() -> None:
    if os.environ.get("MISFIRE_REQUIRE_SERVICES") != "1":
        pytest.importorskip("tensorrt_rtx", reason="pip install 'misfire[tensorrt-check]'")


@dataclass(frozen=True)
class Exported:
    """What `misfire export RUN --scores all` printed, and the bundle that it wrote."""

    run: Run
    dataset: Dataset
    bundle: Bundle
    printed: dict[str, object]


def small_data(task: str) -> Dataset:
    """The catalogue's figures are 96 pixels wide and thousands; these are the same, smaller and fewer."""
    if task == "classification":
        return load_dataset("digits")
    return drawn_figures(labels=LABELS[task], side=48, train=300, test=12)


@pytest.fixture(scope="module", params=list(OUTPUTS))
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exported]:
    task = str(request.param)
    folder, dataset = tmp_path_factory.mktemp(task), small_data(task)
    config = parse_train_config(
        {
            "dataset": dataset.name,
            "seed": 1,
            "model": {"options": {"width": 4}},
            "training": {"epochs": 3, "batch": 32},
            "split": {"train": 0.45, "validation": 0.05, "holdout": 0.25, "calibration": 0.25, "limit": 300},
            "head": {"steps": 60, "copies": 1, "strength": 1.0, "columns": "all"},
        }
    )
    with pytest.MonkeyPatch.context() as patch:
        for module in (misfire_train.fit, misfire_train.data):
            patch.setattr(module, "load_dataset", lambda _name, root=None: dataset)
        run = train_run(config, out=folder / "run")
        command = ["export", str(folder / "run"), "--out", str(folder / "bundle"), "--scores", "all"]
        # EGL++ with its bandwidth fixed; the classifier's searches it in the graph, which is the longer one.
        fixed = {"egl_pp_unweighted": {"sigma": "auto"}}
        if task != "classification":
            fixed["egl_pp"] = {"sigma": "auto"}
        command += ["--score-options", json.dumps(fixed)]
        result = CliRunner().invoke(app, [*command, "--json"])
    assert result.exit_code == 0, result.exception
    yield Exported(run, dataset, Bundle.open(folder / "bundle"), json.loads(result.stdout))


@pytest.mark.timeout(900)
def test_every_exportable_score_is_in_the_graph_and_equals_torch_on_real_images(exported: Exported) -> None:
    task, manifest = exported.run.record.task, exported.bundle.manifest
    expected = ["learning_loss_pp", *names_for(task, exportable=True)]
    assert [score.name for score in manifest.scores] == expected and "stacked" in expected
    assert manifest.parity is not None and manifest.parity.images == 64
    assert set(manifest.parity.max_abs) == {output.name for output in manifest.outputs}
    assert max(manifest.parity.max_abs.values()) <= manifest.parity.tolerance == 1e-4
    shapes = {output.name: (output.kind, output.shape) for output in manifest.outputs}
    name, shape = OUTPUTS[task]
    assert shapes[name] == (name, shape) and manifest.task == task


def test_failures_are_those_that_the_run_recorded(exported: Exported) -> None:
    failure, calibration = exported.run.record.failure, exported.bundle.manifest.extra["calibration"]
    threshold = None if failure is None else pytest.approx(failure.threshold)
    assert calibration["failure_threshold"] == threshold
    assert (failure is None) == (exported.run.record.task == "classification")
    assert 0 < calibration["failures"] < calibration["frames"]
    for score in exported.bundle.manifest.scores:
        assert len(score.operating_points) >= 3


def test_the_gate_prefers_a_score_only_with_a_reason(exported: Exported) -> None:
    gate, manifest = exported.bundle.manifest.extra["gate"], exported.bundle.manifest
    assert manifest.default_score in gate["verdict"] and exported.printed["verdict"] == gate["verdict"]
    chosen = manifest.score(manifest.default_score)
    assert chosen.free or gate["passed"]


def test_any_batch_size_gives_the_same_answers(exported: Exported) -> None:
    contract = exported.bundle.manifest.input
    session = open_session(exported.bundle.model_path.read_bytes())
    images = exported.dataset.test.batch(range(5), contract).numpy()
    together = session.run(None, {"image": images})
    for i in range(5):
        alone = session.run(None, {"image": images[i : i + 1]})
        for whole, part in zip(together, alone, strict=True):
            np.testing.assert_allclose(part[0], whole[i], rtol=1e-3, atol=1e-4)


def test_verify_inspect_and_bench_take_the_bundle(exported: Exported, tmp_path: Path) -> None:
    runner, path, page = CliRunner(), str(exported.bundle.path), tmp_path / "page.html"
    assert runner.invoke(app, ["bundle", "verify", path]).exit_code == 0
    shown = runner.invoke(app, ["bundle", "inspect", path, "--html", str(page)])
    assert (
        shown.exit_code == 0
        and "stacked" in shown.stdout
        and OUTPUTS[exported.run.record.task][0] in shown.stdout
    )
    assert page.read_text().count("<svg") >= 2 * len(exported.bundle.manifest.scores)
    bench = runner.invoke(app, ["bench", path, "--rounds", "10", "--json"])
    assert bench.exit_code == 0 and json.loads(bench.stdout)["ratio"] > 0


def test_a_vehicle_runs_the_bundle_and_keeps_frames(exported: Exported, tmp_path: Path) -> None:
    drive = tmp_path / "drive"
    drive.mkdir()
    for i in range(6):
        (drive / f"{i:03}.png").write_bytes(encode_png(exported.dataset.test.images[i]))
    command = [sys.executable, "-m", "misfire_runtime.cli", "run", "--bundle", str(exported.bundle.path)]
    command += ["--source", str(drive), "--spool", str(tmp_path / "spool"), "--provider", "cpu", "--json"]
    done = subprocess.run(
        [*command, "--random-rate", "1"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["frames"] == 6 and report["spooled"] == 6


@pytest.mark.timeout(900)
def test_tensorrt_parses_and_builds_the_graph_in_every_precision(exported: Exported) -> None:
    """The learned head, both EGL++, `stacked`: all scores of the task, in fp32, fp16 and TensorRT's int8."""
    need_tensorrt()
    graph, manifest = onnx.load(exported.bundle.model_path), exported.bundle.manifest
    output = OUTPUTS[manifest.task][0]
    lowered = quantize(
        graph, target="tensorrt", frames=exported.dataset.train, contract=manifest.input, output=output
    )
    for model in (graph, halve(graph, output=output), lowered):
        report = check_conformance(model)
        assert report["engine_bytes"] > 0 and report["layers"] >= 5 and report["executed"] is False
