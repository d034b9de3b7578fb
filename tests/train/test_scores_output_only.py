"""The free scores: values, direction, numbers that do not cancel, odd outputs."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from misfire_train.scores import SCORES, ScoreError, build, names_for
from misfire_train.scores.output_only import (
    Energy,
    Entropy,
    HeatmapEntropy,
    Margin,
    MaxLogit,
    MeanPeak,
    Msp,
    MultiPeakEntropy,
    OutputScore,
    SelfResidual,
)
from misfire_train.signals import Signals
from misfire_train.tasks.answers.heatmaps import render_gaussians
from misfire_train.tasks.answers.peaks import local_maxima

CLASS_SCORES = [Msp, Entropy, Margin, Energy, MaxLogit]
HEATMAP_SCORES = [MeanPeak, HeatmapEntropy, MultiPeakEntropy, SelfResidual]


def of(score: OutputScore, outputs: Tensor) -> Tensor:
    return score(Signals(outputs, torch.zeros(len(outputs), 1)))


def gaussians(points: list[list[float]], *, size: int = 16, peak: float = 1.0) -> Tensor:
    return peak * render_gaussians(torch.tensor(points)[None], size=(size, size))


def test_values_of_a_known_distribution() -> None:
    p = torch.tensor([[0.7, 0.2, 0.1]], dtype=torch.float64)
    logits = p.log() + 3.0
    assert float(of(Msp(), logits)) == pytest.approx(0.3)
    assert float(of(Entropy(), logits)) == pytest.approx(-(p * p.log()).sum().item())
    assert float(of(Margin(), logits)) == pytest.approx(-0.5)
    assert float(of(Energy(), logits)) == pytest.approx(-3.0)
    assert float(of(MaxLogit(), logits)) == pytest.approx(-3.0 - math.log(0.7))


@pytest.mark.parametrize("kind", CLASS_SCORES)
def test_pitfall_10_direction_an_unsure_answer_scores_higher(kind: type[OutputScore]) -> None:
    sure, unsure = of(kind(), torch.tensor([[9.0, 0.0, 0.0], [0.4, 0.3, 0.2]]))
    assert float(unsure) > float(sure)


@pytest.mark.parametrize("kind", HEATMAP_SCORES)
def test_pitfall_10_direction_a_weak_and_double_peak_scores_higher(kind: type[OutputScore]) -> None:
    clean = gaussians([[4.0, 4.0]])
    weak = 0.4 * gaussians([[4.0, 4.0]]) + 0.35 * gaussians([[12.0, 11.0]])
    assert float(of(kind(), weak)) > float(of(kind(), clean))


@pytest.mark.parametrize("kind", CLASS_SCORES)
def test_pixel_scores_are_the_mean_over_pixels(kind: type[OutputScore]) -> None:
    maps = torch.randn(2, 5, 3, 4)
    flat = maps.permute(0, 2, 3, 1).reshape(-1, 5)
    expected = of(kind(), flat).reshape(2, 12).mean(1)
    torch.testing.assert_close(of(kind(), maps), expected)


def test_msp_and_entropy_tell_certain_from_more_certain() -> None:
    logits = torch.tensor([[20.0, 0.0, 0.0], [30.0, 0.0, 0.0], [40.0, 0.0, 0.0]])
    for score in (Msp(), Entropy()):
        values = of(score, logits)
        assert float(values[0]) > float(values[1]) > float(values[2]) > 0
    assert float(1 - torch.softmax(logits, 1).amax(1)[1]) == 0.0, "what the plain form would give"


def test_entropy_of_impossible_classes_is_zero_and_not_nan() -> None:
    logits = torch.tensor([[0.0, -math.inf, -math.inf], [0.0, 0.0, -math.inf], [1e4, -1e4, 0.0]])
    torch.testing.assert_close(of(Entropy(), logits), torch.tensor([0.0, math.log(2), 0.0]))


def test_margin_of_a_tie_is_zero_and_of_one_class_an_error() -> None:
    assert float(of(Margin(), torch.zeros(1, 4))) == 0.0
    with pytest.raises(ValueError, match="two classes"):
        of(Margin(), torch.zeros(1, 1))


@pytest.mark.parametrize("kind", HEATMAP_SCORES)
def test_heatmap_scores_refuse_logits_and_bear_flat_maps(kind: type[OutputScore]) -> None:
    with pytest.raises(ValueError, match="heatmaps are"):
        of(kind(), torch.zeros(2, 4))
    assert torch.isfinite(of(kind(), torch.zeros(2, 4, 9, 7))).all()
    assert torch.isfinite(of(kind(), torch.full((2, 4, 9, 7), 0.3))).all()


def test_local_maxima_are_the_peaks_and_flat_maps_have_none() -> None:
    maps = torch.maximum(gaussians([[4.0, 4.0]]), 0.6 * gaussians([[12.0, 11.0]]))
    values, places = local_maxima(maps, radius=2, peaks=3)
    assert places[0, 0, :2].tolist() == [4 * 16 + 4, 11 * 16 + 12]
    torch.testing.assert_close(values[0, 0, :2], torch.tensor([1.0, 0.6]))
    assert float(values[0, 0, 2]) < -1e3
    assert float(local_maxima(torch.zeros(1, 1, 5, 5), radius=1, peaks=3)[0].amax()) < -1e3


def test_multi_peak_entropy_is_the_entropy_of_the_softmax_of_the_peaks() -> None:
    one = gaussians([[4.0, 4.0]])
    two = torch.maximum(one, gaussians([[12.0, 11.0]]))
    assert float(of(MultiPeakEntropy(), one)) == pytest.approx(0.0, abs=1e-6)
    assert float(of(MultiPeakEntropy(), two)) == pytest.approx(math.log(2), abs=1e-5)
    both = torch.cat([two, two], 1)
    assert float(of(MultiPeakEntropy(), both)) == pytest.approx(2 * math.log(2), abs=1e-5), (
        "summed over joints"
    )


def test_multi_peak_entropy_depends_on_the_scale_of_the_peaks() -> None:
    uneven = torch.maximum(gaussians([[4.0, 4.0]]), 0.7 * gaussians([[12.0, 11.0]]))
    assert float(of(MultiPeakEntropy(peak_scale=30), uneven)) < 0.01
    assert float(of(MultiPeakEntropy(peak_scale=1), uneven)) > 0.6
    with pytest.raises(ValueError, match="above zero"):
        MultiPeakEntropy(peak_scale=0)


def test_self_residual_of_a_clean_gaussian_is_zero_wherever_it_is() -> None:
    for point in ([4.0, 4.0], [0.0, 15.0], [7.0, 9.0]):
        assert float(of(SelfResidual(), gaussians([point]))) == pytest.approx(0.0, abs=1e-12)


def test_self_residual_is_the_loss_that_the_decoded_joints_would_have() -> None:
    torch.manual_seed(0)
    maps = torch.rand(2, 3, 8, 8)
    best = maps.flatten(2).argmax(2)
    label = render_gaussians(torch.stack([best % 8, best // 8], 2).float(), size=(8, 8))
    torch.testing.assert_close(of(SelfResidual(), maps), (maps - label).square().mean((1, 2, 3)))


def test_self_residual_may_forgive_a_low_peak() -> None:
    low = gaussians([[4.0, 4.0]], peak=0.5)
    assert float(of(SelfResidual(), low)) > 0.001
    assert float(of(SelfResidual(rescale=True), low)) == pytest.approx(0.0, abs=1e-12)
    with pytest.raises(ValueError, match="above zero"):
        SelfResidual(sigma=0)


def test_every_free_score_builds_from_its_name() -> None:
    for task in ("classification", "segmentation", "keypoints"):
        names = names_for(task, free=True)
        built = build(names, task=task)
        assert [score.name for score in built] == names
        assert all(score.free and score.exportable and score.definition for score in built)


def test_a_custom_task_has_the_distances_and_no_score_that_knows_its_outputs() -> None:
    assert names_for("custom") == ["knn_distance", "mahalanobis"]


def test_registry_rows_agree_with_their_names_and_say_their_source() -> None:
    assert all(name == info.name and info.source and info.tasks for name, info in SCORES.items())


@pytest.mark.parametrize(
    ("names", "task", "options", "message"),
    [
        (
            ["entorpy"],
            "classification",
            {},
            "unknown score 'entorpy'; did you mean entropy. For classification there are msp",
        ),
        (["msp"], "tracking", {}, "unknown task 'tracking'"),
        (["msp"], "keypoints", {}, "msp serves classification, segmentation, not keypoints"),
        (["msp"], "classification", {"energy": {}}, "options given for energy"),
        (["self_residual"], "keypoints", {"self_residual": {"sgima": 1}}, "do not fit self_residual"),
        (["egl_pp"], "classification", {}, "egl_pp is fitted on training data"),
        (["stacked"], "classification", {}, "stacked is fitted on held-out data"),
        (["ensemble"], "classification", {}, "ensemble needs other networks"),
    ],
)
def test_wrong_names_tasks_and_options_say_what_is_right(
    names: list[str], task: str, options: dict[str, dict[str, float]], message: str
) -> None:
    with pytest.raises(ScoreError, match=message):
        build(names, task=task, **options)
