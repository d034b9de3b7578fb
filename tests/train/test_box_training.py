"""What a detector is trained on: assignment of cells, ignored regions, and the loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from misfire_runtime.boxes import BoxRule
from misfire_train.boxes.assignment import assign
from misfire_train.boxes.training_loss import giou, training_loss
from misfire_train.models.detector import STRIDES, cell_grid, detector_small

CLASSES = 3
RULE = BoxRule()
# Cells of 64x64 pixels at strides 8, 16 and 32.
CELLS = torch.cat([cell_grid(64 // stride, 64 // stride, stride) for stride in STRIDES])


def answers(*, score: float = 0.01, half: float = 1.5) -> torch.Tensor:
    """Dense answers of one frame: every cell has this score and a box of `half` strides to each side."""
    centre, reach = CELLS[:, :2], half * CELLS[:, 2:]
    logits = torch.full((len(CELLS), CLASSES), float(np.log(score / (1 - score))))
    spread = 0.5 * CELLS[:, 2:]
    return torch.cat((centre - reach, centre + reach, logits, spread, CELLS), 1)[None]


def target(*rows: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor([rows])


def cell_at(x: float, y: float, stride: int) -> int:
    return int((torch.tensor([x, y, float(stride)]) == CELLS).all(1).nonzero())


def test_an_object_takes_the_cells_inside_it_and_its_size_decides_the_grid() -> None:
    found = assign(answers(), target((8.0, 8.0, 32.0, 32.0, 1.0, 0.0), (0.0, 0.0, 0.0, 0.0, -1.0, 0.0)))
    # 24 pixels: the box of the middle cell at stride 8 fits exactly.
    middle = cell_at(20.0, 20.0, 8)
    assert bool(found.taken[0, middle]) and found.quality[0, middle] == pytest.approx(1.0)
    assert found.quality[0].argmax() == middle
    x, y = CELLS[:, 0], CELLS[:, 1]
    inside = (x > 8) & (x < 32) & (y > 8) & (y < 32)
    assert not bool((found.taken[0] & ~inside).any())
    assert bool(found.judged.all())
    large = assign(answers(), target((0.0, 0.0, 56.0, 56.0, 1.0, 0.0)))
    assert CELLS[large.quality[0].argmax(), 2] == 16


def test_of_two_cells_that_fit_equally_the_surer_one_has_more_to_reach() -> None:
    outputs = answers()
    sure, unsure = cell_at(20.0, 20.0, 8), cell_at(28.0, 20.0, 8)
    outputs[0, [sure, unsure], :4] = torch.tensor([14.0, 10.0, 34.0, 30.0])
    outputs[0, sure, 4 + 2] = 2.0
    found = assign(outputs, target((14.0, 10.0, 34.0, 30.0, 2.0, 0.0)))
    assert found.quality[0, sure] == pytest.approx(1.0)
    assert 0 < found.quality[0, unsure] < 0.5


def test_no_more_than_the_asked_number_of_cells_answer_for_an_object() -> None:
    found = assign(answers(), target((0.0, 0.0, 64.0, 64.0, 0.0, 0.0)), cells=4)
    assert int(found.taken.sum()) == 4


def test_a_cell_inside_two_objects_answers_for_the_one_that_its_box_fits() -> None:
    outer, inner = (4.0, 4.0, 60.0, 60.0, 0.0, 0.0), (8.0, 8.0, 32.0, 32.0, 1.0, 0.0)
    found = assign(answers(), target(outer, inner), cells=100)
    assert int(found.object[0, cell_at(20.0, 20.0, 8)]) == 1
    assert int(found.object[0, cell_at(40.0, 40.0, 16)]) == 0


def test_ignored_and_too_small_objects_are_neither_learned_nor_background() -> None:
    region, tiny = (0.0, 0.0, 24.0, 24.0, 0.0, 1.0), (49.0, 49.0, 53.0, 53.0, 0.0, 0.0)
    found = assign(answers(), target(region, tiny), min_side=8.0)
    assert not bool(found.taken.any())
    assert not bool(found.judged[0, cell_at(12.0, 12.0, 8)])
    # The tiny object's place holds no cell's centre, but the next cell is close enough to be right.
    assert not bool(found.judged[0, cell_at(52.0, 52.0, 8)])
    assert bool(found.judged[0, cell_at(60.0, 12.0, 8)])
    # Without a smallest size the tiny one is an object, and it has a cell.
    everything = assign(answers(), target(tiny), min_side=0.0)
    assert bool(everything.judged.all())


def test_scores_in_an_ignored_region_cost_nothing() -> None:
    outputs, region = answers(), (0.0, 0.0, 24.0, 24.0, 0.0, 1.0)
    before = training_loss(outputs, target(region), RULE)
    loud = outputs.clone()
    loud[0, cell_at(12.0, 12.0, 8), 4:7] = 4.0
    assert training_loss(loud, target(region), RULE) == pytest.approx(float(before))
    outside = outputs.clone()
    outside[0, cell_at(60.0, 60.0, 8), 4:7] = 4.0
    assert training_loss(outside, target(region), RULE) > before + 1


def test_an_ignored_region_without_a_class_is_kept_out_and_padding_is_not() -> None:
    nameless, padding = (0.0, 0.0, 24.0, 24.0, -1.0, 1.0), (0.0, 0.0, 0.0, 0.0, -1.0, 1.0)
    assert not bool(assign(answers(), target(nameless)).judged.all())
    assert bool(assign(answers(), target(padding), min_side=8.0).judged.all())


def test_a_frame_without_objects_gives_a_finite_loss_and_gradient() -> None:
    outputs = answers().requires_grad_()
    loss = training_loss(outputs, target((0.0, 0.0, 0.0, 0.0, -1.0, 0.0)), RULE)
    loss.backward()  # type: ignore[no-untyped-call]
    assert outputs.grad is not None
    assert bool(outputs.grad.isfinite().all())
    assert not bool(outputs.grad[..., :4].any())


def test_a_better_box_and_an_honest_spread_cost_less() -> None:
    truth = target((8.0, 8.0, 32.0, 32.0, 1.0, 0.0))
    middle = cell_at(20.0, 20.0, 8)

    def loss(*, shift: float, spread: float) -> float:
        outputs = answers(score=0.5)
        # All other boxes are far too large to matter.
        outputs[0, :, :4] = torch.tensor([0.0, 0.0, 64.0, 64.0])
        outputs[0, middle, :4] = truth[0, 0, :4] + shift
        outputs[0, middle, -4] = spread
        return float(training_loss(outputs, truth, RULE))

    assert loss(shift=0.0, spread=1.0) < loss(shift=2.0, spread=1.0)
    # sqrt(2) * error is the best standard deviation for an error that is always the same.
    assert loss(shift=2.0, spread=2.8) < min(loss(shift=2.0, spread=1.0), loss(shift=2.0, spread=12.0))


def test_giou_falls_with_distance_where_boxes_do_not_touch() -> None:
    box = torch.tensor([0.0, 0.0, 10.0, 10.0])
    near, far = giou(box, box + 12.0), giou(box, box + 40.0)
    assert giou(box, box) == 1 and -1 < far < near < 0


def drawn_scene() -> tuple[torch.Tensor, torch.Tensor]:
    """Four pictures [4,3,64,96] of bright rectangles, whose class is their colour, and their targets."""
    generator = np.random.default_rng(0)
    images, rows = 0.1 * torch.randn(4, 3, 64, 96), torch.zeros(4, 2, 6)
    for image, objects in zip(images, rows, strict=True):
        for side, row in enumerate(objects):
            width, height = generator.integers(12, 32, 2)
            x, y = 48 * side + generator.integers(0, 48 - width), generator.integers(0, 64 - height)
            label = generator.integers(CLASSES)
            image[label, y : y + height, x : x + width] += 2.0
            row[:] = torch.tensor([x, y, x + width, y + height, label, 0])
    return images, rows


def test_a_detector_learns_four_pictures_by_heart() -> None:
    images, targets = drawn_scene()
    torch.manual_seed(0)
    model = detector_small(CLASSES, channels=3, width=8, tower=16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, total_iters=150)
    for _ in range(150):
        optimizer.zero_grad()
        loss = training_loss(model(images), targets, RULE)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    model.eval()
    with torch.no_grad():
        outputs = model(images)
    for answer, objects in zip(outputs, targets, strict=True):
        for row in objects:
            scores = answer[:, 4 + int(row[4])].sigmoid()
            near = ((answer[:, -3:-1] > row[:2]) & (answer[:, -3:-1] < row[2:4])).all(1)
            best = int((scores * near).argmax())
            assert scores[best] > 0.5
            assert giou(answer[best, :4], row[:4]) > 0.6
