"""Candidates, suppression, matching and losses of boxes, by hand-made cases, by brute force and by peers."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from misfire_runtime.boxes import BoxRule
from misfire_train.boxes.average_precision import average_precision
from misfire_train.boxes.candidates import final_boxes, finals, find_candidates
from misfire_train.boxes.geometry import iou_matrix
from misfire_train.boxes.losses import f1, frame_errors, frame_failed, frame_loss, lrp
from misfire_train.boxes.matching import label_candidates, match_frames

RULE = BoxRule(score_threshold=0.3, suppression=0.6, candidates=50, min_side=8)


def target(*rows: tuple[float, ...]) -> Tensor:
    """Returns targets [1,G,6] of rows (x0, y0, x1, y1, class[, ignore])."""
    full = [(*row, 0.0) if len(row) == 5 else row for row in rows]
    return torch.tensor([full], dtype=torch.float32).reshape(1, -1, 6)


def dense(*rows: tuple[float, ...], classes: int = 2) -> Tensor:
    """Returns a dense answer [1,P,K+8] of rows (x0, y0, x1, y1, class, score)."""
    answer = torch.zeros(1, len(rows), classes + 8)
    answer[..., 4:-4] = -12.0
    for place, (x0, y0, x1, y1, label, score) in enumerate(rows):
        answer[0, place, :4] = torch.tensor((x0, y0, x1, y1))
        answer[0, place, 4 + int(label)] = float(np.log(score / (1 - score)))
    return answer


def greedy(boxes: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], limit: float) -> list[bool]:
    """Suppresses one by one, as the textbook does; boxes are sorted."""
    iou = iou_matrix(torch.tensor(boxes), torch.tensor(boxes)).numpy()
    stays: list[bool] = []
    for i in range(len(boxes)):
        stays.append(not any(stays[j] and labels[i] == labels[j] and iou[i, j] > limit for j in range(i)))
    return stays


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.3, 0.5, 0.6, 0.9]))
@settings(max_examples=60, deadline=None)
def test_suppression_is_greedy_suppression(seed: int, limit: float) -> None:
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 40, (30, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(5, 40, (30, 2))], 1)
    rows = [(*box, rng.integers(2), rng.uniform(0.05, 0.95)) for box in boxes]
    found = find_candidates(dense(*rows), RULE.model_copy(update={"suppression": limit}))
    expected = greedy(found.boxes[0].numpy(), found.label[0].numpy(), limit)
    assert found.alive[0].tolist() == expected
    assert bool((found.logit[0].diff() <= 0).all())


def test_final_boxes_are_the_kept_ones_best_first_and_padded() -> None:
    answer = dense(
        (0, 0, 20, 20, 0, 0.9),
        (1, 0, 20, 20, 0, 0.8),  # suppressed
        (1, 0, 20, 20, 1, 0.7),  # another class
        (50, 50, 70, 70, 0, 0.2),  # below the threshold
    )
    found = find_candidates(answer, RULE)
    boxes, order = final_boxes(found, RULE)
    assert boxes.shape == (1, 4, 6)
    assert boxes[0, :2, 4].tolist() == pytest.approx([0.9, 0.7])
    assert boxes[0, :2, 5].tolist() == [0, 1]
    assert not boxes[0, 2:].any()
    assert found.index[0, order[0, :2]].tolist() == [0, 2]
    assert found.below[0].tolist() == [False, False, False, True]
    assert torch.equal(finals(answer, RULE), boxes)


def test_infinite_logits_of_a_foreign_detector_stay_finite() -> None:
    answer = dense((0, 0, 20, 20, 0, 0.9))
    answer[0, 0, 4] = torch.inf
    answer[0, 0, 5] = -torch.inf
    assert bool(torch.isfinite(finals(answer, RULE)).all())


def test_each_kind_of_error_has_its_name() -> None:
    objects = target((0, 0, 20, 20, 0), (100, 100, 140, 140, 1), (200, 0, 240, 40, 0, 1))
    answer = dense(
        (0, 0, 20, 20, 0, 0.95),  # right
        (2, 0, 22, 20, 0, 0.9),  # duplicate (IoU .82), and not suppressed at .9
        (100, 100, 140, 140, 0, 0.8),  # class
        (100, 125, 140, 165, 1, 0.7),  # place, IoU .23
        (100, 130, 140, 170, 0, 0.65),  # both: wrong class, IoU .14
        (300, 300, 340, 340, 0, 0.6),  # background
        (205, 5, 215, 15, 0, 0.5),  # inside an ignored region
    )
    rule = RULE.model_copy(update={"suppression": 0.95})
    match = match_frames(answer, objects, rule)[0]
    assert match.kind == ("right", "duplicate", "class", "place", "both", "background", "ignored")
    assert match.missed.tolist() == [False, True, False]
    assert frame_errors(match) == 6
    # 1 right with IoU 1, 5 false, 1 missed, and 1 for the prior.
    assert frame_loss(match, rule) == pytest.approx((0 + 5 + 1) / (1 + 5 + 1 + 1))
    assert lrp([match], rule) == pytest.approx(6 / 7)
    assert f1([match]) == pytest.approx(2 / (2 + 6))


def test_small_and_ignored_objects_are_neither_missed_nor_make_a_box_false() -> None:
    small = target((0, 0, 6, 30, 0))
    assert frame_errors(match_frames(dense((0, 0, 6, 30, 0, 0.9)), small, RULE)[0]) == 0
    assert frame_errors(match_frames(dense((90, 90, 99, 99, 0, 0.1)), small, RULE)[0]) == 0
    # A region for all classes, such as KITTI's DontCare.
    anything = target((0, 0, 60, 60, -1, 1))
    assert frame_errors(match_frames(dense((5, 5, 20, 20, 1, 0.9)), anything, RULE)[0]) == 0
    of_class = target((0, 0, 60, 60, 0, 1))
    assert frame_errors(match_frames(dense((5, 5, 20, 20, 1, 0.9)), of_class, RULE)[0]) == 1


def test_an_object_is_found_by_the_best_box_and_one_box_finds_one_object() -> None:
    # The better box takes the object that it overlaps more; the second gets what is left.
    objects = target((0, 0, 20, 20, 0), (4, 0, 24, 20, 0))
    answer = dense((3, 0, 23, 20, 0, 0.9), (3, 1, 23, 21, 0, 0.8))
    match = match_frames(answer, objects, RULE.model_copy(update={"suppression": 1.0}))[0]
    assert match.object.tolist() == [1, 0]
    assert match.right.all()


def test_failures_are_missed_relevant_objects_and_false_alarms() -> None:
    objects = target((0, 0, 20, 20, 0), (50, 50, 90, 90, 1))
    found_first = match_frames(dense((0, 0, 20, 20, 0, 0.9)), objects, RULE)[0]
    assert frame_failed(found_first, RULE)
    assert frame_failed(found_first, RULE, relevant=[1])
    assert not frame_failed(found_first, RULE, relevant=[0])
    nothing = target()
    assert not frame_failed(match_frames(dense((0, 0, 20, 20, 0, 0.45)), nothing, RULE)[0], RULE)
    assert frame_failed(match_frames(dense((0, 0, 20, 20, 0, 0.55)), nothing, RULE)[0], RULE)


def test_an_empty_frame_has_no_loss() -> None:
    match = match_frames(dense((0, 0, 20, 20, 0, 0.05)), target(), RULE)[0]
    assert frame_loss(match, RULE) == 0
    assert f1([match]) == 1


def test_the_best_candidate_of_a_missed_object_is_its_evidence() -> None:
    objects = target((0, 0, 20, 20, 0), (50, 50, 90, 90, 1), (100, 0, 140, 40, 0, 1))
    answer = dense(
        (0, 0, 20, 20, 0, 0.9),  # right
        (52, 50, 90, 90, 0, 0.25),  # of the missed object, in another class
        (50, 50, 90, 90, 1, 0.2),  # of the missed object too, but not its best
        (60, 60, 70, 70, 1, 0.1),  # of nothing
        (100, 0, 140, 40, 0, 0.05),  # in an ignored region
    )
    found = find_candidates(answer, RULE)
    labels = label_candidates(found, objects, RULE)
    assert labels.right[0, 0] == 1 and bool(labels.right[0, 1:].isnan().all())
    assert labels.overlap[0, 0] == 1
    assert labels.uncovered[0, 1:4].tolist() == [1, 0, 0]
    assert bool(labels.uncovered[0, [0, 4]].isnan().all())


def random_frames(seed: int, frames: int = 25) -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    detections, targets = [], []
    for _ in range(frames):
        count = int(torch.randint(0, 7, (1,), generator=generator))
        corner = torch.rand(count, 2, generator=generator) * 200
        objects = torch.cat((corner, corner + torch.rand(count, 2, generator=generator) * 120 + 4), 1)
        classes = torch.randint(0, 3, (count, 1), generator=generator).float()
        crowd = (torch.rand(count, 1, generator=generator) < 0.15).float()
        targets.append(torch.cat((objects, classes, crowd), 1))
        boxes = torch.cat((objects + torch.randn(count, 4, generator=generator) * 6, objects[:2] + 60))
        score = torch.rand(len(boxes), 1, generator=generator).clamp_min(0.01)
        kinds = torch.cat((classes, torch.zeros(len(boxes) - count, 1)))
        order = score[:, 0].argsort(descending=True)
        detections.append(torch.cat((boxes, score, kinds), 1)[order])
    return detections, targets


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_average_precision_equals_pycocotools(seed: int) -> None:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    detections, targets = random_frames(seed)
    annotations = [
        {
            "image_id": image,
            "category_id": int(row[4]) + 1,
            "bbox": [float(row[0]), float(row[1]), float(row[2] - row[0]), float(row[3] - row[1])],
            "area": float((row[2] - row[0]) * (row[3] - row[1])),
            "iscrowd": int(row[5]),
        }
        for image, rows in enumerate(targets, start=1)
        for row in rows
    ]
    results = [
        {
            "image_id": image,
            "category_id": int(row[5]) + 1,
            "bbox": [float(row[0]), float(row[1]), float(row[2] - row[0]), float(row[3] - row[1])],
            "score": float(row[4]),
        }
        for image, rows in enumerate(detections, start=1)
        for row in rows
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "images": [{"id": i + 1} for i in range(len(targets))],
            "categories": [{"id": k + 1, "name": str(k)} for k in range(3)],
            "annotations": [{"id": i + 1, **a} for i, a in enumerate(annotations)],
        }
        truth.createIndex()
        peer = COCOeval(truth, truth.loadRes(results), "bbox")
        peer.evaluate()
        peer.accumulate()
        peer.summarize()
    ours = average_precision(detections, targets, classes=3)
    numbers = (ours.mean, ours.half, ours.small, ours.medium, ours.large)
    assert numbers == pytest.approx(peer.stats[[0, 1, 3, 4, 5]].tolist(), abs=1e-6)


def test_average_precision_of_a_case_worked_out_by_hand() -> None:
    # Two objects. Boxes by score: right, false, right. Precisions at recall 0..0.5 are 1, up to 1.0 are 2/3:
    # 51 of COCO's 101 recalls lie at or below one half.
    objects = [torch.tensor([[0.0, 0, 40, 40, 0, 0], [100, 0, 140, 40, 0, 0]])]
    boxes = [
        torch.tensor([[0.0, 0, 40, 40, 0.9, 0], [200, 200, 240, 240, 0.8, 0], [100, 0, 140, 40, 0.7, 0]])
    ]
    found = average_precision(boxes, objects, classes=1)
    assert found.half == pytest.approx((51 + 50 * 2 / 3) / 101, abs=1e-6)
    assert found.mean == pytest.approx(found.half)
    assert found.by_class == pytest.approx((found.mean,))


def test_average_precision_without_boxes_or_objects() -> None:
    objects = [torch.tensor([[0.0, 0, 40, 40, 0, 0]])]
    nothing = torch.zeros(0, 6)
    assert average_precision([nothing], objects, classes=2).mean == 0
    assert np.isnan(average_precision([nothing], [nothing], classes=2).mean)
    assert np.isnan(average_precision([nothing], objects, classes=2).by_class[1])
