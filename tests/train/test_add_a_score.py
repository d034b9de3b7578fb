"""A new score is one class in one file: built by name, computed and exported with the others."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from misfire_train import scores
from misfire_train.errors import ScoreError
from misfire_train.scores.registry import CLASSES, SCORES, Recipe, register
from misfire_train.signals import Probe, Score, ScoredModel, Signals

# The score: what would be `scores/surprise.py`.


class Surprise(Score):
    """How rare the answered class was among the training labels, to the power of `power`."""

    name = "surprise"
    definition = "-log share of the answered class in the training set"

    def __init__(self, shares: Tensor, *, power: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("cost", (-torch.log(shares)) ** power)

    @classmethod
    def make(cls, recipe: Recipe) -> Surprise:
        """Builds it from the training set's labels."""
        fit = recipe.need_fit()
        counts = torch.bincount(fit.targets, minlength=fit.classes) + 1.0
        return cls(counts / counts.sum(), **recipe.options)

    def forward(self, signals: Signals) -> Tensor:
        """[N]."""
        cost = self.get_buffer("cost")
        return cost[signals.outputs.argmax(1)]


# What uses it.


@pytest.fixture(autouse=True)
def surprise() -> Iterator[None]:
    register(tasks=("classification",), needs="fit", source="this test")(Surprise)
    yield
    SCORES.remove("surprise")


@pytest.fixture
def probe() -> Probe:
    torch.manual_seed(0)
    return Probe(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), last_layer="1")


@pytest.fixture
def fit(probe: Probe) -> scores.FitSet:
    return scores.gather(probe, torch.randn(30, 1, 2, 2), torch.tensor([0] * 20 + [1] * 8 + [2] * 2))


def test_it_is_listed_for_the_tasks_that_it_serves() -> None:
    assert "surprise" in SCORES and SCORES["surprise"].needs == "fit"
    assert "surprise" in scores.names_for("classification", free=False, exportable=True)
    assert "surprise" not in scores.names_for("regression")


def test_it_is_built_with_its_options_and_computed_beside_the_others(
    probe: Probe, fit: scores.FitSet
) -> None:
    built = scores.build(["entropy", "surprise"], task="classification", fit=fit, surprise={"power": 2.0})
    images = torch.randn(50, 1, 2, 2)
    found = scores.compute(probe, images, built)
    shares = torch.tensor([21.0, 9.0, 3.0]) / 33
    expected = torch.log(shares)[probe(images).outputs.argmax(1)] ** 2
    assert torch.allclose(torch.from_numpy(found["surprise"]), expected)


def test_it_stands_in_a_model_that_is_exported(probe: Probe, fit: scores.FitSet) -> None:
    built = scores.build(["surprise", "msp"], task="classification", fit=fit)
    answers = ScoredModel(probe, built).eval()(torch.randn(2, 1, 2, 2))
    assert answers["score.surprise"].shape == (2,)


def test_without_what_it_needs_it_is_refused_like_the_others() -> None:
    with pytest.raises(ScoreError, match="surprise is fitted on training data"):
        scores.build(["surprise"], task="classification")
    with pytest.raises(ScoreError, match="surprise serves classification, not regression"):
        scores.build(["surprise"], task="regression")


def test_a_name_that_is_taken_is_refused() -> None:
    class Entropy(Score):
        name = "entropy"

    with pytest.raises(ScoreError, match="'entropy': the name is empty or taken"):
        register(tasks=CLASSES, source="this test")(Entropy)
