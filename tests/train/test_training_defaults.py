"""What a configuration leaves open is what the task trains well with; what it states is kept."""

from __future__ import annotations

import json
from pathlib import Path

from tests.train.box_labels import Frame, coco
from typer.testing import CliRunner

from misfire_runtime.cli import app
from misfire_train.runs import load_run
from misfire_train.tasks import get_task
from misfire_train.train_config import completed, parse_train_config, read_train_config

RECIPE = Path(__file__).resolve().parents[2] / "train/recipes/carla-detection.toml"


def test_a_detector_trains_with_the_values_of_its_recipe_unless_others_are_stated() -> None:
    defaults = get_task("detection").training_defaults
    plain, filled = completed(parse_train_config({"dataset": "carla-detection"}), defaults)
    stated = read_train_config(RECIPE)
    open_values = {"precision": stated.training.precision}
    assert plain.training.model_copy(update=open_values) == stated.training and plain.head == stated.head
    assert set(filled) >= {"epochs", "batch", "mosaic", "head.copies"}
    own, filled = completed(parse_train_config({"training": {"batch": 128, "mosaic": 0.0}}), defaults)
    assert (own.training.batch, own.training.mosaic, own.training.epochs) == (128, 0.0, 20)
    assert not {"batch", "mosaic"} & set(filled)
    assert completed(own, defaults) == (own, ())
    assert completed(parse_train_config({}), get_task("classification").training_defaults)[1] == ()


def test_the_command_shows_and_records_what_it_trains_with(tmp_path: Path) -> None:
    boxes = [(8.0, 8.0, 40.0, 40.0, 0, False)]
    frames = [Frame(f"{number}.png", width=64, height=64, boxes=boxes) for number in range(40)]
    coco(tmp_path / "data" / "instances.json", tmp_path / "data" / "images", frames)
    name = f"coco-boxes:{tmp_path / 'data'}?size=64x64"
    (tmp_path / "c.toml").write_text(
        '[model.options]\nwidth = 4\ntower = 8\n[head]\nrecipe = "none"\n[split]\nby_group = false\n'
    )
    config = str(tmp_path / "c.toml")
    given = ["train", "--config", config, "--dataset", name, "--epochs", "1"]
    result = CliRunner().invoke(app, [*given, "--out", str(tmp_path / "run")])
    assert result.exit_code == 0, result.output
    assert "training: epochs 1, batch 8," in result.stderr and "mosaic 0.5" in result.stderr
    assert "defaults of detection" in result.stderr
    run = load_run(tmp_path / "run")
    assert run.config.training.batch == 8 and run.config.training.epochs == 1
    again = CliRunner().invoke(app, [*given, "--out", str(tmp_path / "run"), "--resume", "--json"])
    assert again.exit_code == 0 and json.loads(again.stdout)["run_id"] == run.record.run_id
