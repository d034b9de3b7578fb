"""The strength of a correction: earned on groups left out, zero where it does not transfer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from misfire_train.heads.strength import STRENGTHS, Choice, auroc_influence, choose_strength, deal_groups
from misfire_train.metrics import auroc

Settings = dict[tuple[str, float], NDArray[Any]]


def _world(*, groups: int, per_group: int, seed: int = 0, rate: float = 0.2) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(seed)
    count = groups * per_group
    group = np.repeat(np.arange(groups), per_group)
    failed = rng.random(count) < rate
    return {
        "group": group,
        "failed": failed,
        "free": failed + rng.normal(size=count),
        "image": np.arange(count),
        "clean": np.ones(count, bool),
        "draw": rng.normal(size=count),
    }


def _choose(world: dict[str, NDArray[Any]], correction: NDArray[Any], *, named: bool = True) -> Choice:
    names = [f"drive-{g}" for g in world["group"]] if named else [str(i) for i in world["image"]]
    scores: Settings = {("all", s): world["free"] + s * correction for s in STRENGTHS}
    return choose_strength(
        scores,
        {"all": world["free"]},
        failed=world["failed"],
        clean=world["clean"],
        image=world["image"],
        folds=deal_groups(names),
    )


def test_a_correction_that_helps_on_every_drive_keeps_its_full_strength() -> None:
    world = _world(groups=8, per_group=200)
    choice = _choose(world, world["failed"] + 0.5 * world["draw"])
    assert choice.strength == 1.0
    gain = choice.gain
    assert gain is not None and gain.clean is not None and gain.clean > 0.05 and gain.earned
    assert (choice.by, choice.count, choice.folds) == ("groups", 8, 4)
    assert str(choice) == "strength 1 of 1, chosen over 8 groups"


def test_a_correction_that_hurts_on_the_next_drive_has_no_strength() -> None:
    world = _world(groups=4, per_group=100)
    choice = _choose(world, world["draw"] - world["failed"])
    assert choice.strength == 0.0 and choice.gain is None
    assert choice.columns == "all" and len(choice.gains) == len(STRENGTHS)


@pytest.mark.parametrize(("harm", "kept"), [(0.002, True), (0.15, False)])
def test_a_large_gain_on_copies_outweighs_only_a_tiny_loss_on_clean_frames(harm: float, kept: bool) -> None:
    one = _world(groups=8, per_group=200, rate=0.1)
    count = len(one["failed"])
    world = {name: np.concatenate((values, values)) for name, values in one.items()}
    world["clean"] = np.arange(2 * count) < count
    # Full strength loses a twentieth of a point of AUROC on clean frames, or several points.
    choice = _choose(world, np.where(world["clean"], -harm, 2.0) * world["failed"])
    assert (choice.strength > 0) == kept
    gain = choice.gains[-1]
    assert gain.clean is not None and gain.clean < 0 < gain.both and not gain.earned


def test_of_strengths_that_are_alike_the_weakest_is_taken() -> None:
    few = _world(groups=4, per_group=40)
    correction = 3.0 * few["failed"] * (few["draw"] > 1)
    assert 0 < _choose(few, correction).strength <= 0.5
    # With many failures the same gains are told apart.
    many = _world(groups=40, per_group=400)
    assert _choose(many, 3.0 * many["failed"] * (many["draw"] > 1)).strength == 1.0


def test_noise_has_little_strength_or_none() -> None:
    chosen = []
    for seed in range(40):
        world = _world(groups=6, per_group=60, seed=seed)
        chosen.append(_choose(world, 1.5 * world["draw"]).strength)
    assert max(chosen) <= 0.25
    assert np.mean([strength > 0 for strength in chosen]) < 0.25


def test_a_correction_that_helps_on_half_of_the_drives_and_hurts_on_the_others_is_not_trusted() -> None:
    world = _world(groups=4, per_group=150)
    sides = np.where(world["group"] % 2 == 0, 1.2, -1.2)
    assert _choose(world, sides * world["failed"] + 0.2 * world["draw"]).strength == 0.0


def test_a_loss_on_clean_frames_is_not_bought_with_a_gain_on_corrupted_ones() -> None:
    world = _world(groups=6, per_group=300)
    clean = world["draw"] > 0
    world["clean"] = clean
    correction = np.where(clean, -0.7, 1.5) * world["failed"]
    assert _choose(world, correction).strength == 0.0
    assert _choose(world, np.abs(correction)).strength == 1.0


def test_the_set_of_columns_that_transfers_wins() -> None:
    world = _world(groups=8, per_group=150)
    good, place = world["failed"] + world["draw"], world["group"] % 3 * 2.0 - world["failed"]
    scores = {("all", s): world["free"] + s * place for s in STRENGTHS}
    scores |= {("answer", s): world["free"] + s * good for s in STRENGTHS}
    choice = choose_strength(
        scores,
        {"all": world["free"], "answer": world["free"]},
        failed=world["failed"],
        clean=world["clean"],
        image=world["image"],
        folds=deal_groups([str(g) for g in world["group"]]),
    )
    assert choice.columns == "answer" and choice.strength > 0


def test_folds_keep_groups_whole_and_are_of_like_size() -> None:
    rng = np.random.default_rng(0)
    groups = [f"d{g}" for g in rng.integers(0, 30, 2000)]
    folds = deal_groups(groups, seed=3)
    assert folds.folds == 4 and folds.by == "groups" and folds.count == 30
    for name in set(groups):
        assert len({folds.number[i] for i, g in enumerate(groups) if g == name}) == 1
    assert np.ptp(np.bincount(folds.number)) < 100
    assert np.array_equal(folds.number, deal_groups(groups, seed=3).number)


@pytest.mark.parametrize("groups", [["x"] * 50, [f"{i}" for i in range(50)]])
def test_without_groups_images_are_left_out_and_named_as_such(groups: list[str]) -> None:
    folds = deal_groups(groups)
    assert (folds.by, folds.count, folds.folds) == ("images", 50, 4)


def test_too_few_failures_choose_nothing() -> None:
    world = _world(groups=4, per_group=20, rate=0.05)
    choice = _choose(world, world["failed"] * 3.0)
    assert choice.strength == 0.0
    assert choice.free is None and choice.gains[0].clean is None


def test_influence_is_of_the_auroc_and_gives_its_standard_error() -> None:
    rng = np.random.default_rng(0)
    failed = rng.random(400) < 0.3
    scores = np.round(failed + rng.normal(size=400), 1)  # ties
    area, influence = auroc_influence(scores, failed)
    assert area == pytest.approx(auroc(scores, failed), abs=1e-12)
    drawn = [rng.integers(0, 400, 400) for _ in range(300)]
    bootstrap = np.std([auroc(scores[rows], failed[rows]) for rows in drawn])
    assert np.sqrt(np.square(influence).sum()) == pytest.approx(bootstrap, rel=0.15)
