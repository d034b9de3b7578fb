"""The silence channel: it notices a blind detector, from features, where no box can."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from misfire_runtime.boxes import BoxRule
from misfire_train.errors import ScoreError
from misfire_train.metrics import auroc
from misfire_train.scores import build
from misfire_train.scores.boxes.silence import SHRINKAGE, whitening
from misfire_train.scores.fitting import FitSet
from misfire_train.signals import Signals
from misfire_train.tasks.detection import Detection

TASK = Detection(BoxRule(candidates=8, min_side=2))
CHANNELS, CELLS, CLASSES = 6, 20, 2


def signals(count: int, *, seed: int, fog: float = 0.0, boxes: int = 3) -> Signals:
    """Returns a detector's answers and the features of its cells; fog pulls all features to one value."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(CHANNELS, CHANNELS, generator=torch.Generator().manual_seed(99))
    frame = torch.randn(count, CHANNELS, 1, generator=generator)
    cells = torch.randn(count, CHANNELS, CELLS, generator=generator)
    phi = torch.einsum("dc,ncp->ndp", mixing, frame + cells)
    phi = (1 - fog) * phi + fog * 4.0
    outputs = torch.full((count, CELLS, 4 + CLASSES + 4), -6.0)
    # Boxes side by side, none of which suppresses another.
    x = 20.0 * torch.arange(CELLS)
    outputs[..., :4] = torch.stack((x, x * 0, x + 10, x * 0 + 10), 1)
    outputs[:, :boxes, 4] = 2.0
    return Signals(outputs, phi[..., None])


def fit_set(count: int, *, seed: int = 0) -> FitSet:
    return FitSet(signals(count, seed=seed), torch.zeros(count, 1, 6), CLASSES)


def test_a_blind_detector_is_noticed_where_every_score_of_boxes_is_fooled() -> None:
    silence, count, errors = build(
        ["silence", "box_count", "expected_errors"], task=TASK, holdout=fit_set(300)
    )
    clean, fog = signals(200, seed=1), signals(200, seed=2, fog=0.9, boxes=0)

    def noticed(score: torch.nn.Module) -> float:
        values = torch.cat((score(clean), score(fog)))
        return float(auroc(values.numpy(), np.repeat([False, True], 200)))

    assert noticed(silence) > 0.99
    assert noticed(count) < 0.01
    assert noticed(errors) < 0.5


def test_boxes_speak_against_silence() -> None:
    (silence,) = build(["silence"], task=TASK, holdout=fit_set(100))
    few, many = signals(50, seed=3, fog=0.5, boxes=0), signals(50, seed=3, fog=0.5, boxes=7)
    torch.testing.assert_close(silence(few) - silence(many), torch.full((50,), float(np.log(8) / 2)))


def test_it_reads_the_same_from_the_best_candidates_alone() -> None:
    """Frames that scores are fitted on keep the mean features of all cells, and the best cells."""
    (silence,) = build(["silence"], task=TASK, holdout=fit_set(100))
    whole = signals(20, seed=4)
    torch.testing.assert_close(silence(TASK.lighten(whole)), silence(whole))


def test_the_distance_is_mahalanobis() -> None:
    x = torch.randn(500, 4, generator=torch.Generator().manual_seed(0)) @ torch.diag(
        torch.tensor([1.0, 10.0, 0.1, 3.0])
    )
    whitener, center = whitening(x)
    z = ((x - x.mean(0)) / x.std(0, correction=0)).double().numpy()
    covariance = (1 - SHRINKAGE) * np.cov(z.T, bias=True) + SHRINKAGE * np.eye(4)
    wanted = np.einsum("nc,cd,nd->n", z, np.linalg.inv(covariance), z) / 4
    np.testing.assert_allclose((x @ whitener - center).square().sum(1).numpy(), wanted, rtol=1e-3)


def test_channels_that_never_vary_give_finite_scores() -> None:
    held: Tensor = signals(50, seed=5).last_input.clone()
    held[:, 2] = 0.0
    outputs = signals(50, seed=5).outputs
    fit = FitSet(Signals(outputs, held), torch.zeros(50, 1, 6), CLASSES)
    (silence,) = build(["silence"], task=TASK, holdout=fit)
    assert bool(torch.isfinite(silence(signals(9, seed=6))).all())
    assert bool(torch.isfinite(silence(Signals(outputs, torch.zeros_like(held)))).all())


def test_it_needs_held_out_frames_of_a_detector() -> None:
    with pytest.raises(ScoreError, match="held-out"):
        build(["silence"], task=TASK)
    with pytest.raises(ScoreError, match="at least 3 samples"):
        build(["silence"], task=TASK, holdout=fit_set(2))
    with pytest.raises(ScoreError, match="serves detection"):
        build(["silence"], task="classification", holdout=fit_set(9))
