"""Tasks: what each loss, failure and accuracy means, checked against plain loops."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from misfire_runtime.errors import ConfigError
from misfire_train.tasks import custom_task, get_task, mean_of_units
from misfire_train.tasks.answers.heatmaps import (
    decode_heatmaps,
    render_gaussians,
    render_targets,
    to_cells,
    to_pixels,
)
from misfire_train.tasks.segmentation import tile_losses


def test_classification_fails_where_the_argmax_is_wrong() -> None:
    task = get_task("classification")
    logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 3.0], [1.0, 0.9, 0.0]])
    labels = torch.tensor([0, 1, 0])
    rows = zip(logits.tolist(), (0, 1, 0), strict=True)
    losses = [-math.log(math.exp(row[y]) / sum(map(math.exp, row))) for row, y in rows]
    assert torch.allclose(task.sample_loss(logits, labels), torch.tensor(losses))
    assert task.training_loss(logits, labels).item() == pytest.approx(sum(losses) / 3)
    assert task.failed(logits, labels).tolist() == [False, True, False]
    assert task.accuracy(logits, labels).item() == pytest.approx(2 / 3)
    assert task.unit_losses(logits, labels).shape == (3, 1)


def test_regression_loss_is_half_the_squared_error_of_a_value() -> None:
    task = get_task("regression")
    values, targets = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[0.0, 2.0], [0.0, 3.0]])
    assert task.sample_loss(values, targets).tolist() == [0.25, 2.25]
    assert task.unit_losses(values, targets).tolist() == [[0.5, 0.0], [0.0, 4.5]]
    with pytest.raises(ConfigError, match="with_threshold"):
        task.failed(values, targets)
    assert task.with_threshold(1.0).failed(values, targets).tolist() == [False, True]
    assert task.accuracy(targets, targets).item() == 1.0


def test_keypoint_loss_is_one_for_an_empty_heatmap_and_zero_for_a_perfect_one() -> None:
    task = get_task("keypoints")
    targets = torch.tensor([[[20.0, 30.0, 2.0], [40.0, 8.0, 1.0], [5.0, 5.0, 0.0]]])
    perfect, visible = render_targets(targets, size=(24, 24))
    assert visible.tolist() == [[True, True, False]]
    assert task.sample_loss(perfect, targets).item() == pytest.approx(0, abs=1e-6)
    assert task.sample_loss(torch.zeros_like(perfect), targets).item() == pytest.approx(1)
    half = perfect.clone()
    half[0, 1] = 0
    units = task.unit_losses(half, targets)[0]
    assert units[:2].tolist() == pytest.approx([0, 1], abs=1e-6)
    assert units[2].isnan()
    assert task.sample_loss(half, targets).item() == pytest.approx(0.5)
    assert task.accuracy(half, targets).item() == pytest.approx(0.5)


def test_a_joint_outside_the_picture_has_no_loss_and_no_gradient() -> None:
    task = get_task("keypoints")
    targets = torch.tensor([[[-9.0, 30.0, 2.0], [200.0, 8.0, 2.0]]])
    heatmaps = torch.randn(1, 2, 24, 24, requires_grad=True)
    loss = task.training_loss(heatmaps, targets)
    loss.backward()
    assert loss.item() == 0
    assert heatmaps.grad is not None
    assert heatmaps.grad.abs().max() == 0


@settings(max_examples=50, deadline=None)
@given(x=st.floats(0, 95), y=st.floats(0, 63), stride=st.sampled_from([1, 2, 4]))
def test_a_rendered_joint_is_decoded_within_half_a_cell(x: float, y: float, stride: int) -> None:
    points = torch.tensor([[[x, y]]])
    heatmaps = render_gaussians(to_cells(points, stride=stride), size=(64 // stride, 96 // stride))
    found = decode_heatmaps(heatmaps, stride=stride)[0, 0]
    assert (found[:2] - points[0, 0]).abs().max() <= 0.5 * stride + 1e-4
    assert torch.allclose(to_pixels(to_cells(points, stride=stride), stride=stride), points, atol=1e-4)


def test_a_gaussian_is_a_gaussian() -> None:
    made = render_gaussians(torch.tensor([[[3.25, 1.5]]]), size=(5, 7), sigma=1.3)[0, 0]
    for row in range(5):
        for column in range(7):
            wanted = math.exp(-((column - 3.25) ** 2 + (row - 1.5) ** 2) / (2 * 1.3**2))
            assert made[row, column].item() == pytest.approx(wanted, rel=1e-5)


def test_segmentation_counts_labelled_pixels_only() -> None:
    task = get_task("segmentation")
    torch.manual_seed(0)
    logits, masks = torch.randn(2, 3, 8, 12), torch.randint(0, 3, (2, 8, 12)).to(torch.uint8)
    masks[0, :4] = 255
    log_p = logits.log_softmax(1)
    for n in range(2):
        pixels = [(r, c) for r in range(8) for c in range(12) if masks[n, r, c] != 255]
        mean = -sum(log_p[n, int(masks[n, r, c]), r, c].item() for r, c in pixels) / len(pixels)
        assert task.sample_loss(logits, masks)[n].item() == pytest.approx(mean, rel=1e-5)
    tiles = tile_losses(logits, masks, rows=2, columns=3)
    assert tiles[0, :3].isnan().all()
    inner = [-log_p[0, int(masks[0, r, c]), r, c].item() for r in range(4, 8) for c in range(4, 8)]
    assert tiles[0, 4].item() == pytest.approx(sum(inner) / 16, rel=1e-5)
    assert mean_of_units(tiles)[0].item() == pytest.approx(
        task.sample_loss(logits, masks)[0].item(), rel=1e-5
    )
    empty = torch.full((1, 8, 12), 255, dtype=torch.uint8)
    assert task.sample_loss(logits[:1], empty).item() == 0
    assert task.training_loss(logits[:1], empty).item() == 0


def test_coarse_logits_are_brought_to_the_size_of_the_mask() -> None:
    task = get_task("segmentation")
    logits = torch.zeros(1, 2, 2, 2)
    logits[:, 1] = 5
    mask = torch.ones(1, 9, 7, dtype=torch.uint8)
    assert task.accuracy(logits, mask).item() == 1
    assert task.sample_loss(logits, mask).item() == pytest.approx(math.log(1 + math.exp(-5)), rel=1e-4)


def test_any_per_sample_loss_makes_a_task() -> None:
    task = custom_task(lambda out, true: (out - true).abs().sum(1), failure_threshold=1.0)
    outputs, targets = torch.tensor([[0.5], [3.0]]), torch.zeros(2, 1)
    assert task.name == "custom"
    assert task.training_loss(outputs, targets).item() == pytest.approx(1.75)
    assert task.failed(outputs, targets).tolist() == [False, True]
    own = custom_task(
        lambda out, true: (out - true).square().mean(1), failed=lambda out, true: out[:, 0] > 0.1
    )
    assert own.failed(outputs, targets).tolist() == [True, True]


def test_a_custom_loss_that_is_no_loss_is_refused() -> None:
    outputs, targets = torch.ones(3, 2), torch.zeros(3, 2)
    with pytest.raises(ConfigError, match=r"gave \(\) for 3 samples"):
        custom_task(lambda out, true: (out - true).mean()).sample_loss(outputs, targets)
    with pytest.raises(ConfigError, match="below zero"):
        custom_task(lambda out, true: (true - out).sum(1)).sample_loss(outputs, targets)
    with pytest.raises(ConfigError, match="with_threshold"):
        custom_task(lambda out, true: out.sum(1)).failed(outputs, targets)
    with pytest.raises(ConfigError, match="there is no task"):
        get_task("tracking")
