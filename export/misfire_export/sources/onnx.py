"""A foreign ONNX classifier or segmenter becomes a bundle: `misfire export --onnx model.onnx`.

file --adapt--> one image input --find--> claim --prove on frames--> logits, last layer, order of the classes
     --measure phi--> fit scores --graft--> assemble

What could not be found is said in the manifest's notes. Parity compares with the file as it was given: its
answers by ONNX Runtime, and the scores that torch computes from them.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from torch import Tensor, nn

from misfire_export.assemble import GraphScore, Options, Source, assemble, require_free
from misfire_export.errors import ExportError
from misfire_export.graph.check import require_operators, require_small_scores
from misfire_export.graph.last_layer import Found, find_last_layer
from misfire_export.graph.rename import own_name
from misfire_export.measure.calibrate import require_frames
from misfire_export.measure.run import answers, open_session
from misfire_export.sources.answers import ANSWERS, choose_output, require_shape, static_shape
from misfire_export.sources.labels import (
    Answered,
    ClassOrder,
    chance_note,
    check_order,
    normalisation_note,
    order_classes,
    require_targets,
)
from misfire_export.sources.onnx_graft import ScoreHead, append_scores, expose, hide
from misfire_export.sources.onnx_import import adapt
from misfire_export.sources.onnx_open import class_names, load_graph, precision_of
from misfire_export.sources.onnx_proof import Seen, as_logits, fit_frames, look, read_answers, session_of
from misfire_runtime.bundle import Bundle, Lineage, sha256_file
from misfire_runtime.preprocess import InputContract
from misfire_train import scores as scoring
from misfire_train.data import Examples
from misfire_train.signals import Signals
from misfire_train.tasks import Task, known_tasks
from misfire_train.tasks.shapes import Kind

MAX_FIT = 2_000
OUTPUT_ONLY = ("entropy", "msp", "margin", "energy", "max_logit")
WITH_LAYER = ("egl",)
WITH_HOLDOUT = ("wrong_prediction_approx",)


class ForeignReference(nn.Module):
    """The file as given, run by ONNX Runtime, and scores computed from its answers in torch."""

    def __init__(self, session: ort.InferenceSession, head: ScoreHead, *, output: str, image: str) -> None:
        super().__init__()
        self.session, self.head, self.output, self.image = session, head, output, image

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """{output: tensor} of a batch."""
        names = [value.name for value in self.session.get_outputs()]
        rows: list[list[Any]] = [self.session.run(names, {self.image: part[None].numpy()}) for part in image]
        joined = {
            name: torch.from_numpy(np.concatenate(v))
            for name, v in zip(names, zip(*rows, strict=True), strict=True)
        }
        features = joined.pop("phi", None)
        return {**joined, **self.head(joined[self.output], features)}


def export_onnx(
    path: Path,
    *,
    contract: InputContract,
    calibration: Examples,
    out: Path,
    options: Options,
    task: str = "classification",
    classes: Sequence[str] = (),
    model_classes: Sequence[str] = (),
    scores: Sequence[str] | None = None,
    fit: Examples | None = None,
    holdout: Examples | None = None,
    output: str = "",
    answer: str = "auto",
    dataset: tuple[str, str] = ("unknown", "0" * 64),
    data_contract: InputContract | None = None,
    score_options: Mapping[str, Mapping[str, Any]] | None = None,
) -> Bundle:
    """Writes a bundle of a foreign graph and returns it opened.

    contract: what its input expects of an image; the input may have any name.  scores: default, all that can
    be computed from what was found.  fit, holdout: labelled frames for banks and for gradients.
    classes: names that the targets count.  model_classes: names in the order of the graph's outputs; () takes
    the file's own, or the data's.  output: which of the graph's outputs is the answer.
    answer: what that is, auto, logits, probabilities or sigmoid (auto tells the first two by their numbers).
    dataset: name and sha256 of the frames' source.  data_contract: the data set's own contract.
    Raises an ExportError; `out` then stays as it was.
    """
    require_free(Path(out))
    require_frames(len(calibration))
    if answer not in ANSWERS:
        raise ExportError(f"--answer is {answer!r}; expected {', '.join(ANSWERS)}")
    kind = foreign_task(task)
    given = open_graph(Path(path), output=output, task=task)
    graph, notes = adapt(given, contract)
    seen = look(
        graph,
        find_last_layer(graph, choose_output(graph, output)),
        calibration,
        contract=contract,
        task=kind,
        classes=len(model_classes or classes),
    )
    order = order_classes(classes, seen.outputs, stated=model_classes, metadata=class_names(given))
    calibration = order.of(calibration)
    fit, holdout = (None if part is None else order.of(part) for part in (fit, holdout))
    require_targets(calibration, seen.outputs)
    found, told = _settle(
        graph, seen, calibration, contract=contract, data=data_contract, task=kind, order=order, answer=answer
    )
    seen = replace(seen, found=found)
    exposed = expose(graph, seen, output=kind.output_name)
    session = open_session(_with_phi(exposed, found))
    sets = {
        key: _gather(session, part, found, contract=contract, task=kind)
        for key, part in (("fit", fit), ("holdout", holdout))
    }
    held = sets["holdout"]
    if held is not None and not kind.knows_failures:
        kind = kind.with_worst(kind.sample_loss(held.signals.outputs, held.targets))
    names = _names(scores, found, sets, task=kind)
    built = scoring.build(
        names, task=kind, fit=sets["fit"], holdout=sets["holdout"], **dict(score_options or {})
    )
    require_small_scores(built)
    head = ScoreHead(built, found=found).eval()
    scored = _graft(exposed, session, head, found, calibration, contract=contract, task=kind)
    if found.layer is not None:
        hide(scored, "phi")
    source = Source(
        graph=scored,
        contract=contract,
        task=kind,
        output=kind.output_name,
        scores=tuple(GraphScore(score.name, score.definition, score.free) for score in built),
        lineage=_lineage(Path(path), dataset),
        classes=order.names,
        reference=ForeignReference(session, head, output=kind.output_name, image=contract.name),
        ranges=fit,
        precision=precision_of(given),
        extra={"notes": [*notes, *found.notes, *_told(found), *told], "surgery": _report(found)},
    )
    return assemble(source, calibration=calibration, out=Path(out), options=replace(options))


def foreign_task(name: str) -> Task:
    """Returns a task that foreign graphs can do. Raises ExportError on any other."""
    able = {task.name: task for task in known_tasks() if task.foreign}
    if name not in able:
        raise ExportError(f"a foreign graph can be a {' or a '.join(able)} network, not {name!r}")
    return able[name]


def open_graph(path: Path, *, output: str = "", task: str = "") -> onnx.ModelProto:
    """The file's graph, after all that can be refused without any data. task: "" where not known yet."""
    kind = foreign_task(task) if task else None
    graph = load_graph(path)
    require_operators(graph)
    answer = choose_output(graph, output)
    shape = static_shape(graph, answer)
    if kind is not None and shape:
        require_shape(shape, output=answer, task=kind)
    return graph


def _settle(
    graph: onnx.ModelProto,
    seen: Seen,
    calibration: Examples,
    *,
    contract: InputContract,
    data: InputContract | None,
    task: Task,
    order: ClassOrder,
    answer: str,
) -> tuple[Found, tuple[str, ...]]:
    """(what the answer is, notes on classes and normalisation), from its numbers on some frames."""
    frames = fit_frames(calibration, outputs=seen.outputs, task=task)
    session = session_of(graph, seen)

    def read(some: Examples, under: InputContract) -> tuple[Kind, Answered]:
        return read_answers(session, some, contract=under, task=task, output=seen.found.output)

    kind, answered = read(frames, contract)
    found = as_logits(seen.found, kind, answer)
    notes = [
        *([order.note] if order.note else []),
        *check_order(answered, order),
        *normalisation_note(answered, frames, contract, data or contract, lambda *other: read(*other)[1]),
        *chance_note(answered),
    ]
    return found, tuple(notes)


def _with_phi(model: onnx.ModelProto, found: Found) -> onnx.ModelProto:
    """The exposed graph with phi among its outputs."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    if found.layer is not None:
        copy.graph.output.append(onnx.helper.make_tensor_value_info("phi", onnx.TensorProto.FLOAT, None))
    return copy


def _gather(
    session: ort.InferenceSession, part: Examples | None, found: Found, *, contract: InputContract, task: Task
) -> scoring.FitSet | None:
    """Signals of labelled frames through the graph; None without frames or without a last layer."""
    if part is None or not len(part) or found.layer is None:
        return None
    chosen = scoring.spread(part, MAX_FIT)
    outputs, inputs = [], []
    for _, values in answers(session, chosen, contract=contract, names=[task.output_name, "phi"]):
        outputs.append(torch.from_numpy(values[task.output_name]))
        inputs.append(torch.from_numpy(values["phi"]))
    weight, bias = torch.from_numpy(found.layer.weight), torch.from_numpy(found.layer.bias)
    signals = Signals(torch.cat(outputs), torch.cat(inputs), {}, weight, bias)
    return scoring.FitSet(signals, task.collate(chosen.targets), int(signals.outputs.shape[1]))


def _names(
    wanted: Sequence[str] | None, found: Found, sets: Mapping[str, scoring.FitSet | None], *, task: Task
) -> list[str]:
    """The scores to append. Raises ExportError where one needs what was not found or given."""
    chosen = list(OUTPUT_ONLY)
    if found.layer is not None:
        chosen += WITH_LAYER
        if sets["holdout"] is not None:
            chosen += WITH_HOLDOUT
    if wanted is None:
        return chosen
    for name in wanted:
        info = scoring.scores_of(task).get(name)
        if info is None or not info.exportable:
            can = scoring.names_for(task, exportable=True)
            close = difflib.get_close_matches(name, can, n=1)
            hint = f"did you mean {close[0]}? There" if close else "there"
            raise ExportError(f"score {name!r} cannot be appended; {hint} are {', '.join(can)}")
        if name not in OUTPUT_ONLY and name != "egl_unweighted" and found.layer is None:
            raise ExportError(f"score {name} needs the last layer: {' '.join(found.notes)}")
    return list(wanted)


def _graft(
    exposed: onnx.ModelProto,
    session: ort.InferenceSession,
    head: ScoreHead,
    found: Found,
    examples: Examples,
    *,
    contract: InputContract,
    task: Task,
) -> onnx.ModelProto:
    image = examples.batch([0], contract).numpy()
    answer = session.run([task.output_name], {contract.name: image})[0]
    phi = session.run(["phi"], {contract.name: image})[0] if found.layer is not None else None
    return append_scores(exposed, head, answer=answer, phi=phi, output=task.output_name)


def _told(found: Found) -> list[str]:
    if found.layer is None:
        return []
    what = "linear layer" if found.layer.kind == "linear" else "1x1 convolution"
    classes, channels = found.layer.weight.shape
    return [f"last layer: {what} {found.layer.node}, {channels} features to {classes} classes"]


def _report(found: Found) -> dict[str, Any]:
    layer = found.layer
    return {
        "output": own_name(found.output),
        "logits": own_name(found.logits),
        "activation": found.activation,
        "from_probabilities": found.take == "log",
        "taken": found.take,
        "last_layer": None
        if layer is None
        else {"node": layer.node, "kind": layer.kind, "features": own_name(layer.features)},
    }


def _lineage(path: Path, dataset: tuple[str, str]) -> Lineage:
    """A foreign graph's run is the file itself."""
    return Lineage(
        run_id=f"onnx-{sha256_file(path)[:16]}",
        dataset=dataset[0],
        dataset_sha256=dataset[1],
        config={"onnx": path.name},
    )
