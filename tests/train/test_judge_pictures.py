"""What is drawn into a report's frames is where the labels and the answers are."""

from __future__ import annotations

import base64

import cv2
import numpy as np
import pytest
import torch

from misfire_runtime.preprocess import InputContract
from misfire_train.drawing import SIDE, Drawing, colour_of
from misfire_train.tasks import get_task
from misfire_train.tasks.answers.heatmaps import render_targets

GREY = np.full((64, 64, 3), 90, np.uint8)
CONTRACT = InputContract(height=64, width=64)
SCALE = SIDE // 64
GREEN, RED, WHITE = (88, 214, 141), (255, 99, 71), (255, 255, 255)


def pixels(drawing: Drawing) -> np.ndarray:
    raw = base64.b64decode(drawing.picture.removeprefix("data:image/png;base64,"))
    decoded = cv2.imdecode(np.frombuffer(raw, np.uint8), cv2.IMREAD_COLOR)
    return cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)


def at(picture: np.ndarray, x: float, y: float) -> tuple[int, ...]:
    """Of the pixel at network coordinates."""
    return tuple(int(v) for v in picture[round((y + 0.5) * SCALE - 0.5), round((x + 0.5) * SCALE - 0.5)])


def test_a_line_leads_from_every_visible_joint_to_its_answer() -> None:
    labels = np.array([[10, 12, 2], [50, 20, 2], [30, 50, 0]], np.float32)
    answers = torch.tensor([[[10.0, 12.0, 2], [20.0, 50.0, 2], [40.0, 40.0, 2]]])
    heatmaps, _ = render_targets(answers, size=(16, 16))
    drawn = get_task("keypoints").draw(GREY, heatmaps, labels, classes=("a", "b", "c"), contract=CONTRACT)
    picture = pixels(drawn)
    assert picture.shape == (SIDE, SIDE, 3)
    assert drawn.predicted == "1 of 2 joints found"
    assert at(picture, 10, 12) == GREEN
    assert at(picture, 20, 50) == RED
    red, green, _ = at(picture, 35, 35)  # half-way, where the line's edge is smoothed
    assert red > 200
    assert green < 130
    assert at(picture, 40, 40) == at(picture, 30, 50) == (90, 90, 90)


def test_wrong_pixels_are_filled_in_the_colour_of_the_answer_and_unlabelled_ones_are_not() -> None:
    mask = np.zeros((64, 64), np.uint8)
    mask[:, 32:] = 1
    mask[:8] = 255
    logits = torch.zeros(1, 3, 64, 64)
    logits[:, 0] = 1.0
    logits[:, 1, :, 32:] = 5.0
    logits[:, 2, 48:, :16] = 9.0
    drawn = get_task("segmentation").draw(
        GREY, logits, mask, classes=("road", "car", "sky"), contract=CONTRACT
    )
    picture = pixels(drawn)
    sky = tuple(int(0.35 * 90 + 0.65 * int(colour_of(2)[k : k + 2], 16)) for k in (1, 3, 5))
    assert at(picture, 5, 60) == sky
    assert at(picture, 50, 40) == at(picture, 20, 30) == (90, 90, 90)
    assert at(picture, 5, 2) == (90, 90, 90)
    outline = picture[30 * SCALE, 31 * SCALE : 34 * SCALE]
    assert (outline == 255).all(1).any()
    assert drawn.predicted == "93 % of pixels right"
    legend = get_task("segmentation").legend(("road", "car", "sky"))
    assert legend is not None
    assert legend.colours[2] == ("sky", colour_of(2))


def test_values_and_classes_are_told_in_words() -> None:
    values = get_task("regression").draw(
        GREY,
        torch.tensor([[0.5, 12.0]]),
        np.array([0.4, 20.0], np.float32),
        classes=("steering", "speed"),
        contract=CONTRACT,
    )
    assert (values.predicted, values.truth) == ("speed 12", "20")
    named = get_task("classification").draw(
        GREY[:5, :9],
        torch.tensor([[0.1, 2.0]]),
        np.int64(0),
        classes=("cat", "dog"),
        contract=CONTRACT,
    )
    assert (named.predicted, named.truth) == ("dog", "cat")
    assert pixels(named).shape == (5, 9, 3)
    assert get_task("classification").legend(("cat", "dog")) is None


@pytest.mark.parametrize("shape", [(30, 90), (700, 500)])
def test_a_picture_of_any_shape_is_drawn_as_the_network_saw_it(shape: tuple[int, int]) -> None:
    image = np.zeros((*shape, 3), np.uint8)
    contract = InputContract(height=32, width=64)
    heatmaps = torch.zeros(1, 1, 8, 16)
    label = np.array([[5, 5, 2]], np.float32)
    drawn = get_task("keypoints").draw(image, heatmaps, label, classes=("a",), contract=contract)
    assert pixels(drawn).shape == (SIDE // 2, SIDE, 3)
