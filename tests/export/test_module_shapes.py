"""Torch modules in the shapes that companies write: scores equal a numpy reading of the module's answer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign_cases import OPTIONS, answers_of
from shape_cases import ROAD_BIAS, ROAD_WEIGHT, binary_entropy, roads, softmax
from torch import Tensor, nn

from misfire_export.errors import LabelError
from misfire_export.sources.facts import ModelFacts
from misfire_export.sources.frames import Frames
from misfire_export.sources.module import export_module_bundle
from misfire_runtime.bundle import Bundle
from misfire_runtime.preprocess import InputContract

pytestmark = pytest.mark.slow

ROAD = InputContract(height=8, width=12)


class Road(nn.Module):
    """A drivable-area network: one map, perhaps of sigmoids, perhaps in a dict beside an auxiliary head."""

    def __init__(self, *, sigmoid: bool, squeezed: bool = False, as_dict: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Conv2d(3, 3, 1)
        self.head = nn.Conv2d(3, 1, 1)
        self.aux = nn.Conv2d(3, 1, 1)
        with torch.no_grad():
            self.body.weight.copy_(torch.eye(3)[:, :, None, None])
            self.body.bias.zero_()
            self.head.weight.copy_(torch.from_numpy(ROAD_WEIGHT)[:, :, None, None])
            self.head.bias.copy_(torch.from_numpy(ROAD_BIAS))
        self.sigmoid, self.squeezed, self.as_dict = sigmoid, squeezed, as_dict

    def forward(self, image: Tensor) -> Any:
        out = self.head(torch.relu(self.body(image)))
        out = torch.sigmoid(out) if self.sigmoid else out
        out = out[:, 0] if self.squeezed else out
        return {"out": out, "aux": self.aux(image)} if self.as_dict else out


def export_road(
    model: nn.Module, out: Path, *, classes: tuple[str, ...] = ("verge", "road"), **more: Any
) -> Bundle:
    frames = Frames(
        roads(80),
        fit=roads(80, seed=5, prefix="fit"),
        holdout=roads(60, seed=7, prefix="held"),
        classes=classes,
    )
    options = replace(OPTIONS, scores=more.pop("scores", ["entropy", "egl"]))
    facts = ModelFacts(ROAD, task="segmentation", **more)
    return export_module_bundle(model.eval(), frames, facts, out=out, options=options)


@pytest.mark.parametrize("sigmoid", [False, True])
@pytest.mark.parametrize("squeezed", [False, True])
def test_a_module_with_one_map_becomes_two_classes(sigmoid: bool, squeezed: bool, out: Path) -> None:
    bundle = export_road(Road(sigmoid=sigmoid, squeezed=squeezed, as_dict=True), out, output="out")
    frames = roads(10, seed=4)
    given = frames.batch(range(10), ROAD)
    with torch.no_grad():
        p = Road(sigmoid=True)(given)[:, 0].double().numpy()
    found = answers_of(bundle, frames)
    assert softmax(found["segmentation"])[:, 1] == pytest.approx(p, abs=1e-4)
    assert found["score.entropy"] == pytest.approx(binary_entropy(p).mean(axis=(1, 2)), abs=1e-4)
    energy = (np.square(given.numpy()).sum(axis=1) + 1) / 3
    wanted = (2 * p * (1 - p) * energy).mean(axis=(1, 2))
    assert found["score.egl"] == pytest.approx(wanted, rel=2e-3)
    notes = bundle.manifest.extra["notes"]
    assert notes[0] == "last layer: head" and "the second of two classes" in notes[1]


def test_a_module_with_one_map_gets_a_learned_head(out: Path) -> None:
    bundle = export_road(Road(sigmoid=True), out, scores=None, features=["body"])
    assert bundle.manifest.scores[0].name == "learning_loss_pp"
    assert bundle.manifest.parity is not None and max(bundle.manifest.parity.max_abs.values()) < 1e-4


def test_a_module_with_one_map_needs_two_classes(out: Path) -> None:
    with pytest.raises(LabelError, match=r"has 3 classes .* the model 2 outputs"):
        export_road(Road(sigmoid=True), out, classes=("verge", "road", "sky"))
