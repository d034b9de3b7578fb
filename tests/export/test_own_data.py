"""Frames that come as one's own code, or as one's own split of folders."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from foreign_cases import CLASSES, coloured, network
from typer.testing import CliRunner

from misfire_runtime.bundle import Bundle
from misfire_runtime.cli import app
from misfire_runtime.errors import ConfigError, MisfireError
from misfire_train.data import load_dataset
from misfire_train.errors import DatasetError

pytestmark = pytest.mark.slow

SOURCE = """
import numpy as np
import torch
from torch.utils.data import Dataset


class Frames(Dataset):
    classes = ["red", "green", "blue"]

    def __init__(self, count, seed, form="hwc"):
        rng = np.random.default_rng(seed)
        self.labels = rng.integers(0, 3, count)
        images = rng.normal(110, 40, (count, 8, 8, 3))
        images[np.arange(count), :, :, self.labels] += rng.choice([4.0, 40.0], count)[:, None, None]
        self.images, self.form = np.clip(images, 0, 255).astype(np.uint8), form

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        image = self.images[i]
        if self.form == "chw":
            image = torch.from_numpy(image).permute(2, 0, 1)
        if self.form == "unit":
            image = torch.from_numpy(image).permute(2, 0, 1).float() / 255
        if self.form == "normalised":
            image = (image / 255 - 0.5) / 0.5
        return image, int(self.labels[i])


def pair():
    return Frames(200, 1), Frames(150, 2)


def tensors():
    return Frames(200, 1, "chw"), Frames(150, 2, "chw")


def floats():
    return Frames(200, 1, "unit"), Frames(150, 2, "unit")


def whole():
    contract = {"mean": [0.5], "std": [0.25]}
    return {"train": Frames(400, 1), "classes": ["red", "green", "blue"], "contract": contract}


def normalised():
    return Frames(20, 1, "normalised")


def typo():
    return {"training": Frames(20, 1)}


def depth():
    return np.zeros((20, 5, 8, 8), np.uint8), np.zeros(20, np.int64)


def broken():
    raise OSError("the disk is not mounted")
"""


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "their_frames.py").write_text(SOURCE)
    return tmp_path


def test_a_data_set_of_ones_own_code_is_read_in_every_form(source: Path) -> None:
    wanted = load_dataset("their_frames:pair")
    assert (wanted.task, wanted.classes) == ("classification", CLASSES)
    assert (len(wanted.train), len(wanted.test), wanted.contract.height) == (200, 150, 8)
    for form in ("tensors", "floats"):
        found = load_dataset(f"their_frames:{form}")
        assert all((found.train.images[i] == wanted.train.images[i]).all() for i in range(200))
        assert (found.test.targets == wanted.test.targets).all()
    whole = load_dataset("their_frames:whole")
    assert (len(whole.train), len(whole.test), whole.contract.mean) == (320, 80, (0.5,))
    assert "80 examples were set aside" in whole.notes[0]
    assert load_dataset("their_frames:pair").sha256 == wanted.sha256


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("normalised", r"float64 from .* leave normalisation out of the data set"),
        ("typo", "is a dict of training; expected train"),
        ("depth", r"shape \[5, 8, 8\]; .* sources give no further channels"),
        ("broken", "OSError: the disk is not mounted"),
        ("missing", "AttributeError"),
    ],
)
def test_own_code_that_gives_no_pictures_says_what_was_expected(source: Path, name: str, text: str) -> None:
    with pytest.raises(DatasetError, match=text):
        load_dataset(f"their_frames:{name}")


def test_own_code_serves_train_evaluate_and_export(source: Path) -> None:
    network(source / "m.onnx")
    for command in (
        ["export", "--onnx", "m.onnx", "--dataset", "their_frames:pair", "--out", "b", "--shifts", "none"],
        ["train", "--dataset", "their_frames:whole", "--epochs", "1", "--out", "run"],
        ["evaluate", "run", "--out", "judged"],
    ):
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, (command, result.exception)
    assert Bundle.open(source / "b").manifest.classes == CLASSES


def folders(root: Path, name: str, count: int, seed: int) -> str:
    frames = coloured(count, seed=seed)
    for i in range(count):
        place = root / name / CLASSES[int(frames.targets[i])]
        place.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(place / f"{i}.png"), np.asarray(frames.images[i])[:, :, ::-1])
    return f"image-folder:{root / name}"


def test_an_own_split_is_used_as_it_is_and_whole(source: Path) -> None:
    network(source / "m.onnx")
    parts = [
        folders(source, name, count, seed) for name, count, seed in (("a", 90, 1), ("b", 60, 2), ("c", 70, 3))
    ]
    arguments = ["export", "--onnx", "m.onnx", "--out", "bundle", "--shifts", "none", "--json"]
    arguments += ["--image", '{"mean": [0], "std": [1]}', "--scores", "entropy,wrong_prediction_approx"]
    # Folders count their classes by the alphabet, this model does not.
    (source / "names.txt").write_text("\n".join(CLASSES))
    arguments += ["--classes", "names.txt"]
    split = ["--train", parts[0], "--holdout", parts[1], "--test", parts[2]]
    result = CliRunner().invoke(app, [*arguments, *split])
    assert result.exit_code == 0, result.exception
    assert json.loads(result.stdout)["calibration"]["frames"] == 70
    for options, text in (
        (["--train", parts[0]], "needs --test"),
        ([*split, "--dataset", "digits"], "--dataset and --train, --holdout, --test"),
        (["--train", parts[0], "--test", parts[0]], "the same data set"),
        ([], "need --dataset: frames to calibrate on; or your own split"),
        (["--train", "digits", "--test", parts[2]], "--train has classification with classes 0, 1"),
    ):
        failed = CliRunner().invoke(app, [*arguments, *options]).exception
        assert isinstance(failed, ConfigError | MisfireError) and text in str(failed)
