"""Proves on real frames what a walk through a foreign graph's operators only claims.

graph, Found (a claim) --a few frames, ONNX Runtime--> shape, rows, types, proof of the last layer --> Seen
                       --more frames--> kind of numbers, labels and answers

One row a frame; logits, probabilities or sigmoids; softmax(logits) is the answer; W phi + b is the logits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray

from misfire_export.errors import GraphError
from misfire_export.graph.last_layer import Found, LastLayer, Take
from misfire_export.graph.rename import own_name
from misfire_export.measure.run import answers, open_session, require_rows, run
from misfire_export.sources.answers import classes_last, require_shape, softmax
from misfire_export.sources.labels import Answered
from misfire_runtime.preprocess import InputContract
from misfire_train.data import Examples
from misfire_train.scores.fitting import spread
from misfire_train.tasks import Task
from misfire_train.tasks.answers.shapes import Numbers

View = Literal["as-is", "flat", "channels-first", "one-channel"]
"""How a tensor becomes [N,K] or [N,K,H,W]: single pixels are joined, [N,H,W,K] is transposed, and an answer
without an axis for classes gets one."""
# Enough to see shapes and to prove a product; the kind of numbers is read from more frames.
_FIRST = 4
_NOT_LOGITS = "The failure scores would take a softmax of them, which is nearly flat"


@dataclass(frozen=True)
class Seen:
    """Holds the settled claim.

    Attributes:
        found: the claim, settled.
        outputs: number of classes.
        single: the answer is one number, the logit or probability of the second of two classes.
        types: ONNX type of each tensor of the claim.
        views: how each tensor of the claim becomes [N,K] or [N,K,H,W].
        beside: the file's other outputs that hold one row of numbers for each frame.
    """

    found: Found
    types: dict[str, str]
    views: dict[str, View]
    beside: frozenset[str]
    outputs: int
    single: bool = False


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
    types = {value.name: value.type for value in session.get_outputs()}
    size = (contract.height, contract.width)
    last = classes_last(values[found.output].shape, classes=classes, size=size)
    views = _views(found, values, by_frame=task.by_frame, last=last)
    plain = {name: viewed(value, views[name]) for name, value in values.items()}
    _require_scores(found.output, plain[found.output])
    settled = _settle_layer(_settle_activation(found, plain), plain)
    single = task.by_class and plain[found.output].shape[1] == 1
    if single and settled.layer is not None:
        settled = replace(settled, layer=_of_two_classes(settled.layer))
    batch = len(some) // len(rows)
    beside = frozenset(name for name in others if all(_is_numbers(row[name], batch) for row in rows))
    dropped = tuple(
        f"output {own_name(name)} is left out: it does not hold one row of numbers for each frame"
        for name in others
        if name not in beside
    )
    settled = replace(settled, notes=(*settled.notes, *dropped))
    outputs = 2 if single else int(plain[found.output].shape[1])
    return Seen(settled, types, views, beside, outputs, single)


def _views(
    found: Found, values: Mapping[str, NDArray[Any]], *, by_frame: bool, last: bool
) -> dict[str, View]:
    """Returns how each tensor is to be seen. last: the answer has its classes last."""
    views: dict[str, View] = {}
    layer = found.layer
    for name, value in values.items():
        of_layer = layer is not None and name in (layer.features, layer.answer)
        # A convolution has its channels first, a product has them last.
        swapped = (layer is not None and layer.kind == "linear") if of_layer else last
        if value.ndim == 4:
            one_pixel = value.shape[2:] == (1, 1) or value.shape[1:3] == (1, 1)
            views[name] = "flat" if by_frame and one_pixel else "channels-first" if swapped else "as-is"
        else:
            views[name] = "one-channel" if value.ndim == (1 if by_frame else 3) else "as-is"
    return views


def viewed(value: NDArray[Any], view: View) -> NDArray[np.float32]:
    """Returns a tensor's values as [N,K] or [N,K,H,W], fp32."""
    whole = value.astype(np.float32)
    if view == "flat":
        return whole.reshape(len(whole), -1)
    if view == "channels-first":
        return np.moveaxis(whole, 3, 1)
    return whole[:, None] if view == "one-channel" else whole


def _require_scores(output: str, values: NDArray[np.float32]) -> None:
    """Raises GraphError on class numbers that were written as floating-point numbers."""
    if values.shape[1] == 1 and (values == np.round(values)).all() and len(np.unique(values)) > 1:
        raise GraphError(
            f"output {own_name(output)} holds whole numbers: class labels without scores; export the model "
            "without its last ArgMax or threshold, so that it gives logits or probabilities"
        )


def _of_two_classes(layer: LastLayer) -> LastLayer:
    """Returns a layer of one output as one of two: the first class has a logit of zero."""
    weight, bias = (np.concatenate([np.zeros_like(value), value]) for value in (layer.weight, layer.bias))
    return replace(layer, weight=weight, bias=bias)


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


def _settle_activation(found: Found, values: dict[str, NDArray[np.float32]]) -> Found:
    """Accepts the tensor before a softmax as logits only if its softmax along axis 1 is the answer."""
    if found.activation == "none":
        return found
    before, after = values[found.logits], values[found.output]
    # Eight bits round a probability by up to half of 1/255, and cut off what is below.
    tolerance = 0.05 if found.quantized else 5e-3
    if before.size == after.size:
        before = before.reshape(after.shape)
        if found.scaled and found.activation == "softmax":
            after = after / np.median(after.sum(axis=1))
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
    seen: Seen,
) -> tuple[Numbers, Answered]:
    """Returns (the answer's numbers, labels and answers)."""
    output = seen.found.output
    found = answers(session, frames, contract=contract, names=[output], batch=16)
    return fold(
        ((part, viewed(values[output], seen.views[output])) for part, values in found),
        frames,
        task=task,
        middle=_middle(seen.found),
    )


def read_numbers(
    session: ort.InferenceSession, frames: Examples, *, contract: InputContract, seen: Seen
) -> Numbers:
    """Returns the answer's numbers on frames without labels."""
    numbers, output = Numbers(), seen.found.output
    for _, values in answers(session, frames, contract=contract, names=[output], batch=16):
        numbers.add(viewed(values[output], seen.views[output]))
    return numbers


def _middle(found: Found) -> float | None:
    """Returns the value of a single number at which its two classes are equally likely; None if unknown."""
    if found.activation == "sigmoid":
        return 0.5
    return 0.0 if found.layer is not None else None


def fold(
    parts: Iterable[tuple[slice, NDArray[np.float32]]],
    frames: Examples,
    *,
    task: Task,
    middle: float | None = None,
) -> tuple[Numbers, Answered]:
    """Returns (the numbers, labels and answers) of a model's outputs, read batch by batch.

    parts: positions in `frames` and outputs [n,K] or [n,K,h,w] of them; at least one. middle: of a single
    number, where its two classes are equally likely; None reads it off its range.
    """
    numbers, truth, said, outputs = Numbers(), [], [], 0
    for part, values in parts:
        numbers.add(values)
        both = values
        if task.independent or values.shape[1] == 1:
            half = _middle_of(values, middle)
            both = values - half if task.independent else np.concatenate([0 * values, values - half], axis=1)
        labels, classes = task.labels_and_answers(torch.from_numpy(both), task.collate(frames.targets[part]))
        outputs = 2 if task.independent else both.shape[1]
        truth.append(labels)
        said.append(classes)
    # Labels that nobody looked at are marked as pixels without a label are.
    marked = not task.by_frame or task.independent
    whole = Answered(np.concatenate(truth), np.concatenate(said), outputs, marked)
    return numbers, whole


def _middle_of(values: NDArray[np.float32], middle: float | None) -> float:
    """Returns the value of a number at which yes and no are equally likely; by its range if unknown."""
    probable = values.min() >= 0 and values.max() <= 1
    return middle if middle is not None else 0.5 if probable else 0.0


def as_logits(found: Found, numbers: Numbers, wanted: str, *, task: Task, single: bool = False) -> Found:
    """Returns how the answer becomes logits.

    wanted: the user's statement; auto goes by operators and numbers. single: the answer is one number for
    each place, of which 0..1 is always a sigmoid.
    """
    if single or task.independent:
        what = "one number for each place: the second of two classes"
        return _one_as_logits(
            found, numbers, wanted, what=what if single else "a number for each label by itself"
        )
    name, kind = own_name(found.output), numbers.kind
    if wanted in ("probabilities", "sigmoid") and kind == "logits":
        raise GraphError(f"--answer {wanted}: the answer {name} does not stay within 0..1")
    if found.activation in ("softmax", "log-softmax") and wanted in ("auto", "probabilities"):
        return found
    if wanted == "sigmoid":
        known = found.activation == "sigmoid"
        odds = replace(found, notes=(_odds_note(name), *found.notes))
        return odds if known else _instead(found, "log-odds", _odds_note(name))
    if wanted == "logits":
        return found if found.activation == "none" else _instead(found, "as-is", "")
    # A linear layer gives logits, even if those of a weak model are all within 0..1.
    linear = found.layer is not None and found.activation == "none"
    scaled = numbers.scale != 1
    if wanted == "probabilities" or (
        kind == "probabilities" and found.activation == "none" and not (scaled and linear)
    ):
        sums = f"that sum to about {numbers.scale:.4g}" if scaled else "within 0..1 that sum to about one"
        note = (
            f"the answer {name} gives probabilities without logits (rows {sums}): their logarithms are used "
            "as logits"
        )
        return replace(_instead(found, "log", note), scale=numbers.scale)
    if found.activation == "sigmoid" or (kind == "sigmoid" and not linear):
        raise GraphError(
            f"the answer {name} is sigmoids: it is within 0..1 and its rows do not sum to one, each class "
            f"stands for itself. {_NOT_LOGITS}. For several labels of one image give --task multi-label "
            "and a data set with a column for each label (csv-labels:FILE). --answer sigmoid takes their "
            "log-odds as logits, which is right if one class is true and the largest wins. If it is coarsely "
            "rounded probabilities or logits after all, give --answer probabilities or --answer logits"
        )
    return found


def _one_as_logits(found: Found, numbers: Numbers, wanted: str, *, what: str) -> Found:
    """Returns how numbers that stand for themselves become logits of sigmoids. what: they are, in words."""
    name, probable = own_name(found.output), numbers.kind != "logits"
    if wanted in ("probabilities", "sigmoid") and not probable:
        raise GraphError(f"--answer {wanted}: the answer {name} does not stay within 0..1")
    note = f"the answer {name} is {what}"
    if found.activation in ("softmax", "log-softmax"):
        raise GraphError(
            f"the answer {name} is a softmax, of which one class is true: is it --task classification?"
        )
    linear = found.layer is not None and found.activation == "none"
    if found.activation == "sigmoid" and wanted != "logits":
        return replace(found, notes=(note, *found.notes))
    if wanted == "logits" or not probable or (linear and wanted == "auto"):
        as_is = found if found.activation == "none" else _instead(found, "as-is", "")
        return replace(as_is, notes=(note, *as_is.notes))
    return _instead(found, "log-odds", f"{note}, and its log-odds are its logit")


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
