"""The small detector: layout of its answer, its last layer, and its graph."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from misfire_export.graph.trace import trace
from misfire_export.measure.run import open_session
from misfire_runtime.preprocess import InputContract
from misfire_train.models import count_flops, count_parameters
from misfire_train.models.detector import STRIDES, Detector, detector_small
from misfire_train.signals import Probe

CLASSES = 3


def narrow_detector() -> Detector:
    torch.manual_seed(0)
    return detector_small(CLASSES, channels=3, width=8, tower=16)


@pytest.mark.parametrize("size", [(192, 320), (64, 96)])
def test_an_answer_has_a_row_for_every_cell_of_every_grid(size: tuple[int, int]) -> None:
    model = narrow_detector().eval()
    probe = Probe(model, last_layer="head", features=("down2", "down3", "down4", "up2"))
    with torch.no_grad():
        signals = probe(torch.randn(2, 3, *size))
    height, width = size
    cells = sum((height // s) * (width // s) for s in STRIDES)
    assert signals.outputs.shape == (2, cells, CLASSES + 8)
    x0, y0, x1, y1 = signals.outputs[..., :4].unbind(2)
    spread, cell_x, cell_y, stride = signals.outputs[..., -4:].unbind(2)
    assert bool(((x0 < cell_x) & (cell_x < x1) & (y0 < cell_y) & (cell_y < y1)).all())
    assert bool((spread > 0).all())
    assert stride.unique().tolist() == [8.0, 16.0, 32.0]
    assert (cell_x[0, 0], cell_y[0, 0]) == (4.0, 4.0)
    assert (cell_x[0, -1], cell_y[0, -1]) == (width - 16, height - 16)
    # Nothing is likely before training.
    assert signals.outputs[..., 4:-4].sigmoid().mean() == pytest.approx(0.01, rel=0.3)


def test_the_last_layer_gives_the_logits_of_all_grids_from_its_input() -> None:
    probe = Probe(narrow_detector().eval(), last_layer="head")
    with torch.no_grad():
        signals = probe(torch.randn(2, 3, 64, 96))
    assert signals.weight is not None and signals.bias is not None
    again = torch.einsum("kc,ncp->npk", signals.weight, signals.last_input[..., 0]) + signals.bias
    assert torch.allclose(again, signals.outputs[..., 4:-4], atol=1e-5)


def test_spread_is_the_deviation_of_the_distances_in_pixels() -> None:
    model = narrow_detector().eval()
    assert model.distances.bias is not None
    with torch.no_grad():
        model.distances.weight.zero_()
        # Half of every side's mass at 1 stride, half at 3: mean 2, deviation 1.
        bins = torch.full((4, 9), -50.0)
        bins[:, (1, 3)] = 0.0
        model.distances.bias.copy_(bins.flatten())
        answer = model(torch.randn(1, 3, 64, 64))[0]
    stride = answer[:, -1]
    assert torch.allclose(answer[:, -4], stride, atol=1e-3)
    assert torch.allclose(answer[:, 2] - answer[:, 0], 4 * stride, atol=1e-3)


def test_it_has_the_size_that_it_claims() -> None:
    model = detector_small(5, channels=3)
    assert count_parameters(model) == pytest.approx(0.83e6, rel=0.02)
    assert count_flops(model, (1, 3, 192, 320)) / 2 == pytest.approx(0.385e9, rel=0.02)


def test_the_graph_answers_as_torch_does_at_any_batch() -> None:
    model = narrow_detector()
    contract = InputContract(height=64, width=96, mean=(0.5,) * 3, std=(0.25,) * 3)
    graph = trace(Named(model), contract=contract)
    assert [entry.version for entry in graph.opset_import if entry.domain == ""] == [18]
    session = open_session(graph)
    for batch in (1, 3):
        images = torch.randn(batch, 3, 64, 96)
        with torch.no_grad():
            wanted = model.eval()(images).numpy()
        (answer,) = session.run(None, {contract.name: images.numpy()})
        np.testing.assert_allclose(answer, wanted, rtol=1e-4, atol=1e-4)


class Named(torch.nn.Module):
    """Gives the answer the name that the tracer needs."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"candidates": self.model(image)}
