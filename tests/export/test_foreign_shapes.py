"""Every ordinary shape of a classifier or segmenter: scores equal a numpy reading of the original file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from foreign_cases import BIAS, OPTIONS, PLAIN, WEIGHT, answers_of, coloured, export, network, true_logits
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper
from shape_cases import (
    ROAD_BIAS,
    ROAD_WEIGHT,
    binary_entropy,
    convolutional,
    entropy,
    file_answers,
    quantized,
    roads,
    save,
    softmax,
    tensors_of,
)

from misfire_export.command import describe
from misfire_export.errors import GraphError, LabelError
from misfire_export.sources.facts import ModelFacts
from misfire_export.sources.frames import Frames
from misfire_export.sources.onnx.exporting import export_onnx, open_graph
from misfire_export.sources.onnx.opening import own_size
from misfire_runtime.bundle import Bundle
from misfire_runtime.engines.scoring import Scorer
from misfire_runtime.preprocess import InputContract

pytestmark = pytest.mark.slow

ROAD = InputContract(height=8, width=12)
FRAMES = coloured(20, seed=3)


def node(operator: str, *names: str, **attributes: object) -> NodeProto:
    return helper.make_node(operator, list(names[:-1]), [names[-1]], f"their_{names[-1]}", **attributes)


def pixels(contract: InputContract = PLAIN) -> NDArray[np.float32]:
    return FRAMES.batch(range(len(FRAMES)), contract).numpy()


def expected_egl(logits: NDArray[Any], phi: NDArray[Any]) -> NDArray[np.float64]:
    """(1 - ||p||^2) ||[phi; 1]||^2 / C."""
    p = softmax(logits)
    energy = (np.square(phi.astype(np.float64)).sum(axis=1) + 1) / phi.shape[1]
    return np.asarray((1 - np.square(p).sum(axis=1)) * energy)


def test_a_clip_or_a_factor_behind_a_softmax_is_seen_through(out: Path, tmp_path: Path) -> None:
    tails = {
        "clip": ([node("Clip", "s", "low", "high", "p")], {"low": np.float32(1e-7), "high": np.float32(1)}),
        "percent": ([node("Mul", "s", "hundred", "p")], {"hundred": np.float32(100)}),
        "bytes": ([node("Div", "s", "step", "p")], {"step": np.float32(1 / 255)}),
    }
    for name, (tail, constants) in tails.items():
        softmaxed = [node("Softmax", "z", "s", axis=1), *tail]
        path = network(tmp_path / f"{name}.onnx", softmaxed, constants=constants, outputs=["p"])
        found = answers_of(export(path, out, scores=["entropy", "egl"]), FRAMES)
        p = file_answers(path, pixels())["p"]
        assert found["score.entropy"] == pytest.approx(entropy(p / p.sum(axis=1, keepdims=True)), abs=1e-4)
        phi = pixels().mean(axis=(2, 3))
        assert found["score.egl"] == pytest.approx(expected_egl(true_logits(FRAMES), phi), rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("scale", [100.0, 255.0])
def test_probabilities_in_percent_or_bytes_are_told_by_their_sums(
    scale: float, out: Path, tmp_path: Path
) -> None:
    tail = [
        node("Exp", "z", "e"),
        node("ReduceSum", "e", "axes", "total", keepdims=1),
        node("Div", "e", "total", "q"),
        node("Mul", "q", "scale", "p"),
    ]
    constants = {"axes": np.array([1], np.int64), "scale": np.float32(scale)}
    path = network(tmp_path / "m.onnx", tail, constants=constants, outputs=["p"])
    bundle = export(path, out)
    wanted = entropy(file_answers(path, pixels())["p"] / scale)
    found = answers_of(bundle, FRAMES)
    assert found["score.entropy"] == pytest.approx(wanted, abs=1e-4)
    assert f"rows that sum to about {scale:g}" in bundle.manifest.extra["notes"][0]


def test_an_answer_in_bytes_is_dequantised(out: Path, tmp_path: Path) -> None:
    tail = [node("Softmax", "z", "s", axis=1), node("QuantizeLinear", "s", "step", "zero", "p")]
    constants = {"step": np.float32(1 / 256), "zero": np.uint8(0)}
    path = network(tmp_path / "m.onnx", tail, constants=constants, outputs=["p"], kinds=[TensorProto.UINT8])
    assert export(path, out, scores=["entropy", "egl"]).manifest.precision == "int8"
    wanted = entropy(softmax(true_logits(FRAMES)))
    assert answers_of(Bundle.open(out), FRAMES)["score.entropy"] == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize(
    "kind", [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.UINT8, TensorProto.INT8]
)
def test_an_input_with_its_channels_last_is_transposed_inside_the_graph(
    kind: int, out: Path, tmp_path: Path
) -> None:
    path, in_bytes = tmp_path / "m.onnx", kind in (TensorProto.UINT8, TensorProto.INT8)
    middle = BIAS + (128 / 255 * WEIGHT.sum(axis=1) if kind == TensorProto.INT8 else 0)
    network(
        path,
        input_type=kind,
        input_shape=("n", 8, 8, 3),
        constants={"places": np.array([1, 2], np.int64)},
        weight=(WEIGHT / 255 if in_bytes else WEIGHT).astype(np.float32),
        bias=np.asarray(middle, np.float32),
    )
    assert own_size(open_graph(path)) == (3, 8, 8)
    bundle = export(path, out, scores=["entropy", "egl"], options=replace(OPTIONS, tolerance=0.01))
    assert bundle.manifest.input.dtype == ("uint8" if in_bytes else "float32")
    given = pixels(PLAIN.model_copy(update={"dtype": "uint8"})) if in_bytes else pixels()
    if kind == TensorProto.INT8:
        given = (given.astype(np.int32) - 128).astype(np.int8)
    if kind == TensorProto.FLOAT16:
        given = given.astype(np.float16)
    wanted = file_answers(path, given.transpose(0, 2, 3, 1))["z"]
    found = answers_of(bundle, FRAMES)
    assert found["logits"] == pytest.approx(wanted, rel=1e-4, abs=1e-4)
    assert found["score.entropy"] == pytest.approx(entropy(softmax(wanted)), abs=1e-4)


def test_a_fixed_batch_is_freed_if_frames_do_not_mix_and_refused_if_they_do(
    out: Path, tmp_path: Path
) -> None:
    freed = network(tmp_path / "m.onnx", input_shape=(4, 3, 8, 8))
    bundle = export(freed, out)
    assert {spec.shape[0] for spec in bundle.manifest.outputs} == {-1}
    assert answers_of(bundle, FRAMES)["logits"] == pytest.approx(true_logits(FRAMES), rel=1e-3, abs=1e-3)
    mixing = [node("ReduceMean", "z", "m", keepdims=1), node("Sub", "z", "m", "p")]
    path = network(tmp_path / "mixing.onnx", mixing, outputs=["p"], input_shape=(4, 3, 8, 8))
    with pytest.raises(GraphError, match=r"batches of 4 only, .* export the model with a dynamic batch"):
        export(path, tmp_path / "none")


@pytest.mark.parametrize("form", ["qdq", "qoperator", "dynamic"])
@pytest.mark.parametrize("product", [False, True], ids=["gemm", "matmul"])
@pytest.mark.parametrize("ends", ["logits", "softmax"])
def test_whole_numbers_keep_their_gradient_scores(
    form: str, product: bool, ends: str, out: Path, tmp_path: Path
) -> None:
    tail = [node("Softmax", "z", "p", axis=1)] if ends == "softmax" else []
    output = "p" if tail else "z"
    source = convolutional(tmp_path / "float.onnx", tail, output=output, product=product)
    seen = coloured(60, seed=9).batch(range(60), PLAIN).numpy()
    path = quantized(source, tmp_path / "int8.onnx", form, seen)
    bundle = export(path, out, scores=["entropy", "egl"])
    assert bundle.manifest.precision == "int8"
    found, theirs = answers_of(bundle, FRAMES), file_answers(path, pixels())[output]
    p = theirs if tail else softmax(theirs)
    # Probabilities of 8 bits are coarse; the logits before them are what the scores read.
    assert found["score.entropy"] == pytest.approx(entropy(p), abs=0.05 if tail else 1e-4)
    assert (found["logits"].argmax(axis=1) == theirs.argmax(axis=1)).all()
    assert np.ptp(found["score.egl"]) > 0
    if form == "qdq" and not tail:
        names = {name for n in onnx.load(path).graph.node for name in n.output}
        phi = tensors_of(path, [next(n for n in names if n.startswith("f_Dequantize"))], pixels())
        wanted = expected_egl(theirs, next(iter(phi.values())))
        assert found["score.egl"] == pytest.approx(wanted, rel=1e-3, abs=1e-4)


def test_weights_beside_the_file_are_taken_in(out: Path, tmp_path: Path) -> None:
    model = onnx.load(network(tmp_path / "m.onnx"))
    onnx.save(
        model,
        tmp_path / "split.onnx",
        save_as_external_data=True,
        location="split.weights",
        size_threshold=0,
    )
    bundle = export(tmp_path / "split.onnx", out)
    assert answers_of(bundle, FRAMES)["logits"] == pytest.approx(true_logits(FRAMES), rel=1e-3, abs=1e-3)
    (tmp_path / "split.weights").unlink()
    with pytest.raises(GraphError, match=r"split\.weights"):
        open_graph(tmp_path / "split.onnx")


# One sigmoid for each pixel


def road_graph(path: Path, tail: list[NodeProto], *, output: str, last: bool = False) -> Path:
    """pixels --1x1 Conv--> z [n,1,8,12] --tail--> output. last: takes [n,8,12,3]."""
    nodes = [node("Transpose", "pixels", "first", perm=(0, 3, 1, 2))] if last else []
    nodes += [node("Conv", "first" if last else "pixels", "w", "b", "z"), *tail]
    held = {
        "w": ROAD_WEIGHT[:, :, None, None],
        "b": ROAD_BIAS,
        "low": np.float32(1e-6),
        "high": np.float32(1 - 1e-6),
        "one": np.array([1], np.int64),
        "three": np.array([3], np.int64),
    }
    shape = ("n", 8, 12, 3) if last else ("n", 3, 8, 12)
    return save(path, nodes, held, outputs={output: None}, shape=shape)


def export_road(
    path: Path, out: Path, *, classes: tuple[str, ...] = ("verge", "road"), **more: Any
) -> Bundle:
    frames = Frames(roads(80), holdout=roads(30, seed=7, prefix="held"), classes=classes)
    facts = ModelFacts(more.pop("contract", ROAD), task="segmentation", **more)
    return export_onnx(path, frames, facts, out=out, options=replace(OPTIONS, scores=["entropy", "egl"]))


ROAD_TAILS: dict[str, tuple[list[NodeProto], str, bool]] = {
    "sigmoid": ([node("Sigmoid", "z", "p")], "p", False),
    "logit": ([], "z", False),
    "clipped": ([node("Sigmoid", "z", "s"), node("Clip", "s", "low", "high", "p")], "p", False),
    "rank-3": ([node("Sigmoid", "z", "s"), node("Squeeze", "s", "one", "p")], "p", False),
    "channels-last": (
        [node("Transpose", "z", "t", perm=(0, 2, 3, 1)), node("Sigmoid", "t", "p")],
        "p",
        True,
    ),
}


@pytest.mark.parametrize("form", list(ROAD_TAILS))
def test_one_map_of_a_sigmoid_becomes_two_classes(form: str, out: Path, tmp_path: Path) -> None:
    tail, output, last = ROAD_TAILS[form]
    path = road_graph(tmp_path / "m.onnx", tail, output=output, last=last)
    bundle = export_road(path, out)
    assert bundle.manifest.extra["calibration"]["accuracy"] > 0.8
    assert bundle.manifest.classes == ("verge", "road")
    frames = roads(10, seed=4)
    given = frames.batch(range(10), ROAD).numpy()
    theirs = file_answers(path, given.transpose(0, 2, 3, 1) if last else given)[output]
    p = theirs.reshape(10, 8, 12).astype(np.float64)
    if output == "z":
        p = 1 / (1 + np.exp(-p))
    found = answers_of(bundle, frames)
    assert found["segmentation"].shape == (10, 2, 8, 12)
    assert softmax(found["segmentation"])[:, 1] == pytest.approx(p, abs=1e-4)
    assert found["score.entropy"] == pytest.approx(binary_entropy(p).mean(axis=(1, 2)), abs=1e-4)
    energy = (np.square(given).sum(axis=1) + 1) / 3
    assert found["score.egl"] == pytest.approx((2 * p * (1 - p) * energy).mean(axis=(1, 2)), rel=1e-3)
    assert "the second of two classes" in " ".join(bundle.manifest.extra["notes"])
    scorer = Scorer.load(bundle)
    shares = scorer.score(np.asarray(frames.images[0])).prediction["shares"]
    assert shares["road"] == pytest.approx(float((p[0] > 0.5).mean()), abs=1e-3)
    scorer.close()


def test_one_map_needs_two_classes_in_the_right_order(out: Path, tmp_path: Path) -> None:
    path = road_graph(tmp_path / "m.onnx", [node("Sigmoid", "z", "p")], output="p")
    with pytest.raises(LabelError, match=r"has 3 classes .* the model 2 outputs"):
        export_road(path, out, classes=("verge", "road", "sky"))
    inverted = road_graph(tmp_path / "i.onnx", [node("Neg", "z", "n"), node("Sigmoid", "n", "p")], output="p")
    with pytest.raises(LabelError, match="another order of the classes explains the answers far better"):
        export_road(inverted, out)
    numbers = [node("Sigmoid", "z", "s"), node("Round", "s", "p")]
    with pytest.raises(GraphError, match="class labels without scores"):
        export_road(road_graph(tmp_path / "r.onnx", numbers, output="p"), out)


def test_a_segmenter_with_its_classes_last_is_transposed(out: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weight = np.concatenate([-ROAD_WEIGHT, ROAD_WEIGHT, rng.normal(-5, 0.1, (1, 3))]).astype(np.float32)
    bias = np.array([4.2, -4.2, -5.0], np.float32)
    nodes = [
        node("Transpose", "pixels", "first", perm=(0, 3, 1, 2)),
        node("Conv", "first", "w", "b", "c"),
        node("Transpose", "c", "z", perm=(0, 2, 3, 1)),
        node("Softmax", "z", "p", axis=3),
    ]
    held = {"w": weight[:, :, None, None], "b": bias}
    path = save(tmp_path / "m.onnx", nodes, held, outputs={"p": None}, shape=("n", 8, 12, 3))
    frames = roads(10, seed=4)
    theirs = file_answers(path, frames.batch(range(10), ROAD).numpy().transpose(0, 2, 3, 1))["p"]
    for classes in (("verge", "road", "sky"), ()):
        found = answers_of(export_road(path, out, classes=classes), frames)
        assert found["segmentation"].shape == (10, 3, 8, 12)
        assert found["score.entropy"] == pytest.approx(entropy(theirs, axis=3).mean(axis=(1, 2)), abs=1e-4)
        assert "score.egl" in found


@pytest.mark.parametrize("form", ["column", "flat", "logit"])
def test_one_number_for_each_frame_becomes_two_classes(form: str, out: Path, tmp_path: Path) -> None:
    weight, bias = (WEIGHT[:1] - WEIGHT[1:2]), (BIAS[:1] - BIAS[1:2])
    tail = [] if form == "logit" else [node("Sigmoid", "z", "p")]
    if form == "flat":
        tail = [node("Sigmoid", "z", "s"), node("Squeeze", "s", "one", "p")]
    path = network(
        tmp_path / "m.onnx",
        tail,
        outputs=["p" if tail else "z"],
        weight=weight,
        bias=bias,
        constants={"one": np.array([1], np.int64)},
    )
    frames = coloured(300)
    red = replace(frames, targets=(frames.targets == 0).astype(np.int64))
    bundle = export(path, out, frames=red, classes=("other", "red"), scores=["entropy"])
    theirs = next(iter(file_answers(path, pixels()).values())).reshape(-1).astype(np.float64)
    p = theirs if tail else 1 / (1 + np.exp(-theirs))
    found = answers_of(bundle, FRAMES)
    assert found["logits"].shape == (20, 2)
    assert found["score.entropy"] == pytest.approx(binary_entropy(p), abs=1e-4)


@pytest.mark.parametrize(
    ("shape", "channels"), [(("n", 5, 8, 8), 5), (("n", 8, 8, 5), 5), (("n", 9, 8, 8), 9)]
)
def test_channels_that_no_source_feeds_are_refused_with_what_a_vehicle_has(
    shape: tuple[int | str, ...], channels: int, out: Path, tmp_path: Path
) -> None:
    path = network(tmp_path / "m.onnx", input_shape=shape)
    with pytest.raises(GraphError, match=rf"{channels} channels: a bundle takes 3 channels of 8 bits"):
        export(path, out)


def test_a_model_that_looks_wrong_says_so_at_the_top_of_the_summary(out: Path, tmp_path: Path) -> None:
    path = network(tmp_path / "m.onnx", weight=WEIGHT * 0)
    lines = describe(export(path, out)).splitlines()
    assert "accuracy 0." in lines[1]
    assert lines[2].startswith("WARNING: accuracy") and "no better than always answering" in lines[2]
    assert lines[3].startswith("WARNING: entropy is") and "cannot tell them apart" in lines[3]
    assert not any(line.startswith("WARNING") for line in lines[4:])
