"""What a data set's reader noted goes into the run; a run that failed leaves nothing behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from misfire_runtime.cli import app
from misfire_runtime.errors import ConfigError
from misfire_runtime.preprocess import encode_png
from misfire_train.data import load_dataset
from misfire_train.errors import DatasetError
from misfire_train.fit import train_run
from misfire_train.runs import load_run, run_splits
from misfire_train.train_config import TrainConfig, parse_train_config


def write_squares(folder: Path, *, count: int = 60) -> str:
    """Light squares at three places, a class each, and an empty class between them."""
    for at, label in enumerate(("left", "middle", "right")):
        (folder / label).mkdir(parents=True)
        for i in range(count):
            image = np.random.default_rng(count * at + i).integers(0, 120, (8, 24, 3), np.uint8)
            image[:, 8 * at : 8 * at + 8] += 60
            (folder / label / f"drive{i // 3}").mkdir(exist_ok=True)
            (folder / label / f"drive{i // 3}" / f"{i}.png").write_bytes(encode_png(image))
    (folder / "nothing").mkdir()
    return f"image-folder:{folder}"


def config(name: str, **overrides: Any) -> TrainConfig:
    small = {"model.options": {"width": 4}, "training.epochs": 1, "head.steps": 20, "head.copies": 1}
    return parse_train_config({}, overrides={"dataset": name, **small, **overrides})


def test_notes_are_printed_shown_and_recorded_and_an_empty_class_is_trained_around(tmp_path: Path) -> None:
    name = write_squares(tmp_path / "data")
    options = ["--dataset", name, "--out", str(tmp_path / "run"), "--epochs", "1", "--json"]
    (tmp_path / "c.toml").write_text("[model.options]\nwidth = 4\n[head]\nsteps = 20\ncopies = 1\n")
    result = CliRunner().invoke(app, ["train", "--config", str(tmp_path / "c.toml"), *options])
    assert result.exit_code == 0, result.output
    note = "classes without a readable image: nothing"
    assert f"note: {note}" in result.stderr
    printed = json.loads(result.stdout)
    run = load_run(tmp_path / "run")
    shown = json.loads(CliRunner().invoke(app, ["data", "show", name, "--json"]).stdout)
    assert note in printed["notes"] == shown["notes"] == list(run.record.dataset.notes)
    assert run.record.classes == ("left", "middle", "nothing", "right")
    assert run.record.model.outputs == 4


def test_a_data_set_whose_classes_changed_is_refused(tmp_path: Path) -> None:
    name = write_squares(tmp_path / "data")
    run = train_run(config(name, **{"head.recipe": "none"}), out=tmp_path / "run")
    run_splits(run, load_dataset(name))
    (tmp_path / "data" / "behind").mkdir()
    with pytest.raises(
        ConfigError, match=r"trained on the classes left, middle, nothing, right; .* with behind"
    ):
        run_splits(run, load_dataset(name))


def test_a_failed_training_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="is not a folder"):
        train_run(config(f"image-folder:{tmp_path / 'gone'}"), out=tmp_path / "runs" / "first")
    assert not (tmp_path / "runs").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    name = write_squares(tmp_path / "data")
    for out in (tmp_path / "mine", tmp_path / "mine" / "run"):
        with pytest.raises(ConfigError, match="layer9"):
            train_run(config(name, **{"head.layers": ["layer9"]}), out=out)
        assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_a_set_of_few_drives_can_be_trained_on_without_groups(tmp_path: Path) -> None:
    for label in ("a", "b"):
        for i in range(30):
            folder = tmp_path / "data" / label / f"drive{i // 10}"
            folder.mkdir(parents=True, exist_ok=True)
            image = np.random.default_rng(i).integers(0, 255, (16, 16, 3), np.uint8)
            (folder / f"{i}.png").write_bytes(encode_png(image))
    name = f"image-folder:{tmp_path / 'data'}"
    with pytest.raises(DatasetError, match=r"2 groups of 40 examples are too few .* group=none"):
        train_run(config(name), out=tmp_path / "run")
    run = train_run(config(f"{name}?group=none", **{"head.recipe": "none"}), out=tmp_path / "run")
    assert run.record.dataset.counts["calibration"] > 0


def test_the_folder_of_published_sets_is_named_or_the_users_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MISFIRE_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    listed = CliRunner().invoke(app, ["data", "list", "--json"])
    assert json.loads(listed.stdout)["roots"] == [str(tmp_path / "misfire" / "data")]
