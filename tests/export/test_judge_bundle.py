"""`misfire evaluate --bundle`: a bundle judged on labelled frames, by the vehicle's engine."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from misfire_runtime.bundle import Bundle
from misfire_runtime.cli import app
from misfire_train.data import Dataset
from misfire_train.errors import JudgeError
from misfire_train.judge.bundle_judging import Subject, class_index, judge_bundle, load_frames, open_bundle
from misfire_train.judge.run_judging import Judging, judge_run
from misfire_train.runs import Run
from misfire_train.tasks import get_task
from misfire_train.tasks.detection import Detection

pytestmark = pytest.mark.slow
QUICK = Judging(scores=("msp", "entropy", "learning_loss_pp"), replicates=50)


@pytest.fixture(scope="module")
def subject(digits_bundle: Bundle) -> Subject:
    return open_bundle(digits_bundle.path)


def test_a_bundle_is_judged_as_its_run_is(subject: Subject, digits: Dataset, digits_run: Run) -> None:
    of_run, _ = judge_run(digits_run, digits, QUICK)
    of_bundle, evidence = judge_bundle(subject, load_frames(subject, "digits"), QUICK)
    ours, theirs = of_bundle.condition("clean"), of_run.condition("clean")
    assert (ours.samples, ours.failures) == (theirs.samples, theirs.failures)
    assert ours.mean_loss == pytest.approx(theirs.mean_loss, rel=1e-4)
    for name in QUICK.scores:
        assert ours.score(name).metrics["auroc"].value == pytest.approx(
            theirs.score(name).metrics["auroc"].value, abs=1e-3
        )
    assert of_bundle.gate.winner == of_run.gate.winner
    assert of_bundle.calibrations[0].score == "learning_loss_pp"
    assert of_bundle.settings["engine"].startswith("CPU") or "cpu" in of_bundle.settings["engine"].lower()
    assert len(evidence) == len(digits.test)
    assert all(frame.picture for frame in of_bundle.frames)


def test_classes_are_compared_by_name(subject: Subject, digits: Dataset, tmp_path: Path) -> None:
    images = tmp_path / "set"
    for row in range(60):
        folder = images / "test" / digits.classes[int(digits.test.targets[row])]
        folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / f"{row}.png"), digits.test.images[row])
    (images / "train" / "0").mkdir(parents=True)
    cv2.imwrite(str(images / "train" / "0" / "x.png"), digits.test.images[0])
    backwards = tmp_path / "classes.txt"
    backwards.write_text("\n".join(reversed(digits.classes)) + "\n")
    frames = load_frames(subject, f"image-folder:{images}?classes={backwards}")
    assert frames.classes == digits.classes
    right = {
        Path(identity).stem: int(target)
        for identity, target in zip(frames.test.ids, frames.test.targets, strict=True)
    }
    assert right == {str(row): int(digits.test.targets[row]) for row in range(60)}
    (images / "test" / "zebra").mkdir()
    cv2.imwrite(str(images / "test" / "zebra" / "y.png"), digits.test.images[0])
    with pytest.raises(JudgeError, match="does not know these classes of the data set: zebra"):
        load_frames(subject, f"image-folder:{images}")


def test_targets_of_every_kind_are_renumbered() -> None:
    index = class_index(("car", "bike"), ("person", "bike", "car"), label="b")
    assert get_task("classification").renumber(np.array([0, 1]), index).tolist() == [2, 1]
    masks = np.array([[0, 1], [255, 0]], np.uint8)
    assert get_task("segmentation").renumber(masks, index).tolist() == [[2, 1], [255, 2]]
    boxes = Detection().stack(
        [np.array([[0, 0, 9, 9, 0, 0], [0, 0, 9, 9, -1, 1]], np.float32), np.zeros((0, 6))]
    )
    moved = Detection().renumber(boxes, index)
    assert [rows[:, 4].tolist() for rows in moved] == [[2, -1], []]
    values = np.ones((2, 4), np.float32)
    assert get_task("regression").renumber(values, index) is values


def test_the_command_judges_a_bundle_under_a_shift(digits_bundle: Bundle, tmp_path: Path) -> None:
    out, runner = tmp_path / "judged", CliRunner()
    base = ["evaluate", "--bundle", str(digits_bundle.path), "--out", str(out)]
    arguments = ["--dataset", "digits", "--shift", "noise", "--limit", "200", "--replicates", "50", "--json"]
    found = runner.invoke(app, [*base, *arguments])
    assert found.exit_code == 0, found.output
    values = json.loads((out / "report.json").read_text())
    assert [each["name"] for each in values["conditions"]] == ["clean", "noise", "all conditions"]
    assert values["settings"]["bundle"] == digits_bundle.manifest.label
    assert any("not held out" in note for note in values["gate"]["notes"])
    assert "data:image/png" in (out / "report.html").read_text()
    for wrong, message in (
        ([], "--bundle needs --dataset"),
        (["--dataset", "digits", "--scores", "nope"], "has no score nope; there are all, free"),
        (["--dataset", "digits", "--part", "field"], "leave out --part"),
    ):
        failed = runner.invoke(app, [*base, *wrong])
        assert message in str(failed.exception)
    given_as_run = runner.invoke(app, ["evaluate", str(digits_bundle.path), "--out", str(out)])
    assert "is a bundle, not a run: misfire evaluate --bundle" in str(given_as_run.exception)
