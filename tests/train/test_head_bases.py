"""The free score that a head starts from: values have one of the frame, and corrupted copies count."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from misfire_runtime.preprocess import InputContract
from misfire_train.heads import LossHead, ResidualHead, build_head_from_state, recipe_named
from misfire_train.heads.data import LossSet, TensorSet, collect_each
from misfire_train.heads.residual import DEVIATION
from misfire_train.heads.training import candidate_heads, choose_base
from misfire_train.metrics import spearman
from misfire_train.models import build_model
from misfire_train.scores import build, gather
from misfire_train.signals import Probe
from misfire_train.tasks import get_task

CONTRACT = InputContract(height=16, width=16, color="gray")


def regressor() -> tuple[Probe, TensorSet, list[LossHead]]:
    torch.manual_seed(0)
    built = build_model("regressor-small", task="regression", outputs=2, channels=1, width=4)
    probe = Probe(built.module, last_layer=built.last_layer, features=built.feature_layers)
    images = torch.randn(60, 1, 16, 16)
    with torch.no_grad():  # a fresh network has unused batch-norm statistics: give it some
        probe.train()
        probe(images)
    probe.eval()
    known = TensorSet.of(images, torch.randn(60, 2))
    task = get_task("regression")
    heads = candidate_heads(
        probe, recipe_named("learning-loss-pp"), contract=CONTRACT, task=task, train=known
    )
    return probe, known, heads


@torch.no_grad()
def test_a_head_of_values_without_a_correction_orders_frames_as_the_deviation_does() -> None:
    probe, known, heads = regressor()
    task = get_task("regression")
    assert [head.base for head in heads if isinstance(head, ResidualHead)] == ["none", DEVIATION]
    fit = gather(probe, known, known.targets, contract=CONTRACT)
    (score,) = build([DEVIATION], task="regression", fit=fit)
    sets = collect_each(probe, heads, known, task=task, contract=CONTRACT)
    # The statistics of the candidates are one tensor; only what they start from differs.
    assert sets[0].parts[1] is sets[1].parts[1] and not torch.equal(sets[0].parts[0], sets[1].parts[0])
    head = heads[1]
    assert isinstance(head, ResidualHead)
    head.standardise(sets[1].parts, sets[1].losses, eps=1e-3)
    head.weaken(0.0, head.free_line(sets[1].parts, sets[1].losses, eps=1e-3))
    signals = probe(torch.randn(40, 1, 16, 16))
    assert spearman(head(signals).double().numpy(), score(signals).double().numpy()) > 1 - 1e-9
    again = build_head_from_state("learning-loss-pp", head.options, head.state_dict())
    assert torch.equal(again(signals), head(signals))
    # A narrower head starts from the same answers of the training set.
    narrow = head.narrowed("own")
    assert torch.equal(narrow.free_units(signals.outputs), head.free_units(signals.outputs))


def test_the_free_score_is_chosen_on_corrupted_copies_too() -> None:
    _, _, heads = regressor()

    def rows(base: Tensor, failed: Tensor, *, clean: bool) -> LossSet:
        count = len(failed)
        losses = failed.float()
        flags = torch.full((count,), clean)
        parts = (base[:, None], torch.zeros(count, 1, 1))
        return LossSet(parts, losses[:, None], losses, failed, torch.arange(count), flags)

    rng = np.random.default_rng(0)
    failed = torch.from_numpy(rng.random(200) < 0.3)
    good, slight = failed.float(), 0.4 * failed.float() + torch.from_numpy(rng.random(200)).float()
    # The second is slightly worse on clean images, and far better under a shift.
    clean = [rows(good, failed, clean=True), rows(slight, failed, clean=True)]
    copies = [rows(-good, failed, clean=False), rows(good, failed, clean=False)]
    assert choose_base(heads, [clean]) == 0
    assert choose_base(heads, [clean, copies]) == 1
