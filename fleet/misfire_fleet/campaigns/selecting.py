"""Asks of a recorded offer whether a campaign would have wanted its frame, by the vehicle's own rules."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from misfire_fleet.campaigns.spec import Cut, What, words
from misfire_runtime.errors import MessageError
from misfire_runtime.messages import unpack_embedding
from misfire_runtime.triggers.expression import compile_rule
from misfire_runtime.triggers.near import cosine
from misfire_runtime.triggers.scored_frame import ScoredFrame

Wants = Callable[[Mapping[str, Any]], bool]


@dataclass(frozen=True)
class Thresholds:
    """Holds the score at which a campaign takes a frame, by bundle, or by vehicle for the budget."""

    score: Mapping[str, str] = field(default_factory=dict)
    """The score that is looked at, by bundle."""
    above: Mapping[str, float] = field(default_factory=dict)
    of_vehicle: Mapping[str, Cut] | None = None


def wants(what: What, *, thresholds: Thresholds, near: tuple[str, str] | None = None) -> Wants:
    """Returns a function from an offer, parsed JSON, to whether the campaign wants its frame.

    Args:
        what: of the campaign.
        thresholds: of its score.
        near: embedding and bundle of the sample that it is near.
    """
    rules = [compile_rule(rule, scores=words(rule)) for rule in what.rules]
    unit: np.ndarray[Any, Any] | None = None
    if near is not None:
        unit = unpack_embedding(near[0])
        unit = unit / np.float32(np.linalg.norm(unit))

    def decide(offer: Mapping[str, Any]) -> bool:
        if what.by_score and not _high(what, offer, thresholds):
            return False
        if rules:
            frame = cast(ScoredFrame, _frame(offer))
            if not all(rule(frame) for rule in rules):
                return False
        if unit is None or near is None or what.near is None:
            return True
        return _alike(offer, unit, near[1], what.near.similarity)

    return decide


def _high(what: What, offer: Mapping[str, Any], thresholds: Thresholds) -> bool:
    bundle = str(offer.get("bundle"))
    score = what.score or thresholds.score.get(bundle, "")
    if what.level is not None:
        value, least = (offer.get("percentiles") or {}).get(score), what.level
    else:
        value = (offer.get("scores") or {}).get(score)
        least = thresholds.above.get(bundle, math.inf) if what.above is None else what.above
        if thresholds.of_vehicle is not None:
            cut = thresholds.of_vehicle.get(str(offer.get("vehicle")))
            least = math.inf if cut is None else cut.above
    return isinstance(value, (int, float)) and value >= least


def _alike(offer: Mapping[str, Any], unit: np.ndarray[Any, Any], bundle: str, similarity: float) -> bool:
    text = offer.get("embedding")
    if not isinstance(text, str) or offer.get("bundle") != bundle:
        return False
    try:
        embedding = unpack_embedding(text)
    except MessageError:
        return False
    return embedding.size == unit.size and cosine(embedding, unit) >= similarity


@dataclass(frozen=True)
class _Boxes:
    labels: np.ndarray[Any, Any]
    scores: np.ndarray[Any, Any]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class _Scored:
    scores: Mapping[str, float]
    percentiles: Mapping[str, float]
    prediction: Mapping[str, Any]
    boxes: _Boxes | None
    classes: tuple[str, ...]

    def percentile(self, name: str) -> float:
        return self.percentiles.get(name, math.nan)


@dataclass(frozen=True)
class _Frame:
    """Has what a compiled rule looks at of a frame."""

    scored: _Scored
    context: Mapping[str, Any]
    source: str


def _frame(offer: Mapping[str, Any]) -> _Frame:
    prediction = offer.get("prediction") or {}
    boxes, classes = None, tuple[str, ...]()
    found = prediction.get("boxes")
    if isinstance(found, list):
        rows = [row for row in found if isinstance(row, dict)]
        names = [str(row.get("class")) for row in rows]
        classes = tuple(sorted(set(names)))
        labels = np.array([classes.index(name) for name in names], int)
        scores = np.array(sorted((float(row.get("score") or 0.0) for row in rows), reverse=True))
        boxes = _Boxes(labels, scores)
    scored = _Scored(offer.get("scores") or {}, offer.get("percentiles") or {}, prediction, boxes, classes)
    return _Frame(scored, offer.get("context") or {}, str(offer.get("source") or ""))
