"""A head's strength and columns: zero where it does not transfer, whole where it does, exact at zero."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from misfire_train.commands.train import describe_head
from misfire_train.heads import ResidualHead, build_head_from_state, recipe_named
from misfire_train.heads.data import LossSet
from misfire_train.heads.residual import COLUMNS, unit_statistics
from misfire_train.heads.training import fit_on_losses
from misfire_train.scores import build
from misfire_train.signals import Signals
from misfire_train.tasks import get_task

RECIPE = replace(recipe_named("learning-loss-pp"), steps=80)
BLOCKS = (("own", 2), ("memory", 9), ("norm", 1))


def blank_head() -> ResidualHead:
    torch.manual_seed(0)
    head = ResidualHead(
        task="classification", outputs=3, base="msp", embedding=4, width=12, rows=8, sees_embedding=False
    )
    head.blocks = BLOCKS
    return head


def losses_of(*, drives: int = 8, frames: int = 120, own: float = 0.0, named: bool = True) -> LossSet:
    """Clean rows and as many corrupted ones. own: what a statistic of the answer adds to the log-loss."""
    rng = np.random.default_rng(0)
    count = drives * frames
    drive = np.repeat(np.arange(drives), frames)
    hidden, free = (rng.normal(size=(2, count)) for _ in range(2))
    log_loss = free + own * hidden - 1
    x = rng.normal(size=(2, count, 12))
    x[..., 0] = hidden
    rows = {"base": free, "x": x, "loss": np.exp(log_loss), "failed": log_loss > 0}

    def flat(values: np.ndarray) -> Tensor:  # type: ignore[type-arg]
        return torch.from_numpy(values.reshape(2 * count, *values.shape[2:])).float()

    return LossSet(
        parts=(flat(rows["base"])[:, None], flat(rows["x"])[:, None]),
        losses=flat(rows["loss"])[:, None],
        frame_losses=flat(rows["loss"]),
        failed=flat(rows["failed"]) > 0,
        image=torch.arange(count).repeat(2),
        clean=torch.arange(2 * count) < count,
        group=np.array([f"drive-{d}" for d in np.tile(drive, 2)]) if named else None,
    )


def test_a_correction_that_transfers_is_kept_and_reported_over_groups() -> None:
    fitted = fit_on_losses(blank_head(), losses_of(own=1.0), recipe=RECIPE)
    head, choice = fitted.head, fitted.report.choice
    assert isinstance(head, ResidualHead) and choice is not None
    assert head.strength >= 0.5 and (choice["by"], choice["count"]) == ("groups", 8)
    assert fitted.report.auroc is not None and fitted.report.auroc_base is not None
    assert fitted.report.auroc > fitted.report.auroc_base + 0.05
    assert (
        f"strength {head.strength:g} of 1, chosen over 8 groups" in describe_head(fitted.report.to_dict())[0]
    )
    again = build_head_from_state(head.recipe, head.options, head.state_dict())
    assert isinstance(again, ResidualHead) and (again.strength, again.columns) == (
        head.strength,
        head.columns,
    )
    assert again.definition == head.definition


def test_noise_alone_becomes_the_free_score_without_memory() -> None:
    data = losses_of(drives=4, frames=60)
    fitted = fit_on_losses(blank_head(), data, recipe=RECIPE)
    head = fitted.head
    assert isinstance(head, ResidualHead)
    if head.strength == 0:
        assert head.memory is None and "no correction earned its place" in head.definition
        base = data.parts[0]
        score = head.pool(head.predict((base, base[..., None])))
        assert torch.equal(score.argsort(), base[:, 0].argsort())
        assert "at 0 the score is the msp" in describe_head(fitted.report.to_dict())[0]
    assert head.strength <= 0.25


def test_without_groups_images_are_left_out_and_the_print_says_so() -> None:
    report = fit_on_losses(blank_head(), losses_of(own=1.0, named=False), recipe=RECIPE).report
    assert report.choice is not None and report.choice["by"] == "images"
    lines = describe_head(report.to_dict())
    assert any("no groups in the data" in line for line in lines)
    assert not any("result" in line or "beats" in line for line in lines)


def test_a_stated_strength_is_kept_and_costs_no_choice() -> None:
    stated = replace(RECIPE, strength=0.25, columns="answer")
    fitted = fit_on_losses(blank_head(), losses_of(own=1.0), recipe=stated)
    head = fitted.head
    assert isinstance(head, ResidualHead) and fitted.report.choice is None
    assert (head.strength, head.columns, len(head.center)) == (0.25, "answer", 2)
    assert "0.25 of a correction" in head.definition


def test_strength_is_in_the_weights() -> None:
    torch.manual_seed(0)
    head = blank_head()
    torch.nn.init.normal_(head.committee.last)
    data = losses_of(own=1.0)
    base, x = data.parts
    line = (torch.tensor(1.0), torch.tensor(0.5))
    with torch.no_grad():
        head.scale.copy_(torch.tensor(2.0))
    whole = head.predict(data.parts)
    head.weaken(0.25, line)
    assert torch.allclose(head.predict((base, x)), 0.25 * whole + 0.75 * (base + 0.5), atol=1e-5)


@pytest.mark.parametrize("base", ["entropy", "energy", "msp", "max_logit"])
def test_at_strength_0_a_segmenters_head_orders_frames_as_the_free_score_does(base: str) -> None:
    generator = torch.Generator().manual_seed(0)
    outputs = (
        3 * torch.randn(40, 4, 16, 16, generator=generator) * torch.rand(40, 1, 1, 1, generator=generator)
    )
    signals = Signals(outputs, torch.randn(40, 6, 16, 16, generator=generator))
    task = get_task("segmentation")
    head = ResidualHead(task=task, outputs=4, base=base, embedding=6, width=30, rows=5, sees_embedding=False)
    units = task.bases()[base](outputs)
    losses = torch.exp(units + 0.3 * torch.randn(units.shape, generator=generator))
    parts = (units, torch.randn(40, 16, 30, generator=generator))
    head.standardise(parts, losses, eps=1e-6)
    head.weaken(0.0, head.free_line(parts, losses, eps=1e-6))
    free = build([base], task="segmentation")[0](signals)
    # Rounding may exchange neighbours.
    ranks = [values.argsort().argsort() for values in (head(signals), free)]
    assert int((ranks[0] - ranks[1]).abs().max()) <= 1


def test_a_narrowed_head_reads_the_columns_of_the_whole_one() -> None:
    generator = torch.Generator().manual_seed(0)
    signals = Signals(
        torch.randn(9, 3, generator=generator),
        torch.randn(9, 4, generator=generator),
        {"layer": torch.randn(9, 5, 4, 4, generator=generator)},
    )
    task = get_task("classification")
    blank = ResidualHead(task=task, outputs=3, base="msp", embedding=4, maps=("layer",), width=1, rows=8)
    whole = unit_statistics(task, signals, blank.memory, maps=("layer",), sees_embedding=True)
    blank.blocks = (("own", whole.shape[2] - 9 - 1 - 4 - 10), *BLOCKS[1:], ("embedding", 4), ("maps", 10))
    assert blank.column_sets() == ["all", "beliefs", "answer"]
    for name in COLUMNS:
        head = blank.narrowed(name)
        if name == "all":
            continue
        assert torch.equal(head.extract(signals)[1], whole[..., blank.column_index(name)])
        assert (head.memory is None) == (name in ("answer", "own"))
