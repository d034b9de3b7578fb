"""Proves on real frames what a walk through a foreign graph's operators only claims.

graph, Found (a claim) --a few frames, ONNX Runtime--> shape, rows, types, proof of the last layer --> Seen
                       --more frames--> kind of numbers, labels and answers

One row a frame; logits, probabilities or sigmoids; softmax(logits) is the answer; W phi + b is the logits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray

from misfire_export.errors import GraphError
from misfire_export.graph.last_layer import Found, Take
from misfire_export.graph.rename import own_name
from misfire_export.measure.run import answers, open_session, require_rows, run
from misfire_export.sources.answers import require_channels_first, require_shape, softmax
from misfire_export.sources.labels import Answered
from misfire_runtime.preprocess import InputContract
from misfire_train.data import Examples
from misfire_train.scores.fitting import spread
from misfire_train.tasks import Task
from misfire_train.tasks.shapes import Kind, Numbers

# Enough to see shapes and to prove a product; the kind of numbers is read from more frames.
_FIRST = 4
_NOT_LOGITS = "The failure scores would take a softmax of them, which is nearly flat"


@dataclass(frozen=True)
class Seen:
    """Holds the settled claim.

    Attributes:
        found: the claim, settled.
        outputs: K of the answer.
        types: ONNX type of each tensor of the claim.
        flat: the tensors with single-pixel maps [N,C,1,1] that mean [N,C].
        beside: the file's other outputs that hold one row of numbers for each frame.
    """

    found: Found
    types: dict[str, str]
    flat: frozenset[str]
    beside: frozenset[str]
    outputs: int


def look(
    graph: onnx.ModelProto,
    found: Found,
    frames: Examples,
    *,
    contract: InputContract,
    task: Task,
    classes: int = 0,
) -> Seen:
    """Returns shapes, rows, types and the proof of the last layer, on the first frames.

    classes: of the data, 0 if nobody named them. Raises GraphError if the answer is none that the task can
    have.
    """
    names = _tensors(found)
    others = [value.name for value in graph.graph.output if value.name not in (found.output, found.logits)]
    session = open_session(_exposing(graph, list(dict.fromkeys([*names, *others]))))
    some = frames.take(np.arange(min(_FIRST, len(frames))))
    rows = _first(session, some, contract=contract, output=found.output, task=task)
    values = {name: np.concatenate([row[name] for row in rows]) for name in names}
    require_channels_first(values[found.output].shape, output=found.output, classes=classes)
    types = {value.name: value.type for value in session.get_outputs()}
    single = {name for name, value in values.items() if value.ndim == 4 and value.shape[2:] == (1, 1)}
    flat = frozenset(single if task.by_frame else ())
    plain = {name: _plain(value, flat=name in flat) for name, value in values.items()}
    settled = _settle_layer(_settle_activation(found, plain), plain)
    size = len(some) // len(rows)
    beside = frozenset(name for name in others if all(_is_numbers(row[name], size) for row in rows))
    dropped = tuple(
        f"output {own_name(name)} is left out: it does not hold one row of numbers for each frame"
        for name in others
        if name not in beside
    )
    settled = replace(settled, notes=(*settled.notes, *dropped))
    return Seen(settled, types, flat, beside, int(values[found.output].shape[1]))


def _is_numbers(value: Any, rows: int) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind in "fiub" and value.shape[:1] == (rows,)


def _tensors(found: Found) -> list[str]:
    layer = found.layer
    return list(
        dict.fromkeys([found.output, found.logits, *([layer.features, layer.answer] if layer else [])])
    )


def _exposing(graph: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """Returns a copy with these tensors as outputs; ONNX Runtime finds their types."""
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    del copy.graph.output[:]
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return copy


def _first(
    session: ort.InferenceSession,
    frames: Examples,
    *,
    contract: InputContract,
    output: str,
    task: Task,
) -> list[dict[str, Any]]:
    """Returns all tensors on a few frames, by batch.

    The answer's shape and rows are checked before any joining.
    """
    fixed = session.get_inputs()[0].shape[0]
    # A graph with a fixed batch takes no other number of frames.
    size = fixed if isinstance(fixed, int) else len(frames)
    names = [value.name for value in session.get_outputs()]
    rows = []
    for start in range(0, len(frames) - size + 1, size):
        images = frames.batch(np.arange(start, start + size), contract).numpy()
        found = run(session, images, contract=contract, names=names)
        require_shape(found[output].shape, output=output, task=task)
        require_rows(output, found[output], size)
        rows.append(found)
    return rows


def _plain(value: NDArray[Any], *, flat: bool) -> NDArray[np.float32]:
    whole = value.astype(np.float32)
    return whole.reshape(whole.shape[:2]) if flat else whole


def _settle_activation(found: Found, values: dict[str, NDArray[np.float32]]) -> Found:
    """Accepts the tensor before a softmax as logits only if its softmax along axis 1 is the answer."""
    if found.activation == "none":
        return found
    before, after = values[found.logits], values[found.output]
    # Eight bits round a probability by up to half of 1/255, and cut off what is below.
    tolerance = 0.05 if found.quantized else 5e-3
    if before.size == after.size:
        before = before.reshape(after.shape)
        expected = _activated(before, found.activation)
        scale = 1.0 if found.activation != "log-softmax" else np.maximum(np.abs(expected), 1.0)
        if (np.abs(expected - after) <= tolerance * scale).all():
            return found
    note = (
        f"the answer is not the {found.activation} of {own_name(found.logits)} over its classes, so it is "
        "read as it is"
    )
    return replace(found, logits=found.output, activation="none", layer=None, notes=(*found.notes, note))


def _activated(logits: NDArray[np.float32], activation: str) -> NDArray[np.float64]:
    if activation == "sigmoid":
        # Beyond 80 a sigmoid is 0 or 1 at every precision; the clip keeps exp from overflowing.
        return np.asarray(1 / (1 + np.exp(-np.clip(logits.astype(np.float64), -80, 80))))
    p = softmax(logits)
    return np.log(np.maximum(p, 1e-30)) if activation == "log-softmax" else p


def _settle_layer(found: Found, values: dict[str, NDArray[np.float32]]) -> Found:
    """Accepts the last layer only if W phi + b are the logits, or what was resized to them."""
    layer = found.layer
    if layer is None:
        return found
    features, answer, logits = values[layer.features], values[layer.answer], values[found.logits]
    fits = features.ndim in (2, 4) and features.shape[1] == layer.weight.shape[1]
    if fits and features.shape[0] == answer.shape[0]:
        made = np.einsum("nc...,kc->nk...", features, layer.weight)
        made = made + layer.bias.reshape(1, -1, *[1] * (features.ndim - 2))
        same = made.shape == answer.shape and _close(made, answer, found)
        resized = answer.ndim == 4 and logits.ndim == 4 and answer.shape[2:] != logits.shape[2:]
        kept = (
            answer.shape[1] == logits.shape[1]
            if resized
            else _close(answer.reshape(-1), logits.reshape(-1), found)
        )
        if same and kept:
            return found
    note = (
        f"{layer.node} is not the last layer: its weights times its input are not the answer, so gradient "
        "scores and the embedding are left out"
    )
    return replace(found, layer=None, notes=(*found.notes, note))


def _close(a: NDArray[np.float32], b: NDArray[np.float32], found: Found) -> bool:
    if a.shape != b.shape:
        return False
    # Relative to the largest value, because logits have any scale; steps of int8 are coarser.
    spread_of = float(np.abs(b).max()) + 1e-6
    return bool(np.abs(a - b).max() <= (0.1 if found.quantized else 0.02) * spread_of)


def session_of(graph: onnx.ModelProto, seen: Seen) -> ort.InferenceSession:
    """Returns a session that computes only the file's answer."""
    return open_session(_exposing(graph, [seen.found.output]))


def read_answers(
    session: ort.InferenceSession,
    frames: Examples,
    *,
    contract: InputContract,
    task: Task,
    output: str,
) -> tuple[Kind, Answered]:
    """Returns (kind of the answer's numbers, labels and answers)."""
    found = answers(session, frames, contract=contract, names=[output], batch=16)
    return fold(
        (
            (part, _plain(values[output], flat=task.by_frame and values[output].ndim == 4))
            for part, values in found
        ),
        frames,
        task=task,
    )


def read_kind(
    session: ort.InferenceSession,
    frames: Examples,
    *,
    contract: InputContract,
    task: Task,
    output: str,
) -> Kind:
    """Returns the kind of the answer's numbers on frames without labels."""
    numbers = Numbers()
    for _, values in answers(session, frames, contract=contract, names=[output], batch=16):
        numbers.add(_plain(values[output], flat=task.by_frame and values[output].ndim == 4))
    return numbers.kind


def fold(
    parts: Iterable[tuple[slice, NDArray[np.float32]]], frames: Examples, *, task: Task
) -> tuple[Kind, Answered]:
    """Returns (kind of the numbers, labels and answers) of a model's outputs, read batch by batch.

    parts: positions in `frames` and outputs [n,K] or [n,K,h,w] of them; at least one.
    """
    numbers, truth, said, outputs = Numbers(), [], [], 0
    for part, values in parts:
        labels, classes = task.labels_and_answers(
            torch.from_numpy(values), task.collate(frames.targets[part])
        )
        outputs = values.shape[1]
        numbers.add(values)
        truth.append(labels)
        said.append(classes)
    whole = Answered(np.concatenate(truth), np.concatenate(said), outputs, not task.by_frame)
    return numbers.kind, whole


def as_logits(found: Found, kind: Kind, wanted: str) -> Found:
    """Returns how the answer becomes logits.

    wanted: the user's statement; auto goes by operators and numbers.
    """
    name = own_name(found.output)
    if wanted in ("probabilities", "sigmoid") and kind == "logits":
        raise GraphError(f"--answer {wanted}: the answer {name} does not stay within 0..1")
    if found.activation in ("softmax", "log-softmax") and wanted in ("auto", "probabilities"):
        return found
    if wanted == "sigmoid" and found.activation == "sigmoid":
        return replace(found, notes=(_odds_note(name), *found.notes))
    if wanted == "sigmoid":
        return _instead(found, "log-odds", _odds_note(name))
    if wanted == "logits":
        return found if found.activation == "none" else _instead(found, "as-is", "")
    if wanted == "probabilities" or (kind == "probabilities" and found.activation == "none"):
        note = (
            f"the answer {name} gives probabilities without logits (rows within 0..1 that sum to about one): "
            "their logarithms are used as logits"
        )
        return _instead(found, "log", note)
    # A linear layer gives logits, even if those of a weak model are all within 0..1.
    linear = found.layer is not None and found.activation == "none"
    if found.activation == "sigmoid" or (kind == "sigmoid" and not linear):
        raise GraphError(
            f"the answer {name} is sigmoids: it is within 0..1 and its rows do not sum to one, each class "
            f"stands for itself. {_NOT_LOGITS}. --answer sigmoid takes their log-odds as logits, which is "
            "right if one class is true and the largest wins. If it is coarsely rounded probabilities or "
            "logits after all, give --answer probabilities or --answer logits"
        )
    return found


def _odds_note(name: str) -> str:
    return f"the answer {name} is sigmoids: their log-odds are used as logits, as --answer sigmoid asks"


def _instead(found: Found, take: Take, note: str) -> Found:
    """Returns the output itself made logits, without the layer and the logits before it."""
    notes = ((note,) if note else ()) + found.notes
    if found.layer is not None:
        notes = (*notes, "gradient scores and the embedding are left out")
    return replace(found, logits=found.output, activation="none", layer=None, take=take, notes=notes)


def fit_frames(calibration: Examples, *, outputs: int, task: Task) -> Examples:
    """Returns the frames that the answers are judged on: enough for every class, few enough to be quick."""
    # About ten frames per class; with labels on pixels fewer frames suffice.
    most = min(max(300, 10 * outputs), 2_000) if task.by_frame else 100
    return spread(calibration, most)
