"""Any torch module: loaded by name, scored with and without a learned head, refused where it cannot be."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from export_cases import lineage
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

from misfire_export.errors import ExportError, GraphError, LabelError, TraceError
from misfire_export.graph.check import require_small_scores
from misfire_export.measure.trigger import Shifts
from misfire_export.options import Options
from misfire_export.sources.facts import ModelFacts
from misfire_export.sources.frames import Frames
from misfire_export.sources.module import export_module_bundle
from misfire_export.sources.module_loading import load_module
from misfire_runtime.bundle import Bundle
from misfire_runtime.cli import app
from misfire_runtime.errors import ConfigError, MisfireError
from misfire_train.data import Dataset, Examples, split
from misfire_train.runs import Run
from misfire_train.scores.density import KnnDistance
from misfire_train.tasks import custom_task

OPTIONS = Options(name="module", version="1.0.0")
SOURCE = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    body = [nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()]
    return nn.Sequential(*body, nn.Linear(32, 10))

def number():
    return 3
"""


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "their_network.py").write_text(SOURCE)
    return tmp_path


@pytest.fixture(scope="session")
def parts(digits: Dataset) -> dict[str, Examples]:
    return split(digits.test, fractions={"holdout": 0.6, "calibration": 0.4}, seed=0)


@pytest.mark.slow
def test_the_command_exports_a_module_with_a_learned_head(source: Path) -> None:
    torch.manual_seed(1)
    network = load_module("their_network:build")
    save_file({name: t + 0.01 for name, t in network.state_dict().items()}, source / "w.safetensors")
    arguments = ["export", "--torch", "their_network:build", "--weights", str(source / "w.safetensors")]
    arguments += ["--features", "1", "--dataset", "digits", "--out", str(source / "bundle"), "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.exception
    found = json.loads(result.stdout)
    assert found["scores"] == ["learning_loss_pp", "entropy", "msp"]
    assert max(found["parity_max_abs"].values()) <= 1e-4
    assert found["notes"][0] == "last layer: 4"
    assert any("no better than always" in note for note in found["notes"]), "it was never trained"


def test_what_cannot_be_loaded_says_why(source: Path) -> None:
    for target, text in (
        ("their_network", "expected module:factory"),
        ("their_network:missing", "AttributeError"),
        ("no_such_module:build", "ModuleNotFoundError"),
        ("their_network:number", "gave int"),
    ):
        with pytest.raises(ExportError, match=text):
            load_module(target)
    save_file({"4.weight": torch.zeros(2, 2)}, source / "bad.safetensors")
    with pytest.raises(
        ExportError, match=r"does not fit .*missing: 0.weight.*of another size: 4.weight \[2, 2\] for"
    ):
        load_module("their_network:build", weights=source / "bad.safetensors")


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("wrapper", ["", "state_dict"])
def test_weights_that_torch_saved_are_read_without_their_wrappers(
    source: Path, prefix: str, wrapper: str
) -> None:
    wanted = {name: t + 0.01 for name, t in load_module("their_network:build").state_dict().items()}
    saved: object = {prefix + name: tensor for name, tensor in wanted.items()}
    torch.save({wrapper: saved, "epoch": 3} if wrapper else saved, source / "w.pt")
    found = load_module("their_network:build", weights=source / "w.pt").state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


class Payload:
    """What a pickle does when it is loaded."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("code was run",)


def test_a_file_of_weights_runs_no_code_and_says_what_it_should_be(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"0.weight": Payload()}, source / "evil.pt")
    (source / "text.pt").write_text("no weights")
    torch.save([1, 2], source / "list.pt")
    for name, text in (
        ("evil", "without running code"),
        ("text", "neither a safetensors"),
        ("list", "holds list"),
    ):
        with pytest.raises(ExportError, match=text):
            load_module("their_network:build", weights=source / f"{name}.pt")
    assert "code was run" not in capsys.readouterr().out


def test_a_module_without_a_last_layer_is_refused(
    parts: dict[str, Examples], digits: Dataset, out: Path
) -> None:
    with pytest.raises(TraceError, match=r"no recognisable last layer: .*name --last-layer$"):
        export_module_bundle(
            nn.Sequential(nn.Flatten()),
            Frames(parts["calibration"]),
            ModelFacts(digits.contract, lineage=lineage()),
            out=out,
            options=OPTIONS,
        )


class Places(nn.Module):
    """Weighs what it learned of each place by the pixel there; `nn.Embedding` has the name of an output."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Embedding(64, 4)
        self.fc = nn.Linear(4, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        known = self.places(torch.arange(64, device=image.device))
        pooled: torch.Tensor = self.fc((image.flatten(1)[..., None] * known).mean(1))
        return pooled


def test_values_inside_that_are_called_like_an_output_get_another_name(
    parts: dict[str, Examples], digits: Dataset, out: Path
) -> None:
    torch.manual_seed(0)
    bundle = export_module_bundle(
        Places().eval(),
        Frames(parts["calibration"]),
        ModelFacts(digits.contract, lineage=lineage()),
        out=out,
        options=OPTIONS,
    )
    assert "embedding" in {output.name for output in bundle.manifest.outputs}
    assert max(bundle.manifest.parity.max_abs.values()) <= 1e-4


class Branching(nn.Module):
    """Looks at its data to choose its way: no graph can hold that."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(64, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        flat = image.flatten(1)
        return self.fc(flat) if bool(flat.sum() > 0) else self.fc(-flat)


def test_a_module_that_cannot_be_traced_is_refused_in_one_line(
    parts: dict[str, Examples], digits: Dataset, out: Path
) -> None:
    with pytest.raises(TraceError) as caught:
        export_module_bundle(
            Branching().eval(),
            Frames(parts["calibration"]),
            ModelFacts(digits.contract, lineage=lineage()),
            out=out,
            options=replace(OPTIONS),
        )
    assert "\n" not in str(caught.value) and not out.exists()


def test_a_bank_too_large_for_a_vehicle_is_refused_with_its_size() -> None:
    score = KnnDistance(torch.zeros(1000, 64))
    with pytest.raises(GraphError, match=r"knn_distance carries 0 MB .* smaller bank"):
        require_small_scores([score], most=100_000)


def test_exactly_one_thing_is_exported(out: Path) -> None:
    for arguments in ([], ["run", "--onnx", "m.onnx"], ["--onnx", "m.onnx"]):
        result = CliRunner().invoke(app, ["export", *arguments, "--out", str(out)])
        assert isinstance(result.exception, ConfigError)


def test_options_that_make_no_sense_are_refused_before_anything_slow(digits_run: Run, out: Path) -> None:
    for option, value, text in (
        ("--score-options", "{egl_pp}", "expected JSON such as"),
        ("--score-options", '{"egl_pp": 3}', "expected JSON such as"),
        ("--shifts", "hail", "no corruption 'hail'"),
        ("--default-score", "loudness", "'loudness' is not in the bundle"),
    ):
        result = CliRunner().invoke(app, ["export", str(digits_run.path), "--out", str(out), option, value])
        assert isinstance(result.exception, MisfireError) and text in str(result.exception)
        assert not out.exists()


class Several(nn.Module):
    """A dict of answers, an auxiliary head declared last, and perhaps a last activation."""

    def __init__(self, *, activation: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU())
        self.classifier = nn.Linear(16, 10)
        self.activation = activation or nn.Identity()
        self.aux = nn.Linear(16, 10)

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"out": self.activation(self.classifier(self.body(image)))}


def export_several(
    model: nn.Module, parts: dict[str, Examples], digits: Dataset, out: Path, **more: object
) -> Bundle:
    options = replace(OPTIONS, shifts=Shifts(()), scores=more.pop("scores", None))  # type: ignore[arg-type]
    fit: Examples | None = more.pop("fit", None)  # type: ignore[assignment]
    facts = ModelFacts(digits.contract, **{"output": "out", **more})  # type: ignore[arg-type]
    return export_module_bundle(
        model.eval(),
        Frames(parts["calibration"], fit, parts["holdout"], classes=digits.classes),
        facts,
        out=out,
        options=options,
    )


@pytest.mark.slow
def test_a_module_that_gives_a_dict_is_exported_by_the_layer_that_answers(
    parts: dict[str, Examples], digits: Dataset, out: Path
) -> None:
    bundle = export_several(Several(), parts, digits, out, scores=["entropy", "egl"])
    assert bundle.manifest.extra["notes"][0] == "last layer: classifier"
    with pytest.raises(TraceError, match="a dict of out, which is no tensor: name the answer with --output"):
        export_several(Several(), parts, digits, out, output="")
    with pytest.raises(TraceError, match="'aux' is not called"):
        export_several(Several(), parts, digits, out, last_layer="aux")


def test_an_answer_that_is_not_the_named_layers_is_said(
    parts: dict[str, Examples], digits: Dataset, out: Path
) -> None:
    bundle = export_several(
        Several(activation=nn.Hardtanh(-0.1, 0.1)), parts, digits, out, last_layer="classifier"
    )
    assert "the answer is not what classifier gives" in bundle.manifest.extra["notes"][1]


def test_a_module_that_gives_no_logits_or_other_classes_is_refused(
    parts: dict[str, Examples], digits: Dataset, out: Path
) -> None:
    for activation, text in ((nn.Softmax(1), "gives probabilities"), (nn.Sigmoid(), "gives sigmoids")):
        with pytest.raises(ExportError, match=text):
            export_several(Several(activation=activation), parts, digits, out, last_layer="classifier")
    with pytest.raises(LabelError, match=r"has 2 classes \(odd, even\), the model 10 outputs"):
        export_several(Several(), parts, digits, out, classes=("odd", "even"))
    assert not out.exists()


def test_a_reading_of_the_answer_is_for_graphs_only(source: Path) -> None:
    arguments = ["export", "--torch", "their_network:build", "--answer", "sigmoid"]
    result = CliRunner().invoke(app, [*arguments, "--dataset", "digits", "--out", str(source / "bundle")])
    assert isinstance(result.exception, ConfigError) and "--answer is for --onnx" in str(result.exception)


def test_a_softmax_of_the_last_layer_says_what_to_return_instead(
    parts: dict[str, Examples], digits: Dataset, out: Path
) -> None:
    with pytest.raises(
        TraceError, match=r"within 0\.\.1: if it is a softmax or sigmoid, return the tensor before"
    ):
        export_several(Several(activation=nn.Softmax(1)), parts, digits, out)


def test_small_logits_of_a_weak_module_are_no_sigmoids(
    parts: dict[str, Examples], digits: Dataset, out: Path
) -> None:
    weak = Several()
    with torch.no_grad():
        weak.classifier.weight.mul_(0.001)
        weak.classifier.bias.copy_(torch.linspace(0.2, 0.3, 10))
    bundle = export_several(weak, parts, digits, out, scores=["entropy"])
    assert bundle.manifest.extra["notes"][0] == "last layer: classifier"


def test_a_task_of_ones_own_is_exported(parts: dict[str, Examples], digits: Dataset, out: Path) -> None:
    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return (outputs.argmax(1) - targets).abs().float()

    task = custom_task(loss, failure_threshold=0.5)
    bundle = export_several(
        Several(),
        parts,
        digits,
        out,
        task=task,
        scores=["learning_loss_pp"],
        features=["body"],
        fit=digits.train,
    )
    assert bundle.manifest.task == "custom" and bundle.manifest.default_score == "learning_loss_pp"


def test_a_module_behind_uint8_pixels_is_proven_on_what_it_takes(
    parts: dict[str, Examples], digits: Dataset, out: Path
) -> None:
    contract = digits.contract.model_copy(update={"dtype": "uint8"})
    bundle = export_module_bundle(
        Several().eval(),
        Frames(parts["calibration"], holdout=parts["holdout"]),
        ModelFacts(contract, output="out"),
        out=out,
        options=replace(OPTIONS, shifts=Shifts(())),
    )
    assert (
        bundle.manifest.input.dtype == "uint8"
        and bundle.manifest.extra["notes"][0] == "last layer: classifier"
    )
