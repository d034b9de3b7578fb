"""The report's frames as pictures: what the network saw, with the truth and its answer drawn in.

image, outputs, target --draw--> Drawing (picture as a data URL, truth and answer in words) + one Legend

Joints: a line from each true place to the answer. Masks: wrong pixels in the colour of the answer, true
outlines in white. Classes and values: in words under the picture.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from misfire_runtime.preprocess import Image, InputContract, encode_png, resize_image
from misfire_train.judge.report.report import Legend
from misfire_train.tasks import IGNORE, joints_found, pixel_answers
from misfire_train.tasks.heatmaps import decode_heatmaps

SIDE = 320
"""Pictures are at most so many pixels wide and high."""
_RIGHT, _WRONG, _TRUE = (88, 214, 141), (255, 99, 71), (255, 255, 255)
_PALETTE = ("#8e9aa6", "#e4572e", "#2e86de", "#8e44ad", "#f2b705", "#17a589", "#d35d9e", "#6d8b1f")


@dataclass(frozen=True)
class Drawing:
    """One frame. picture: a data URL.  truth, predicted: in words, empty where the picture says it all."""

    picture: str
    truth: str = ""
    predicted: str = ""


def draw(
    task: str,
    image: Image,
    outputs: Tensor,
    target: NDArray[Any],
    *,
    classes: Sequence[str],
    contract: InputContract,
) -> Drawing:
    """A frame of any task. image: uint8 RGB [H,W,3]; outputs: [1,...]; target: that of one example."""
    if task == "classification":
        right, answer = int(target), int(outputs.argmax(1))
        return Drawing(data_url(image), truth=classes[right], predicted=classes[answer])
    if task == "regression":
        return _draw_values(image, outputs[0], target, classes)
    truth = torch.as_tensor(target)[None]
    if task == "keypoints":
        return _draw_joints(resize_image(image, contract), outputs, truth)
    if task == "segmentation":
        return _draw_mask(resize_image(image, contract), outputs, truth)
    return Drawing(data_url(image))


def legend_of(task: str, classes: Sequence[str]) -> Legend | None:
    """What the lines and colours mean, None where nothing is drawn."""
    if task == "keypoints":
        return Legend(
            "White rings: visible joints as labelled. Lines lead to the answers: green within a tenth of the "
            "figure's larger side, red beyond."
        )
    if task == "segmentation":
        colours = tuple((name, colour_of(number)) for number, name in enumerate(classes))
        return Legend("White: true outlines. Filled: wrong pixels, in the colour of the answer.", colours)
    if task == "regression":
        return Legend("Below each: the value that is furthest off, in units of the label.", drawn=False)
    return None


def colour_of(number: int) -> str:
    """The colour of a class, "#rrggbb"; they repeat after eight."""
    return _PALETTE[number % len(_PALETTE)]


def _draw_values(image: Image, outputs: Tensor, target: NDArray[Any], names: Sequence[str]) -> Drawing:
    answer, truth = outputs.double().numpy(), np.asarray(target, np.float64)
    worst = int(np.abs(answer - truth).argmax())
    return Drawing(
        data_url(image), truth=f"{truth[worst]:.3g}", predicted=f"{names[worst]} {answer[worst]:.3g}"
    )


def _draw_joints(seen: Image, heatmaps: Tensor, truth: Tensor) -> Drawing:
    found, visible = joints_found(heatmaps, truth)
    canvas, factor = _enlarged(seen)
    answers, places = decode_heatmaps(heatmaps)[0, :, :2].numpy(), truth[0, :, :2].numpy()
    for joint in visible[0].nonzero().flatten().tolist():
        start, end = _pixel(places[joint], factor), _pixel(answers[joint], factor)
        colour = _RIGHT if found[0, joint] else _WRONG
        cv2.line(canvas, start, end, colour, 2, cv2.LINE_AA)
        cv2.circle(canvas, start, 4, _TRUE, 1, cv2.LINE_AA)
        cv2.circle(canvas, end, 3, colour, -1, cv2.LINE_AA)
    return Drawing(data_url(canvas), predicted=f"{int(found.sum())} of {int(visible.sum())} joints found")


def _draw_mask(seen: Image, logits: Tensor, truth: Tensor) -> Drawing:
    answers, labels = pixel_answers(logits, truth)[0].numpy(), truth[0].numpy()
    wrong = (answers != labels) & (labels != IGNORE)
    canvas, _ = _enlarged(seen)
    size = (canvas.shape[1], canvas.shape[0])
    palette = np.array([_rgb(colour_of(k)) for k in range(int(answers.max()) + 1)], np.uint8)
    fill = cv2.resize(palette[answers], size, interpolation=cv2.INTER_NEAREST)
    mask = cv2.resize(wrong.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)[:, :, None]
    canvas = np.where(mask > 0, (0.35 * canvas + 0.65 * fill).astype(np.uint8), canvas)
    large = cv2.resize(labels.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
    for label in np.unique(labels):
        outlines, _ = cv2.findContours(
            (large == label).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE
        )
        cv2.drawContours(canvas, outlines, -1, _TRUE, 1)
    share = 1 - wrong.sum() / max(1, int((labels != IGNORE).sum()))
    return Drawing(data_url(canvas), predicted=f"{100 * share:.0f} % of pixels right")


def _enlarged(image: Image) -> tuple[Image, float]:
    """The picture at about SIDE pixels, so that thin lines stay thin, and by how much it grew."""
    factor = SIDE / max(image.shape[:2])
    size = (max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor)))
    how = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, size, interpolation=how), np.uint8), factor


def _pixel(point: NDArray[Any], factor: float) -> tuple[int, int]:
    """Network pixels to those of the enlarged picture; the centre of a pixel stays its centre."""
    x, y = (point.astype(np.float64) + 0.5) * factor - 0.5
    return round(float(x)), round(float(y))


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def data_url(image: Image) -> str:
    """A PNG as a data URL, shrunk to at most 320 pixels a side."""
    factor = SIDE / max(image.shape[:2])
    if factor < 1:
        size = (max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor)))
        image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
    return "data:image/png;base64," + base64.b64encode(encode_png(image)).decode()
