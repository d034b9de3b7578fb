"""Computes a frame's scores: preprocessing, one forward pass, and what the vehicle may ask of its outputs.

image --to_tensor--> engine --> Scored{scores, percentiles, prediction, embedding}

Only the scores are read on every frame; percentiles, prediction and embedding are worked out when asked for,
because most frames are not chosen. A score that is not finite is refused and counted: it can trigger nothing.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from misfire_runtime.bundle import Bundle, QuantileTable
from misfire_runtime.engines.base import Engine, EngineOptions
from misfire_runtime.engines.load import load_engine
from misfire_runtime.errors import EngineError
from misfire_runtime.messages import MAX_TEXT
from misfire_runtime.preprocess import Image, to_tensor

Outputs = Mapping[str, NDArray[Any]]


class Scored:
    """Holds the answer to one frame. `scores` holds the finite ones, `refused` the names of the others."""

    __slots__ = ("_outputs", "_prediction", "_scorer", "refused", "scores")

    def __init__(self, scorer: Scorer, outputs: Outputs) -> None:
        """Reads the scores.

        Args:
            scorer: whose bundle names the outputs.
            outputs: of the engine, for a batch of one.

        Raises:
            EngineError: a score has another shape than [1].
        """
        self._scorer = scorer
        self._outputs = outputs
        self._prediction: dict[str, Any] | None = None
        self.scores: dict[str, float] = {}
        refused = []
        for name, output in scorer.score_outputs:
            values = outputs[output]
            # A score per pixel or per batch would otherwise be taken for that of the frame.
            if values.size != 1:
                shape = list(values.shape)
                raise EngineError(f"{scorer.label}: {output} has shape {shape} for one frame; expected [1]")
            value = float(values.reshape(-1)[0])
            if math.isfinite(value):
                self.scores[name] = value
            else:
                refused.append(name)
        self.refused = tuple(refused)

    def percentile(self, name: str) -> float:
        """Returns the level of a score in its calibration, 0..1.

        Raises:
            KeyError: the score is unknown, or was refused because it is not finite.
        """
        return percentile(self._scorer.tables[name], self.scores[name])

    @property
    def percentiles(self) -> dict[str, float]:
        """Returns the levels of all scores in their calibration, 0..1."""
        return {name: self.percentile(name) for name in self.scores}

    @property
    def nbytes(self) -> int:
        """Returns the bytes of the outputs that it keeps alive."""
        return sum(values.nbytes for values in self._outputs.values())

    @property
    def prediction(self) -> dict[str, Any]:
        """Returns the task's answer in a few numbers."""
        if self._prediction is None:
            self._prediction = self._scorer.brief(self._outputs)
        return self._prediction

    @property
    def embedding(self) -> NDArray[np.float32] | None:
        """Returns the embedding [D], L2-normalised; None if there is none, or it is not finite."""
        name = self._scorer.embedding_output
        if name is None:
            return None
        values = np.asarray(self._outputs[name], np.float32).reshape(-1)
        return values if np.isfinite(values).all() else None


class Scorer:
    """Scores frames with a bundle and the engine that runs it."""

    def __init__(self, bundle: Bundle, engine: Engine) -> None:
        manifest = bundle.manifest
        self.bundle = bundle
        self.engine = engine
        self.label = manifest.label
        self.default_score = manifest.default_score
        self.classes = manifest.classes
        self.score_outputs = tuple((score.name, score.output) for score in manifest.scores)
        self.tables = {score.name: score.calibration.quantiles for score in manifest.scores}
        # Reversed, so that the first output of a kind wins.
        kinds = {output.kind: output.name for output in reversed(manifest.outputs)}
        self.embedding_output = kinds.get("embedding")
        self._kinds = kinds
        self._contract = manifest.input

    @classmethod
    def load(cls, bundle: Bundle, *, options: EngineOptions | None = None) -> Scorer:
        """Returns a scorer whose engine is loaded and warmed up; a scorer in use is not touched.

        Raises:
            EngineError: see `load_engine`.
        """
        return cls(bundle, load_engine(bundle, options=options))

    @property
    def calibration_differs(self) -> str | None:
        """Says that scores were calibrated on another engine than this one; None if they were not."""
        score = self.bundle.manifest.score(self.default_score)
        if score.calibration.engine == self.engine.name:
            return None
        return f"{self.label} was calibrated on {score.calibration.engine} and runs on {self.engine.name}"

    def score(self, image: Image) -> Scored:
        """Scores one picture.

        Args:
            image: [H,W,3] uint8 RGB.

        Raises:
            EngineError: the engine failed.
            ImageError: the picture has no pixels.
        """
        return Scored(self, self.engine.infer(to_tensor(image, self._contract)))

    def close(self) -> None:
        """Frees the engine."""
        self.engine.close()

    def brief(self, outputs: Outputs) -> dict[str, Any]:
        """Returns the task's answer in a few numbers, by the kind of output the manifest names.

        An answer with NaN or infinite values is none: {"not_finite": how many} is returned instead.
        """
        kind = next((kind for kind in _ANSWERS if kind in self._kinds), None)
        if kind is None:
            return {}
        values = outputs[self._kinds[kind]]
        not_finite = values.size - int(np.isfinite(values).sum())
        return {"not_finite": not_finite} if not_finite else _ANSWERS[kind](values, self.classes)


def percentile(table: QuantileTable, value: float) -> float:
    """Returns the level of `value` in a quantile table, linear between its entries.

    Args:
        table: levels and their values, both rising.
        value: a score. Equal entries give the middle of their levels.

    Returns:
        0..1.
    """
    values, levels = table.values, table.levels
    low, high = bisect_left(values, value), bisect_right(values, value)
    if high > low:
        return (levels[low] + levels[high - 1]) / 2
    if low == 0:
        return levels[0]
    if low == len(values):
        return levels[-1]
    share = (value - values[low - 1]) / (values[low] - values[low - 1])
    return levels[low - 1] + share * (levels[low] - levels[low - 1])


def quantile(table: QuantileTable, level: float) -> float:
    """Returns the score at a level of a quantile table, linear between its entries.

    Args:
        table: levels and their values, both rising.
        level: 0..1.
    """
    return float(np.interp(level, table.levels, table.values))


def _brief_class(logits: NDArray[Any], classes: tuple[str, ...]) -> dict[str, Any]:
    """Returns the likeliest class and its probability. logits: [1,K]."""
    flat = np.asarray(logits[0], np.float64).reshape(-1)
    if flat.size == 0:
        return {}
    best = int(flat.argmax())
    # The softmax of the largest; the subtraction keeps exp from overflowing.
    confidence = 1.0 / float(np.exp(flat - flat[best]).sum())
    return {"class": _class_name(best, classes), "confidence": round(confidence, 4)}


def _brief_values(values: NDArray[Any], classes: tuple[str, ...]) -> dict[str, Any]:
    """Returns the first 64 values. values: [1,...]."""
    return {"values": [round(float(value), 5) for value in values.reshape(-1)[:64]]}


def _brief_keypoints(heatmaps: NDArray[Any], classes: tuple[str, ...]) -> dict[str, Any]:
    """Returns the peaks of the first 64 joints, in 0..1 of width and height. heatmaps: [1,J,H,W]."""
    _batch, joints, height, width = heatmaps.shape
    flat = heatmaps[0].reshape(joints, -1)[:64]
    points = [
        [
            round((int(p) % width + 0.5) / width, 4),
            round((int(p) // width + 0.5) / height, 4),
            round(float(row[p]), 5),
        ]
        for row, p in zip(flat, flat.argmax(1), strict=True)
    ]
    return {"points": points}


def _brief_segmentation(logits: NDArray[Any], classes: tuple[str, ...]) -> dict[str, Any]:
    """Returns the share of pixels of the eight largest classes. logits: [1,K,H,W]."""
    shares = np.bincount(logits[0].argmax(0).reshape(-1), minlength=logits.shape[1]) / logits[0, 0].size
    largest = [int(k) for k in np.argsort(-shares)[:8] if shares[k] > 0]
    return {"shares": {_class_name(k, classes): round(float(shares[k]), 4) for k in largest}}


def _class_name(index: int, classes: tuple[str, ...]) -> str:
    """Returns a class name as far as it fits an offer."""
    return classes[index][:MAX_TEXT] if index < len(classes) else str(index)


_ANSWERS: dict[str, Callable[[NDArray[Any], tuple[str, ...]], dict[str, Any]]] = {
    "logits": _brief_class,
    "values": _brief_values,
    "heatmaps": _brief_keypoints,
    "segmentation": _brief_segmentation,
}
"""By kind of output; of several the first."""
