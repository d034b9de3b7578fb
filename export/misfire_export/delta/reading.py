"""Reads from a bundle's graph what its head computes on, so that the head can be fitted without its network.

model.onnx + outputs for the head's free score and statistics --frames--> LossSet, answers, scores
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray

from misfire_export.errors import ExportError
from misfire_export.measure.run import answers, open_session
from misfire_runtime.bundle import Bundle, HeadPlace, Manifest
from misfire_runtime.delta.initialisers import read
from misfire_runtime.errors import ConfigError
from misfire_train.data import Examples
from misfire_train.fitting.head_only import head_from_tensors
from misfire_train.heads.data import LossSet
from misfire_train.heads.residual import ALONE, ResidualHead
from misfire_train.tasks import Task, get_task

NO_HEAD = (
    "has no learned head that can be fitted again: a head-only round needs a bundle of this version with "
    "learning_loss_pp (misfire export --scores learning_loss_pp,...)"
)
DETECTOR = (
    "is a detector: its learned score corrects candidate boxes inside of the graph, and a head-only round "
    "fits heads of frames; misfire retrain RUN fits it with its network"
)
NO_CORRECTION = (
    "is the free score alone, and its graph computes no correction that a round could give a strength: "
    "export it with --refittable, deploy that bundle once, and start the round from it"
)
PUBLISHED = "is a published head, which has no free score to start from; misfire retrain RUN fits it again"
_PUBLISHED = ("learning_loss", "learning_loss_pp_paper")


@dataclass(frozen=True)
class HeadGraph:
    """Holds a bundle's graph, opened so that its head's inputs can be read."""

    bundle: Bundle
    place: HeadPlace
    task: Task
    session: ort.InferenceSession

    @classmethod
    def open(cls, bundle: Bundle) -> HeadGraph:
        """Opens the graph of a bundle.

        Raises:
            ExportError: it has no head that can be fitted again, or its task is not known here.
        """
        place = bundle.manifest.head
        if place is None:
            raise ExportError(why_not(bundle.manifest))
        model = onnx.load(bundle.model_path, load_external_data=False)
        for name in (place.base, place.statistics):
            if not any(name in node.output for node in model.graph.node):
                raise ExportError(
                    f"{bundle.path}: the graph has no tensor {name!r}, which its manifest names"
                )
            model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
        return cls(bundle, place, task_of(bundle.manifest), open_session(model))

    @property
    def answer(self) -> str:
        """Returns the name of the task's output."""
        kind = self.task.output_kind
        return next(each.name for each in self.bundle.manifest.outputs if each.kind == kind)

    def head(self) -> ResidualHead:
        """Returns the head as it is in the graph."""
        tensors = read(self.bundle.model_path, self.place.tensors)
        return head_from_tensors(
            self.place.recipe,
            self.place.options,
            {name: torch.from_numpy(values) for name, values in tensors.items()},
        )

    def rows(self, frames: Examples, *, clean: bool = True) -> LossSet:
        """Returns what the head computes on, and losses. clean: the frames are as they were."""
        base, statistics, outputs = [], [], []
        names = [self.place.base, self.place.statistics, self.answer]
        for _, values in answers(self.session, frames, contract=self.bundle.manifest.input, names=names):
            base.append(torch.from_numpy(values[self.place.base]))
            statistics.append(torch.from_numpy(values[self.place.statistics]))
            outputs.append(self.task.condense(torch.from_numpy(values[self.answer]).float()))
        joined, targets = torch.cat(outputs), self.task.collate(frames.targets)
        return LossSet(
            parts=(torch.cat(base), torch.cat(statistics)),
            losses=self.task.unit_losses(joined, targets).float(),
            frame_losses=self.task.sample_loss(joined, targets).float(),
            failed=self.task.failed(joined, targets) if self.task.knows_failures else None,
            image=torch.arange(len(frames)),
            clean=torch.full((len(frames),), clean),
            group=np.array(frames.groups, np.str_),
        )


def why_not(manifest: Manifest) -> str:
    """Returns in a sentence why the head of a bundle without a place for one cannot be fitted again."""
    learned = {score.name: score.definition for score in manifest.scores if not score.free}
    if manifest.task == "detection":
        return f"{manifest.label} {DETECTOR}"
    for name, definition in learned.items():
        if definition.endswith(ALONE):
            return f"{manifest.label}: {name} {NO_CORRECTION}"
        if name in _PUBLISHED:
            return f"{manifest.label}: {name} {PUBLISHED}"
    return f"{manifest.label} {NO_HEAD}"


def scores_of(
    model: Path | bytes, frames: Examples, manifest: Manifest, names: list[str]
) -> dict[str, NDArray[np.float64]]:
    """Returns scores [N] of frames by ONNX Runtime, by name."""
    session = open_session(model if isinstance(model, bytes) else model.read_bytes())
    columns: dict[str, list[NDArray[Any]]] = {name: [] for name in names}
    wanted = [f"score.{name}" for name in names]
    for _, values in answers(session, frames, contract=manifest.input, names=wanted):
        for name in names:
            columns[name].append(values[f"score.{name}"].astype(np.float64))
    return {name: np.concatenate(parts) for name, parts in columns.items()}


def task_of(manifest: Manifest) -> Task:
    """Returns the task of a bundle, with its threshold of failure. Raises ExportError if it is unknown."""
    options: Mapping[str, Any] = {} if manifest.head is None else manifest.head.options
    name = str(options.get("task", manifest.task))
    try:
        task = get_task(name)
    except ConfigError as error:
        raise ExportError(f"{manifest.label}: its task is not known here: {error}") from error
    threshold = manifest.extra.get("calibration", {}).get("failure_threshold")
    return task if threshold is None else task.with_threshold(float(threshold))
