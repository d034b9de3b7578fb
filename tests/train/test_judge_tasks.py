"""Joints, masks and values under the judge: trained and evaluated from the command line, on files."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from misfire_runtime.cli import app
from misfire_runtime.errors import ConfigError
from misfire_train.data import load_dataset
from misfire_train.data.drawn.figures import Labels
from misfire_train.data.drawn.poses import JOINTS
from misfire_train.judge.run_judging import Judging, judge_run
from misfire_train.runs import RECORD, load_run, run_splits
from proving_ground.pictures import drawn_figures

pytestmark = pytest.mark.slow

SIDE, TRAIN, TEST = 48, 150, 130
BIGGER = {"width": 96, "height": 96}
CONFIG = """
[model.options]
width = 4
[split]
validation = 0.05
holdout = 0.3
[training]
epochs = 8
batch = 16
learning_rate = 1e-2
[failure]
share = 0.4
[head]
steps = 30
copies = 1
families = ["noise", "fog"]
"""


def pictures(folder: Path, labels: Labels) -> list[tuple[str, str, Any]]:
    """(file, half, label) of figures written as files."""
    made = drawn_figures(labels=labels, side=SIDE, train=TRAIN, test=TEST)
    rows = []
    for half, examples in (("train", made.train), ("test", made.test)):
        (folder / half / "images").mkdir(parents=True)
        for i in range(len(examples)):
            name = f"{half}/images/{i:04d}.png"
            cv2.imwrite(str(folder / name), cv2.cvtColor(examples.images[i], cv2.COLOR_RGB2BGR))
            rows.append((name, half, examples.targets[i]))
    return rows


def write_joints(folder: Path) -> str:
    document: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 1, "name": "person", "keypoints": list(JOINTS)}],
    }
    for number, (name, _, joints) in enumerate(pictures(folder, "keypoints")):
        seen = joints[joints[:, 2] > 0, :2]
        low, size = seen.min(0), np.maximum(seen.max(0) - seen.min(0), 8)
        document["images"].append({"id": number, "file_name": name, "width": SIDE, "height": SIDE})
        document["annotations"].append(
            {
                "id": number,
                "image_id": number,
                "category_id": 1,
                "iscrowd": 0,
                "num_keypoints": len(seen),
                "bbox": [*map(float, low), *map(float, size)],
                "keypoints": [float(v) for v in joints.flatten()],
            }
        )
    (folder / "person_keypoints.json").write_text(json.dumps(document))
    return f"coco-keypoints:{folder / 'person_keypoints.json'}?size={SIDE}x{SIDE}"


def write_masks(folder: Path) -> str:
    for name, half, mask in pictures(folder, "parts"):
        path = folder / half / "masks" / Path(name).name
        path.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(path), mask)
    (folder / "classes.txt").write_text("background\nhead\ntorso\narms\nlegs\n")
    return f"masks:{folder}?size={SIDE}"


def write_values(folder: Path) -> str:
    rows = ["image,x,y,width,height,split"]
    for name, half, box in pictures(folder, "boxes"):
        rows.append(",".join([name, *(f"{value:.5f}" for value in box), half]))
    (folder / "boxes.csv").write_text("\n".join(rows) + "\n")
    return f"csv-regression:{folder / 'boxes.csv'}?size={SIDE}x{SIDE}"


CASES: dict[str, tuple[Callable[[Path], str], str, str]] = {
    "keypoints": (write_joints, "joints found", "White rings"),
    "segmentation": (write_masks, "% of pixels right", "true outlines"),
    "regression": (write_values, "height ", "furthest off"),
}


def invoke(*arguments: str) -> Any:
    result = CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.mark.parametrize("task", CASES)
def test_a_run_of_losses_is_trained_and_judged_from_the_command_line(task: str, tmp_path: Path) -> None:
    write, words, legend = CASES[task]
    name = write(tmp_path / "data")
    (tmp_path / "c.toml").write_text(CONFIG)
    trained = invoke(
        "train", "--config", str(tmp_path / "c.toml"), "--dataset", name, "--out", str(tmp_path / "run")
    )
    assert trained["task"] == task
    threshold = trained["failure"]["threshold"]
    held_out = trained["counts"]["holdout"]
    assert trained["failure"]["source"] == f"the worst 40 % of {held_out} clean holdout images"
    out = tmp_path / "judged"
    options = ["--scores", "all", "--shift", "fog", "--replicates", "50"]
    report = invoke("evaluate", str(tmp_path / "run"), *options, "--out", str(out))
    assert report["settings"]["failure_threshold"] == threshold
    assert report["settings"]["failure"].startswith(f"loss above {threshold:.4g}, of the run")
    conditions = {condition["name"]: condition for condition in report["conditions"]}
    assert set(conditions) == {"clean", "fog", "all conditions"}
    for condition in conditions.values():
        # Risk curves add up the loss, not the failures.
        assert condition["aurc"]["random"] == pytest.approx(condition["mean_loss"])
    assert 0 < conditions["clean"]["failures"] < conditions["clean"]["samples"]
    scored = {row["name"] for row in conditions["fog"]["scores"]}
    assert {"learning_loss_pp", "learning_loss_pp without fog", "knn_distance", "egl_pp"} <= scored
    assert ("stacked" in scored) or ("stacked" in report["skipped"])
    assert {"views", "verdict", "winner"} <= set(report["gate"])
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count("<img") == len(report["frames"]) > 8
    assert legend in page
    assert any(words in frame["predicted"] for frame in report["frames"]) or task == "regression"
    assert all(frame["predicted"] for frame in report["frames"])
    assert f"A failure: loss above {threshold:.4g}" in page
    check_failures(tmp_path / "run", name, threshold, conditions["clean"]["failures"])


def check_failures(path: Path, dataset_name: str, threshold: float, counted: int) -> None:
    """Failures are counted by the recorded threshold, which is the quantile of the holdout's losses."""
    run, dataset = load_run(path), load_dataset(dataset_name)
    parts = run_splits(run, dataset)
    losses = {
        part: run.task.sample_loss(
            run.model(examples.batch(range(len(examples)), run.contract)), torch.as_tensor(examples.targets)
        ).double()
        for part, examples in parts.items()
        if part in ("holdout", "test")
    }
    assert threshold == pytest.approx(torch.quantile(losses["holdout"], 0.6).item(), rel=1e-4)
    assert int((losses["test"] > threshold).sum()) == pytest.approx(counted, abs=1)
    assert run.task.failure_threshold == threshold


def test_a_threshold_may_be_stated_when_training_and_restated_when_judging(tmp_path: Path) -> None:
    name = write_values(tmp_path / "data")
    (tmp_path / "c.toml").write_text(CONFIG.replace("share = 0.4", "threshold = 0.02"))
    out = tmp_path / "run"
    found = invoke(
        "train", "--config", str(tmp_path / "c.toml"), "--dataset", name, "--out", str(out), "--head", "none"
    )
    assert found["failure"] == {"threshold": 0.02, "source": "stated in the configuration"}
    run, dataset = load_run(out), load_dataset(name)
    few = {"scores": ("output_deviation",), "replicates": 50}
    report, evidence = judge_run(run, dataset, Judging(**few))
    assert report.settings["failure"] == "loss above 0.02, of the run: stated in the configuration"
    assert np.array_equal(evidence.failed, evidence.loss > 0.02)
    other, evidence = judge_run(run, dataset, Judging(**few, failure_threshold=0.05))
    assert other.settings["failure"] == "loss above 0.05, stated with this evaluation"
    assert np.array_equal(evidence.failed, evidence.loss > 0.05)


def test_a_run_that_recorded_no_threshold_is_judged_by_its_holdout_never_by_its_test_half(
    tmp_path: Path,
) -> None:
    name = write_values(tmp_path / "data")
    (tmp_path / "c.toml").write_text(CONFIG)
    out = tmp_path / "run"
    invoke(
        "train", "--config", str(tmp_path / "c.toml"), "--dataset", name, "--out", str(out), "--head", "none"
    )
    record = json.loads((out / RECORD).read_text())
    del record["failure"]
    (out / RECORD).write_text(json.dumps(record))
    judging = Judging(scores=("output_deviation",), replicates=50)
    dataset = load_dataset(name)
    whole, _ = judge_run(load_run(out), dataset, judging)
    assert "the worst 20 % of" in whole.settings["failure"]
    assert "clean holdout images" in whole.settings["failure"]
    part, _ = judge_run(load_run(out), dataset, Judging(**{**vars(judging), "limit": 40}))
    assert part.settings["failure_threshold"] == whole.settings["failure_threshold"]


def test_a_data_set_that_was_read_at_another_size_is_refused(tmp_path: Path) -> None:
    name = write_masks(tmp_path / "data")
    (tmp_path / "c.toml").write_text(CONFIG.replace("epochs = 8", "epochs = 1"))
    out = tmp_path / "run"
    invoke(
        "train", "--config", str(tmp_path / "c.toml"), "--dataset", name, "--out", str(out), "--head", "none"
    )
    run = load_run(out)
    assert run.record.dataset.name == name
    other = load_dataset(name.partition("?")[0])
    with pytest.raises(ConfigError, match="was trained on"):
        run_splits(run, other)
    with pytest.raises(ConfigError, match=r"48x48 rgb, .* was read as 96x96 rgb"):
        run_splits(run, replace(other, name=name, contract=run.contract.model_copy(update=BIGGER)))
