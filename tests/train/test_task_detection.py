"""The task of object detection: labels, ragged targets, moves, losses, failures, pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from misfire_runtime.boxes import BoxRule
from misfire_runtime.errors import ConfigError
from misfire_runtime.preprocess import InputContract
from misfire_train.signals import Signals
from misfire_train.tasks import Variation, get_task
from misfire_train.tasks.base import LabelPlace
from misfire_train.tasks.check import require_fit
from misfire_train.tasks.detection import Detection
from misfire_train.train_config import TrainConfig

CONTRACT = InputContract(width=64, height=32)
PLACE = LabelPlace(("car", "bike"), CONTRACT, Path(), size=(128, 64))
TASK = Detection(BoxRule(score_threshold=0.3, candidates=20))


def answer(*rows: tuple[float, ...]) -> torch.Tensor:
    """Returns a dense answer [1,P,10] of rows (x0, y0, x1, y1, class, logit) and cells at their centres."""
    found = torch.full((1, len(rows), 10), -9.0)
    found[..., -4:] = 0
    for place, (x0, y0, x1, y1, label, logit) in enumerate(rows):
        found[0, place, :4] = torch.tensor((x0, y0, x1, y1))
        found[0, place, 4 + int(label)] = logit
        found[0, place, -3:] = torch.tensor(((x0 + x1) / 2, (y0 + y1) / 2, 8.0))
    return found


def test_labels_are_boxes_in_pixels_of_the_stored_picture() -> None:
    found = TASK.parse_label("car,0,0,64,64 1,100,20,120,40", PLACE)
    assert found.tolist() == [[0, 0, 32, 32, 0, 0], [50, 10, 60, 20, 1, 0]]
    assert TASK.parse_label("", PLACE).shape == (0, 6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("car,1,2,3", "'car,1,2,3' is not class,x0,y0,x1,y1"),
        ("car,5,0,5,9", "expected finite x0 < x1"),
        ("car,nan,0,5,9", "expected finite x0 < x1"),
        ("tram,0,0,5,9", "there is no class 'tram'; there are car, bike"),
        ("2,0,0,5,9", "there is no class '2'"),
    ],
)
def test_wrong_labels_are_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TASK.parse_label(text, PLACE)


def test_ragged_targets_are_padded() -> None:
    stacked = TASK.stack([np.zeros((0, 6)), np.array([[0, 0, 9, 9, 1, 0]])])
    padded = TASK.collate(stacked)
    assert padded.shape == (2, 1, 6)
    assert padded[:, 0, 4].tolist() == [-1, 1]
    assert TASK.collate(TASK.stack([np.zeros((0, 6))])).shape == (1, 1, 6)


def test_boxes_move_with_the_picture_and_leave_it() -> None:
    targets = torch.tensor([[[10.0, 4, 20, 14, 1, 0], [0, 0, 6, 6, 0, 0], [0, 0, 0, 0, -1, 0]]])
    variation = Variation(torch.tensor([True]), torch.tensor([2]), torch.tensor([5]), 8, 64, 32)
    moved = TASK.move(targets, variation)[0]
    assert moved[0].tolist() == [49, 6, 59, 16, 1, 0]
    # Mirrored to 58..64, shifted to 63..69: one pixel is left of it, too little to be asked for.
    assert moved[1].tolist() == [63, 2, 64, 8, 0, 1]
    assert moved[2, 4] == -1
    gone = TASK.move(
        targets, Variation(torch.tensor([True]), torch.tensor([0]), torch.tensor([6]), 8, 64, 32)
    )
    assert gone[0, 1].tolist() == [0, 0, 0, 0, -1, 0]


def test_a_frame_is_judged_alike_by_candidates_and_by_final_boxes() -> None:
    outputs = answer((0, 0, 20, 20, 0, 3.0), (30, 5, 60, 25, 1, -3.0))
    targets = TASK.collate([np.array([[0, 0, 20, 20, 0, 0], [30, 5, 60, 25, 1, 0]])])
    final = TASK.condense(outputs)
    assert final.shape == (1, 2, 6)
    assert TASK.condense(final) is final
    for form in (outputs, final):
        require_fit(TASK, form, targets)
        assert TASK.sample_loss(form, targets).tolist() == pytest.approx([1 / 3])
        assert TASK.failed(form, targets).tolist() == [True]
        assert float(TASK.accuracy(form, targets)) == pytest.approx(2 / 3)
        counts = {name: value.tolist() for name, value in TASK.counts(form, targets).items()}
        assert counts == {"errors": [1], "missed": [1], "false": [0], "objects": [2]}


def test_a_stated_threshold_overrides_the_rule() -> None:
    outputs, targets = answer((0, 0, 20, 20, 0, -3.0)), TASK.collate([np.array([[0, 0, 20, 20, 0, 0]])])
    assert TASK.failed(outputs, targets).tolist() == [True]
    assert TASK.with_threshold(0.9).failed(outputs, targets).tolist() == [False]


def test_only_relevant_classes_fail() -> None:
    config = TrainConfig(detection=BoxRule(classes=("bike",)))
    task = get_task("detection").configured(config, ("car", "bike"))
    outputs, targets = answer((0, 0, 20, 20, 0, -3.0)), TASK.collate([np.array([[0, 0, 20, 20, 0, 0]])])
    assert task.failed(outputs, targets).tolist() == [False]
    with pytest.raises(ConfigError, match=r"detection.classes: there is no class 'bike'; there are car"):
        get_task("detection").configured(config, ("car",))


def test_labels_beyond_the_network_are_refused() -> None:
    targets = TASK.collate([np.array([[0, 0, 20, 20, 2, 0]])])
    with pytest.raises(ConfigError, match="a label has class 2, and the network has 2 classes"):
        require_fit(TASK, answer((0, 0, 20, 20, 0, 1.0)), targets)


def test_a_mirrored_answer_agrees_with_the_plain_one() -> None:
    outputs = answer((4, 4, 20, 20, 0, 3.0), (30, 5, 60, 25, 1, 1.0))
    # Cells define the picture's width: the last one ends at 64.
    outputs[0, 1, -3] = 60.0
    mirrored = outputs.clone()
    mirrored[..., 0], mirrored[..., 2] = 64 - outputs[..., 2], 64 - outputs[..., 0]
    mirrored[..., -3] = 64 - outputs[..., -3]
    mirrored[0, 0, -3] = 60.0
    back = TASK.unmirror(mirrored)
    assert torch.allclose(back[..., :4], outputs[..., :4])
    assert TASK.disagreement(outputs, back).tolist() == pytest.approx([0.0])
    lost = outputs.clone()
    lost[0, 1, 5] = -9.0
    assert TASK.disagreement(outputs, lost).tolist() == pytest.approx(
        [float(torch.sigmoid(torch.tensor(1.0)))]
    )


def test_candidates_are_found_once_for_all_scores() -> None:
    signals = Signals(answer((0, 0, 20, 20, 0, 3.0)), torch.zeros(1, 4))
    assert TASK.candidates(signals) is TASK.candidates(signals)
    assert TASK.answer(signals).shape == (1, 1, 6)


def test_a_picture_shows_missed_and_false_boxes() -> None:
    image = np.full((32, 64, 3), 90, np.uint8)
    drawing = TASK.draw(
        image,
        answer((40, 4, 60, 24, 1, 3.0)),
        np.array([[0, 0, 20, 20, 0, 0]], np.float32),
        classes=("car", "bike"),
        contract=CONTRACT,
    )
    assert (drawing.truth, drawing.predicted) == ("1 car", "0 of 1 found, 1 false")
    assert drawing.picture.startswith("data:image/png;base64,")
