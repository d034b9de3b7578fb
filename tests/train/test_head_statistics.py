"""What heads look at: softmaxes in parts, statistics of maps, the memory, second opinions, the committee."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from misfire_train.heads import build_head_from_state
from misfire_train.heads.memory import COMPONENTS, WHOLE, Memory, principal_axes
from misfire_train.heads.residual import Committee, ResidualHead
from misfire_train.heads.second_opinion import SecondOpinion
from misfire_train.scores.neighbours import squared_distances
from misfire_train.tasks.answers.softmax import Softmax
from misfire_train.tasks.answers.statistics import (
    class_statistics,
    joint_statistics,
    log_odds,
    map_statistics,
    tile_statistics,
)


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(50, 7), (50, 2), (4, 5, 3, 2)])
def test_a_softmax_in_parts_is_a_softmax(shape: tuple[int, ...]) -> None:
    logits = 5 * gaussian(*shape).double()
    parts = Softmax(logits)
    log_p = torch.log_softmax(logits, 1)
    entropy = -(log_p.exp() * log_p).sum(1, keepdim=True)
    best = log_p.amax(1, keepdim=True)
    others = log_p.masked_fill(log_p == best, -math.inf)
    for found, wanted in (
        (parts.p, log_p.exp()),
        (parts.log_p, log_p.clamp_min(-30)),
        (parts.entropy, entropy),
        (parts.energy, torch.logsumexp(logits, 1, keepdim=True)),
        (parts.log_odds, (torch.logsumexp(others, 1, keepdim=True) - best).clamp_min(-30)),
        (parts.answer, (log_p == best).double()),
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


def test_a_sure_answer_keeps_its_digits_in_single_precision() -> None:
    logits = torch.tensor([[25.0, 0.0, -3.0], [40.0, 0.0, 0.0], [0.0, 0.0, 0.0], [9.0, float("-inf"), 1.0]])
    single, exact = Softmax(logits), Softmax(logits.double())
    for name, atol in (("entropy", 0.0), ("log_odds", 1e-7), ("energy", 0.0), ("p", 1e-30), ("log_p", 1e-7)):
        found, wanted = getattr(single, name).double(), getattr(exact, name)
        torch.testing.assert_close(found, wanted, rtol=2e-6, atol=atol)


def test_a_single_number_stands_for_a_sigmoids_log_odds() -> None:
    logits = torch.tensor([[3.0], [-1.0]])
    torch.testing.assert_close(log_odds(logits), -logits)
    assert torch.equal(class_statistics(logits)[:, 3:4], -logits)


def test_of_many_classes_only_what_is_common_to_all_is_told() -> None:
    few, many = class_statistics(gaussian(2, 128)), class_statistics(gaussian(2, 129))
    assert few.shape == (2, 138) and many.shape == (2, 10)
    torch.manual_seed(0)
    opinion = SecondOpinion(3, 200)
    assert opinion(gaussian(2, 3), gaussian(2, 200)).shape == (2, 5)


def test_a_tie_has_one_answer_and_the_other_counts_as_wrong() -> None:
    parts = Softmax(torch.tensor([[2.0, 2.0, -50.0]]))
    assert parts.answer.sum() == 1
    assert float(parts.log_odds) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("shape", [(3, 5), (3, 5, 8), (3, 5, 4, 6)])
def test_maps_of_any_rank_have_a_mean_and_a_deviation_per_channel(shape: tuple[int, ...]) -> None:
    maps = 4 + gaussian(*shape)
    flat = maps.reshape(3, 5, -1)
    wanted = torch.cat((flat.mean(2), flat.std(2, correction=0).clamp_min(1e-3)), 1)
    torch.testing.assert_close(map_statistics({"layer": maps}), wanted, rtol=1e-5, atol=1e-5)


def test_a_committee_answers_with_its_mean() -> None:
    torch.manual_seed(0)
    committee = Committee(6, hidden=5, members=3).double()
    for parameter in committee.parameters():
        nn.init.normal_(parameter)
    x = gaussian(9, 6).double()
    torch.testing.assert_close(committee.average(x)[:, 0], committee(x).mean(0), rtol=1e-12, atol=1e-12)


def test_a_wide_memory_keeps_components_and_loses_nothing_of_the_frame() -> None:
    width = 4 * WHOLE
    embeddings = gaussian(300, 3) @ gaussian(3, width, seed=1) / width**0.5
    labels = torch.arange(300) % 3
    memory = Memory.fit(embeddings, labels, classes=3, rows=50)
    assert memory.bank.shape == (50, COMPONENTS) and memory.prototypes.shape == (3, COMPONENTS)
    # Training embeddings of three dimensions lie in 64 components whole, so their distances are exact.
    known = embeddings[:40]
    chosen = torch.randperm(300, generator=torch.Generator().manual_seed(0))[:50].sort().values
    found = memory.distances(known, memory.bank)
    torch.testing.assert_close(found, squared_distances(known, embeddings[chosen]), rtol=1e-4, atol=1e-4)
    # What sticks out of the components is part of the distance to everything.
    axes = principal_axes(embeddings, COMPONENTS)
    away = gaussian(1, width, seed=2)
    away = 5 * nn.functional.normalize(away - away @ axes @ axes.T)
    further = memory.distances(known + away, memory.bank)
    torch.testing.assert_close(further, found + 25, rtol=1e-3, atol=1e-2)


def test_a_head_trained_before_memories_kept_components_still_loads() -> None:
    options = {"task": "classification", "outputs": 3, "base": "msp", "embedding": 2 * WHOLE}
    options |= {"width": 20, "rows": 5, "sees_embedding": False}
    old = ResidualHead(**options, kept=2 * WHOLE)  # type: ignore[arg-type]
    assert old.memory.bank.shape == (5, 2 * WHOLE)
    loaded = build_head_from_state("learning-loss-pp", options, old.state_dict())
    assert isinstance(loaded, ResidualHead) and loaded.memory.kept == 2 * WHOLE
    new = ResidualHead(**options, kept=COMPONENTS)  # type: ignore[arg-type]
    again = build_head_from_state("learning-loss-pp", new.options, new.state_dict())
    assert isinstance(again, ResidualHead) and again.memory.kept == COMPONENTS


def test_statistics_survive_extreme_answers() -> None:
    logits = torch.tensor([[1000.0, -1000.0, 0.0], [0.0, 0.0, 0.0], [-1e4, -1e4, -1e4]])
    assert torch.isfinite(class_statistics(logits)).all()
    assert float(log_odds(torch.tensor([[0.0, 0.0]]))) == pytest.approx(0.0, abs=1e-6)
    assert torch.isfinite(tile_statistics(torch.randn(2, 3, 5, 7) * 1e3)).all()
    assert torch.isfinite(joint_statistics(torch.zeros(2, 3, 6, 6))).all()
    assert torch.isfinite(joint_statistics(torch.randn(1, 2, 4, 8) * 1e2)).all()


def test_memory_knows_its_neighbours_and_their_labels() -> None:
    embeddings = torch.eye(4).repeat_interleave(5, 0)
    labels = torch.arange(4).repeat_interleave(5)
    memory = Memory.fit(embeddings, labels, classes=4)
    right = memory(torch.eye(4)[:1], torch.tensor([[9.0, 0, 0, 0]]))
    wrong = memory(torch.eye(4)[:1], torch.tensor([[0, 9.0, 0, 0]]))
    agreement = 5  # column of `agreement`: the neighbours' vote for the answer
    assert float(right[0, agreement]) > 0.8
    assert float(wrong[0, agreement]) < 0.1
    assert float(right[0, 0]) < 0.05


def test_a_second_opinion_knows_the_classes_and_disagrees_with_wrong_answers() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (600,), generator=generator)
    statistics = nn.functional.one_hot(labels, 3) + 0.3 * torch.randn(600, 3, generator=generator)
    statistics = torch.cat((statistics, torch.randn(600, 5, generator=generator)), 1)
    torch.manual_seed(0)
    opinion = SecondOpinion(3, 3).fit(statistics, labels)
    right = 9.0 * nn.functional.one_hot(labels, 3)
    agreed, objected = opinion(statistics, right)[:, 0], opinion(statistics, right.roll(1, 1))[:, 0]
    assert float((agreed > objected).float().mean()) > 0.95
    assert torch.isfinite(opinion(1e9 * statistics, right)).all()
    assert not any(parameter.requires_grad for parameter in opinion.parameters())
