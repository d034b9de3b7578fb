"""Gradient reversal: a failure score that does not tell a protected group, as far as it can."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.train.test_head_leaving_out import blank_head

from misfire_runtime.errors import ConfigError
from misfire_train.data import load_dataset
from misfire_train.fit import train_run
from misfire_train.heads import recipe_named
from misfire_train.heads.data import LossSet
from misfire_train.heads.reversal import UNKNOWN, Reversal, read_groups
from misfire_train.heads.training import fit_on_losses
from misfire_train.metrics import auroc
from misfire_train.runs import Run, load_run
from misfire_train.scores import compute
from misfire_train.train_config import parse_train_config

RECIPE = replace(
    recipe_named("learning-loss-pp"), steps=150, batch=128, strength=1.0, columns="all", wrong_weight=1.0
)


def drawn(seed: int, *, count: int = 900) -> LossSet:
    """Frames of two groups, of which one has the higher losses; the second statistic tells the group."""
    rng = np.random.default_rng(seed)
    group = rng.integers(0, 2, count)
    free, hidden = rng.normal(size=(2, count))
    log_loss = free + hidden + 1.2 * group - 1.5
    x = rng.normal(size=(count, 1, 12))
    x[:, 0, 0], x[:, 0, 1] = hidden, group + 0.2 * rng.normal(size=count)
    return LossSet(
        parts=(torch.tensor(free[:, None]).float(), torch.tensor(x).float()),
        losses=torch.tensor(np.exp(log_loss)[:, None]).float(),
        frame_losses=torch.tensor(np.exp(log_loss)).float(),
        failed=torch.tensor(log_loss > 0),
        image=torch.arange(count),
        clean=torch.ones(count, dtype=torch.bool),
        protected=torch.tensor(group),
    )


def decodability(score: np.ndarray, group: np.ndarray) -> float:  # type: ignore[type-arg]
    """How well the better direction of a score tells two groups apart: 0.5 not at all, 1 always."""
    area = float(auroc(score, group.astype(bool)))
    return max(area, 1 - area)


def test_the_gradient_is_reversed_and_the_value_is_not() -> None:
    values = torch.tensor([1.0, -2.0], requires_grad=True)
    turned = Reversal.apply(values, 3.0)  # type: ignore[no-untyped-call]
    assert torch.equal(turned, values)
    (turned * torch.tensor([1.0, 10.0])).sum().backward()
    assert values.grad is not None and values.grad.tolist() == [-3.0, -30.0]


def test_the_group_cannot_be_told_from_the_score_any_more_and_failures_still_can() -> None:
    new = drawn(1)
    assert new.failed is not None and new.protected is not None
    found = {}
    for weight in (0.0, 1.0):
        data = drawn(0) if weight else replace(drawn(0), protected=None)
        head = fit_on_losses(blank_head(), data, recipe=replace(RECIPE, protect_weight=6.0)).head
        score = head.pool(head.predict(new.parts)).double().numpy()
        group, failed = new.protected.numpy(), new.failed.numpy()
        within = np.mean([float(auroc(score[group == g], failed[group == g])) for g in (0, 1)])
        found[weight] = decodability(score, group), within
    plain, protected = found[0.0], found[1.0]
    assert plain[0] > 0.66 and protected[0] < 0.59
    # Among frames of one group the score is worth as much as before.
    assert protected[1] > plain[1] - 0.03 > 0.8


def run_of(out: Path, **head: object) -> Run:
    config = parse_train_config(
        {
            "dataset": "digits",
            "model": {"options": {"width": 4}},
            "training": {"epochs": 3},
            "head": {"steps": 150, "copies": 0, "strength": 1.0, "columns": "all", **head},
        }
    )
    return train_run(config, out=out)


@pytest.mark.slow
def test_training_with_a_protected_group_makes_its_score_tell_it_less(tmp_path: Path) -> None:
    """Digits that look alike are the group with more failures."""
    digits = load_dataset("digits")
    hard = np.isin(digits.test.targets, (1, 8, 9))
    lines = ["id,looks"]
    for part in (digits.train, digits.test):
        for name, target in zip(part.ids, part.targets, strict=True):
            lines.append(f"{name},{'alike' if target in (1, 8, 9) else 'other'}")
    file = tmp_path / "groups.csv"
    file.write_text("\n".join(lines) + "\n")
    told = []
    for name, options in (("plain", {}), ("protected", {"protect": str(file), "protect_weight": 2.0})):
        run = run_of(tmp_path / name, **options)
        assert run.head is not None
        score = compute(run, digits.test, [run.head])[run.head.name]
        told.append(decodability(np.asarray(score), hard))
    assert told[1] < told[0] - 0.03
    # The run says so, and a refit of its head reads it.
    assert load_run(tmp_path / "protected").config.head.protect == file
    assert load_run(tmp_path / "plain").config.head.protect is None


def test_files_of_groups_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "groups.csv"
    ids = [f"f{i}" for i in range(40)]
    file.write_text("id,camera\n" + "".join(f"f{i},{'ab'[i % 2]}\n" for i in range(30)) + "f39,c\n")
    found = read_groups(file, ids)
    assert found[:4].tolist() == [0, 1, 0, 1] and found[30:].tolist() == [UNKNOWN] * 10
    for text, why in (
        ("id,camera\n" + "".join(f"f{i},a\n" for i in range(40)), "two groups of at least 10"),
        ("name,camera\nf0,a\n", "expected the column id and one more"),
        ("id,camera,weather\nf0,a,b\n", "expected the column id and one more"),
    ):
        file.write_text(text)
        with pytest.raises(ConfigError, match=why):
            read_groups(file, ids)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_groups(tmp_path / "none.csv", ids)
    for options in ({"folds": 2}, {"joint": True}):
        with pytest.raises(ConfigError, match=r"head.protect needs a holdout"):
            parse_train_config({"head": {"protect": str(file), **options}})
