"""Classes of the data against outputs of the model, normalisation, and warnings of a bad model."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from foreign_cases import BIAS, CLASSES, PLAIN, WEIGHT, coloured, export, network
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from misfire_export.errors import LabelError
from misfire_export.sources.labels import Answered, ClassOrder, check_order, order_classes, read_classes
from misfire_runtime.bundle import Bundle
from misfire_runtime.cli import app

pytestmark = pytest.mark.slow

ORDER = [2, 0, 1]
"""Another model's order of the classes: its output i is CLASSES[ORDER[i]]."""
NAMES = tuple(CLASSES[i] for i in ORDER)


def reordered(path: Path, **more: object) -> Path:
    return network(path, weight=WEIGHT[ORDER], bias=BIAS[ORDER], **more)  # type: ignore[arg-type]


def test_another_number_of_classes_is_an_error_that_names_both(out: Path, tmp_path: Path) -> None:
    path = network(tmp_path / "m.onnx")
    for classes in (("red", "green"), ("red", "green", "blue", "grey")):
        with pytest.raises(
            LabelError, match=rf"has {len(classes)} classes \(red, green.*the model 3 outputs"
        ):
            export(path, out, classes=classes)
    with pytest.raises(LabelError, match="labels go from 0 to 2, the model has 2 outputs"):
        export(network(tmp_path / "two.onnx", weight=WEIGHT[:2], bias=BIAS[:2]), out, classes=())
    assert not out.exists()


def test_an_order_that_the_answers_contradict_is_refused_and_the_likely_one_named(
    out: Path, tmp_path: Path
) -> None:
    with pytest.raises(LabelError, match=r"output 0 \(red\) as blue, output 1 \(green\) as red") as caught:
        export(reordered(tmp_path / "m.onnx"), out)
    assert "--classes" in str(caught.value) and not out.exists()


def test_the_models_own_order_is_taken_from_the_user_or_from_the_file(out: Path, tmp_path: Path) -> None:
    stated = export(reordered(tmp_path / "m.onnx"), out, model_classes=NAMES)
    python = reordered(tmp_path / "python.onnx", metadata={"names": str(dict(enumerate(NAMES)))})
    as_json = reordered(tmp_path / "json.onnx", metadata={"names": json.dumps(NAMES)})
    for bundle in (stated, export(python, out), export(as_json, out)):
        assert bundle.manifest.classes == NAMES
        assert bundle.manifest.extra["calibration"]["accuracy"] > 0.7


def test_a_model_of_more_classes_than_the_data_is_read_by_name(out: Path, tmp_path: Path) -> None:
    weight = np.concatenate([WEIGHT[ORDER], np.zeros((1, 3), np.float32)])
    path = network(tmp_path / "m.onnx", weight=weight, bias=np.array([0.1, 0.3, -0.2, -9], np.float32))
    bundle = export(path, out, model_classes=(*NAMES, "violet"))
    assert bundle.manifest.classes == (*NAMES, "violet")
    assert bundle.manifest.extra["calibration"]["accuracy"] > 0.7


def test_an_order_that_the_user_states_is_kept_with_a_warning(out: Path, tmp_path: Path) -> None:
    bundle = export(reordered(tmp_path / "m.onnx"), out, model_classes=CLASSES)
    assert any("another order of the classes" in note for note in bundle.manifest.extra["notes"])
    assert any("scores failures below successes" in note for note in bundle.manifest.extra["notes"]) or (
        bundle.manifest.extra["scores"][bundle.manifest.default_score]["auroc"] >= 0.5
    )


def test_names_that_the_model_does_not_have_are_an_error() -> None:
    with pytest.raises(LabelError, match="--classes does not have: blue"):
        order_classes(CLASSES, 3, stated=("red", "green", "grey"))
    with pytest.raises(LabelError, match="metadata does not have: blue"):
        order_classes(CLASSES, 3, metadata=("red", "green", "grey"))
    with pytest.raises(LabelError, match="--classes has 2 classes"):
        order_classes(CLASSES, 3, stated=("red", "green"))
    other = order_classes(CLASSES, 3, metadata=("a", "b", "c"))
    assert other.names == CLASSES and "the order of the data set was taken" in other.note


def test_a_list_of_classes_is_read_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_bytes("﻿rot\n\n grün \n".encode())
    assert read_classes(path) == ("rot", "grün")
    path.write_text("gru\u0308n\nrot\n", encoding="utf-8")  # as an archive of a Mac spells it
    assert order_classes(["grün", "rot"], 2, stated=read_classes(path)).index == (0, 1)
    assert order_classes(["grün", "rot"], 2, metadata=["rot", "gru\u0308n"]).index == (1, 0)
    as_json = tmp_path / "names.json"
    as_json.write_text('{"classes": [\n  "a",\n  "b"\n]}')
    assert read_classes(as_json) == ("a", "b")
    for text, problem in (("a\nb\na\n", "lists the class a twice"), ("\n", "lists no classes")):
        path.write_text(text)
        with pytest.raises(LabelError, match=problem):
            read_classes(path)
    with pytest.raises(LabelError, match="cannot be read"):
        read_classes(tmp_path)


def test_random_labels_of_many_classes_are_no_other_order(out: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = network(
        tmp_path / "m.onnx",
        weight=rng.normal(0, 9, (40, 3)).astype(np.float32),
        bias=np.zeros(40, np.float32),
    )
    frames = coloured(120)
    frames.targets[:] = rng.integers(0, 40, 120)
    held = export(path, out, frames=frames, classes=())
    assert any("is no better than always" in note for note in held.manifest.extra["notes"])


def test_answers_that_tell_nothing_of_the_labels_are_no_other_order() -> None:
    rng = np.random.default_rng(0)
    truth = (rng.random((1000, 1)) < 0.8).astype(np.int64)
    answer = (rng.random((1000, 1)) < 0.3).astype(np.int64)  # mostly the rare class, whatever the label
    order = ClassOrder(("ok", "bad"), (0, 1))
    assert check_order(Answered(truth, answer, 2), order) == ()
    swapped = np.where(rng.random((1000, 1)) < 0.8, 1 - truth, truth)
    with pytest.raises(LabelError, match="another order of the classes"):
        check_order(Answered(truth, swapped, 2), order)


def test_a_usual_normalisation_that_does_much_better_is_named(out: Path, tmp_path: Path) -> None:
    wrong = PLAIN.model_copy(update={"mean": (0.9, 0.1, 0.4), "std": (0.3, 0.3, 0.3)})
    bundle = export(network(tmp_path / "m.onnx"), out, contract=wrong)
    note = next(note for note in bundle.manifest.extra["notes"] if "accuracy on 300 frames" in note)
    assert 'the model was probably trained with it; try --image \'{"mean": [' in note


def test_a_score_that_is_the_same_on_all_frames_is_named(out: Path, tmp_path: Path) -> None:
    path = network(
        tmp_path / "m.onnx", weight=np.zeros((3, 3), np.float32), bias=np.array([9, 0, 0], np.float32)
    )
    notes = export(path, out, scores=["entropy", "msp"]).manifest.extra["notes"]
    assert any(note.startswith("WARNING: msp is ") and "it cannot tell them apart" in note for note in notes)
    assert any("no better than always" in note for note in notes)


def test_a_model_that_always_gives_one_answer_is_bad_and_not_misread(out: Path, tmp_path: Path) -> None:
    path = network(
        tmp_path / "m.onnx", weight=np.zeros((3, 3), np.float32), bias=np.array([9, 0, 0], np.float32)
    )
    frames = coloured(300)
    frames.targets[:] = np.where(np.arange(300) % 4 == 0, frames.targets, 1)  # most are of class 1
    notes = export(path, out, frames=frames, scores=["entropy", "msp"]).manifest.extra["notes"]
    assert any("no better than always" in note for note in notes)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Coloured frames as PNG, in a folder for each class."""
    frames = coloured(480)
    for i, label in enumerate(frames.targets):
        home = tmp_path / "frames" / CLASSES[label]
        home.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(home / f"{i}.png"), frames.images[i][:, :, ::-1])
    return tmp_path / "frames"


def test_the_command_takes_size_and_classes_from_the_graph_and_says_how_well_it_does(
    folder: Path, out: Path, tmp_path: Path
) -> None:
    path = reordered(tmp_path / "m.onnx")
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    arguments = [
        "export",
        "--onnx",
        str(path),
        "--dataset",
        f"image-folder:{folder}?group=(.+)",
        "--out",
        str(out),
    ]
    arguments += [
        "--image",
        '{"mean": [0], "std": [1]}',
        "--shifts",
        "none",
        "--classes",
        str(tmp_path / "names.txt"),
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.exception
    assert "calibrated on 58 frames: accuracy 0." in result.stdout
    shown = CliRunner().invoke(app, ["bundle", "inspect", str(out)]).stdout
    assert "accuracy" in shown and "calibrated on" in shown and "trained on" not in shown


def test_what_needs_no_data_is_looked_at_before_the_data_are(out: Path, tmp_path: Path) -> None:
    path = network(tmp_path / "m.onnx")
    arguments = ["export", "--onnx", str(path), "--dataset", "image-folder:nowhere", "--out", str(out)]
    result = CliRunner().invoke(app, [*arguments, "--output", "other"])
    assert "the graph has no output 'other'" in str(result.exception)
    result = CliRunner().invoke(app, [*arguments, "--classes", str(tmp_path / "none.txt")])
    assert "--classes" in str(result.exception)


def test_masks_are_read_at_the_graphs_own_size_and_their_classes_are_compared(
    out: Path, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (tmp_path / "road" / kind).mkdir(parents=True)
    for i in range(480):
        labels = np.zeros((24, 48), np.uint8)
        labels[:, : rng.integers(8, 40)] = 1
        image = np.where(labels[..., None] == 1, [40, 200, 40], [200, 40, 40]) + rng.integers(
            -30, 30, (24, 48, 3)
        )
        cv2.imwrite(str(tmp_path / "road" / "images" / f"{i}.png"), image.astype(np.uint8)[:, :, ::-1])
        cv2.imwrite(str(tmp_path / "road" / "masks" / f"{i}.png"), labels)
    (tmp_path / "road" / "classes.txt").write_text("road\nkerb\n")
    weight = np.array([[4, -4, 0], [-4, 4, 0]], np.float32)

    def graph(weight: np.ndarray) -> Path:
        nodes = [helper.make_node("Conv", ["x", "w"], ["mask"])]
        made = helper.make_graph(
            nodes,
            "road",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 12, 16])],
            [helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["n", len(weight), 12, 16])],
            [numpy_helper.from_array(weight[:, :, None, None], "w")],
        )
        model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.save(model, tmp_path / "road.onnx")
        return tmp_path / "road.onnx"

    arguments = ["export", "--dataset", f"masks:{tmp_path / 'road'}", "--out", str(out), "--shifts", "none"]
    arguments += ["--image", '{"mean": [0], "std": [1]}', "--scores", "entropy", "--json", "--onnx"]
    result = CliRunner().invoke(app, [*arguments, str(graph(weight))])
    assert result.exit_code == 0, result.exception
    manifest = Bundle.open(out).manifest
    assert (manifest.input.height, manifest.input.width) == (12, 16)
    assert "size=16x12" in manifest.lineage.dataset and manifest.name == "road"
    assert manifest.extra["calibration"]["accuracy"] > 0.95
    swapped = CliRunner().invoke(app, [*arguments, str(graph(weight[::-1].copy()))])
    assert "output 0 (road) as kerb" in str(swapped.exception)
    three = CliRunner().invoke(app, [*arguments, str(graph(np.concatenate([weight, weight[:1]])))])
    assert "has 2 classes (road, kerb), the model 3 outputs" in str(three.exception)
