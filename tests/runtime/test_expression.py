"""The rule language: what it can say, that unknown is not true, and that nothing else gets in."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from vehicle_support import scored_frame

from misfire_runtime.engines.detections import Boxes
from misfire_runtime.errors import ConfigError
from misfire_runtime.triggers.expression import compile_rule

SCORES = {"entropy": 0.8, "msp": 0.3}


def holds(rule: str, **context: Any) -> bool:
    scored: Any = SimpleNamespace(
        scores=SCORES,
        percentile=lambda name: 0.95,
        prediction={"class": "yellow", "confidence": 0.7},
        boxes=None,
    )
    return compile_rule(rule, scores=(*SCORES, "absent"))(scored_frame(scored, context=context))


@pytest.mark.parametrize(
    "rule",
    [
        "entropy > 0.5",
        "0.5 < entropy <= 0.8",
        "entropy > 0.5 and not msp > 0.5",
        "msp > 0.5 or prediction == 'yellow'",
        "prediction in ('red', 'yellow') and confidence < 0.9",
        "prediction not in ['green']",
        "context.speed >= 50 / 3.6",
        "context.gps.lat > 48 and context['gps.lat'] < 49",
        "max(entropy, msp) - min(entropy, msp) == 0.5",
        "abs(-entropy) * 2 % 1 > 0.59",
        "percentile.entropy > 0.9 and score.entropy > 0.7",
        "context.raining",
        "not has(context.nothing) and has(context.speed, entropy)",
        "source == 'front'",
        "context.speed > 10 or context.nothing > 1",
    ],
)
def test_it_says_what_engineers_need(rule: str) -> None:
    assert holds(rule, speed=20.0, **{"gps.lat": 48.5}, raining=True)


@pytest.mark.parametrize(
    "rule",
    [
        "context.speed > 10",
        "context.speed <= 10",
        "context.speed + 1 > 0",
        "context.speed == context.speed",
        "absent > 0",
        "percentile.absent >= 0",
        "entropy / 0 > 0",
        "prediction > 3",
        "prediction + 1 > 0",
        "entropy in 5",
    ],
)
def test_what_is_unknown_or_senseless_is_not_true(rule: str) -> None:
    assert not holds(rule)


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ("__import__('os').system('x')", "cannot be called"),
        ("open('x')", "cannot be called"),
        ("().__class__.__bases__", r"members|allowed"),
        ("entropy.__class__ == 1", "only score"),
        ("[x for x in (1,2)]", "ListComp is not allowed"),
        ("(lambda: 1)()", "cannot be called"),
        ("entropy if msp else 1", "IfExp is not allowed"),
        ("9 ** 9 ** 9 > 1", r"only \+ - \* / %"),
        ("entropy := 3", "not an expression"),
        ("f'{entropy}' == 'x'", "JoinedStr is not allowed"),
        ("entropy is 3", "write =="),
        ("nonsense > 1", r"unknown name 'nonsense'.*column|unknown name 'nonsense'"),
        ("context[entropy] > 1", "write context"),
        ("score.nope > 1", "no score 'nope'; there are absent, entropy, msp"),
        ("entropy >", "not an expression"),
        ("", "not an expression"),
        ("entropy > 1e999", "is not a number"),
        ("b'x' == 1", "is not a number, text"),
        ("max(entropy)", "min and max several"),
        ("max(*entropy)", "Starred is not allowed"),
        ("abs(entropy, key=1)", "cannot be called"),
        ("entropy > 0 and " * 60 + "entropy > 0", "too long"),
        ("(" * 300 + "entropy" + ")" * 300, "not an expression"),
        ("1" * 1001, "at most 1000"),
    ],
)
def test_nothing_else_gets_in_and_the_place_is_shown(rule: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        holds(rule)


def seen(rule: str, *names: str) -> bool:
    """Whether a rule holds for a detector that found these."""
    classes = ("car", "truck", "traffic light")
    labels = np.array([classes.index(name) for name in names], np.int64)
    found = Boxes(np.zeros((len(names), 4), np.float32), np.linspace(0.9, 0.5, len(names)), labels)
    scored: Any = SimpleNamespace(scores=SCORES, prediction={"boxes": []}, boxes=found, classes=classes)
    return compile_rule(rule, scores=SCORES, classes=classes)(scored_frame(scored))


@pytest.mark.parametrize(
    "rule",
    [
        "boxes == 3 and boxes.car == 2 and boxes.truck == 1",
        "boxes['traffic light'] < 1",
        "prediction == 'truck' and prediction != 'traffic light'",
        "'truck' in prediction and 'traffic light' not in prediction",
        "prediction in ('truck', 'bus') and prediction not in ('bus',)",
        "confidence > 0.89",
        "entropy > 0.5 and boxes.car > boxes.truck",
        "has(boxes, boxes.truck)",
    ],
)
def test_a_rule_counts_boxes_and_names_their_classes(rule: str) -> None:
    assert seen(rule, "car", "car", "truck")


def test_without_boxes_nothing_is_present_and_the_count_is_zero() -> None:
    assert seen("boxes == 0 and boxes.car == 0 and not has(confidence)")
    assert seen("prediction != 'car' and not prediction == 'car' and prediction not in ('car', 'truck')")
    assert not seen("prediction in ('car', 'truck') or confidence >= 0")


def test_other_tasks_have_no_boxes_to_count() -> None:
    assert not holds("boxes >= 0 or boxes.car >= 0")


def test_a_class_that_the_bundle_lacks_is_named_when_the_rule_is_loaded() -> None:
    with pytest.raises(ConfigError, match="no class 'bus'; there are car, truck, traffic light"):
        seen("boxes.bus > 0")


@given(st.text(max_size=60))
def test_any_text_is_refused_or_evaluates_without_an_exception(text: str) -> None:
    try:
        result = holds(text, speed=3.0)
    except ConfigError:
        return
    assert result in (True, False)
