"""Decides whether a labelled sample is a failure: the answer in the vehicle's offer against the label.

| label   | answer in the offer        | a failure is                                                        |
|---------|----------------------------|---------------------------------------------------------------------|
| class   | class                      | another class                                                       |
| classes | labels with probabilities  | any class too many or too few                                       |
| boxes   | the best 64 boxes          | a missed object, or a false box that is sure of itself (BoxRule)    |
| values  | the first 64 values        | a value that is off by more than `tolerance`                        |
| points  | the first 64 points        | a seen point that is off by more than `tolerance` of the diagonal   |
| mask    | only shares of the classes | a loss above the task's threshold, by running the bundle again      |

What cannot be judged is no failure and no success: it is counted by its reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from misfire_fleet.labels.content import (
    BoxesLabel,
    ClassesLabel,
    ClassLabel,
    Label,
    MaskLabel,
    PointsLabel,
    ValuesLabel,
)
from misfire_fleet.store.records import StoredSample
from misfire_runtime.boxes import BoxRule
from misfire_runtime.bundle import Manifest
from misfire_runtime.placement import Placement

_CARRIED = 64
"""Values, points and boxes in an offer."""


class UnjudgedError(Exception):
    """Says why a sample cannot be judged; caught by who counts."""


@dataclass(frozen=True)
class Judge:
    """Holds the rule of the task.

    Args:
        manifest: of the bundle, which names a detector's rule. None: IoU .5, alarm .5, and 8 pixels of the
            picture as the smallest side.
        tolerance: of values, in their units, and of points, as a share of the picture's diagonal.
        masks: tells whether the bundle fails on a stored picture, by running it again; None: nothing does.
    """

    manifest: Manifest | None = None
    tolerance: float | None = None
    masks: Callable[[StoredSample, MaskLabel], bool] | None = None

    def failed_on(self, sample: StoredSample, label: Label) -> bool:
        """Returns whether the answer in a sample's offer is wrong. Raises UnjudgedError."""
        if isinstance(label, MaskLabel) and self.masks is not None and "not_finite" not in sample.prediction:
            return self.masks(sample, label)
        return self.failed(sample.prediction, label, size=(sample.width, sample.height))

    def failed(self, prediction: Mapping[str, Any], label: Label, *, size: tuple[int, int]) -> bool:
        """Returns whether the answer is wrong.

        Args:
            prediction: of the offer.
            label: of the sample.
            size: width and height of the stored picture.

        Raises:
            UnjudgedError: the offer does not carry what the label speaks of.
        """
        if "not_finite" in prediction and len(prediction) == 1:
            # The network answered with NaN: whatever the label says, this is no right answer.
            return True
        # The vehicle saw the picture upright; a file's header may say otherwise.
        seen = prediction.get("size")
        if isinstance(seen, list) and len(seen) == 2:
            size = int(seen[0]), int(seen[1])
        if isinstance(label, ClassLabel):
            return str(_carried(prediction, "class")) != label.name
        if isinstance(label, ClassesLabel):
            return set(_carried(prediction, "labels")) != set(label.names)
        if isinstance(label, BoxesLabel):
            return self._boxes_failed(prediction, label, size)
        if isinstance(label, ValuesLabel):
            return self._values_failed(_carried(prediction, "values"), label)
        if isinstance(label, PointsLabel):
            return self._points_failed(_carried(prediction, "points"), label, size)
        raise UnjudgedError("an offer does not carry masks: give the bundle's folder, --bundle-dir")

    def _values_failed(self, values: Any, label: ValuesLabel) -> bool:
        if self.tolerance is None:
            raise UnjudgedError("values need --tolerance")
        if len(label.values) > _CARRIED or len(values) != len(label.values):
            raise UnjudgedError("the offer has another number of values")
        return bool(np.any(np.abs(np.asarray(values, float) - np.asarray(label.values)) > self.tolerance))

    def _points_failed(self, points: Any, label: PointsLabel, size: tuple[int, int]) -> bool:
        if self.tolerance is None:
            raise UnjudgedError("points need --tolerance")
        if len(label.points) > _CARRIED or len(points) != len(label.points):
            raise UnjudgedError("the offer has another number of points")
        limit = self.tolerance * float(np.hypot(*size))
        for found, true in zip(points, label.points, strict=True):
            if true.visible != 2:
                continue
            x, y = found[0], found[1]
            if x is None or y is None or np.hypot(x * size[0] - true.x, y * size[1] - true.y) > limit:
                return True
        return False

    def _boxes_failed(self, prediction: Mapping[str, Any], label: BoxesLabel, size: tuple[int, int]) -> bool:
        found = _carried(prediction, "boxes")
        if any(box.degrees for box in label.boxes):
            raise UnjudgedError("rotated boxes")
        rule = (self.manifest.detection if self.manifest is not None else None) or BoxRule()
        corners = np.array([[box.x0, box.y0, box.x1, box.y1] for box in label.boxes], float).reshape(-1, 4)
        # In network pixels, as the task does: a stretched picture has other overlaps.
        place = None if self.manifest is None else Placement.of(*size, self.manifest.input)
        answers = np.array([box["box"] for box in found], float).reshape(-1, 4)
        if place is not None:
            corners = place.to_network(corners).astype(float).reshape(-1, 4)
            answers = place.to_network(answers).astype(float).reshape(-1, 4)
        missed, false = match(
            answers,
            [str(box["class"]) for box in found],
            corners,
            [box.name for box in label.boxes],
            ignored=np.array([box.crowd or box.ignore for box in label.boxes], bool),
            rule=rule,
        )
        names = [box.name for box in label.boxes]
        lost = any(
            m and (not rule.classes or name in rule.classes) for m, name in zip(missed, names, strict=True)
        )
        alarms = any(f and box["score"] >= rule.alarm for f, box in zip(false, found, strict=True))
        if lost and prediction.get("more", 0):
            raise UnjudgedError(f"the offer leaves out boxes after the first {_CARRIED}")
        return lost or alarms


def match(
    boxes: NDArray[np.float64],
    classes: list[str],
    objects: NDArray[np.float64],
    names: list[str],
    *,
    ignored: NDArray[np.bool_],
    rule: BoxRule,
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Returns which objects are missed, [G], and which boxes are false, [B]: `misfire_train.boxes.matching`.

    Each box, the best first, takes the free object of its class that it overlaps most. A box that fits only
    an ignored or small object is neither right nor false, and such an object is not missed.

    Args:
        boxes: [B,4] corners, best first.
        classes: [B].
        objects: [G,4] corners.
        names: [G] their classes.
        ignored: [G] flags: crowds, and regions that do not count.
        rule: overlap and smallest side, in pixels of the corners.
    """
    of_class = np.array([[a == b for b in names] for a in classes], bool).reshape(len(classes), len(names))
    small = (objects[:, 2:] - objects[:, :2]).min(1) < rule.min_side if len(objects) else np.zeros(0, bool)
    real = ~(ignored | small)
    shared = _shared(boxes, objects)
    areas, own = _area(boxes)[:, None], _area(objects)[None]
    iou = shared / np.maximum(areas + own - shared, 1e-9)
    inside = shared / np.maximum(areas, 1e-9)
    found = np.zeros(len(objects), bool)
    false = np.zeros(len(boxes), bool)
    for b in range(len(boxes)):
        free = np.where(found | ~real | ~of_class[b], -1.0, iou[b])
        if free.size and free.max() >= rule.matching:
            found[int(free.argmax())] = True
            continue
        eligible = ~real & of_class[b]
        # A flagged region may hold many objects, so a box inside of it is not false.
        fits = (iou[b] >= rule.matching) | ((inside[b] >= rule.matching) & ignored)
        false[b] = not bool((fits & eligible).any())
    return real & ~found, false


def _shared(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    sides = np.maximum(high - low, 0.0)
    return np.asarray(sides[..., 0] * sides[..., 1])


def _area(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 0.0)
    return np.asarray(sides[:, 0] * sides[:, 1])


def _carried(prediction: Mapping[str, Any], key: str) -> Any:
    if key not in prediction:
        raise UnjudgedError(f"the offer has no {key!r} in its prediction")
    return prediction[key]
