"""Graphs that nobody here made: what is found, what is said about what is not, and that scores are right."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from export_cases import examples_of, seeded_images
from onnx import TensorProto, helper, numpy_helper

from misfire_export.errors import CalibrationError, ExportError, GraphError
from misfire_export.graph.last_layer import find_last_layer
from misfire_export.measure.run import open_session
from misfire_export.options import Options
from misfire_export.sources.answers import choose_output
from misfire_export.sources.facts import ModelFacts
from misfire_export.sources.frames import Frames
from misfire_export.sources.onnx.exporting import export_onnx
from misfire_export.sources.onnx.importing import adapt
from misfire_export.sources.onnx.opening import load_graph
from misfire_runtime.bundle import Bundle
from misfire_runtime.preprocess import InputContract
from misfire_train.data import Dataset, Examples, split
from proving_ground.model_zoo import draw_weights, photographs

pytestmark = pytest.mark.slow

IMAGENET = InputContract(height=224, width=224)
OPTIONS = Options(name="foreign", version="1.0.0")


def zoo_graph(name: str, path: Path) -> Path:
    """A model-zoo architecture from the onnx package, its placeholder weights drawn (seeded)."""
    return draw_weights(name, path)


def frames(count: int, *, size: int = 224, classes: int = 1000) -> Examples:
    labels = np.random.default_rng(1).integers(0, classes, count)
    return examples_of(seeded_images(count, size=size), labels)


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("resnet50", 2048),
        ("densenet121", 1024),
        ("inception_v1", 1024),
        ("inception_v2", 1024),
        ("shufflenet", 544),
    ],
)
def test_the_last_layer_of_zoo_architectures_is_found(name: str, channels: int, tmp_path: Path) -> None:
    graph, _ = adapt(load_graph(zoo_graph(name, tmp_path / "m.onnx")), IMAGENET)
    found = find_last_layer(graph, choose_output(graph))
    assert found.layer is not None and found.layer.weight.shape == (1000, channels) and not found.notes
    assert [value.name for value in graph.graph.input] == ["image"]


def test_a_resnet_50_is_exported_whole_and_answers_as_its_file_on_photographs(
    out: Path, tmp_path: Path
) -> None:
    """The other architectures of the zoo: python benchmarks/science/foreign_models.py."""
    held_out = photographs(12, seed=1)
    bundle = export_onnx(
        zoo_graph("resnet50", tmp_path / "m.onnx"),
        Frames(photographs(50, seed=0), holdout=held_out),
        ModelFacts(IMAGENET),
        out=out,
        options=OPTIONS,
    )
    assert {"egl", "wrong_prediction_approx", "entropy"} <= {s.name for s in bundle.manifest.scores}
    parity = bundle.manifest.parity
    assert parity is not None and parity.images == 50 and max(parity.max_abs.values()) <= 1e-4
    session = open_session(bundle.model_path.read_bytes())
    logits, egl = session.run(["logits", "score.egl"], {"image": held_out.batch(range(4), IMAGENET).numpy()})
    assert logits.shape == (4, 1000) and logits.std(axis=0).mean() > 1e-3 and egl.std() > 0


def test_a_network_without_a_usable_last_layer_is_told_plainly_and_still_gets_free_scores(
    out: Path, tmp_path: Path
) -> None:
    bundle = export_onnx(
        zoo_graph("squeezenet", tmp_path / "m.onnx"),
        Frames(frames(50)),
        ModelFacts(IMAGENET),
        out=out,
        options=OPTIONS,
    )
    assert "GlobalAveragePool" in bundle.manifest.extra["notes"][0]
    assert "gradient scores and the embedding are left out" in bundle.manifest.extra["notes"][0]
    assert [s.name for s in bundle.manifest.scores] == ["entropy", "msp", "margin", "energy", "max_logit"]
    assert "embedding" not in {output.name for output in bundle.manifest.outputs}


def test_appended_gradient_scores_equal_their_definition(out: Path, tmp_path: Path) -> None:
    """EGL by autograd over every class, S_a by autograd, on the graph's own logits and features."""
    path = zoo_graph("shufflenet", tmp_path / "m.onnx")
    holdout = frames(12)
    bundle = export_onnx(
        path, Frames(frames(50), holdout=holdout), ModelFacts(IMAGENET), out=out, options=OPTIONS
    )
    graph, _ = adapt(load_graph(path), IMAGENET)
    layer = find_last_layer(graph, choose_output(graph)).layer
    assert layer is not None
    graph.graph.output.append(helper.make_tensor_value_info(layer.features, TensorProto.FLOAT, None))
    inner = open_session(graph)
    weight = torch.from_numpy(layer.weight).double().requires_grad_()
    bias = torch.from_numpy(layer.bias).double().requires_grad_()

    def features_of(examples: Examples) -> torch.Tensor:
        image = examples.batch(range(len(examples)), IMAGENET).numpy()
        return torch.from_numpy(inner.run([layer.features], {"image": image})[0]).double().flatten(1)

    def gradient(features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        loss = torch.nn.functional.cross_entropy(features @ weight.T + bias, labels)
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, (weight, bias))])

    held = gradient(features_of(holdout), torch.from_numpy(holdout.targets))
    probe = frames(3)
    session = ort.InferenceSession(bundle.model_path, providers=["CPUExecutionProvider"])
    image = probe.batch(range(3), IMAGENET).numpy()
    logits, approx, egl = session.run(
        ["logits", "score.wrong_prediction_approx", "score.egl"], {"image": image}
    )
    phi = features_of(probe)
    channels = phi.shape[1]
    p = torch.softmax(torch.from_numpy(logits).double(), 1)
    assert float(p.max()) < 0.999, "the drawn network must not be saturated"
    for i in range(3):
        own = gradient(phi[i : i + 1], torch.from_numpy(logits[i : i + 1]).argmax(1))
        assert approx[i] == pytest.approx(float(-(held @ own)) / channels, rel=1e-3, abs=1e-9)
        expected = (1 - p[i].square().sum()) * (phi[i].square().sum() + 1) / channels
        assert egl[i] == pytest.approx(float(expected), rel=1e-3)


def sklearn_graph(digits: Dataset, path: Path, kind: str) -> Path:
    """A scikit-learn classifier on real digits, written by skl2onnx."""
    import skl2onnx  # of the dev extra: absent is a failure, not a skip
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.neural_network import MLPClassifier

    images = np.stack([digits.train.images[i][:, :, 0] for i in range(600)]).reshape(600, -1) / 255.0
    model = (
        MLPClassifier((32,), max_iter=400, random_state=0)
        if kind == "mlp"
        else RandomForestClassifier(20, random_state=0)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(images.astype(np.float32), digits.train.targets[:600])
        graph = skl2onnx.to_onnx(model, images[:1].astype(np.float32), options={"zipmap": False})
    onnx.save(graph, path)
    return path


def parts_of(digits: Dataset) -> dict[str, Examples]:
    return split(digits.test, fractions={"holdout": 0.4, "calibration": 0.6}, seed=0)


def digit_contract(digits: Dataset) -> InputContract:
    return digits.contract.model_copy(update={"mean": (0.0,), "std": (1.0,)})


def export_digits(path: Path, digits: Dataset, out: Path) -> Bundle:
    parts = parts_of(digits)
    return export_onnx(
        path,
        Frames(parts["calibration"], digits.train, parts["holdout"], classes=digits.classes),
        ModelFacts(digit_contract(digits), output="probabilities"),
        out=out,
        options=OPTIONS,
    )


def test_a_scikit_learn_network_gets_all_scores_and_they_find_its_failures(
    digits: Dataset, out: Path, tmp_path: Path
) -> None:
    bundle = export_digits(sklearn_graph(digits, tmp_path / "m.onnx", "mlp"), digits, out)
    names = [score.name for score in bundle.manifest.scores]
    assert {"egl", "wrong_prediction_approx", "entropy"} <= set(names)
    assert bundle.manifest.extra["calibration"]["accuracy"] > 0.8
    assert bundle.manifest.extra["scores"]["entropy"]["auroc"] > 0.75
    assert bundle.manifest.parity is not None and max(bundle.manifest.parity.max_abs.values()) < 1e-4


def test_a_forest_has_no_logits_so_their_logarithms_stand_in(
    digits: Dataset, out: Path, tmp_path: Path
) -> None:
    bundle = export_digits(sklearn_graph(digits, tmp_path / "m.onnx", "forest"), digits, out)
    assert "probabilities without logits" in bundle.manifest.extra["notes"][0]
    assert bundle.manifest.extra["scores"]["msp"]["auroc"] > 0.75


def segmenter(path: Path, *, classes: int = 4, opset: int = 13) -> Path:
    """A hand-made fully convolutional network whose answer is scaled up after the last layer."""
    rng = np.random.default_rng(0)
    weights = {
        "w1": rng.normal(0, 0.4, (8, 3, 3, 3)),
        "w2": rng.normal(0, 1.0, (classes, 8, 1, 1)),
        "b2": rng.normal(0, 0.1, classes),
        "scales": np.array([1, 1, 2, 2]),
    }
    nodes = [
        helper.make_node("Conv", ["pixels", "w1"], ["f"], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Relu", ["f"], ["phi_map"]),
        helper.make_node("Conv", ["phi_map", "w2", "b2"], ["small"]),
        helper.make_node("Resize", ["small", "", "scales"], ["mask"], mode="linear"),
    ]
    graph = helper.make_graph(
        nodes,
        "segmenter",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["n", 3, 16, 16])],
        [helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["n", classes, 16, 16])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), path)
    return path


def test_a_segmenter_that_scales_its_answer_up_gets_pixel_scores(out: Path, tmp_path: Path) -> None:
    images = seeded_images(60)
    labels = np.random.default_rng(2).integers(0, 4, (60, 16, 16)).astype(np.uint8)
    bundle = export_onnx(
        segmenter(tmp_path / "m.onnx"),
        Frames(examples_of(images, labels), holdout=examples_of(images[:20], labels[:20], prefix="held")),
        ModelFacts(InputContract(height=16, width=16), task="segmentation"),
        out=out,
        options=replace(OPTIONS, failure_threshold=1.6),
    )
    assert {"egl", "wrong_prediction_approx", "energy"} <= {score.name for score in bundle.manifest.scores}
    shapes = {output.name: output.shape for output in bundle.manifest.outputs}
    assert shapes["segmentation"] == (-1, 4, 16, 16) and shapes["embedding"] == (-1, 8)


def broken(path: Path, **change: object) -> Path:
    """The segmenter with one thing wrong."""
    model = onnx.load(segmenter(path))
    if "operator" in change:
        model.graph.node[1].op_type = str(change["operator"])
        model.graph.node[1].name = "the_odd_one"
    if "shape" in change:
        model.graph.input[0].CopyFrom(
            helper.make_tensor_value_info("pixels", TensorProto.FLOAT, change["shape"])
        )
    if "nan" in change:
        model.graph.initializer[0].CopyFrom(
            numpy_helper.from_array(np.full((8, 3, 3, 3), np.nan, np.float32), "w1")
        )
    if "infinite" in change:
        model.graph.initializer[0].CopyFrom(
            numpy_helper.from_array(np.full((8, 3, 3, 3), 1e38, np.float32), "w1")
        )
    if "second" in change:
        model.graph.input.append(helper.make_tensor_value_info("depth", TensorProto.FLOAT, ["n", 1]))
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"operator": "Swizzle"}, r"unsupported operators: Swizzle \(node the_odd_one\)"),
        ({"shape": ["n", 3, 32, 32]}, "input contract says"),
        ({"nan": True}, "output .* is NaN or infinite for image image-0"),
        ({"infinite": True}, "output .* is NaN or infinite for image image-0"),
        ({"second": True}, "takes one image; this graph has inputs pixels, depth"),
    ],
)
def test_unusable_graphs_are_refused_with_the_node_input_or_image(
    change: dict[str, object], text: str, out: Path, tmp_path: Path
) -> None:
    labels = np.zeros((50, 16, 16), np.uint8)
    with pytest.raises(ExportError, match=text):
        export_onnx(
            broken(tmp_path / "m.onnx", **change),
            Frames(examples_of(seeded_images(50), labels)),
            ModelFacts(InputContract(height=16, width=16), task="segmentation"),
            out=out,
            options=OPTIONS,
        )
    assert not out.exists()


def test_a_free_batch_written_as_minus_one_is_free(tmp_path: Path) -> None:
    model = load_graph(broken(tmp_path / "m.onnx", shape=[-1, 3, 16, 16]))
    graph, notes = adapt(model, InputContract(height=16, width=16))
    assert graph.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch" and not notes


def test_too_few_frames_for_a_foreign_graph_say_how_many_are_needed(out: Path, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="49 frames; at least 50 are needed"):
        export_onnx(
            segmenter(tmp_path / "m.onnx"),
            Frames(examples_of(seeded_images(49), np.zeros((49, 16, 16), np.uint8))),
            ModelFacts(InputContract(height=16, width=16), task="segmentation"),
            out=out,
            options=OPTIONS,
        )


def test_what_is_no_onnx_file_is_said_to_be_none(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"\x00\x01 not a graph")
    for path in (tmp_path / "a.onnx", tmp_path / "missing.onnx"):
        with pytest.raises(GraphError, match=path.name):
            load_graph(path)
