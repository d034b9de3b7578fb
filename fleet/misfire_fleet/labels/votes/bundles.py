"""Lets bundles vote: other models than the deployed one, and one model on changed copies of the picture.

picture --change--> Scorer --class of the offer's form--> one of the classes, or None
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np

from misfire_fleet.labels.votes.ballots import Image, Picture, VoteError
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


class Model:
    """Holds a loaded bundle, shared by the voters that ask it.

    Raises:
        ConfigError: the bundle is no classifier.
        BundleError: it is not a bundle. EngineError: it cannot run.
    """

    def __init__(self, folder: Path) -> None:
        bundle = Bundle.open(folder)
        if not any(output.kind == "logits" for output in bundle.manifest.outputs):
            raise ConfigError(
                f"{bundle.manifest.label}: only classifiers can vote; it is {bundle.manifest.task}"
            )
        self.label = bundle.manifest.label
        self.classes = bundle.manifest.classes
        self._scorer = Scorer.load(bundle)

    def voters(self, changes: Sequence[str] = ()) -> list[BundleVoter]:
        """Returns the voter that sees the picture as it is, and one for each change."""
        return [BundleVoter(self, ""), *(BundleVoter(self, change) for change in changes)]

    def answer(self, image: Image) -> str | None:
        """Returns the likeliest class; None if the answer is not finite."""
        answer = self._scorer.score(image).prediction.get("class")
        return None if answer is None else str(answer)

    def close(self) -> None:
        """Frees the engine."""
        self._scorer.close()


class BundleVoter:
    """Votes with a bundle on the picture, or on a changed copy of it."""

    def __init__(self, model: Model, change: str) -> None:
        if change and change not in CHANGES:
            raise ConfigError(f"no change {change!r}; there are {', '.join(CHANGES)}")
        self.name = f"{model.label}/{change}" if change else model.label
        self._model = model
        self._change = CHANGES[change] if change else _same

    def vote(self, picture: Picture, classes: Sequence[str]) -> tuple[str | None, int, int]:
        """See Voter."""
        try:
            answer = self._model.answer(self._change(picture.image))
        except EngineError as error:
            raise VoteError(f"{self.name}: {error}") from error
        return answer if answer in classes else None, 0, 0

    def close(self) -> None:
        """Does nothing: the model is closed by who loaded it."""
