"""A model of four channels (RGB and infrared): its pictures, its bundle, and its vehicle."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from misfire_export.errors import GraphError
from misfire_export.sources.frames import frames_of_dataset, laid_over
from misfire_runtime.bundle import Bundle
from misfire_runtime.cli import app
from misfire_runtime.errors import ConfigError, ImageError, MisfireError, SourceError
from misfire_runtime.preprocess import InputContract, decode_image, encode_png, to_tensor
from misfire_train.data.corruptions import corrupt

pytestmark = pytest.mark.slow

SOURCE = """
import numpy as np
import torch
from torch import nn


class Warm(nn.Module):
    # Whether the infrared is warm; the colours say nothing.
    def __init__(self):
        super().__init__()
        self.head = nn.Conv2d(4, 2, 1)
        with torch.no_grad():
            self.head.weight.zero_()
            self.head.bias.copy_(torch.tensor([5.0, -5.0]))
            self.head.weight[:, 3] = torch.tensor([-10.0, 10.0])[:, None, None]

    def forward(self, image):
        return self.head(image.mean((2, 3), keepdim=True)).flatten(1)


def net():
    return Warm()


def part(count, seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count)
    images = rng.integers(0, 256, (count, 12, 16, 4)).astype(float)
    images[..., 3] = rng.normal(128, 20, (count, 12, 16)) + (labels * 2 - 1)[:, None, None] * rng.choice(
        [1.0, 40.0], count
    )[:, None, None]
    return np.clip(images, 0, 255).astype(np.uint8), labels


def frames():
    return {"train": part(60, 1), "test": part(200, 2), "classes": ["cold", "warm"]}
"""


@pytest.fixture
def own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"four_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def run_cli(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None:
        raise result.exception
    return result.stdout


def pictures(folder: Path, count: int, *, channels: int = 4) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(7)
    for i in range(count):
        cv2.imwrite(str(folder / f"f{i:03d}.png"), rng.integers(0, 256, (12, 16, channels)).astype(np.uint8))
    return folder


def test_from_own_arrays_to_offers_of_a_folder(own_code: str, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    export = ["export", "--torch", f"{own_code}:net", "--dataset", f"{own_code}:frames", "--shifts", "fog"]
    found = json.loads(run_cli(*export, "--out", str(out), "--json"))
    assert found["calibration"]["accuracy"] > 0.6
    bundle = Bundle.open(out)
    assert bundle.manifest.input.color == "rgba" and bundle.manifest.input.channels == 4
    folder = pictures(tmp_path / "drive", 60)
    cv2.imwrite(str(folder / "plain.jpg"), np.zeros((12, 16, 3), np.uint8))
    command = ["run", "--bundle", str(out), "--source", str(folder), "--rate", "0.3", "--json"]
    result = json.loads(run_cli(*command, "--spool", str(tmp_path / "spool")).splitlines()[-1])
    assert result["frames"] == 60 and result["counters"]["captured"] > 0
    assert any("plain.jpg: 3 channels; the model takes four" in problem for problem in result["problems"])


def test_a_source_without_a_fourth_channel_is_named(own_code: str, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    export = ["export", "--torch", f"{own_code}:net", "--dataset", f"{own_code}:frames", "--shifts", "none"]
    run_cli(*export, "--out", str(out))
    plain = pictures(tmp_path / "plain", 3, channels=3)
    command = ["run", "--bundle", str(out), "--spool", str(tmp_path / "spool")]
    with pytest.raises(SourceError, match="3 channels; the model takes four of 8 bits"):
        run_cli(*command, "--source", str(plain))
    with pytest.raises(SourceError, match="cameras, streams and recordings give three"):
        run_cli(*command, "--source", "rtsp://127.0.0.1:9/none")


def test_folders_give_the_fourth_channel_that_the_model_takes(tmp_path: Path) -> None:
    for name in ("cold", "warm"):
        pictures(tmp_path / "four" / name, 40)
        pictures(tmp_path / "three" / name, 40, channels=3)
    size = (4, 12, 16)
    frames, contract = frames_of_dataset(f"image-folder:{tmp_path / 'four'}", data=None, size=size)
    assert contract.color == "rgba" and frames.calibration.batch([0, 1], contract).shape == (2, 4, 12, 16)
    frames, contract = frames_of_dataset(f"images:{tmp_path / 'four'}", data=None, size=size)
    assert frames.calibration.batch([0], contract).shape == (1, 4, 12, 16)
    with pytest.raises(MisfireError, match="3 channels; the model takes four"):
        frames_of_dataset(f"images:{tmp_path / 'three'}", data=None, size=size)
    with pytest.raises(ConfigError, match=r"takes four channels, the pictures of digits have three"):
        frames_of_dataset("digits", data=None, size=size)


def test_four_channels_keep_their_order_and_their_fourth() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (9, 7, 4)).astype(np.uint8)
    again = decode_image(encode_png(image), channels=4)
    assert (again == image).all() and (decode_image(encode_png(image)) == image[..., :3]).all()
    contract = InputContract(height=9, width=7, color="rgba")
    assert to_tensor(image, contract) == pytest.approx(image.transpose(2, 0, 1)[None] / 255, abs=1e-6)
    boxed = InputContract(height=20, width=20, color="rgba", resize="letterbox", dtype="uint8")
    assert to_tensor(image, boxed).shape == (1, 4, 20, 20)
    # A model of colours takes the first three.
    rgb = InputContract(height=9, width=7)
    assert (to_tensor(image, rgb) == to_tensor(np.ascontiguousarray(image[..., :3]), rgb)).all()
    worse = corrupt(image, "fog", severity=3, seed=0)
    assert (worse[..., 3] == image[..., 3]).all() and (worse[..., :3] != image[..., :3]).any()
    with pytest.raises(ImageError, match="a picture of 3 channels; the model takes four"):
        to_tensor(image[..., :3].copy(), contract)
    deep = cv2.imencode(".png", rng.integers(0, 65536, (4, 4, 4)).astype(np.uint16))[1].tobytes()
    with pytest.raises(ImageError, match="4 channels of 16 bits; the model takes four of 8 bits"):
        decode_image(deep, channels=4)


def test_statistics_of_three_channels_serve_four() -> None:
    rgb = InputContract(height=8, width=8, mean=(0.2, 0.4, 0.6), std=(0.1, 0.2, 0.3))
    four = laid_over(rgb, {"channels": 4})
    assert four.color == "rgba" and four.mean == pytest.approx((0.2, 0.4, 0.6, 0.4))
    assert laid_over(four, {"color": "rgb"}).mean == pytest.approx((0.2, 0.4, 0.6))


def test_five_channels_are_refused() -> None:
    from misfire_export.graph.check import require_layout

    with pytest.raises(GraphError, match="5 channels: a bundle takes 3 channels"):
        require_layout([1, 5, 8, 8], InputContract(height=8, width=8))
