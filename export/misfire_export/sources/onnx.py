"""Makes a bundle of a foreign ONNX classifier or segmenter: `misfire export --onnx model.onnx`.

file --adapt--> one image input --find--> claim --prove on frames--> logits, last layer, order of the classes
     --measure phi--> fit scores --graft--> assemble

The manifest's notes list what could not be found. Parity compares with the file as it was given: its answers
by ONNX Runtime, and the scores that torch computes from them.
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

from misfire_export.assemble import GraphScore, Source, assemble, require_free
from misfire_export.errors import ExportError
from misfire_export.graph.check import require_operators, require_small_scores
from misfire_export.graph.last_layer import Found, complete, find_last_layer
from misfire_export.graph.rename import own_name
from misfire_export.measure.calibrate import require_frames
from misfire_export.measure.run import answers, open_session
from misfire_export.options import Options
from misfire_export.sources.answers import ANSWERS, choose_output, require_shape, static_shape
from misfire_export.sources.facts import ModelFacts
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
from misfire_export.sources.onnx_graft import ScoreHead, append_scores, expose, hide
from misfire_export.sources.onnx_import import adapt, fit_pixels
from misfire_export.sources.onnx_open import class_names, load_graph, precision_of
from misfire_export.sources.onnx_outputs import AllOutputs, Further, join_scores, score_further
from misfire_export.sources.onnx_proof import (
    Seen,
    as_logits,
    fit_frames,
    look,
    read_answers,
    read_numbers,
    session_of,
)
from misfire_runtime.bundle import Bundle, Lineage, sha256_file
from misfire_runtime.preprocess import InputContract
from misfire_train import scores as scoring
from misfire_train.data import Examples
from misfire_train.signals import Signals
from misfire_train.tasks import Task, known_tasks
from misfire_train.tasks.answers.shapes import Numbers

# Fewer than of a run: the file runs on one thread of the CPU, perhaps frame by frame.
MAX_FIT = 2_000
OUTPUT_ONLY = ("entropy", "msp", "margin", "energy", "max_logit")
OF_LABELS = ("any_label_wrong", "wrong_labels", "label_entropy", "least_sure_label")
WITH_LAYER = ("egl", "label_egl")
WITH_HOLDOUT = ("wrong_prediction_approx",)


class ForeignReference(nn.Module):
    """Runs the file as given by ONNX Runtime, and computes scores from its answers in torch."""

    def __init__(self, session: ort.InferenceSession, head: ScoreHead, *, output: str, image: str) -> None:
        super().__init__()
        self.session, self.head, self.output, self.image = session, head, output, image

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Returns {output: tensor} of a batch."""
        names = [value.name for value in self.session.get_outputs()]
        # Frame by frame, because the graph's batch may be fixed at 1.
        rows: list[list[Any]] = [self.session.run(names, {self.image: part[None].numpy()}) for part in image]
        joined = {
            name: torch.from_numpy(np.concatenate(v))
            for name, v in zip(names, zip(*rows, strict=True), strict=True)
        }
        features = joined.pop("phi", None)
        return {**joined, **self.head(joined[self.output], features)}


def export_onnx(path: Path, frames: Frames, facts: ModelFacts, *, out: Path, options: Options) -> Bundle:
    """Writes a bundle of a foreign graph and returns it opened.

    Args:
        path: The .onnx file.
        frames: Frames: `fit` for banks, `holdout` for gradients. Without labels only upload rates are set.
        facts: What is known of the graph. Its input may have any name.
        out: Folder of the bundle.
        options: How to make it. Scores: by default all that can be computed from what was found.

    Raises:
        ExportError: Whatever is wrong; `out` then stays as it was.
    """
    require_free(Path(out))
    require_frames(len(frames.calibration))
    if facts.answer not in ANSWERS:
        raise ExportError(f"--answer is {facts.answer!r}; expected {', '.join(ANSWERS)}")
    task = foreign_task(facts.task if isinstance(facts.task, str) else facts.task.name)
    given = open_graph(Path(path), output=facts.output, task=task.name)
    contract, pixels = fit_pixels(given, facts.contract)
    facts = replace(facts, contract=contract)
    graph, notes = adapt(given, contract)
    claim = find_last_layer(graph, choose_output(graph, facts.output))
    complete(graph, claim)
    seen = look(
        graph,
        claim,
        frames.calibration,
        contract=contract,
        task=task,
        classes=len(facts.classes or frames.classes),
    )
    order = order_classes(frames.classes, seen.outputs, stated=facts.classes, metadata=class_names(given))
    # From here on targets count the model's outputs.
    frames = frames.relabelled(order.of)
    if frames.labelled:
        require_targets(frames.calibration, seen.outputs)
    found, told = _settle(graph, seen, frames, facts, task=task, order=order)
    seen = replace(seen, found=found)
    exposed = expose(graph, seen, output=task.output_name)
    session = open_session(_with_phi(exposed, found))
    sets = {
        key: _gather(session, part, found, contract=contract, task=task)
        for key, part in (("fit", frames.fit), ("holdout", frames.holdout))
    }
    held = sets["holdout"]
    if held is not None and not task.knows_failures:
        # The same rule as for a run: the worst share of the held-out losses.
        task = task.with_worst(task.sample_loss(held.signals.outputs, held.targets))
    names = _names(options.scores, found, sets, task=task)
    built = scoring.build(
        names, task=task, fit=sets["fit"], holdout=sets["holdout"], **dict(options.score_options)
    )
    require_small_scores(built)
    head = ScoreHead(built, found=found).eval()
    scored = _graft(exposed, session, head, found, frames.calibration, contract=contract, task=task)
    if found.layer is not None:
        # It was an output for fitting and tracing scores only.
        hide(scored, "phi")
    others = [
        score_further(graph, name, task=foreign_task(kind), frames=frames.calibration, contract=contract)
        for name, kind in facts.also.items()
    ]
    references = {}
    for other in others:
        scored = join_scores(scored, other)
        running = open_session(other.exposed)
        references[other.name] = ForeignReference(
            running, other.head, output=other.answer, image=contract.name
        )
    reference = ForeignReference(session, head, output=task.output_name, image=contract.name)
    source = Source(
        graph=scored,
        contract=contract,
        task=task,
        output=task.output_name,
        scores=(
            *(GraphScore(score.name, score.definition, score.free) for score in built),
            *(
                GraphScore(
                    f"{other.name}_{score.name}",
                    f"{score.definition}, of {other.name}",
                    score.free,
                    other.name,
                )
                for other in others
                for score in other.scores
            ),
        ),
        lineage=_lineage(Path(path), frames.dataset),
        classes=order.names,
        reference=AllOutputs(reference, references) if references else reference,
        ranges=frames.fit,
        precision=precision_of(given),
        labelled=frames.labelled,
        extra={
            "notes": [
                *pixels,
                *notes,
                *found.notes,
                *_told(found),
                *told,
                *frames.notes,
                *_told_further(others),
            ],
            "surgery": _report(found),
        },
    )
    return assemble(source, calibration=frames.calibration, out=Path(out), options=options)


def _told_further(others: Sequence[Further]) -> list[str]:
    notes = [note for other in others for note in other.notes]
    if others:
        listed = ", ".join(other.name for other in others)
        notes.append(f"{listed}: scores with quantiles only, because the frames have no labels of them")
    return notes


def foreign_task(name: str) -> Task:
    """Returns a task that foreign graphs can do. Raises ExportError on any other."""
    able = {task.name: task for task in known_tasks() if task.foreign}
    if name not in able:
        raise ExportError(f"a foreign graph can be a {' or a '.join(able)} network, not {name!r}")
    return able[name]


def open_graph(path: Path, *, output: str = "", task: str = "") -> onnx.ModelProto:
    """Returns the file's graph, after all checks that need no data. task: "" if unknown."""
    kind = foreign_task(task) if task else None
    graph = load_graph(path)
    require_operators(graph)
    answer = choose_output(graph, output)
    shape = static_shape(graph, answer)
    if kind is not None and shape:
        require_shape(shape, output=answer, task=kind)
    return graph


def _settle(
    graph: onnx.ModelProto, seen: Seen, frames: Frames, facts: ModelFacts, *, task: Task, order: ClassOrder
) -> tuple[Found, tuple[str, ...]]:
    """Returns (what the answer is, notes on classes and normalisation), from its numbers on some frames."""
    shown = fit_frames(frames.calibration, outputs=seen.outputs, task=task)
    session, contract = session_of(graph, seen), facts.contract
    if not frames.labelled:
        found = as_logits(
            seen.found,
            read_numbers(session, shown, contract=contract, seen=seen),
            facts.answer,
            task=task,
            single=seen.single,
        )
        return found, ((order.note,) if order.note else ())

    def read(some: Examples, under: InputContract) -> tuple[Numbers, Answered]:
        return read_answers(session, some, contract=under, task=task, seen=seen)

    numbers, answered = read(shown, contract)
    found = as_logits(seen.found, numbers, facts.answer, task=task, single=seen.single)
    data = frames.contract or contract
    notes = [
        *([order.note] if order.note else []),
        *(check_label_order if task.independent else check_order)(answered, order),
        *normalisation_note(answered, shown, contract, data, lambda *other: read(*other)[1]),
        *chance_note(answered),
    ]
    return found, tuple(notes)


def _with_phi(model: onnx.ModelProto, found: Found) -> onnx.ModelProto:
    """Returns the exposed graph with phi among its outputs."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    if found.layer is not None:
        copy.graph.output.append(onnx.helper.make_tensor_value_info("phi", onnx.TensorProto.FLOAT, None))
    return copy


def _gather(
    session: ort.InferenceSession, part: Examples | None, found: Found, *, contract: InputContract, task: Task
) -> scoring.FitSet | None:
    """Returns signals of labelled frames through the graph; None without frames or without a last layer."""
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
    """Returns the scores to append. Raises ExportError if one needs what was not found or given."""
    chosen = list(OF_LABELS if task.independent else OUTPUT_ONLY)
    if found.layer is not None:
        chosen += WITH_LAYER
        if sets["holdout"] is not None:
            chosen += WITH_HOLDOUT
    chosen = [name for name in chosen if name in scoring.scores_of(task)]
    if wanted is None:
        return chosen
    for name in wanted:
        info = scoring.scores_of(task).get(name)
        if info is None or not info.exportable:
            can = scoring.names_for(task, exportable=True)
            close = difflib.get_close_matches(name, can, n=1)
            hint = f"did you mean {close[0]}? There" if close else "there"
            raise ExportError(f"score {name!r} cannot be appended; {hint} are {', '.join(can)}")
        if not info.free and found.layer is None:
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
    """Returns the lineage of a foreign graph: its run is the file itself."""
    return Lineage(
        run_id=f"onnx-{sha256_file(path)[:16]}",
        dataset=dataset[0],
        dataset_sha256=dataset[1],
        config={"onnx": path.name},
    )
