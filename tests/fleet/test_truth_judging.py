"""Failures of labelled samples by the offer: the task's own rule, and what an offer cannot tell."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from misfire_fleet.labels.content import (
    Box,
    BoxesLabel,
    ClassesLabel,
    ClassLabel,
    Label,
    MaskLabel,
    Point,
    PointsLabel,
    ValuesLabel,
)
from misfire_fleet.truth.judging import Judge, UnjudgedError, match
from misfire_runtime.boxes import BoxRule
from misfire_train.boxes.matching import match_frame

SIZE = (640, 480)


def failed(prediction: dict[str, Any], label: Label, **options: Any) -> bool:
    return Judge(**options).failed(prediction, label, size=SIZE)


def test_classes() -> None:
    assert not failed({"class": "red"}, ClassLabel(name="red"))
    assert failed({"class": "red"}, ClassLabel(name="green"))
    assert failed({"not_finite": 3}, ClassLabel(name="green"))
    assert not failed({"labels": {"a": 0.9, "b": 0.6}}, ClassesLabel(names=("b", "a")))
    assert failed({"labels": {"a": 0.9}}, ClassesLabel(names=("a", "b")))


def test_boxes_by_the_default_rule() -> None:
    car = Box(name="car", x0=100, y0=100, x1=200, y1=200)
    seen = {"class": "car", "score": 0.9, "box": [105.0, 100.0, 200.0, 200.0]}
    stray = {"class": "car", "score": 0.9, "box": [400.0, 100.0, 500.0, 200.0]}
    assert not failed({"boxes": [seen], "more": 0}, BoxesLabel(boxes=(car,)))
    assert failed({"boxes": [], "more": 0}, BoxesLabel(boxes=(car,)))
    assert failed({"boxes": [seen, stray], "more": 0}, BoxesLabel(boxes=(car,)))
    assert not failed({"boxes": [seen, stray | {"score": 0.4}], "more": 0}, BoxesLabel(boxes=(car,)))
    crowd = Box(name="car", x0=390, y0=90, x1=600, y1=300, crowd=True)
    assert not failed({"boxes": [seen, stray], "more": 0}, BoxesLabel(boxes=(car, crowd)))
    small = Box(name="car", x0=10, y0=10, x1=14, y1=300)
    assert not failed({"boxes": [], "more": 0}, BoxesLabel(boxes=(small,)))


def test_values_and_points_by_tolerance() -> None:
    assert not failed({"values": [1.0, 2.0]}, ValuesLabel(values=(1.05, 2.0)), tolerance=0.1)
    assert failed({"values": [1.0, 2.0]}, ValuesLabel(values=(1.2, 2.0)), tolerance=0.1)
    points = PointsLabel(points=(Point(x=320, y=240), Point(x=0, y=0, visible=0)))
    assert not failed({"points": [[0.5, 0.5, 0.9], [0.9, 0.9, 0.1]]}, points, tolerance=0.05)
    assert failed({"points": [[0.7, 0.5, 0.9], [0.0, 0.0, 0.1]]}, points, tolerance=0.05)
    assert failed({"points": [[None, None, 0.9], [0.0, 0.0, 0.1]]}, points, tolerance=0.05)


@pytest.mark.parametrize(
    ("prediction", "label", "why"),
    [
        ({"shares": {"road": 1.0}}, MaskLabel(png="", names={}), "masks"),
        ({"values": [1.0]}, ValuesLabel(values=(1.0,)), "tolerance"),
        ({"points": [[0, 0, 1]]}, PointsLabel(points=(Point(x=0, y=0),)), "tolerance"),
        ({"shares": {}}, ClassLabel(name="a"), "no 'class'"),
        (
            {"boxes": [], "more": 0},
            BoxesLabel(boxes=(Box(name="a", x0=0, y0=0, x1=9, y1=9, degrees=5),)),
            "rotated",
        ),
        (
            {"boxes": [], "more": 3},
            BoxesLabel(boxes=(Box(name="a", x0=0, y0=0, x1=99, y1=99),)),
            "leaves out",
        ),
    ],
)
def test_what_an_offer_does_not_carry_is_not_judged(
    prediction: dict[str, Any], label: Label, why: str
) -> None:
    with pytest.raises(UnjudgedError, match=why):
        failed(prediction, label)


def test_boxes_are_matched_as_in_training() -> None:
    rng = np.random.default_rng(0)
    rule = BoxRule()
    for _round in range(200):

        def boxes(count: int) -> np.ndarray[Any, Any]:
            corner = rng.uniform(0, 60, (count, 2))
            return np.concatenate([corner, corner + rng.uniform(4, 60, (count, 2))], 1)

        found, objects = boxes(int(rng.integers(0, 9))), boxes(int(rng.integers(0, 7)))
        classes, names = rng.integers(0, 2, len(found)), rng.integers(0, 2, len(objects))
        ignored = rng.random(len(objects)) < 0.3
        score = np.sort(rng.random(len(found)))[::-1]
        trained = match_frame(
            torch.tensor(np.column_stack([found, score, classes]).reshape(-1, 6), dtype=torch.float64),
            torch.tensor(np.column_stack([objects, names, ignored]).reshape(-1, 6), dtype=torch.float64),
            rule,
        )
        missed, false = match(
            found, [str(c) for c in classes], objects, [str(n) for n in names], ignored=ignored, rule=rule
        )
        assert missed.tolist() == trained.missed.tolist()
        assert false.tolist() == trained.false.tolist()
