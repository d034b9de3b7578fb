"""MetaDetect against numpy, and what it is good for: false boxes that stand alone."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from misfire_runtime.boxes import BoxRule
from misfire_train.boxes.candidates import Candidates, find_candidates
from misfire_train.metrics import auroc
from misfire_train.scores import build
from misfire_train.scores.boxes.meta_detect import AGREES, MetaDetect, statistics
from misfire_train.scores.fitting import FitSet
from misfire_train.signals import Signals
from misfire_train.tasks.detection import Detection

TASK = Detection(BoxRule(candidates=24, min_side=2, score_threshold=0.5))
CLASSES = 3


def frames(count: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """Returns answers [N,24,11] and targets [N,3,6]: objects have six candidates each, false boxes one."""
    rng = np.random.default_rng(seed)
    answers = np.zeros((count, 24, 4 + CLASSES + 4), np.float32)
    answers[..., 4:7] = -6
    targets = np.zeros((count, 3, 6), np.float32)
    for frame in range(count):
        # Places of a grid, so that nothing overlaps by chance.
        places = rng.permutation(12)[:9]
        x, y = 10 + 50 * (places % 4), 10 + 50 * (places // 4)
        for j in range(9):
            side = rng.uniform(15, 35, 2)
            box = np.array([x[j], y[j], x[j] + side[0], y[j] + side[1]])
            for copy in range(6 if j < 3 else 1):
                row = 6 * j + copy if j < 3 else 18 + j - 3
                answers[frame, row, :4] = box + rng.normal(0, 0.5, 4)
                # False boxes are as sure as right ones.
                answers[frame, row, 4 + j % CLASSES] = rng.normal(1.5, 0.5)
            if j < 3:
                targets[frame, j] = [*box, j % CLASSES, 0]
    return torch.from_numpy(answers), torch.from_numpy(targets)


def fit_set(count: int, *, seed: int) -> FitSet:
    answers, targets = frames(count, seed=seed)
    return FitSet(Signals(answers, answers.mean(1)), targets, CLASSES)


def value_of(found: Candidates, score: MetaDetect) -> Tensor:
    rows = (statistics(found) - score.center) / score.scale
    return torch.sigmoid(rows @ score.weight + score.offset)


def test_statistics_are_those_of_the_overlapping_candidates() -> None:
    answers, _ = frames(3, seed=4)
    found = find_candidates(answers, TASK.rule)
    got = statistics(found).double().numpy()
    assert got.shape == (3, 24, 24)
    for frame, own in ((0, 0), (1, 5), (2, 17)):
        near = np.flatnonzero(found.iou[frame, own].numpy() >= AGREES)
        boxes = found.boxes[frame].double().numpy()
        score = found.probability[frame].double().numpy()[near]
        size = np.sqrt(np.prod(boxes[own, 2:] - boxes[own, :2]))
        sides = (boxes[near] - boxes[own]) / size
        wanted = [float(found.logit[frame, own]), np.log(len(near)), *np.log(boxes[own, 2:] - boxes[own, :2])]
        wanted += [score.min(), score.max(), score.mean(), score.std()]
        wanted += [*sides.min(0), *sides.max(0), *sides.mean(0), *sides.std(0)]
        np.testing.assert_allclose(got[frame, own], wanted, atol=2e-5)


def test_it_tells_boxes_that_stand_alone_from_right_ones() -> None:
    (score,) = build(["meta_detect"], task=TASK, holdout=fit_set(80, seed=0))
    assert isinstance(score, MetaDetect)
    answers, _ = frames(40, seed=1)
    found = find_candidates(answers, TASK.rule)
    false = value_of(found, score)[found.kept]
    alone = (found.iou >= AGREES).sum(2)[found.kept] == 1
    assert auroc(false.numpy(), alone.numpy()) > 0.95
    # In boxes: what is expected is what there is.
    signals = Signals(answers, answers.mean(1))
    expected, counted = score(signals).mean(), (alone.float().sum() / len(answers))
    assert abs(float(expected - counted)) < 0.5


def test_it_can_be_fitted_without_a_single_box() -> None:
    answers, targets = frames(4, seed=2)
    answers[..., 4:7] = -9
    (score,) = build(
        ["meta_detect"], task=TASK, holdout=FitSet(Signals(answers, answers.mean(1)), targets, CLASSES)
    )
    assert torch.equal(score(Signals(answers, answers.mean(1))), torch.zeros(4))
    seen, _ = frames(4, seed=3)
    assert bool(torch.isfinite(score(Signals(seen, seen.mean(1)))).all())
