"""Parity: what rounding decides is no difference, and a wrong graph is refused."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
from torch import Tensor, nn

from misfire_export.errors import ParityError
from misfire_export.graph.trace import trace
from misfire_export.measure.parity import check_parity
from misfire_export.measure.run import open_session
from misfire_runtime.preprocess import InputContract
from misfire_train.data import Examples

CONTRACT = InputContract(height=8, width=8, color="gray", mean=(0.5,), std=(0.25,))
LIMIT = 0.25


class Jump(nn.Module):
    """Answers a frame's mean, and 1 more from a limit on, as a score does when one more box is kept."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.limit = limit

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        mean = image.mean((1, 2, 3))
        return {"score.jump": mean + (mean >= self.limit).to(mean.dtype)}


def frames(count: int) -> Examples:
    """Returns grey pictures; the mean of the first one is the limit itself."""
    levels = np.linspace(10, 230, count).astype(np.uint8)
    images = [np.full((8, 8, 3), level, np.uint8) for level in levels]
    return Examples(
        images, np.zeros(count, np.int64), tuple(f"frame-{i}" for i in range(count)), ("",) * count
    )


def limit_at(examples: Examples) -> float:
    return float(examples.batch([0], CONTRACT).mean())


def session(limit: float) -> ort.InferenceSession:
    return open_session(trace(Jump(limit).eval(), contract=CONTRACT))


def test_a_frame_at_which_rounding_decides_is_no_difference() -> None:
    examples = frames(20)
    limit = limit_at(examples)
    graph = session(limit + 2e-7)
    image = examples.batch([0], CONTRACT)
    mine = Jump(limit)(image)["score.jump"].item()
    assert abs(graph.run(None, {"image": image.numpy()})[0].item() - mine) > 0.9
    found = check_parity(Jump(limit).eval(), graph, examples, contract=CONTRACT)
    assert found.images == 20 and found.max_abs["score.jump"] < 1e-4


def test_another_limit_is_another_graph() -> None:
    examples = frames(20)
    limit = limit_at(examples)
    with pytest.raises(
        ParityError, match=r"score.jump differs from the trained model by 1.00e.00 on image frame-1"
    ):
        check_parity(Jump(limit).eval(), session(limit + 0.3), examples, contract=CONTRACT)


def test_many_frames_that_differ_are_not_tried_one_by_one() -> None:
    calls = []

    class Counting(Jump):
        def forward(self, image: Tensor) -> dict[str, Tensor]:
            calls.append(len(image))
            return super().forward(image)

    examples = frames(20)
    with pytest.raises(ParityError):
        check_parity(Counting(-9.0).eval(), session(9.0), examples, contract=CONTRACT)
    assert len(calls) < 120
