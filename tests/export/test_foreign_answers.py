"""What comes out of a foreign graph is told by its numbers: no score is a softmax of probabilities."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from foreign_cases import (
    BIAS,
    OPTIONS,
    PLAIN,
    WEIGHT,
    answers_of,
    coloured,
    entropy_of,
    export,
    network,
    true_logits,
)
from onnx import NodeProto, TensorProto, helper

from misfire_export.errors import ExportError, GraphError
from misfire_export.sources.frames import frames_of_dataset
from misfire_export.sources.onnx.exporting import open_graph
from misfire_runtime.errors import ConfigError

pytestmark = pytest.mark.slow


def node(operator: str, *names: str, **attributes: object) -> NodeProto:
    """An operator from its first tensors to its last one."""
    return helper.make_node(
        operator, list(names[:-1]), [names[-1]], f"their_{operator}_{names[-1]}", **attributes
    )


BY_HAND = (
    [
        node("Exp", "z", "e"),
        node("ReduceSum", "e", "axes", "total", keepdims=1),
        node("Div", "e", "total", "p"),
    ],
    {"axes": np.array([1], np.int64)},
)
AVERAGED = (
    [
        node("Softmax", "z", "s", axis=1),
        node("Add", "s", "s", "both"),
        node("Mul", "both", "half", "p"),
    ],
    {"half": np.float32(0.5)},
)


@pytest.mark.parametrize("tail", [BY_HAND, AVERAGED], ids=["exp-over-sum", "average"])
def test_probabilities_of_any_operator_become_their_logarithms(
    tail: tuple[list[NodeProto], dict[str, np.ndarray]], out: Path, tmp_path: Path
) -> None:
    bundle = export(network(tmp_path / "m.onnx", tail[0], constants=tail[1], outputs=["p"]), out)
    frames = coloured(20, seed=3)
    found, wanted = answers_of(bundle, frames), entropy_of(true_logits(frames))
    assert found["score.entropy"] == pytest.approx(wanted, rel=1e-3, abs=1e-4)
    assert wanted.min() < 0.3, "the frames must not all be uncertain"
    assert "their logarithms are used as logits" in bundle.manifest.extra["notes"][0]


def test_a_softmax_behind_a_quantiser_is_seen_through_and_so_is_the_layer_before_it(
    out: Path, tmp_path: Path
) -> None:
    scale = np.abs(WEIGHT).max() / 127
    eight = np.round(WEIGHT / scale).astype(np.int8)
    tail = [
        node("DequantizeLinear", "w8", "ws", "w_again"),
        node("Gemm", "f", "w_again", "b", "z2", transB=1),
        node("Softmax", "z2", "s", axis=1),
        node("QuantizeLinear", "s", "ps", "p0", "q"),
        node("DequantizeLinear", "q", "ps", "p0", "p"),
    ]
    constants = {
        "w8": eight,
        "ws": np.float32(scale),
        "ps": np.float32(1 / 256),
        "p0": np.uint8(0),
    }
    bundle = export(network(tmp_path / "m.onnx", tail, constants=constants, outputs=["p"]), out, scores=None)
    frames = coloured(20, seed=3)
    pixels = frames.batch(range(20), PLAIN).numpy().mean(axis=(2, 3))
    wanted = entropy_of((pixels @ (eight * scale).T + BIAS).astype(np.float64))
    assert answers_of(bundle, frames)["score.entropy"] == pytest.approx(wanted, rel=1e-3, abs=1e-4)
    assert {"egl", "wrong_prediction_approx"} <= {score.name for score in bundle.manifest.scores}
    assert bundle.manifest.precision == "int8"


def test_quantised_probabilities_that_sum_to_less_than_one_are_probabilities(
    out: Path, tmp_path: Path
) -> None:
    tail = [node("Softmax", "z", "s", axis=1), node("Mul", "s", "less", "p")]
    constants = {"less": np.float32(0.9)}
    bundle = export(network(tmp_path / "m.onnx", tail, constants=constants, outputs=["p"]), out)
    frames = coloured(20, seed=3)
    wanted = entropy_of(true_logits(frames))
    assert answers_of(bundle, frames)["score.entropy"] == pytest.approx(wanted, rel=1e-3, abs=1e-4)


def test_sigmoids_are_refused_until_their_log_odds_are_asked_for(out: Path, tmp_path: Path) -> None:
    plain = network(tmp_path / "plain.onnx", [node("Sigmoid", "z", "p")], outputs=["p"])
    hidden = network(
        tmp_path / "hidden.onnx",
        [node("Sigmoid", "z", "s"), node("Clip", "s", "low", "high", "p")],
        constants={"low": np.float32(1e-7), "high": np.float32(1 - 1e-7)},
        outputs=["p"],
    )
    frames = coloured(20, seed=3)
    for path in (plain, hidden):
        with pytest.raises(GraphError, match=r"is sigmoids: .* --answer sigmoid"):
            export(path, out)
        assert not out.exists()
    for path in (plain, hidden):
        bundle = export(path, out, answer="sigmoid")
        found = answers_of(bundle, frames)
        assert found["score.entropy"] == pytest.approx(entropy_of(true_logits(frames)), rel=1e-2, abs=1e-3)
    assert "log-odds" in bundle.manifest.extra["notes"][0]


def test_small_logits_of_a_weak_model_are_no_sigmoids(out: Path, tmp_path: Path) -> None:
    path = network(
        tmp_path / "m.onnx", weight=WEIGHT / 1000, bias=np.array([0.1, 0.11, 0.12], np.float32), outputs=["z"]
    )
    frames = coloured(20, seed=3)
    found = answers_of(export(path, out, scores=["entropy"]), frames)
    pixels = frames.batch(range(20), PLAIN).numpy().mean(axis=(2, 3))
    wanted = pixels @ WEIGHT.T / 1000 + [0.1, 0.11, 0.12]
    assert wanted.min() >= 0 and wanted.max() <= 1
    assert found["logits"] == pytest.approx(wanted, abs=1e-5)


def test_what_the_user_says_of_the_answer_must_be_possible(out: Path, tmp_path: Path) -> None:
    path = network(tmp_path / "m.onnx")
    for said in ("sigmoid", "probabilities"):
        with pytest.raises(GraphError, match="does not stay within"):
            export(path, out, answer=said)
    with pytest.raises(ExportError, match="expected auto, logits, probabilities, sigmoid"):
        export(path, out, answer="softmax")


def test_logits_stay_as_they_are(out: Path, tmp_path: Path) -> None:
    path, frames = network(tmp_path / "m.onnx"), coloured(20, seed=3)
    bundle = export(path, out)
    import onnxruntime as ort

    theirs = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    wanted = theirs.run(None, {"pixels": frames.batch(range(20), PLAIN).numpy()})[0]
    assert (answers_of(bundle, frames)["logits"] == wanted).all()
    assert [note for note in bundle.manifest.extra["notes"] if "last layer" not in note] == []


def test_a_softmax_over_another_axis_is_no_softmax_of_the_classes(out: Path, tmp_path: Path) -> None:
    tail = [node("Transpose", "z", "zt", perm=[1, 0]), node("Softmax", "zt", "st", axis=0)]
    tail += [node("Transpose", "st", "p", perm=[1, 0])]
    bundle = export(network(tmp_path / "m.onnx", tail, outputs=["p"]), out)
    frames = coloured(20, seed=3)
    wanted = entropy_of(true_logits(frames))
    assert answers_of(bundle, frames)["score.entropy"] == pytest.approx(wanted, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize(
    "names",
    [
        {"z": "logits"},
        {"f": "phi"},
        {"f": "image"},
        {"pixels": "image", "f": "embedding"},
        {"pixels": "embedding", "z": "score.entropy", "w": "phi", "b": "segmentation"},
        {"z": "embedding", "f": "misfire/scores/n0", "x": "heatmaps", "pooled": "values"},
    ],
)
def test_a_foreign_tensor_of_a_public_name_makes_room(
    names: dict[str, str], out: Path, tmp_path: Path
) -> None:
    bundle = export(network(tmp_path / "m.onnx", names=names), out, scores=["entropy", "egl"])
    frames = coloured(20, seed=3)
    found = answers_of(bundle, frames)
    assert found["logits"] == pytest.approx(true_logits(frames), rel=1e-3, abs=1e-3)
    assert found["score.entropy"] == pytest.approx(entropy_of(true_logits(frames)), rel=1e-3, abs=1e-4)
    assert "egl" in {score.name for score in bundle.manifest.scores}


def test_names_in_subgraphs_make_room_too_and_the_output_keeps_the_users_name(
    out: Path, tmp_path: Path
) -> None:
    def branch(name: str, sign: float) -> onnx.GraphProto:
        inner = [
            helper.make_node("Constant", [], ["image"], value_float=sign),
            helper.make_node("Mul", ["z", "image"], ["phi"]),
        ]
        return helper.make_graph(
            inner, name, [], [helper.make_tensor_value_info("phi", TensorProto.FLOAT, None)]
        )

    tail = [
        helper.make_node(
            "If", ["yes"], ["logits"], then_branch=branch("a", 1.0), else_branch=branch("b", -1.0)
        )
    ]
    path = network(
        tmp_path / "m.onnx", tail, constants={"yes": np.array(True)}, outputs=["logits", "z"], kinds=[1, 1]
    )
    frames = coloured(20, seed=3)
    found = answers_of(export(path, out, output="logits"), frames)
    assert found["logits"] == pytest.approx(true_logits(frames), rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("opset", [20, 21, 23])
def test_operators_newer_than_opset_18_stay(opset: int, out: Path, tmp_path: Path) -> None:
    tail = [node("Gelu", "z", "g"), node("Gemm", "g", "w", "z2", transB=1)]
    path = network(tmp_path / "m.onnx", tail, outputs=["z2"], opset=opset)
    bundle = export(path, out, scores=["entropy", "egl"])
    model = onnx.load(bundle.model_path)
    assert "Gelu" in {n.op_type for n in model.graph.node}
    assert [item.version for item in model.opset_import if item.domain == ""] == [opset]
    assert {"egl", "entropy"} <= {score.name for score in bundle.manifest.scores}
    assert bundle.manifest.parity is not None and max(bundle.manifest.parity.max_abs.values()) < 1e-4


def test_weights_quantised_in_blocks_leave_out_the_last_layer_only(out: Path, tmp_path: Path) -> None:
    tail = [node("DequantizeLinear", "w8", "ws", "w_again", axis=1, block_size=2)]
    tail += [node("Gemm", "f4", "w_again", "z2", transB=1)]
    tail.insert(0, node("Concat", "f", "one", "f4", axis=1))
    constants = {
        "w8": np.concatenate([WEIGHT, np.zeros((3, 1))], axis=1).astype(np.int8),
        "ws": np.ones((3, 2), np.float32),
        "one": np.zeros((1, 1), np.float32),
    }
    path = network(
        tmp_path / "m.onnx", tail, constants=constants, outputs=["z2"], opset=21, input_shape=[1, 3, 8, 8]
    )
    bundle = export(path, out, scores=None)
    assert "egl" not in {score.name for score in bundle.manifest.scores}
    frames = coloured(20, seed=3)
    assert answers_of(bundle, frames)["logits"] == pytest.approx(true_logits(frames) - BIAS, abs=1e-3)


def test_an_opset_listed_twice_and_nodes_out_of_order_are_put_right(out: Path, tmp_path: Path) -> None:
    path = network(tmp_path / "m.onnx", [node("Softmax", "z", "p", axis=1)], outputs=["p"])
    model = onnx.load(path)
    nodes = [onnx.NodeProto.FromString(n.SerializeToString()) for n in model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(reversed(nodes))
    model.opset_import.extend([helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx", 16)])
    onnx.save(model, path)
    frames = coloured(20, seed=3)
    found = answers_of(export(path, out), frames)
    assert found["score.entropy"] == pytest.approx(entropy_of(true_logits(frames)), rel=1e-3, abs=1e-4)


def test_a_graph_with_a_loop_is_refused(tmp_path: Path) -> None:
    path = network(tmp_path / "m.onnx", [node("Add", "z", "c", "a"), node("Neg", "a", "c")], outputs=["c"])
    with pytest.raises(GraphError, match="loop through node their_Add_a"):
        open_graph(path)


@pytest.mark.parametrize("inside", [TensorProto.FLOAT16, TensorProto.DOUBLE])
def test_halves_and_doubles_inside_come_out_as_fp32(inside: int, out: Path, tmp_path: Path) -> None:
    tail = [node("Softmax", "z", "s", axis=1), node("Cast", "s", "p", to=TensorProto.FLOAT)]
    path = network(tmp_path / "m.onnx", tail, outputs=["p"], inside=inside)
    bundle = export(path, out, scores=["entropy", "egl"])
    frames = coloured(20, seed=3)
    wanted = entropy_of(true_logits(frames))
    found = answers_of(bundle, frames)
    assert found["score.entropy"] == pytest.approx(wanted, abs=2e-2) and found["logits"].dtype == np.float32
    assert "egl" in {score.name for score in bundle.manifest.scores}
    assert bundle.manifest.precision == ("fp16" if inside == TensorProto.FLOAT16 else "fp32")


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.DOUBLE])
def test_an_input_or_answer_of_halves_or_doubles_is_cast(kind: int, out: Path, tmp_path: Path) -> None:
    bundle = export(network(tmp_path / "m.onnx", inside=kind, input_type=kind, kinds=[kind]), out)
    frames = coloured(20, seed=3)
    assert answers_of(bundle, frames)["logits"] == pytest.approx(true_logits(frames), abs=0.1)


def test_a_graph_that_takes_pixels_takes_them(out: Path, tmp_path: Path) -> None:
    path = network(tmp_path / "m.onnx", input_type=TensorProto.UINT8, weight=WEIGHT / 255)
    frames = coloured(20, seed=3)
    stated = PLAIN.model_copy(update={"dtype": "uint8"})
    bundle = export(path, out, contract=stated, options=replace(OPTIONS, tolerance=0.1))
    assert not any("takes pixels" in note for note in bundle.manifest.extra["notes"])
    bundle = export(path, out, options=replace(OPTIONS, tolerance=0.1))
    assert "the graph takes pixels" in bundle.manifest.extra["notes"][0]
    assert answers_of(bundle, frames)["logits"] == pytest.approx(true_logits(frames), rel=1e-3, abs=1e-3)


def test_an_answer_without_a_row_for_each_frame_is_refused_in_one_sentence(out: Path, tmp_path: Path) -> None:
    boxes = [node("Reshape", "z", "shape", "p")]
    for shape in ([-1, 1, 3], [-1, 3, 1]):
        path = network(
            tmp_path / "m.onnx", boxes, constants={"shape": np.array(shape, np.int64)}, outputs=["p"]
        )
        with pytest.raises(GraphError, match="several answers for each frame"):
            export(path, out, frames=coloured(60), classes=())
    every = [node("Concat", "z", "z", "z", "p", axis=0)]
    with pytest.raises(
        GraphError, match=r"has shape \[12, 3\] for 4 frames: its first axis must be the batch"
    ):
        export(network(tmp_path / "m.onnx", every, outputs=["p"]), out)


def test_an_answer_that_depends_on_its_neighbours_keeps_a_batch_of_one_everywhere(
    out: Path, tmp_path: Path
) -> None:
    tail = [
        node("ReduceMean", "z", "m", keepdims=1),
        node("Sub", "z", "m", "p"),
    ]
    bundle = export(network(tmp_path / "m.onnx", tail, outputs=["p"]), out)
    assert "its batch is fixed at 1" in bundle.manifest.extra["notes"][0]
    assert "with a frame's neighbours" in bundle.manifest.extra["notes"][0]
    model = onnx.load(bundle.model_path)
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1
    assert all(spec.shape[0] == 1 for spec in bundle.manifest.outputs)
    assert bundle.manifest.parity is not None and max(bundle.manifest.parity.max_abs.values()) < 1e-4


def test_other_outputs_stay_only_if_they_hold_a_row_for_each_frame(out: Path, tmp_path: Path) -> None:
    tail = [node("ArgMax", "z", "label", axis=1, keepdims=0), node("Shape", "z", "shape")]
    kinds = [TensorProto.FLOAT, TensorProto.INT64, TensorProto.INT64]
    path = network(tmp_path / "m.onnx", tail, outputs=["z", "label", "shape"], kinds=kinds)
    bundle = export(path, out)
    names = {spec.name for spec in bundle.manifest.outputs}
    assert "label" in names and "shape" not in names
    assert any("output shape is left out" in note for note in bundle.manifest.extra["notes"])


def test_probabilities_stay_an_output_beside_the_logits_before_them(out: Path, tmp_path: Path) -> None:
    path = network(tmp_path / "m.onnx", [node("Softmax", "z", "p", axis=1)], outputs=["p", "f"], kinds=[1, 1])
    found = answers_of(export(path, out, output="p"), coloured(20, seed=3))
    assert found["p"].sum(axis=1) == pytest.approx(np.ones(20), abs=1e-5)
    assert found["logits"] == pytest.approx(true_logits(coloured(20, seed=3)), rel=1e-3, abs=1e-3)
    assert found["f"].shape == (20, 3)


def labels_only() -> tuple[list[NodeProto], list[str], list[int]]:
    return [node("ArgMax", "z", "label", axis=1)], ["label"], [TensorProto.INT64]


def test_graphs_that_cannot_answer_are_refused_with_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    tail, outputs, kinds = labels_only()
    with pytest.raises(GraphError, match=r"output label is INT64: class labels without scores.*ArgMax"):
        open_graph(network(path, tail, outputs=outputs, kinds=kinds))
    model = onnx.load(network(path, [node("Identity", "z", "z2")], outputs=["z", "z2"], kinds=[1, 1]))
    with pytest.raises(GraphError, match=r"which output is the answer.*: z, z2"):
        onnx.save(model, path)
        open_graph(path)
    element = helper.make_tensor_type_proto(TensorProto.FLOAT, None)
    model.graph.output[1].type.CopyFrom(helper.make_sequence_type_proto(element))
    onnx.save(model, path)
    with pytest.raises(GraphError, match="zipmap=False"):
        open_graph(path, output="z2")


@pytest.mark.parametrize(
    ("shape", "task", "text"),
    [
        (["n", 3549, 6], "classification", "as of a detector"),
        (["n", 52, 6625], "classification", "sequence model"),
        (["n", 5, 32, 32], "classification", "--task segmentation"),
        (["n", 5], "segmentation", "--task classification"),
    ],
)
def test_an_answer_of_the_wrong_shape_is_refused_before_any_data(
    shape: list[int | str], task: str, text: str, tmp_path: Path
) -> None:
    path = network(tmp_path / "m.onnx")
    model = onnx.load(path)
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("z", TensorProto.FLOAT, shape))
    onnx.save(model, path)
    with pytest.raises(GraphError, match=text):
        open_graph(path, task=task)


def test_what_the_input_expects_may_be_stated_in_part() -> None:
    def contract(image: str, size: tuple[int, int, int] | None = None) -> dict[str, object]:
        return frames_of_dataset("digits", data=None, image=image, size=size)[1].model_dump()

    own = contract("")
    assert contract('{"mean": [0.5]}') == {**own, "mean": (0.5,)}
    assert contract('{"color": "rgb"}') == {**own, "color": "rgb"}
    found = contract("", (3, 32, 48))
    assert (found["color"], found["height"], found["width"]) == ("rgb", 32, 48)
    assert contract('{"height": 16}', (1, 32, 48))["height"] == 16
    for text in ('{"hight": 3}', "gray", '{"mean": [1, 2, 3]}'):
        with pytest.raises(ConfigError, match="--image"):
            contract(text)


def test_a_bundle_s_own_graph_can_be_exported_again(out: Path, tmp_path: Path) -> None:
    first = export(network(tmp_path / "m.onnx"), tmp_path / "first")
    bundle = export(first.model_path, out, output="logits")
    frames = coloured(20, seed=3)
    assert (answers_of(bundle, frames)["logits"] == answers_of(first, frames)["logits"]).all()


def test_a_batch_fixed_by_a_reshape_is_freed(out: Path, tmp_path: Path) -> None:
    tail = [node("Reshape", "z", "shape", "p", allowzero=1)]
    constants = {"shape": np.array([1, 3], np.int64)}
    path = network(tmp_path / "m.onnx", tail, constants=constants, outputs=["p"], input_shape=[1, 3, 8, 8])
    bundle = export(path, out)
    assert {spec.shape[0] for spec in bundle.manifest.outputs} == {-1}
    assert answers_of(bundle, coloured(20, seed=3))["logits"].shape == (20, 3)


def test_int8_by_misfire_runs_a_graph_of_a_fixed_batch_in_its_batch(out: Path, tmp_path: Path) -> None:
    tail = [
        node("Relu", "z", "r"),
        node("Gemm", "r", "w", "z2", transB=1),
        node("ReduceMean", "z2", "m", keepdims=1),
        node("Sub", "z2", "m", "p"),
    ]
    path = network(tmp_path / "m.onnx", tail, outputs=["p"], input_shape=[1, 3, 8, 8])
    bundle = export(path, out, options=replace(OPTIONS, precision="int8"))
    assert bundle.manifest.precision == "int8"
    assert onnx.load(bundle.model_path).graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1
    with pytest.raises(ExportError, match="the graph is int8 already"):
        export(bundle.model_path, out, output="logits", options=replace(OPTIONS, precision="fp16"))
