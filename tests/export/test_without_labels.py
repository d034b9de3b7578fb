"""Pictures without labels calibrate upload rates: thresholds, but neither recall nor a verdict."""

from __future__ import annotations

import json
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from export_cases import tiny_classifier
from foreign_cases import coloured, network, true_logits
from typer.testing import CliRunner

from misfire_export.sources.frames import frames_of_dataset
from misfire_export.sources.pictures import VideoFrames, read_pictures
from misfire_runtime.bundle import Bundle
from misfire_runtime.cli import app
from misfire_runtime.commands.bundle_page import render_page
from misfire_runtime.errors import ConfigError
from misfire_train.data import load_dataset
from misfire_train.errors import DatasetError

RUNNER = CliRunner()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """120 coloured pictures in four subfolders, and a file that is none."""
    frames = coloured(120)
    for i in range(len(frames)):
        file = tmp_path / "pictures" / f"drive-{i % 4}" / f"{i:03}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(file), np.asarray(frames.images[i])[:, :, ::-1])
    (tmp_path / "pictures" / "drive-0" / "broken.png").write_bytes(b"no picture")
    return tmp_path / "pictures"


def video(path: Path, *, frames: int = 60) -> Path:
    """A video whose frame i is of brightness 4 i."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(frames):
            picture = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 4 * i, np.uint8), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


def test_a_graph_is_calibrated_on_a_folder_of_pictures(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    command = ["export", "--onnx", str(network(tmp_path / "m.onnx")), "--dataset", f"images:{folder}"]
    result = RUNNER.invoke(app, [*command, "--task", "classification", "--out", str(out), "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["calibration"]["labelled"] is False and found["calibration"]["accuracy"] is None
    assert "no labels were given" in found["verdict"] and found["default_score"] == "msp"
    assert any("1 unreadable images skipped" in note for note in found["notes"])
    assert any("pixels from 0 to 1 were assumed" in note for note in found["notes"])

    manifest = Bundle.open(out).manifest
    pictures = read_pictures(folder)[0]
    logits = true_logits(pictures)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    entropy = -(p * np.log(p)).sum(1)
    score = manifest.score("entropy")
    assert score.calibration.quantiles.count == 120
    assert np.allclose(
        score.calibration.quantiles.values,
        np.quantile(entropy, score.calibration.quantiles.levels),
        atol=1e-5,
    )
    rates = [point.upload_rate for point in score.operating_points]
    assert rates == sorted(rates) and 0.1 < rates[-1] < 0.3, "the last point asks for 20 %"
    assert (entropy >= score.operating_points[-1].threshold).mean() == pytest.approx(0.2, abs=0.01)
    assert all(point.failure_recall is None for point in score.operating_points)

    shown = RUNNER.invoke(app, ["bundle", "inspect", str(out)])
    assert shown.exit_code == 0 and "no labels" in shown.stdout and "have no labels" in shown.stdout
    assert "no labels" in render_page(manifest)


def test_a_module_is_calibrated_without_labels(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import export_cases

    monkeypatch.setattr(export_cases, "made", tiny_classifier, raising=False)
    out = tmp_path / "bundle"
    command = ["export", "--torch", "export_cases:made", "--dataset", f"images:{folder}", "--out", str(out)]
    size = ["--image", '{"height": 16, "width": 16, "mean": [0.4], "std": [0.3]}']
    result = RUNNER.invoke(app, [*command, *size, "--task", "classification"])
    assert result.exit_code == 0, result.output
    assert "120 frames without labels: upload rates only" in result.stdout
    assert "were assumed" not in result.stdout
    again = RUNNER.invoke(app, [*command, *size])
    assert again.exit_code == 1 and "--task" in str(again.exception)


def test_frames_of_a_video_are_spread_over_it_and_read_in_any_order(tmp_path: Path) -> None:
    path = video(tmp_path / "drive.mp4")
    frames = VideoFrames(path, most=7)
    assert len(frames) == 7 and frames.total == 60 and frames.places[0] == 0 and frames.places[-1] == 59
    brightness = [float(np.asarray(frames[i]).mean()) for i in (6, 0, 3, 3, 4)]
    expected = [4.0 * frames.places[i] for i in (6, 0, 3, 3, 4)]
    assert np.allclose(brightness, expected, atol=4)
    examples, sha256, notes = read_pictures(path)
    assert len(examples) == 60 and len(sha256) == 64 and not notes and len(set(examples.groups)) == 10


def test_what_cannot_be_read_as_pictures_is_refused_in_a_sentence(tmp_path: Path) -> None:
    for name, said in (("missing", "no such file"), ("text.txt", "a folder of pictures, or a video")):
        if name.endswith("txt"):
            (tmp_path / name).write_text("hello")
        with pytest.raises(ConfigError, match=said):
            frames_of_dataset(f"images:{tmp_path / name}", data=None, size=(3, 8, 8))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="no pictures in this folder"):
        frames_of_dataset(f"images:{tmp_path / 'empty'}", data=None, size=(3, 8, 8))
    with pytest.raises(ConfigError, match="state it with --image"):
        frames_of_dataset(f"images:{tmp_path / 'empty'}", data=None)
    (tmp_path / "broken.mp4").write_bytes(b"\0" * 2000)
    with pytest.raises(ConfigError, match="no frame that can be decoded"):
        frames_of_dataset(f"images:{tmp_path / 'broken.mp4'}", data=None, size=(3, 8, 8))
    with pytest.raises(DatasetError, match="only `misfire export`"):
        load_dataset(f"images:{tmp_path}")
