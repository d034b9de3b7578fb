"""Implements multi-label classification: each of K labels is there or not, independently of the others.

outputs: logits [N,K], whose sigmoids are the probabilities.
targets: float32 [N,K], 1, 0, or NaN for a label that nobody looked at.
Loss: binary cross-entropy, mean over the known labels.
Failed: at least one known label is wrong at a probability of one half; or the loss is above a stated
threshold.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from misfire_runtime.errors import ConfigError
from misfire_runtime.preprocess import Image, InputContract
from misfire_train.drawing import SIDE, Drawing, Legend, data_url, enlarged
from misfire_train.tasks.base import Base, LabelPlace, Task

UNKNOWN = 255
"""A label that nobody looked at, among labels and answers as whole numbers."""
_NAMES_SHOWN = 8
_SEPARATORS = re.compile(r"[;|]")
_TOP = 5
_FLOOR = 1e-12


class MultiLabel(Task):
    """Finds which of K labels a frame has."""

    name = "multi-label"
    output_name = "labels"
    output_kind = "labels"
    form = "multi-label"
    ranks, looks = (2, 2), "[N,K] logits and [N,K] of 0 and 1"
    independent = True
    empty_label = True
    mirrors = True
    foreign = True
    default_free_score = "any_label_wrong"
    default_scores = ("any_label_wrong", "label_entropy")

    def parse_label(self, text: str, place: LabelPlace) -> NDArray[Any]:
        """Returns which labels a text names: names with ; or | between them, "" for none."""
        found = np.zeros(len(place.classes), np.float32)
        for word in filter(None, map(str.strip, _SEPARATORS.split(text))):
            if word not in place.classes:
                raise ConfigError(f"there is no label {word!r}; labels are {_some(place.classes)}")
            found[place.classes.index(word)] = 1
        return found

    def renumber(self, targets: NDArray[Any], index: Sequence[int]) -> NDArray[Any]:
        """Returns targets whose columns count another network's labels; those of no data are unknown."""
        if tuple(index) == tuple(range(targets.shape[1])):
            return targets
        moved = np.full((len(targets), max(index) + 1), np.nan, np.float32)
        moved[:, list(index)] = targets
        return moved

    def require_fit(self, outputs: Tensor, targets: Tensor) -> None:
        """Raises ConfigError unless there is a target of 0, 1 or NaN for each output."""
        known = targets[~targets.isnan()] if targets.is_floating_point() else targets
        if outputs.shape[1] != targets.shape[1] or not bool(((known == 0) | (known == 1)).all()):
            raise ConfigError(
                f"{self.name}: the model has {outputs.shape[1]} outputs, the data {targets.shape[1]} labels "
                f"from {known.min():g} to {known.max():g}; expected one 0 or 1 for each output"
            )

    def sample_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Returns the binary cross-entropy of each frame, mean over its known labels, [N]."""
        losses, known = _losses(outputs, targets)
        return losses.sum(1) / known.sum(1).clamp_min(1)

    def training_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Returns the mean over all known labels of the batch."""
        losses, known = _losses(outputs, targets)
        return losses.sum() / known.sum().clamp_min(1)

    def accuracy(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Returns the share of known labels that are right."""
        known = ~targets.isnan()
        right = ((outputs > 0) == (targets > 0.5)) & known
        return right.sum() / known.sum().clamp_min(1)

    @property
    def answer_decides(self) -> bool:
        """Returns whether one wrong label is a failure: always, unless a threshold on the loss was stated."""
        return self.failure_threshold is None

    @property
    def failure_text(self) -> str:
        """Returns what counts as a failure, in words."""
        return "at least one label is wrong"

    def wrong(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Returns bool [N]: at least one known label is on the wrong side of one half."""
        return (((outputs > 0) != (targets > 0.5)) & ~targets.isnan()).any(1)

    def present(self, targets: NDArray[Any]) -> NDArray[np.bool_]:
        """Returns the labels that each example has, [N,K]; an unknown one is none."""
        return np.asarray(np.asarray(targets) == 1)

    def unit_statistics(self, outputs: Tensor) -> Tensor:
        """Returns the least sure labels, entropy, log-odds of any error, the number of labels, [N,1,D]."""
        doubts = (-outputs.abs()).topk(min(_TOP, outputs.shape[1]), dim=1).values
        entropy = label_entropies(outputs).mean(1, keepdim=True)
        count = torch.sigmoid(outputs).sum(1, keepdim=True)
        parts = (doubts, entropy, torch.log(entropy.clamp_min(1e-9)), _log_any_wrong(outputs), count)
        return torch.cat(parts, 1)[:, None]

    def bases(self) -> Mapping[str, Base]:
        """Returns the logarithms of the probability of any error, and of the entropy."""
        return {
            "any_label_wrong": _log_any_wrong,
            "label_entropy": lambda out: torch.log(
                label_entropies(out).mean(1, keepdim=True).clamp_min(1e-9)
            ),
        }

    def disagreement(self, first: Tensor, second: Tensor) -> Tensor:
        """Returns the mean squared difference of the probabilities, [N]."""
        return (torch.sigmoid(first) - torch.sigmoid(second)).square().mean(1)

    def draw(
        self,
        image: Image,
        outputs: Tensor,
        target: NDArray[Any],
        *,
        classes: Sequence[str],
        contract: InputContract,
    ) -> Drawing:
        """Returns the picture as it is; true and found labels are words under it."""
        truth, said = np.asarray(target) > 0.5, outputs[0].numpy() > 0
        return Drawing(data_url(image), truth=_named(truth, classes), predicted=_named(said, classes))

    def draw_label(
        self,
        image: Image,
        target: NDArray[Any],
        *,
        classes: Sequence[str],
        contract: InputContract,
        side: int = SIDE,
    ) -> tuple[Image, str]:
        """Returns the picture as it is, and its labels."""
        return enlarged(image, side)[0], _named(np.asarray(target) > 0.5, classes)

    def legend(self, classes: Sequence[str]) -> Legend | None:
        """Returns what the words under a picture are."""
        return Legend("Below each: the labels that are there.", drawn=False)

    def labels_and_answers(
        self, outputs: Tensor, targets: Tensor
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns (labels, answers) as 0 and 1, [N,K] each; 255 for a label that nobody looked at."""
        labels = torch.where(targets.isnan(), torch.full_like(targets, UNKNOWN), targets)
        return labels.long().numpy(), (outputs > 0).long().numpy()


def label_entropies(logits: Tensor) -> Tensor:
    """Returns the binary entropy of each label in nats, [N,K], exact for sure labels.

    >>> [round(v, 4) for v in label_entropies(torch.tensor([0.0, 30.0])).tolist()]
    [0.6931, 0.0]
    """
    size = logits.abs()
    # log(1 + exp(-a)) + a sigmoid(-a): sums of positive terms only.
    return functional.softplus(-size) + size * torch.sigmoid(-size)


def log_all_right(logits: Tensor) -> Tensor:
    """Returns the log-probability that every label is right, [N], by the model's own belief."""
    return -functional.softplus(-logits.abs()).sum(1)


def _log_any_wrong(logits: Tensor) -> Tensor:
    """Returns log (1 - P(all right)) / P(all right), [N,1]."""
    right = log_all_right(logits)[:, None].clamp(-80.0, -_FLOOR)
    return torch.log((1 - torch.exp(right)).clamp_min(_FLOOR)) - right


def _losses(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Returns losses [N,K], 0 where the label is unknown, and which are known."""
    known = ~targets.isnan()
    truth = torch.where(known, targets, torch.zeros_like(targets)).to(outputs.dtype)
    losses = functional.binary_cross_entropy_with_logits(outputs, truth, reduction="none")
    return losses * known, known


def _named(present: NDArray[np.bool_], classes: Sequence[str]) -> str:
    names = [classes[k] if k < len(classes) else str(k) for k in np.flatnonzero(present)]
    return _some(names) if names else "none"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more
