"""Numbers that are no boxes: each kind is refused in a sentence that names it, or is read as no box."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from misfire_export.errors import GraphError, OutputError
from misfire_export.sources.detectors.recognising import Recognised, recognise
from misfire_export.sources.onnx.opening import load_graph
from proving_ground.detector_truth import CLASSES, HEIGHT, WIDTH, cells
from proving_ground.detector_zoo import pictures


def seen(path: Path) -> Recognised:
    return recognise(load_graph(path), pictures(10), {})


def file_with(
    path: Path, answer: NDArray[Any], *, above: float = np.inf, other: NDArray[Any] | None = None
) -> Path:
    """A graph that answers these numbers, and `other` to pictures whose mean is above a limit."""
    held = {
        "answer": answer.astype(np.float32),
        "other": (answer if other is None else other).astype(np.float32),
        "limit": np.array(above, np.float32),
    }
    nodes = [
        helper.make_node("ReduceMean", ["images"], ["mean"], keepdims=0),
        helper.make_node("Greater", ["mean", "limit"], ["bright"]),
        helper.make_node("Where", ["bright", "other", "answer"], ["o"]),
    ]
    graph = helper.make_graph(
        nodes,
        "constant",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [len(answer), 3, HEIGHT, WIDTH])],
        [helper.make_tensor_value_info("o", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in held.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def dense(scores: NDArray[Any] | None = None) -> NDArray[Any]:
    """A sound answer [1,4+C,126] of boxes around the cells."""
    grid = cells((8, 16, 32), offset=0.5)
    if scores is None:
        scores = np.random.default_rng(0).random((len(grid), CLASSES))
    boxes = np.concatenate((grid[:, :2], grid[:, 2:].repeat(2, 1)), 1)
    whole: NDArray[Any] = np.concatenate((boxes, scores), 1).T[None]
    return whole


def rows(count: int = 40) -> NDArray[Any]:
    """Chosen boxes [1,count,6] with scores that fall."""
    rng = np.random.default_rng(1)
    first = rng.random((count, 2)) * (WIDTH / 2, HEIGHT / 2)
    label = rng.integers(0, CLASSES, (count, 1))
    return np.concatenate((first, first + 9, np.sort(rng.random((count, 1)), 0)[::-1], label), 1)[None]


def test_negative_scores_are_named(tmp_path: Path) -> None:
    with pytest.raises(GraphError, match=r"scores go from -0.99\d* to -0.00\d* where a layout would"):
        seen(file_with(tmp_path / "m", dense(-np.random.default_rng(0).random((126, CLASSES)))))


def test_scores_of_zero_or_one_everywhere_are_read(tmp_path: Path) -> None:
    for value in (0.0, 1.0):
        found = seen(file_with(tmp_path / "m", dense(np.full((126, CLASSES), value))))
        assert found.fit.reading.layout == "ultralytics"


def test_class_numbers_that_are_none_are_named_and_padding_may_have_any(tmp_path: Path) -> None:
    for wrong in (-1.0, 2.5):
        answer = rows()
        answer[0, 3, 5] = wrong
        with pytest.raises(GraphError, match=r"class numbers of chosen boxes .* must be whole, from 0 on"):
            seen(file_with(tmp_path / "m", answer))
    answer = rows()
    answer[0, 20:] = (0, 0, 0, 0, 0, -1)
    assert seen(file_with(tmp_path / "m", answer)).fit.reading.layout == "chosen-rows"


def test_an_answer_that_breaks_down_under_the_pixels_of_another_layout_is_read(tmp_path: Path) -> None:
    broken = np.full((1, 4 + CLASSES, 126), np.nan)
    path = file_with(tmp_path / "m", dense(), above=1.0, other=broken)
    assert seen(path).fit.reading.layout == "ultralytics"
    with pytest.raises(OutputError, match="output o is NaN or infinite for image picture-0"):
        seen(file_with(tmp_path / "m", broken))


def test_batches_of_four_only_and_answers_without_boxes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(GraphError, match="takes batches of 4 only"):
        seen(file_with(tmp_path / "m", dense().repeat(4, 0)))
    for shape in ((1, 0, 6), (1, 300, 0), (1, 7, 1)):
        with pytest.raises(GraphError, match="no layout of a detector has these outputs: o"):
            seen(file_with(tmp_path / "m", np.zeros(shape)))
