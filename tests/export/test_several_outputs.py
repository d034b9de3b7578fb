"""A multi-task graph: one set of scores for each answer, named after it, and one trigger."""

from __future__ import annotations

import importlib
import json
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from foreign_cases import BIAS, CLASSES, OPTIONS, PLAIN, WEIGHT, answers_of, coloured
from onnx import helper
from shape_cases import binary_entropy, entropy, file_answers, save, softmax
from typer.testing import CliRunner

from misfire_export.errors import ExportError, GraphError
from misfire_export.graph.trace import export_module
from misfire_export.sources.facts import ModelFacts
from misfire_export.sources.frames import Frames
from misfire_export.sources.onnx.exporting import export_onnx
from misfire_runtime.bundle import Bundle
from misfire_runtime.cli import app
from misfire_runtime.config.tables import parse_config
from misfire_runtime.engines.scoring import Scorer
from misfire_runtime.errors import MisfireError
from misfire_runtime.messages import Offer, decode, encode
from misfire_runtime.testing import ListSource, MemoryStore
from misfire_runtime.triggers.expression import compile_rule
from misfire_runtime.vehicle.pipeline import Vehicle
from misfire_train.data import load_dataset
from misfire_train.errors import DatasetError

pytestmark = pytest.mark.slow

FRAMES = coloured(20, seed=3)
NIGHT = np.array([[9.0, 7.0, 8.0], [-9.0, -7.0, -8.0]], np.float32)


def graph(path: Path) -> Path:
    """One body, three heads: a class, day or night (softmax), and a map of one sigmoid (road)."""
    nodes = [
        helper.make_node("GlobalAveragePool", ["pixels"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"], axis=1),
        helper.make_node("Gemm", ["f", "w", "b"], ["colour"], "colour_head", transB=1),
        helper.make_node("Gemm", ["f", "n", "nb"], ["nz"], "night_head", transB=1),
        helper.make_node("Softmax", ["nz"], ["time.of-day"], axis=1),
        helper.make_node("Conv", ["pixels", "r", "rb"], ["rz"], "road_head"),
        helper.make_node("Sigmoid", ["rz"], ["road"]),
    ]
    held = {
        "w": WEIGHT,
        "b": BIAS,
        "n": NIGHT,
        "nb": np.array([-10, 10], np.float32),
        "r": np.array([[4.0, -5.0, 3.0]], np.float32)[:, :, None, None],
        "rb": np.array([-1.0], np.float32),
    }
    return save(path, nodes, held, outputs={"colour": None, "time.of-day": None, "road": None})


def test_each_answer_has_scores_of_its_own_and_the_labelled_one_triggers(out: Path, tmp_path: Path) -> None:
    path = graph(tmp_path / "m.onnx")
    also = {"time.of-day": "classification", "road": "segmentation"}
    bundle = export_onnx(
        path,
        Frames(coloured(200), holdout=coloured(60, seed=5, prefix="held"), classes=CLASSES),
        ModelFacts(PLAIN, output="colour", also=also),
        out=out,
        options=replace(OPTIONS, scores=["entropy", "msp"]),
    )
    manifest = bundle.manifest
    names = {score.name: score for score in manifest.scores}
    assert {"entropy", "msp", "time_of_day_entropy", "time_of_day_egl", "road_entropy", "road_egl"} <= set(
        names
    )
    assert manifest.default_score in ("entropy", "msp")
    # Upload rates need no labels; recall does.
    assert names["entropy"].operating_points[0].failure_recall is not None
    assert names["road_entropy"].operating_points[0].failure_recall is None
    images = FRAMES.batch(range(20), PLAIN).numpy()
    theirs, found = file_answers(path, images), answers_of(bundle, FRAMES)
    assert found["score.entropy"] == pytest.approx(entropy(softmax(theirs["colour"])), abs=1e-4)
    assert found["score.time_of_day_entropy"] == pytest.approx(entropy(theirs["time.of-day"]), abs=1e-4)
    road = theirs["road"][:, 0].astype(np.float64)
    assert found["score.road_entropy"] == pytest.approx(binary_entropy(road).mean(axis=(1, 2)), abs=1e-4)
    energy = (np.square(images).sum(axis=1) + 1) / 3
    wanted = (2 * road * (1 - road) * energy).mean(axis=(1, 2))
    assert found["score.road_egl"] == pytest.approx(wanted, rel=1e-3)
    assert manifest.parity is not None and manifest.parity.max_abs["score.road_entropy"] < 1e-4
    assert any("quantiles only" in note for note in manifest.extra["notes"])
    compile_rule("time_of_day_entropy > 0.3 or percentile.road_entropy > 0.9", scores=list(names))


def test_further_outputs_must_exist_and_be_what_is_said(out: Path, tmp_path: Path) -> None:
    path = graph(tmp_path / "m.onnx")
    frames = Frames(coloured(60), classes=CLASSES)
    for also, text in (
        ({"depth": "classification"}, "no output 'depth'; it has colour"),
        ({"road": "classification"}, "an answer for each pixel"),
        ({"road": "keypoints"}, "a foreign graph can be a"),
    ):
        with pytest.raises(ExportError, match=text):
            export_onnx(path, frames, ModelFacts(PLAIN, output="colour", also=also), out=out, options=OPTIONS)
    with pytest.raises(GraphError, match="which output is the answer"):
        export_onnx(path, frames, ModelFacts(PLAIN), out=out, options=OPTIONS)


SOURCE = """
import numpy as np
import torch
from torch import nn


class Two(nn.Module):
    def __init__(self, form):
        super().__init__()
        self.colour, self.bright, self.form = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 2, 1), form
        with torch.no_grad():
            self.colour.bias.zero_()
            self.colour.weight.copy_((15 * torch.eye(3) - 5)[:, :, None, None])
            self.bright.weight.copy_(torch.tensor([[0.0] * 3, [8.0] * 3])[:, :, None, None])
            self.bright.bias.copy_(torch.tensor([0.0, -11.0]))

    def forward(self, image):
        colour = self.colour(image.mean((2, 3), keepdim=True)).flatten(1)
        bright = self.bright(image)
        return {"colour": colour, "bright": bright} if self.form == "dict" else (colour, bright)


def named():
    return Two("dict")


def placed():
    return Two("tuple")


def part(count, seed, form):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    images = rng.normal(110, 45, (count, 8, 8, 3))
    images[np.arange(count), :, :, labels] += rng.choice([2.0, 40.0], count)[:, None, None]
    images = np.clip(images, 0, 255).astype(np.uint8)
    masks = (images.mean(3) + rng.normal(0, 20, (count, 8, 8)) > 117).astype(np.uint8)
    if form == "dict":
        return images, [{"colour": int(a), "bright": b} for a, b in zip(labels, masks)]
    return images, [(int(a), b) for a, b in zip(labels, masks)]


def frames():
    names = {"colour": ["red", "green", "blue"], "bright": ["dark", "bright"]}
    return {"train": part(60, 1, "dict"), "test": part(260, 2, "dict"), "classes": names}


def rows():
    return part(60, 1, "tuple"), part(260, 2, "tuple")


def uneven():
    return {"train": (np.zeros((4, 8, 8, 3), np.uint8), [{"a": 1}, {"a": 1}, {"b": 1}, {"a": 0}])}
"""


def run_cli(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None:
        raise result.exception
    return result.output


@pytest.fixture
def own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    name = f"two_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path / name


def test_a_module_with_two_tasks_is_calibrated_and_triggers_on_each(own_code: Path, out: Path) -> None:
    code = own_code.name
    export = ["export", "--torch", f"{code}:named", "--dataset", f"{code}:frames", "--shifts", "none"]
    told = run_cli(*export, "--out", str(out))
    assert "further answer bright: segmentation, 2 classes, accuracy" in told
    bundle = Bundle.open(out)
    manifest = bundle.manifest
    assert manifest.classes == ("red", "green", "blue") and manifest.default_score in ("entropy", "msp")
    assert [(f.name, f.kind, f.classes) for f in manifest.further] == [
        ("bright", "segmentation", ("dark", "bright"))
    ]
    scores = {score.name: score for score in manifest.scores}
    assert set(scores) == {"entropy", "msp", "bright_entropy", "bright_energy"}
    recalls = [score.operating_points[0].failure_recall for score in scores.values()]
    assert all(recall is not None for recall in recalls)
    data = load_dataset(f"{code}:frames", several=True)
    images = data.test.batch(range(20), manifest.input)
    with torch.no_grad():
        theirs = named_of(own_code)(images)
    session = ort.InferenceSession(bundle.model_path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    found = dict(zip(names, session.run(names, {"image": images.numpy()}), strict=True))
    assert found["score.entropy"] == pytest.approx(entropy(softmax(theirs["colour"].numpy())), abs=1e-5)
    p = softmax(theirs["bright"].numpy())
    wanted = -(p * np.log(p)).sum(axis=1).mean(axis=(1, 2))
    assert found["score.bright_entropy"] == pytest.approx(wanted, abs=1e-5)

    assert "further answers" in run_cli("bundle", "inspect", str(out))
    store = MemoryStore()
    rule = '[triggers.lanes]\nkind = "percentile"\nscore = "bright_entropy"\nlevel = 0.7\n'
    vehicle = Vehicle(
        parse_config(rule + "[random]\nrate = 0.0\n"),
        scorer=Scorer.load(bundle),
        store=store,
        sources=[ListSource([data.test.images[i] for i in range(60)])],
        state_dir=out.parent / "state",
    )
    vehicle.run(threading.Event())
    vehicle.close()
    assert 0 < len(store.offers) < 60
    offer = decode(Offer, encode(store.offers[0]))
    assert offer.trigger.name == "lanes" and offer.percentiles["bright_entropy"] >= 0.7
    assert offer.prediction["class"] in manifest.classes
    assert isinstance(offer.prediction["bright"], dict) and set(offer.prediction["bright"]) <= {
        "dark",
        "bright",
    }


def named_of(own_code: Path) -> torch.nn.Module:
    module = importlib.import_module(own_code.name)
    network: torch.nn.Module = module.named().eval()
    return network


def test_tuples_are_answers_by_position_and_each_gets_a_head(own_code: Path, out: Path) -> None:
    code = own_code.name
    export = ["export", "--torch", f"{code}:placed", "--dataset", f"{code}:rows", "--shifts", "none"]
    told = run_cli(*export, "--features", "bright", "--out", str(out), "--json")
    found = json.loads(told)
    assert {"learning_loss_pp", "entropy", "out1_learning_loss_pp", "out1_entropy"} <= set(found["scores"])
    assert found["further"]["out1"]["trigger"].startswith("out1_")
    head = next(s for s in Bundle.open(out).manifest.scores if s.name == "out1_learning_loss_pp")
    assert head.of == "out1" and not head.free and head.calibration.loss_scale is not None


def test_a_graph_takes_labels_of_each_output(own_code: Path, out: Path) -> None:
    module, code = named_of(own_code), own_code.name
    path = own_code.parent / "two.onnx"
    model = export_module(
        module,
        (torch.rand(2, 3, 8, 8),),
        input_names=["pixels"],
        output_names=["colour", "bright"],
        dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},),
    )
    onnx.save(model, path)
    export = ["export", "--onnx", str(path), "--dataset", f"{code}:frames", "--shifts", "none"]
    found = json.loads(run_cli(*export, "--scores", "entropy", "--out", str(out), "--json"))
    assert {"entropy", "bright_entropy", "bright_egl", "bright_wrong_prediction_approx"} <= set(
        found["scores"]
    )
    manifest = Bundle.open(out).manifest
    points = manifest.score("bright_entropy").operating_points
    assert points and points[0].failure_recall is not None
    assert manifest.parity is not None and manifest.parity.max_abs["answer.bright"] < 1e-5
    # The other way round: the mask is the answer, the class stands beside it.
    run_cli(*export, "--output", "bright", "--out", str(out))
    manifest = Bundle.open(out).manifest
    assert manifest.task == "segmentation" and manifest.further[0].name == "colour"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--output", "depth"], "labels of colour, bright, not of depth"),
        (["--also", "bright=classification"], "its labels are of segmentation"),
        (["--also", "bright=keypoints,bright=keypoints"], "each output once"),
        (["--dataset", "CODE:uneven"], "target 2 is of b, the first of a"),
        (["--torch", "CODE:placed"], "labels of an output colour, which the model lacks; it has 0, 1"),
    ],
)
def test_labels_and_outputs_that_differ_are_named(
    own_code: Path, out: Path, arguments: list[str], text: str
) -> None:
    code = own_code.name
    export = ["export", "--torch", f"{code}:named", "--dataset", f"{code}:frames", "--out", str(out)]
    with pytest.raises(MisfireError, match=text):
        run_cli(*export, *(word.replace("CODE", code) for word in arguments))


def test_a_training_takes_the_labels_of_one_output(own_code: Path) -> None:
    code = own_code.name
    with pytest.raises(DatasetError, match=rf"name one with {code}:frames\?output=colour"):
        load_dataset(f"{code}:frames")
    bright = load_dataset(f"{code}:frames?output=bright")
    assert bright.task == "segmentation" and bright.train.targets.shape == (60, 8, 8)
    with pytest.raises(DatasetError, match="no labels of an output 'depth'; it has those of colour, bright"):
        load_dataset(f"{code}:frames?output=depth")
