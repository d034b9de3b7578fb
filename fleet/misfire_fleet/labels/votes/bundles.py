"""Lets bundles vote: other models than the deployed one, and one model on changed copies of the picture.

picture --change--> Scorer --class of the offer's form--> one of the classes, or None
                           --boxes, moved back--> boxes of the picture
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from misfire_fleet.labels.content import Box, BoxesLabel
from misfire_fleet.labels.votes.ballots import Image, Opinion, Picture, VoteError
from misfire_fleet.labels.votes.boxes import sure_boxes
from misfire_runtime.boxes import BoxRule
from misfire_runtime.bundle import Bundle
from misfire_runtime.engines.scoring import Scorer
from misfire_runtime.errors import ConfigError, EngineError


def _same(image: Image) -> Image:
    return image


def _flip(image: Image) -> Image:
    return np.ascontiguousarray(image[:, ::-1])


def _zoom(image: Image) -> Image:
    height, width = image.shape[:2]
    top, left = height // 20, width // 20
    return np.ascontiguousarray(image[top : height - top or None, left : width - left or None])


def _shift(image: Image) -> Image:
    height, width = image.shape[:2]
    move = np.array([[1, 0, width / 16], [0, 1, height / 16]], np.float32)
    return np.asarray(cv2.warpAffine(image, move, (width, height), borderMode=cv2.BORDER_REPLICATE), np.uint8)


def _bright(image: Image) -> Image:
    return np.asarray(np.clip(image.astype(np.float32) * 1.25 + 8, 0, 255), np.uint8)


def _soft(image: Image) -> Image:
    return np.asarray(cv2.GaussianBlur(image, (3, 3), 0), np.uint8)


CHANGES: dict[str, Callable[[Image], Image]] = {
    "flip": _flip,
    "zoom": _zoom,
    "shift": _shift,
    "bright": _bright,
    "soft": _soft,
}
DEFAULT_CHANGES = ("zoom", "shift", "bright")
"""Without `flip`: mirrored digits and arrows are something else."""


def place_before(change: str, box: Box, size: tuple[int, int]) -> Box:
    """Returns where a box of a changed copy is in the picture. size: width and height of the picture."""
    width, height = size
    x0, x1, y0, y1 = box.x0, box.x1, box.y0, box.y1
    if change == "flip":
        x0, x1 = width - x1, width - x0
    elif change == "zoom":
        x0, x1, y0, y1 = x0 + width // 20, x1 + width // 20, y0 + height // 20, y1 + height // 20
    elif change == "shift":
        x0, x1, y0, y1 = x0 - width / 16, x1 - width / 16, y0 - height / 16, y1 - height / 16
    sides = {"x0": max(x0, 0.0), "x1": min(x1, width), "y0": max(y0, 0.0), "y1": min(y1, height)}
    return box.model_copy(update=sides)


class Model:
    """Holds a loaded bundle, shared by the voters that ask it.

    Raises:
        ConfigError: the bundle is neither a classifier nor a detector.
        BundleError: it is not a bundle. EngineError: it cannot run.
    """

    def __init__(self, folder: Path) -> None:
        bundle = Bundle.open(folder)
        manifest = bundle.manifest
        classifies = any(output.kind == "logits" for output in manifest.outputs)
        if not classifies and manifest.task != "detection":
            raise ConfigError(
                f"{manifest.label}: only classifiers and detectors can vote; it is {manifest.task}"
            )
        self.kind: Literal["class", "boxes"] = "class" if classifies else "boxes"
        self.label = manifest.label
        self.classes = manifest.classes
        self._alarm = (manifest.detection or BoxRule()).alarm
        self._scorer = Scorer.load(bundle)

    def voters(self, changes: Sequence[str] = ()) -> list[BundleVoter]:
        """Returns the voter that sees the picture as it is, and one for each change."""
        return [BundleVoter(self, ""), *(BundleVoter(self, change) for change in changes)]

    def answer(self, image: Image) -> str | None:
        """Returns the likeliest class; None if the answer is not finite."""
        answer = self._scorer.score(image).prediction.get("class")
        return None if answer is None else str(answer)

    def boxes(self, image: Image) -> BoxesLabel | None:
        """Returns the boxes of which the detector is sure; None if its answer carries only a part of them."""
        return sure_boxes(self._scorer.score(image).prediction, alarm=self._alarm)

    def close(self) -> None:
        """Frees the engine."""
        self._scorer.close()


class BundleVoter:
    """Votes with a bundle on the picture, or on a changed copy of it."""

    def __init__(self, model: Model, change: str) -> None:
        if change and change not in CHANGES:
            raise ConfigError(f"no change {change!r}; there are {', '.join(CHANGES)}")
        self.name = f"{model.label}/{change}" if change else model.label
        self.kind = model.kind
        self._model = model
        self._named, self._change = change, CHANGES[change] if change else _same

    def vote(self, picture: Picture, classes: Sequence[str]) -> tuple[Opinion, int, int]:
        """See Voter."""
        try:
            copy = self._change(picture.image)
            if self.kind == "boxes":
                return self._boxes(self._model.boxes(copy), picture, classes), 0, 0
            answer = self._model.answer(copy)
        except EngineError as error:
            raise VoteError(f"{self.name}: {error}") from error
        return answer if answer in classes else None, 0, 0

    def _boxes(self, found: BoxesLabel | None, picture: Picture, classes: Sequence[str]) -> BoxesLabel | None:
        if found is None or any(box.name not in classes for box in found.boxes):
            return None
        height, width = picture.image.shape[:2]
        moved = (place_before(self._named, box, (width, height)) for box in found.boxes)
        return BoxesLabel(boxes=tuple(box for box in moved if box.x0 < box.x1 and box.y0 < box.y1))

    def close(self) -> None:
        """Does nothing: the model is closed by who loaded it."""
