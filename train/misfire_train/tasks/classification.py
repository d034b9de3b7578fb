"""Implements classification: one of K classes for each frame.

outputs: logits [N,K].  targets: int64 [N].  Loss: cross-entropy.  Failed: the largest logit is not the label.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from misfire_runtime.errors import ConfigError
from misfire_runtime.preprocess import Image, InputContract
from misfire_train.drawing import SIDE, Drawing, data_url, enlarged
from misfire_train.tasks.answers.shapes import require_classes
from misfire_train.tasks.answers.softmax import jensen_shannon, softmax_entropy
from misfire_train.tasks.answers.statistics import class_statistics, log_odds
from misfire_train.tasks.base import Base, LabelPlace, Task

# A message stays readable; data sets have up to thousands of classes.
_NAMES_SHOWN = 12


class Classification(Task):
    """Assigns one of K classes to a frame."""

    name = "classification"
    output_name = "logits"
    output_kind = "logits"
    form = "classification"
    ranks, looks = (2, 1), "[N,K] logits and class numbers [N]"
    by_class = True
    mirrors = True
    foreign = True
    default_free_score = "msp"
    default_scores = ("entropy", "msp")

    def parse_label(self, text: str, place: LabelPlace) -> NDArray[Any]:
        """Returns the number of a class, given by its name or its number."""
        if text in place.classes:
            return np.asarray(place.classes.index(text), np.int64)
        if text.isascii() and text.isdigit() and int(text) < len(place.classes):
            return np.asarray(int(text), np.int64)
        shown = list(place.classes[:_NAMES_SHOWN])
        if len(place.classes) > _NAMES_SHOWN:
            shown.append(f"and {len(place.classes) - _NAMES_SHOWN} more")
        raise ConfigError(f"there is no class {text!r}; classes are {', '.join(shown)}")

    def require_fit(self, outputs: Tensor, targets: Tensor) -> None:
        """Raises ConfigError on labels that are no classes of the model, and on probabilities."""
        require_classes(self.name, outputs, targets)

    def hint(self, outputs: Tensor, targets: Tensor) -> str:
        """Returns the way out for several labels of one image."""
        both_flat = outputs.ndim == 2 and targets.ndim == 2
        return "for several labels of one image use task='multi-label'" if both_flat else ""

    def sample_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Returns the cross-entropy of each frame, [N]."""
        return functional.cross_entropy(outputs, targets, reduction="none")

    def training_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Returns the mean cross-entropy."""
        return functional.cross_entropy(outputs, targets)

    def accuracy(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Returns the share of frames whose largest logit is the label."""
        return (outputs.argmax(1) == targets).float().mean()

    @property
    def answer_decides(self) -> bool:
        """Returns whether a wrong class is a failure: always, unless a threshold on the loss was stated."""
        return self.failure_threshold is None

    def wrong(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Returns bool [N]: the largest logit is not the label."""
        return outputs.argmax(1) != targets

    def unit_statistics(self, outputs: Tensor) -> Tensor:
        """Returns statistics of the softmax, [N,1,D]."""
        return class_statistics(outputs)[:, None]

    def bases(self) -> Mapping[str, Base]:
        """Returns the log-odds of the answer, and its log-entropy."""
        return {
            "msp": log_odds,
            # The floor keeps the log of an entropy that is exactly zero finite.
            "entropy": lambda out: torch.log(softmax_entropy(out).clamp_min(1e-9))[:, None],
        }

    def disagreement(self, first: Tensor, second: Tensor) -> Tensor:
        """Returns the Jensen-Shannon divergence in nats, [N], 0 to ln 2."""
        return jensen_shannon(first, second)

    def present(self, targets: NDArray[Any]) -> NDArray[np.bool_]:
        """Returns the class of each example, [N,K] up to the highest one."""
        numbers = np.arange(int(np.max(targets, initial=0)) + 1)
        return np.asarray(np.asarray(targets)[:, None] == numbers, np.bool_)

    def slices(self, targets: NDArray[Any], classes: Sequence[str]) -> dict[str, NDArray[Any]]:
        """Returns the true class of each frame."""
        return {"class": np.array([classes[int(t)] for t in targets])}

    def draw(
        self,
        image: Image,
        outputs: Tensor,
        target: NDArray[Any],
        *,
        classes: Sequence[str],
        contract: InputContract,
    ) -> Drawing:
        """Returns the picture as it is; both classes are words under it."""
        return Drawing(data_url(image), truth=classes[int(target)], predicted=classes[int(outputs.argmax(1))])

    def draw_label(
        self,
        image: Image,
        target: NDArray[Any],
        *,
        classes: Sequence[str],
        contract: InputContract,
        side: int = SIDE,
    ) -> tuple[Image, str]:
        """Returns the picture as it is, and its class."""
        return enlarged(image, side)[0], classes[int(target)]

    def labels_and_answers(
        self, outputs: Tensor, targets: Tensor
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns (labels, likeliest classes), [N,1] each."""
        return targets.long().numpy()[:, None], outputs.argmax(1).numpy()[:, None]
