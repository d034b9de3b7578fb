"""Computes a frame's scores: preprocessing, one forward pass, and what the vehicle may ask of its outputs.

image --to_tensor--> engine --> Scored{scores, percentiles, prediction, embedding}

Only the scores are read on every frame; percentiles, prediction and embedding are worked out when asked for,
because most frames are not chosen. A score that is not finite is refused and counted: it can trigger nothing.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from typing import Any

import numpy as np
from numpy.typing import NDArray

from misfire_runtime.bundle import Bundle, QuantileTable
from misfire_runtime.engines.answers import KINDS, Outputs, brief_further, brief_of, top_classes
from misfire_runtime.engines.base import Engine, EngineOptions
from misfire_runtime.engines.detections import P_TP, Boxes, brief_boxes, check_detections, find_boxes
from misfire_runtime.engines.load import load_engine
from misfire_runtime.engines.masks import mask_of, tile_doubts
from misfire_runtime.errors import EngineError
from misfire_runtime.placement import Placement
from misfire_runtime.preprocess import Image, size_inputs, to_tensor


class Scored:
    """Holds the answer to one frame. `scores` holds the finite ones, `refused` the names of the others."""

    __slots__ = ("_boxes", "_levels", "_outputs", "_prediction", "_scorer", "place", "refused", "scores")

    def __init__(self, scorer: Scorer, outputs: Outputs, place: Placement | None = None) -> None:
        """Reads the scores.

        Args:
            scorer: whose bundle names the outputs.
            outputs: of the engine, for a batch of one.
            place: of the picture in the network's input; None takes it for one of the network's size.

        Raises:
            EngineError: a score has another shape than [1], or the detections another than [1,M,6].
        """
        self._scorer = scorer
        self._outputs = outputs
        self.place = place
        self._boxes: Boxes | None = None
        self._prediction: dict[str, Any] | None = None
        self._levels: dict[str, float] = {}
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
        detections = scorer.output_of("boxes")
        if detections is not None:
            check_detections(outputs[detections].shape, name=f"{scorer.label}: {detections}")

    def add(self, name: str, value: float, *, level: float) -> None:
        """Adds a score that the graph does not have.

        Args:
            name: differs from those of the graph's scores.
            value: finite.
            level: its percentile, 0..1.
        """
        self.scores[name] = value
        self._levels[name] = level

    def answer(self, kind: str) -> NDArray[Any] | None:
        """Returns the first output of a kind, of a batch of one, unchecked; None if there is none."""
        name = self._scorer.output_of(kind)
        return None if name is None else self._outputs[name]

    def percentile(self, name: str) -> float:
        """Returns the level of a score in its calibration, 0..1.

        Raises:
            KeyError: the score is unknown, or was refused because it is not finite.
        """
        if name in self._levels:
            return self._levels[name]
        return percentile(self._scorer.tables[name], self.scores[name])

    def expected_loss(self, name: str) -> float | None:
        """Returns the loss that frames with this score had on average, in the task's units.

        None if the bundle does not know it, or the score was refused.
        """
        table = self._scorer.losses.get(name)
        return None if table is None or name not in self.scores else table.expected(self.scores[name])

    @property
    def percentiles(self) -> dict[str, float]:
        """Returns the levels of all scores in their calibration, 0..1."""
        return {name: self.percentile(name) for name in self.scores}

    @property
    def outputs(self) -> Outputs:
        """Returns every output of the graph, by its name."""
        return self._outputs

    @property
    def nbytes(self) -> int:
        """Returns the bytes of the outputs that it keeps alive."""
        return sum(values.nbytes for values in self._outputs.values())

    @property
    def prediction(self) -> dict[str, Any]:
        """Returns the task's answer in a few numbers, and each further answer by its name."""
        if self._prediction is None:
            boxes = self.boxes
            if boxes is None:
                own = self._scorer.brief(self._outputs, self.place)
            else:
                own = brief_boxes(boxes, self._scorer.classes, self.place)
            # The task's own fields win over a further answer of such a name.
            self._prediction = {**own, **self._scorer.further(self._outputs, self.place), **own}
        return self._prediction

    @property
    def boxes(self) -> Boxes | None:
        """Returns a detector's boxes in pixels of the picture; None for other tasks."""
        if self._boxes is None:
            self._boxes = self._scorer.boxes(self._outputs, self.place)
        return self._boxes

    @property
    def classes(self) -> tuple[str, ...]:
        """Returns the names of the bundle's classes."""
        return self._scorer.classes

    @property
    def default_score(self) -> str:
        """Returns the name of the bundle's default score; `scores` lacks it if it was refused."""
        return self._scorer.default_score

    @property
    def tiles(self) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
        """Returns a mask's tiles [T,4] in pixels of the picture and how much each is in doubt, [T] in 0..1.

        None for other tasks, and for a mask that is not finite.
        """
        name = self._scorer.output_of("segmentation")
        if name is None or self.place is None or not np.isfinite(self._outputs[name]).all():
            return None
        return tile_doubts(self._outputs[name], self.place)

    @property
    def bars(self) -> tuple[tuple[str, float], ...]:
        """Returns classes with their probabilities (or shares of a mask), the largest first."""
        name = self._scorer.output_of("logits")
        if name is not None:
            return top_classes(self._outputs[name], self.classes)
        return tuple(self.prediction.get("shares", {}).items())

    @property
    def mask(self) -> NDArray[np.uint8] | None:
        """Returns the class of every pixel of the picture, [H,W], 255 where none; None for other tasks."""
        name = self._scorer.output_of("segmentation")
        if name is None:
            return None
        contract = self._scorer.bundle.manifest.input
        place = self.place or Placement.of(contract.width, contract.height, contract)
        return mask_of(self._outputs[name], place, network=(contract.width, contract.height))

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
        self.score_at = manifest.score_at
        self.upload_rate = manifest.upload_rate
        self.classes = manifest.classes
        self.score_outputs = tuple((score.name, score.output) for score in manifest.scores)
        self.tables = {score.name: score.calibration.quantiles for score in manifest.scores}
        self.losses = {score.name: score.calibration.expected_loss for score in manifest.scores}
        # Reversed, so that the first output of a kind wins.
        kinds: dict[str, str] = {output.kind: output.name for output in reversed(manifest.outputs)}
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
        contract = self._contract
        tensor = to_tensor(image, contract)
        height, width = image.shape[:2]
        # Engines of few inputs, such as doubles in tests, need not know of a second one.
        more = {"inputs": size_inputs(width, height, contract)} if contract.inputs else {}
        return Scored(self, self.engine.infer(tensor, **more), Placement.of(width, height, contract))

    def close(self) -> None:
        """Frees the engine."""
        self.engine.close()

    def output_of(self, kind: str) -> str | None:
        """Returns the name of the graph's first output of a kind; None if there is none."""
        return self._kinds.get(kind)

    def boxes(self, outputs: Outputs, place: Placement | None = None) -> Boxes | None:
        """Returns a detector's boxes, in pixels of the picture if `place` is given; None for other tasks."""
        name = self._kinds.get("boxes")
        if name is None:
            return None
        return find_boxes(outputs[name], place, p_tp=outputs.get(P_TP))

    def brief(self, outputs: Outputs, place: Placement | None = None) -> dict[str, Any]:
        """Returns the task's answer in a few numbers, by the kind of output the manifest names.

        An answer with NaN or infinite values is none: {"not_finite": how many} is returned instead. Of a
        detector's boxes only the broken ones are left out, and counted.

        Args:
            outputs: of the engine, for a batch of one.
            place: of the picture in the network's input; None leaves places in the network's input.
        """
        boxes = self.boxes(outputs, place)
        if boxes is not None:
            return brief_boxes(boxes, self.classes, place)
        kind = next((kind for kind in KINDS if kind in self._kinds), None)
        return {} if kind is None else brief_of(kind, outputs[self._kinds[kind]], self.classes, place)

    def further(self, outputs: Outputs, place: Placement | None = None) -> dict[str, Any]:
        """Returns the further answers of a network with several tasks in a few numbers, by name."""
        return {
            answer.name: brief_further(answer.kind, outputs[answer.output], answer.classes, place)
            for answer in self.bundle.manifest.further
        }


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
