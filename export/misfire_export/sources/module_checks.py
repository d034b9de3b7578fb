"""Proves on real frames what the bundle of a torch module will claim: last layer, logits, classes.

module --an image--> answer, last layer --frames--> labels and answers --> order of the classes, notes
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from misfire_export.errors import ExportError, TraceError
from misfire_export.graph.trace import cause, example_input
from misfire_export.sources.answers import require_shape
from misfire_export.sources.frames import Frames
from misfire_export.sources.labels import (
    Answered,
    ClassOrder,
    chance_note,
    check_label_order,
    check_order,
    normalisation_note,
    order_classes,
    require_targets,
)
from misfire_export.sources.onnx.proof import fit_frames, fold
from misfire_runtime.errors import MisfireError
from misfire_runtime.preprocess import InputContract
from misfire_train.attaching import settle_answer
from misfire_train.data import Examples
from misfire_train.scores.fitting import batches, evaluating
from misfire_train.signals import Probe, answer_of
from misfire_train.tasks import Task
from misfire_train.tasks.answers.shapes import Numbers

# Enough to see whether numbers stay within 0..1.
_SHOWN = 8


def probe_of(
    model: nn.Module,
    contract: InputContract,
    *,
    last_layer: str | None,
    features: Sequence[str],
    output: str,
    task: Task,
    frames: Examples,
) -> Probe:
    """Returns a probe on the model; how it is to be read is found on the first frames.

    Raises TraceError if the model does not take an image, or has no last layer that scores can use.
    """
    given = _given(model, contract)
    try:
        answer_of(given, output)
    except MisfireError as error:
        # Messages for notebooks name arguments; here the user typed options.
        raise TraceError(str(error).replace("output=", "--output")) from error
    shown = _shown(frames, contract)
    try:
        last, reading = settle_answer(model, shown, task=task, output=output, last_layer=last_layer)
        probe = Probe(model, last_layer=last, features=features, output=output, reading=reading).eval()
        with torch.no_grad():
            probe(shown)
    except (ValueError, MisfireError) as error:
        why = str(error).removeprefix("attach: ").replace("last_layer", "--last-layer")
        raise TraceError(f"no recognisable last layer: {why}") from error
    return probe


def outputs_of(model: nn.Module, contract: InputContract) -> tuple[str, ...]:
    """Returns keys or positions of what the model returns; () if it is one tensor.

    Raises TraceError if the model does not take an image.
    """
    given = _given(model, contract)
    if isinstance(given, Mapping):
        return tuple(map(str, given))
    return tuple(map(str, range(len(given)))) if isinstance(given, tuple | list) else ()


def _given(model: nn.Module, contract: InputContract) -> Any:
    """Returns what the model returns of two pictures."""
    image = example_input(contract.model_copy(update={"dtype": "float32"}), batch=2)
    try:
        with torch.no_grad(), evaluating(model):
            return model(image)
    except Exception as error:
        raise TraceError(
            f"the model does not take {contract.name} {list(image.shape)}: {cause(error)}"
        ) from error


def _shown(frames: Examples, contract: InputContract) -> Tensor:
    return frames.batch(np.arange(min(_SHOWN, len(frames))), contract)


def layer_notes(probe: Probe, contract: InputContract, frames: Examples) -> list[str]:
    """Returns how the answer is read, and a warning if it is not W phi + b of the last layer."""
    notes = []
    if probe.reading.single:
        what = "probability" if probe.reading.sigmoid else "logit"
        notes.append(f"the answer is one number for each place: the {what} of the second of two classes")
    if _layer_gives(probe, contract, frames) != "another":
        return notes
    return [
        *notes,
        f"the answer is not what {probe.last_layer} gives: gradient scores are of that layer and not of "
        "the answer",
    ]


@torch.no_grad()
def _layer_gives(
    probe: Probe, contract: InputContract, frames: Examples
) -> Literal["the answer", "a smaller answer", "another", "unknown"]:
    """Returns what W phi + b of the last layer is, on the first frames."""
    signals = probe(_shown(frames, contract))
    if signals.weight is None or signals.weight.shape[1] != signals.last_input.shape[1]:
        return "unknown"
    made = torch.einsum("nc...,kc->nk...", signals.last_input, signals.weight)
    if signals.bias is not None:
        made = made + signals.bias.reshape(1, -1, *[1] * (made.ndim - 2))
    answer = signals.outputs
    if made.shape != answer.shape and made.ndim == answer.ndim == 4 and made.shape[1] == answer.shape[1]:
        return "a smaller answer"
    if probe.reading.sigmoid:
        # Log-odds of a sigmoid that rounds to one are inexact.
        made, answer = torch.sigmoid(made), torch.sigmoid(answer)
    same = made.numel() == answer.numel() and torch.allclose(
        made.flatten().float(), answer.flatten().float(), rtol=1e-3, atol=1e-4
    )
    return "the answer" if same else "another"


def settle_classes(
    probe: Probe, frames: Frames, *, contract: InputContract, task: Task, stated: Sequence[str]
) -> tuple[ClassOrder, tuple[str, ...]]:
    """Returns the order of the classes, and notes on it and on normalisation.

    stated: names in the module's order. Raises ExportError if the classes do not fit, or if the module does
    not return logits.
    """
    outputs = int(probe(frames.calibration.batch([0], contract)).outputs.shape[1])
    order = order_classes(frames.classes, outputs, stated=stated)
    some = order.of(fit_frames(frames.calibration, outputs=outputs, task=task))
    require_targets(some, outputs)
    numbers, answered = _read(probe, some, contract, task)
    kind = numbers.kind
    # A linear layer gives logits, even if those of a weak model are all within 0..1.
    if kind != "logits" and _layer_gives(probe, contract, some) != "the answer":
        what = (
            "probabilities"
            if kind == "probabilities"
            else "sigmoids (rows within 0..1 that do not sum to one)"
        )
        raise ExportError(
            f"the module gives {what}; the failure scores would take a softmax of them, which is "
            "nearly flat: return the tensor before its last activation"
        )
    notes = (
        *(check_label_order if task.independent else check_order)(answered, order),
        *normalisation_note(
            answered,
            some,
            contract,
            frames.contract or contract,
            lambda shown, other: _read(probe, shown, other, task)[1],
        ),
        *chance_note(answered),
    )
    return order, notes


@torch.no_grad()
def _read(probe: Probe, frames: Examples, contract: InputContract, task: Task) -> tuple[Numbers, Answered]:
    """Returns (the answer's numbers, labels and answers)."""

    def parts() -> Iterator[tuple[slice, NDArray[np.float32]]]:
        for part, image in batches(frames, contract=contract, size=16):
            found = probe(image).float().outputs
            require_shape(found.shape, output="of the module", task=task)
            yield part, found.numpy()

    with evaluating(probe):
        # The probe gives logits, whatever the module gives.
        return fold(parts(), frames, task=task, middle=0.0)
