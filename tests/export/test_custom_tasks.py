"""Tasks of one's own: named on the command line, with scores of their own, judged as a bundle afterwards."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from export_cases import lineage
from torch import Tensor, nn
from typer.testing import CliRunner

from misfire_export.errors import ExportError
from misfire_export.measure.trigger import Shifts
from misfire_export.options import Options
from misfire_export.sources.facts import ModelFacts
from misfire_export.sources.frames import Frames
from misfire_export.sources.module import export_module_bundle
from misfire_runtime.cli import app
from misfire_runtime.engines.scoring import Scorer
from misfire_runtime.errors import ConfigError
from misfire_train.attaching import attach
from misfire_train.data import Dataset, Examples, split
from misfire_train.signals import Score, Signals
from misfire_train.tasks import custom_task
from misfire_train.tasks.loading import load_task

pytestmark = pytest.mark.slow
SOURCE = """
import torch
from torch import nn
from misfire_train.signals import Score
from misfire_train.tasks import custom_task

class Spread(Score):
    name, definition, free = "own_spread", "minus the spread of the answer", True

    def forward(self, signals):
        return -signals.outputs.std(1)

def distance(outputs, targets):
    return (outputs.argmax(1) - targets).abs().float() / 10

def make():
    return custom_task(distance, failure_threshold=0.05, scores=(Spread,))

ready = make()
number = 3

def build():
    torch.manual_seed(0)
    body = [nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()]
    return nn.Sequential(*body, nn.Linear(32, 10))
"""


class Spread(Score):
    name, definition, free = "spread_of_answer", "minus the spread of the answer", True

    def forward(self, signals: Signals) -> Tensor:
        return -signals.outputs.std(1)


def distance(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.argmax(1) - targets).abs().float() / 10


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own_task_of_theirs.py").write_text(SOURCE)
    return tmp_path


@pytest.fixture(scope="module")
def parts(digits: Dataset) -> dict[str, Examples]:
    return split(digits.test, fractions={"holdout": 0.6, "calibration": 0.4}, seed=0)


def network() -> nn.Module:
    torch.manual_seed(0)
    body = [nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()]
    return nn.Sequential(*body, nn.Linear(32, 10)).eval()


def test_the_command_exports_a_task_of_ones_own_and_judges_the_bundle(source: Path) -> None:
    bundle, judged, runner = source / "bundle", source / "judged", CliRunner()
    arguments = ["export", "--torch", "own_task_of_theirs:build", "--task", "own_task_of_theirs:make"]
    found = runner.invoke(
        app, [*arguments, "--dataset", "digits", "--shifts", "none", "--out", str(bundle), "--json"]
    )
    assert found.exit_code == 0, found.exception
    values = json.loads(found.stdout)
    assert (values["task"], values["scores"], values["default_score"]) == (
        "custom",
        ["own_spread"],
        "own_spread",
    )
    assert values["calibration"]["failure_threshold"] == 0.05
    base = [
        "evaluate",
        "--bundle",
        str(bundle),
        "--dataset",
        "digits",
        "--out",
        str(judged),
        "--replicates",
        "50",
    ]
    unnamed = runner.invoke(app, base)
    assert "has a custom task, whose loss is in your code: name it with --task" in str(unnamed.exception)
    shown = runner.invoke(app, [*base, "--task", "own_task_of_theirs:ready", "--json"])
    assert shown.exit_code == 0, shown.exception
    report = json.loads(shown.stdout)
    assert report["settings"]["failure"] == "loss above 0.05, of the bundle"
    assert report["gate"]["winner"] == "own_spread"
    assert report["conditions"][0]["failures"] > 100


def test_what_attach_made_is_exported_as_it_is(
    parts: dict[str, Examples], digits: Dataset, out: Path
) -> None:
    task = custom_task(distance, failure_threshold=0.05, scores=(Spread,))
    attached = attach(network(), layers=["1"], task=task, steps=30)
    attached.fit(train=digits.train, holdout=parts["holdout"], contract=digits.contract, copies=0)
    attached.probe.model.train()
    frames = Frames(parts["calibration"], fit=digits.train, holdout=parts["holdout"])
    facts = ModelFacts(digits.contract, lineage=lineage())
    options = Options(name="attached", version="1.0.0", shifts=Shifts(()))
    bundle = export_module_bundle(attached, frames, facts, out=out, options=options)
    assert attached.probe.model.training
    assert bundle.manifest.task == "custom"
    assert [score.name for score in bundle.manifest.scores] == ["learning_loss_pp", "spread_of_answer"]
    assert "no free score" not in bundle.manifest.extra["gate"]["verdict"]
    scorer = Scorer.load(bundle)
    scores = [scorer.score(parts["calibration"].images[row]).scores for row in range(8)]
    expected = attached(parts["calibration"].batch(np.arange(8), digits.contract))
    assert [each["learning_loss_pp"] for each in scores] == pytest.approx(expected.tolist(), abs=1e-4)
    scorer.close()


def test_what_is_no_task_is_named_in_one_sentence(
    source: Path, parts: dict[str, Examples], digits: Dataset, out: Path
) -> None:
    assert load_task("classification").name == "classification"
    for name, message in (
        ("own_task_of_theirs:number", "is int; expected what custom_task"),
        ("own_task_of_theirs:nope", "has no attribute 'nope'"),
        ("no_such_module:task", "No module named"),
        ("clasification", "there is no task 'clasification'; there are classification"),
        (":task", "expected module:task"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_task(name)
    frames = Frames(parts["calibration"])
    options = Options(name="attached", version="1.0.0")
    with pytest.raises(ExportError, match="not known by name: give what custom_task"):
        export_module_bundle(
            network(), frames, ModelFacts(digits.contract, task="custom"), out=out, options=options
        )
    bare = custom_task(distance, failure_threshold=0.05)
    with pytest.raises(ExportError, match="no free score, so the bundle would have no score at all"):
        export_module_bundle(
            network(), frames, ModelFacts(digits.contract, task=bare), out=out, options=options
        )
    assert "<task custom>" in repr(bare)
    assert not out.exists()
