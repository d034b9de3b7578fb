"""`misfire bundle verify|inspect` and `misfire bench` on a real bundle, whole and damaged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from misfire_runtime.bundle import Bundle
from misfire_runtime.cli import app
from misfire_runtime.commands.bundle_page import render_page
from misfire_runtime.commands.latency import load_frames, measure
from misfire_runtime.engines.base import EngineOptions
from misfire_runtime.errors import BundleError, ConfigError

pytestmark = pytest.mark.slow

RUNNER = CliRunner()


@pytest.fixture
def copy(digits_bundle: Bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(digits_bundle.path, tmp_path / "copy"))


def test_an_intact_bundle_verifies(copy: Path) -> None:
    result = RUNNER.invoke(app, ["bundle", "verify", str(copy), "--json"])
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {"bundle": "digits@1.0.0", "intact": True, "problems": []}


@pytest.mark.parametrize("damage", ["changed", "missing", "extra", "external"])
def test_every_changed_missing_or_extra_file_is_named(copy: Path, damage: str) -> None:
    named = {
        "changed": "model.onnx",
        "missing": "golden.npz",
        "extra": "notes.txt",
        "external": "model.onnx.data",
    }
    if damage == "changed":
        data = bytearray((copy / "model.onnx").read_bytes())
        data[len(data) // 2] ^= 1
        (copy / "model.onnx").write_bytes(data)
    elif damage == "missing":
        (copy / "golden.npz").unlink()
    else:
        (copy / named[damage]).write_bytes(b"weights from elsewhere")
    result = RUNNER.invoke(app, ["bundle", "verify", str(copy)])
    assert result.exit_code == 1 and named[damage] in result.stdout
    with pytest.raises(BundleError, match=named[damage]):
        Bundle.open(copy)


def test_inspect_shows_scores_thresholds_and_parity(digits_bundle: Bundle) -> None:
    result = RUNNER.invoke(app, ["bundle", "inspect", str(digits_bundle.path)])
    assert result.exit_code == 0
    for text in ("learning_loss_pp", "failures found", "parity", "digits@1.0.0"):
        assert text in result.stdout


def test_the_page_holds_the_three_curves_and_nothing_from_elsewhere(
    digits_bundle: Bundle, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    result = RUNNER.invoke(app, ["bundle", "inspect", str(digits_bundle.path), "--html", str(page)])
    text = page.read_text()
    assert result.exit_code == 0 and text.count("<svg") >= 7
    assert "predicted loss" in text and "share kept" in text
    assert "c set on other frames" in text and "thresholds set on other frames (5 folds of whole" in text
    assert "http://" not in text and "https://" not in text and "<script" not in text


def test_the_page_escapes_what_a_manifest_says(digits_bundle: Bundle) -> None:
    score = digits_bundle.manifest.scores[0].model_copy(update={"definition": "<img src=x onerror=alert(1)>"})
    evil = digits_bundle.manifest.model_copy(
        update={
            "scores": (score, *digits_bundle.manifest.scores[1:]),
            "extra": {"scores": {"entropy": "nonsense"}},
        }
    )
    assert "<img" not in render_page(evil)
    odd = {"gate": {"shifts": ["<img src=x>"], "refitted": 3}, "calibration": {"cross_fitted": ["<img"]}}
    for extra in (odd, {"gate": [], "calibration": "<img"}, {"scores": {"entropy": {"reliability": "<img"}}}):
        assert "<img" not in render_page(digits_bundle.manifest.model_copy(update={"extra": extra}))


def test_bench_compares_the_bundle_with_its_task_alone(digits_bundle: Bundle) -> None:
    result = RUNNER.invoke(app, ["bench", str(digits_bundle.path), "--rounds", "20", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert set(found["latency_ms"]) == {"bundle", "bare"} and found["ratio"] > 0
    for values in found["latency_ms"].values():
        assert 0 < values["p50"] <= values["p95"] <= values["p99"]
    assert found["provider"] == "CPUExecutionProvider" and found["memory_bytes"]["peak_process"] > 0


def test_bench_takes_batches_and_pictures(digits_bundle: Bundle, tmp_path: Path) -> None:
    frames = load_frames(digits_bundle, None)
    found = measure(digits_bundle, options=EngineOptions(provider="cpu"), frames=frames, batch=3, rounds=10)
    assert found["batch"] == 3
    with pytest.raises(ConfigError, match=r"\.jpg or \.png"):
        load_frames(digits_bundle, tmp_path)
    result = RUNNER.invoke(app, ["bench", str(digits_bundle.path), "--provider", "abacus"])
    assert result.exit_code == 2
    assert "abacus" in result.output
