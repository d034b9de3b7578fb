"""How retraining mixes old data and uploads: shares, repeats, classes and slices."""

from __future__ import annotations

import numpy as np
import pytest

from misfire_runtime.preprocess import InputContract
from misfire_train.data import Examples
from misfire_train.data.images import ImageArray
from misfire_train.fitting.backbone import FitData
from misfire_train.fitting.mixture import class_weights, shown_counts, slice_weights
from misfire_train.tasks import get_task
from misfire_train.train_config import MixtureTable

TASK = get_task("classification")


def examples(classes: list[int], prefix: str) -> Examples:
    names = tuple(f"{prefix}-{i}" for i in range(len(classes)))
    images = ImageArray(np.zeros((len(classes), 8, 8), np.uint8))
    return Examples(images, np.array(classes, np.int64), names, names)


def test_an_epoch_has_the_stated_share_of_old_data() -> None:
    old, uploads = examples([0, 1] * 60, "old"), examples([0, 1] * 15, "new")
    for replay in (0.25, 0.5, 0.67):
        counts = shown_counts(old, uploads, table=MixtureTable(replay=replay, max_repeats=20), task=TASK)
        assert counts[: len(old)].sum() / counts.sum() == pytest.approx(replay)
    # Each upload at least once, and never so often that it is learned by heart.
    few = shown_counts(old, uploads.take([0]), table=MixtureTable(max_repeats=8), task=TASK)
    assert few[-1] == 8
    many = shown_counts(uploads.take([0]), old, table=MixtureTable(), task=TASK)
    assert (many[1:] == 1).all()
    assert (shown_counts(old, uploads.take([]), table=MixtureTable(), task=TASK) == 1).all()


def test_class_balance_shows_rare_classes_more_and_keeps_the_share_of_old_data() -> None:
    old, uploads = examples([0] * 90 + [1] * 30, "old"), examples([0] * 24 + [1] * 6, "new")
    table = MixtureTable(replay=0.5, class_balance=1.0, max_repeats=100)
    counts = shown_counts(old, uploads, table=table, task=TASK)
    for part, side in ((old, counts[:120]), (uploads, counts[120:])):
        assert side[part.targets == 0].sum() == pytest.approx(side[part.targets == 1].sum())
    assert counts[:120].sum() == pytest.approx(counts[120:].sum())
    half = class_weights(old, task=TASK, strength=0.5)
    assert half[-1] / half[0] == pytest.approx(np.sqrt(3))


def test_frames_with_boxes_weigh_as_their_rarest_class_and_tasks_without_classes_are_left() -> None:
    task = get_task("detection")
    rows = [[(0, 0, 4, 4, 0, 0)], [(0, 0, 4, 4, 0, 0), (1, 1, 5, 5, 2, 0)], [], [(0, 0, 4, 4, -1, 1)]]
    targets = task.stack([np.array(each, np.float32).reshape(-1, 6) for each in rows])
    shown = task.present(targets)
    assert shown is not None and shown.tolist() == [
        [True, False, False],
        [True, False, True],
        [False, False, False],
        [False, False, False],
    ]
    frames = Examples(
        ImageArray(np.zeros((4, 8, 8), np.uint8)), targets, ("a", "b", "c", "d"), ("a", "b", "c", "d")
    )
    weights = class_weights(frames, task=task, strength=1.0)
    assert weights[1] == pytest.approx(2 * weights[0]) and weights[2] == weights[3] == weights[0]
    assert (class_weights(frames, task=get_task("regression"), strength=1.0) == 1).all()
    assert get_task("regression").present(targets) is None


def test_other_tasks_say_which_classes_an_example_shows() -> None:
    labels = np.array([[1, 0, np.nan], [0, 1, 1]], np.float32)
    multi = get_task("multi-label").present(labels)
    assert multi is not None and multi.tolist() == [[True, False, False], [False, True, True]]
    masks = np.array([[[0, 0], [2, 255]], [[1, 1], [255, 255]]], np.uint8)
    found = get_task("segmentation").present(masks)
    assert found is not None and found.tolist() == [[True, False, True], [False, True, False]]


def test_slice_balance_shows_rare_slices_more() -> None:
    names = ["sun"] * 16 + ["fog"] * 4
    weights = slice_weights(names, strength=1.0)
    assert weights.mean() == pytest.approx(1) and weights[:16].sum() == pytest.approx(weights[16:].sum())
    assert (slice_weights(names, strength=0.0) == 1).all()
    old, uploads = examples([0] * 40, "old"), examples([0] * 20, "new")
    table = MixtureTable(replay=0.5, slice_balance=1.0)
    counts = shown_counts(old, uploads, table=table, task=TASK, slices=names)
    assert counts[-1] == pytest.approx(4 * counts[40]) and counts[40:].sum() == pytest.approx(40)


def test_parts_of_a_count_are_right_over_epochs_and_whole_counts_draw_nothing() -> None:
    contract = InputContract(height=8, width=8, color="gray", mean=(0.5,), std=(0.5,))
    four = examples([0, 1, 0, 1], "each")
    counts = np.array([1.0, 2.5, 0.25, 1.0])
    data = FitData(four, four, contract, counts)
    seen = np.zeros(4)
    for epoch in range(400):
        order = data.order(np.random.default_rng([7, epoch]))
        assert (order == data.order(np.random.default_rng([7, epoch]))).all()
        seen += np.bincount(order, minlength=4)
    assert np.abs(seen / 400 - counts).max() < 0.1
    whole = FitData(four, four, contract, np.array([1, 2, 1, 1]))
    plain = np.random.default_rng(3).permutation(np.repeat(np.arange(4), [1, 2, 1, 1]))
    assert (whole.order(np.random.default_rng(3)) == plain).all()
