"""Holds what the user states about a model that was trained elsewhere; the rest is found on real frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from misfire_runtime.bundle import Lineage
from misfire_runtime.preprocess import InputContract
from misfire_train.tasks import Task


@dataclass(frozen=True)
class ModelFacts:
    """Describes a foreign model in its user's words.

    Args:
        contract: What its input expects of an image.
        task: Name of a built-in task, or a task made by `custom_task`.
        classes: Class names in the order of the model's outputs. Empty takes the file's own, or the data's.
        output: Output that is the answer, by name, key or position. Empty finds it.
        also: Of an ONNX graph: further outputs that get scores of their own, {output: task}.
        answer: Of an ONNX graph: auto, logits, probabilities or sigmoid.
        features: Of a module: layers that a learned head reads.
        last_layer: Of a module: its last nn.Linear or 1x1 nn.Conv2d. None finds it.
        lineage: Of a module: its origin. A graph's lineage is the file itself.
    """

    contract: InputContract
    task: str | Task = "classification"
    classes: Sequence[str] = ()
    output: str = ""
    answer: str = "auto"
    also: Mapping[str, str] = field(default_factory=dict)
    features: Sequence[str] = ()
    last_layer: str | None = None
    lineage: Lineage | None = None
