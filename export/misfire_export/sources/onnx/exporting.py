"""Makes a bundle of a foreign ONNX classifier or segmenter: `misfire export --onnx model.onnx`.

file --adapt--> one image input --find--> claim --prove on frames--> logits, last layer, order of the classes
     --measure phi--> fit scores --graft--> assemble

The manifest's notes list what could not be found. Parity compares with the file as it was given: its answers
by ONNX Runtime, and the scores that torch computes from them.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx

from misfire_export.assemble import GraphScore, Source, assemble, require_free
from misfire_export.errors import ExportError
from misfire_export.graph.check import require_operators
from misfire_export.graph.last_layer import Found
from misfire_export.graph.rename import own_name
from misfire_export.measure.calibrate import require_frames
from misfire_export.options import Options
from misfire_export.sources.answers import ANSWERS, choose_output, require_shape, static_shape
from misfire_export.sources.facts import ModelFacts
from misfire_export.sources.frames import Frames, labels_by_output
from misfire_export.sources.onnx.further import foreign_task, score_further
from misfire_export.sources.onnx.importing import adapt, fit_pixels
from misfire_export.sources.onnx.opening import class_names, file_outputs, load_graph, precision_of
from misfire_export.sources.onnx.outputs import Asked, score_answer
from misfire_export.sources.score_names import HEAD
from misfire_runtime.bundle import Bundle, Lineage, sha256_file


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
    outputs = file_outputs(load_graph(Path(path)))
    labels = labels_by_output(frames, outputs, output=facts.output, also=facts.also)
    facts = replace(facts, output=labels.output or facts.output, task=labels.task or facts.task)
    task = foreign_task(facts.task if isinstance(facts.task, str) else facts.task.name)
    also = {name: foreign_task(kind) for name, kind in labels.also.items()}
    given = open_graph(Path(path), output=facts.output, task=task.name)
    contract, pixels = fit_pixels(given, facts.contract)
    graph, notes = adapt(given, contract)
    own = score_answer(
        graph,
        labels.frames,
        Asked(task, contract, facts.output, facts.answer, facts.classes, class_names(given)),
        options,
    )
    bare = frames.without_labels()
    labelled = {name: labels.further.get(name) or bare for name in also}
    further = score_further(graph, also, labelled, contract, options)
    source = Source(
        graph=further.join(own.graph),
        contract=contract,
        task=own.task,
        output=task.output_name,
        scores=(
            *(GraphScore(score.name, score.definition, score.free) for score in own.scores),
            *further.scores,
        ),
        lineage=_lineage(Path(path), frames.dataset),
        classes=own.order.names,
        reference=further.reference(own.reference),
        refit=own.refit,
        ranges=own.frames.fit,
        precision=precision_of(given),
        labelled=own.frames.labelled,
        further=further.answers,
        head=next((score for score in own.scores if score.name == HEAD), None),
        extra={
            "notes": [*pixels, *notes, *own.notes, *frames.notes, *further.notes],
            "surgery": _report(own.found),
        },
    )
    return assemble(source, calibration=own.frames.calibration, out=Path(out), options=options)


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
