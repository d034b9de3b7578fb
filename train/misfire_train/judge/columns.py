"""Collects what is judged under each condition: scores, losses, failures and counts of the same frames.

answers, targets --LossColumns--> losses, failures, counts --Column per condition--> stack --> Evidence
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from misfire_runtime.preprocess import InputContract
from misfire_train.boxes.parts import Parts
from misfire_train.data import Examples
from misfire_train.data.images import sizes_of
from misfire_train.errors import JudgeError
from misfire_train.judge.evidence import Evidence
from misfire_train.judge.slices import MAX_GROUPS_SHOWN
from misfire_train.tasks import Task


@dataclass(frozen=True)
class Column:
    """Holds one condition.

    scores: {name: [N]}.  loss: [N].  failed: [N] if the answer itself decides.  counts: {name: [N]}.
    answers: [N,...] of tasks whose frames have parts, as `Task.loose` returns them.
    """

    scores: Mapping[str, NDArray[Any]]
    loss: NDArray[np.float64]
    failed: NDArray[np.bool_] | None
    counts: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    answers: Tensor | None = None


class LossColumns:
    """Adds up losses, failures and counts of answers, batch by batch."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self._losses: list[NDArray[np.float64]] = []
        self._failed: list[NDArray[np.bool_]] = []
        self._counts: dict[str, list[NDArray[np.float64]]] = {}
        self._loose: list[Tensor] = []

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        """Adds answers [n,...] to frames with these collated targets."""
        answers = self.task.condense(outputs)
        self._losses.append(self.task.sample_loss(answers, targets).double().numpy())
        if self.task.answer_decides:
            self._failed.append(self.task.failed(answers, targets).numpy())
        for name, values in self.task.counts(answers, targets).items():
            self._counts.setdefault(name, []).append(values.double().numpy())
        loose = self.task.loose(outputs)
        if loose is not None:
            self._loose.append(loose)

    def column(self, scores: Mapping[str, NDArray[Any]]) -> Column:
        """Returns everything that was added, with the scores [N] of the same frames."""
        failed = np.concatenate(self._failed) if self._failed else None
        counts = {name: np.concatenate(parts) for name, parts in self._counts.items()}
        answers = torch.cat(self._loose) if self._loose else None
        return Column(scores, np.concatenate(self._losses), failed, counts, answers)


def stack(columns: Mapping[str, Column], examples: Examples, task: Task) -> Evidence:
    """Returns the evidence of columns {condition: of the same frames}, condition by condition."""
    every, count = list(columns.values()), len(columns)
    known = [column.failed for column in every if column.failed is not None]
    return Evidence.of(
        {name: np.concatenate([column.scores[name] for column in every]) for name in every[0].scores},
        failed=np.concatenate(known) if known else None,
        loss=np.concatenate([column.loss for column in every]),
        failure_threshold=task.failure_threshold,
        frames=np.tile(np.array(examples.ids), count),
        groups=np.tile(np.array(examples.groups), count),
        shifts=np.repeat(np.array(list(columns)), len(examples)),
        counts={name: np.concatenate([column.counts[name] for column in every]) for name in every[0].counts},
    )


def find_column_parts(
    columns: Mapping[str, Column],
    examples: Examples,
    task: Task,
    *,
    contract: InputContract,
    classes: Sequence[str],
) -> dict[str, Parts]:
    """Returns {condition: objects in its frames, and which are missed}, empty for tasks without."""
    if all(column.answers is None for column in columns.values()):
        return {}
    sizes = [(int(width), int(height)) for width, height in sizes_of(examples.images)]
    return {
        name: task.parts(column.answers, examples.targets, sizes=sizes, contract=contract, classes=classes)
        for name, column in columns.items()
        if column.answers is not None
    }


def some_of(examples: Examples, *, limit: int | None, seed: int) -> Examples:
    """Returns at most `limit` examples, drawn at random, in their own order."""
    if limit is None or limit >= len(examples):
        return examples
    rng = np.random.default_rng(seed)
    return examples.take(np.sort(rng.choice(len(examples), limit, replace=False)))


def slices_of(
    task: Task,
    examples: Examples,
    classes: Sequence[str],
    *,
    stated: Mapping[str, Mapping[str, str]],
    repeats: int,
) -> dict[str, NDArray[Any]]:
    """Returns {name: labels of all rows}: the task's own slices, groups if they are few, and stated ones.

    stated: {name: {id: label}}.  repeats: conditions. Raises JudgeError if a frame has no stated label.
    """
    found = task.slices(examples.targets, classes)
    groups = np.unique(examples.groups)
    if 1 < len(groups) <= MAX_GROUPS_SHOWN:
        found["group"] = np.array(examples.groups)
    for name, labels in stated.items():
        missing = [identity for identity in examples.ids if identity not in labels]
        if missing:
            raise JudgeError(
                f"slice {name!r} has no label for {missing[0]!r} ({len(missing)} frames without one)"
            )
        found[name] = np.array([labels[identity] for identity in examples.ids])
    return {name: np.tile(labels, repeats) for name, labels in found.items()}
