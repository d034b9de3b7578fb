"""Several labels of one image: sigmoids that stand for themselves, from a graph, a module and a run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from export_cases import examples_of
from foreign_cases import OPTIONS, PLAIN, answers_of, network
from numpy.typing import NDArray
from onnx import helper
from shape_cases import binary_entropy, file_answers
from torch import Tensor, nn
from typer.testing import CliRunner

from misfire_export.errors import GraphError, LabelError
from misfire_export.sources.facts import ModelFacts
from misfire_export.sources.frames import Frames
from misfire_export.sources.module import export_module_bundle
from misfire_export.sources.onnx.exporting import export_onnx
from misfire_runtime.bundle import Bundle
from misfire_runtime.cli import app
from misfire_runtime.engines.scoring import Scorer
from misfire_train import attach
from misfire_train.data import Examples, load_dataset
from misfire_train.errors import DatasetError
from misfire_train.tasks import get_task

pytestmark = pytest.mark.slow

LABELS = ("reddish", "greenish", "bluish")


def tinted(count: int, *, seed: int = 0, prefix: str = "frame") -> Examples:
    """Noisy 8 x 8 frames with any of three tints; each label is there or not by itself."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, (count, 3))
    images = rng.normal(100, 30, (count, 8, 8, 3))
    images += labels[:, None, None, :] * rng.choice([15.0, 60.0], (count, 1, 1, 1))
    return examples_of(np.clip(images, 0, 255).astype(np.uint8), labels.astype(np.float32), prefix=prefix)


WEIGHTS = (np.eye(3) * 30).astype(np.float32)
BIASES = np.full(3, -30 * 112 / 255, np.float32)
FRAMES = tinted(20, seed=3)


def pixels() -> NDArray[np.float32]:
    return FRAMES.batch(range(20), PLAIN).numpy()


def graph(path: Path, tail: str = "Sigmoid") -> Path:
    nodes = [helper.make_node(tail, ["z"], ["p"])] if tail else []
    return network(path, nodes, outputs=["p" if tail else "z"], weight=WEIGHTS, bias=BIASES)


def export_labels(path: Path, out: Path, *, frames: Examples | None = None, **more: Any) -> Bundle:
    given = Frames(
        frames or tinted(200), holdout=tinted(60, seed=5, prefix="held"), classes=more.pop("classes", LABELS)
    )
    facts = ModelFacts(PLAIN, task="multi-label", classes=more.pop("model_classes", ()))
    return export_onnx(path, given, facts, out=out, options=OPTIONS)


@pytest.mark.parametrize("tail", ["Sigmoid", ""], ids=["sigmoid", "logits"])
def test_scores_of_independent_labels_equal_numpy_on_the_file(tail: str, out: Path, tmp_path: Path) -> None:
    path = graph(tmp_path / "m.onnx", tail)
    bundle = export_labels(path, out)
    theirs = next(iter(file_answers(path, pixels()).values())).astype(np.float64)
    p = theirs if tail else 1 / (1 + np.exp(-theirs))
    found = answers_of(bundle, FRAMES)
    surest = np.maximum(p, 1 - p)
    assert 1 / (1 + np.exp(-found["labels"])) == pytest.approx(p, abs=1e-4)
    assert found["score.any_label_wrong"] == pytest.approx(1 - surest.prod(axis=1), abs=1e-4)
    assert found["score.wrong_labels"] == pytest.approx((1 - surest).sum(axis=1), abs=1e-4)
    assert found["score.least_sure_label"] == pytest.approx((1 - surest).max(axis=1), abs=1e-4)
    assert found["score.label_entropy"] == pytest.approx(binary_entropy(p).mean(axis=1), abs=1e-4)
    energy = (np.square(pixels().mean(axis=(2, 3))).sum(axis=1) + 1) / 3
    assert found["score.label_egl"] == pytest.approx((p * (1 - p)).sum(axis=1) * energy, abs=1e-4)
    manifest = bundle.manifest
    assert manifest.task == "multi-label" and manifest.classes == LABELS
    calibration = manifest.extra["calibration"]
    wrong = ((p > 0.5) != (FRAMES.targets > 0.5)).any(axis=1)
    assert 0.8 < calibration["accuracy"] < 1 and 0 < calibration["failures"] < 120 and wrong.any()
    assert manifest.extra["scores"]["any_label_wrong"]["auroc"] > 0.6
    scorer = Scorer.load(bundle)
    brief = scorer.score(np.asarray(FRAMES.images[0])).prediction["labels"]
    assert brief == pytest.approx(
        {name: float(p[0, k]) for k, name in enumerate(LABELS) if p[0, k] >= 0.5}, abs=1e-3
    )
    scorer.close()


def test_labels_in_another_order_or_number_are_noticed(out: Path, tmp_path: Path) -> None:
    path = graph(tmp_path / "m.onnx")
    turned = tinted(200)
    turned = replace(turned, targets=turned.targets[:, [1, 2, 0]])
    with pytest.raises(LabelError, match="another order of the labels explains the answers far better"):
        export_labels(path, out, frames=turned)
    names = ("greenish", "bluish", "reddish")
    frames = replace(tinted(200), targets=tinted(200).targets[:, [1, 2, 0]])
    bundle = export_onnx(
        path,
        Frames(frames, classes=names),
        ModelFacts(PLAIN, task="multi-label", classes=LABELS),
        out=out,
        options=OPTIONS,
    )
    assert bundle.manifest.classes == LABELS and bundle.manifest.extra["calibration"]["accuracy"] > 0.8
    with pytest.raises(LabelError, match=r"has 2 classes \(a, b\), the model 3 outputs"):
        export_labels(path, tmp_path / "none", classes=("a", "b"))


def test_labels_that_the_data_does_not_know_are_left_out_of_the_judgement(out: Path, tmp_path: Path) -> None:
    frames = tinted(200)
    part = replace(frames, targets=frames.targets[:, :2])
    bundle = export_onnx(
        graph(tmp_path / "m.onnx"),
        Frames(part, classes=LABELS[:2]),
        ModelFacts(PLAIN, task="multi-label", classes=LABELS),
        out=out,
        options=OPTIONS,
    )
    assert bundle.manifest.classes == LABELS and bundle.manifest.extra["calibration"]["accuracy"] > 0.8


def test_a_softmax_is_no_multi_label_answer_and_sigmoids_name_the_task(out: Path, tmp_path: Path) -> None:
    path = network(tmp_path / "s.onnx", [helper.make_node("Softmax", ["z"], ["p"], axis=1)], outputs=["p"])
    with pytest.raises(GraphError, match="is it --task classification"):
        export_labels(path, out)
    one_class = replace(tinted(200), targets=np.arange(200) % 3)
    with pytest.raises(GraphError, match="give --task multi-label"):
        export_onnx(
            graph(tmp_path / "m.onnx"),
            Frames(one_class, classes=LABELS),
            ModelFacts(PLAIN),
            out=out,
            options=OPTIONS,
        )


class Labeller(nn.Module):
    def __init__(self, *, sigmoid: bool) -> None:
        super().__init__()
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(3, 3)
        with torch.no_grad():
            self.fc.weight.copy_(torch.from_numpy(WEIGHTS))
            self.fc.bias.copy_(torch.from_numpy(BIASES))
        self.sigmoid = sigmoid

    def forward(self, image: Tensor) -> Tensor:
        z: Tensor = self.fc(self.pool(image).flatten(1))
        return torch.sigmoid(z) if self.sigmoid else z


@pytest.mark.parametrize("sigmoid", [False, True])
def test_a_module_of_labels_is_exported_with_a_head(sigmoid: bool, out: Path) -> None:
    frames = Frames(tinted(200), tinted(100, seed=8, prefix="fit"), tinted(80, seed=5, prefix="held"), LABELS)
    facts = ModelFacts(PLAIN, task="multi-label", features=["pool"])
    bundle = export_module_bundle(Labeller(sigmoid=sigmoid).eval(), frames, facts, out=out, options=OPTIONS)
    p = file_answers(graph(out.parent / "m.onnx"), pixels())["p"].astype(np.float64)
    found = answers_of(bundle, FRAMES)
    wanted = 1 - np.maximum(p, 1 - p).prod(axis=1)
    assert found["score.any_label_wrong"] == pytest.approx(wanted, abs=1e-4)
    assert np.isfinite(found["score.learning_loss_pp"]).all()


def test_a_head_is_attached_to_labels_in_a_notebook() -> None:
    def part(seed: int) -> tuple[Tensor, Tensor]:
        frames = tinted(80, seed=seed)
        return frames.batch(range(80), PLAIN), torch.from_numpy(np.asarray(frames.targets))

    attached = attach(Labeller(sigmoid=True), layers=["pool"], task="multi-label", steps=5)
    report = attached.fit(train=part(1), holdout=part(2))
    assert report.samples == 80 and attached(part(3)[0]).shape == (80,)


def test_unknown_labels_count_for_nothing() -> None:
    task = get_task("multi-label")
    logits = torch.tensor([[4.0, -4.0], [4.0, -4.0]])
    targets = torch.tensor([[1.0, float("nan")], [1.0, 1.0]])
    assert task.failed(logits, targets).tolist() == [False, True]
    assert float(task.sample_loss(logits, targets)[0]) == pytest.approx(np.log1p(np.exp(-4)), abs=1e-6)
    assert float(task.accuracy(logits, targets)) == pytest.approx(2 / 3)


def csv_labels(folder: Path, count: int = 900) -> Path:
    frames = tinted(count, seed=11)
    rows = ["image,reddish,greenish,bluish,split"]
    for i in range(count):
        cv2.imwrite(str(folder / f"{i}.png"), np.asarray(frames.images[i])[:, :, ::-1])
        marks = ",".join(str(int(v)) for v in frames.targets[i])
        rows.append(f"{i}.png,{marks},{'test' if i % 2 else 'train'}")
    (folder / "labels.csv").write_text("\n".join(rows))
    return folder / "labels.csv"


def test_a_table_of_labels_is_read_exported_and_trained_on(out: Path, tmp_path: Path) -> None:
    table = csv_labels(tmp_path)
    dataset = load_dataset(f"csv-labels:{table}")
    assert dataset.task == "multi-label" and dataset.classes == LABELS and len(dataset.test) == 450
    arguments = ["export", "--onnx", str(graph(tmp_path / "m.onnx")), "--dataset", f"csv-labels:{table}"]
    arguments += ["--image", '{"mean": [0], "std": [1]}', "--out", str(out), "--shifts", "none", "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.exception
    found = json.loads(result.stdout)
    assert found["task"] == "multi-label" and found["calibration"]["accuracy"] > 0.8
    assert found["scores"][0] == "any_label_wrong"
    run = str(tmp_path / "run")
    for command in (
        ["train", "--dataset", f"csv-labels:{table}", "--epochs", "2", "--out", run],
        ["evaluate", run, "--out", str(tmp_path / "judged")],
        ["export", run, "--out", str(tmp_path / "own"), "--shifts", "none"],
    ):
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, (command, result.exception)
    assert Bundle.open(tmp_path / "own").manifest.scores[0].name == "learning_loss_pp"
    text = table.read_text().replace("0.png,", "0.png,2", 1)
    table.write_text(text)
    with pytest.raises(DatasetError, match="a label is 0 or 1"):
        load_dataset(f"csv-labels:{table}")
