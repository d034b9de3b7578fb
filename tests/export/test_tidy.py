"""Patterns that a traced graph loses: what it computes stays the same."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from misfire_export.graph.trace import export_module


class Softplus(nn.Module):
    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.softplus(x, threshold=self.threshold) * 2


@pytest.mark.parametrize(("threshold", "operators"), [(20.0, ["Softplus", "Mul"]), (3.0, None)])
def test_a_softplus_is_one_operator_where_that_changes_nothing(
    threshold: float, operators: list[str] | None
) -> None:
    x = torch.tensor([[-60.0, -3.0, 0.0, 2.5, 3.5, 19.9, 20.1, 90.0]])
    module = Softplus(threshold).eval()
    graph = export_module(module, (x,), input_names=["x"], output_names=["y"], dynamic_shapes=({},))
    kinds = [node.op_type for node in graph.graph.node if node.op_type != "Constant"]
    assert kinds == operators if operators else "Where" in kinds
    session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"x": x.numpy()})[0], module(x).numpy(), rtol=1e-6)
