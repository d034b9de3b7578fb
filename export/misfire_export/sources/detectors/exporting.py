"""Makes a bundle of a foreign detector: `misfire export --onnx yolo.onnx --task detection`.

file --recognise on pictures--> layout, input contract, raw tensors --decode, find candidates, score--> graph
     --labels in the detector's pixels and classes--> scores fitted, class order checked --> assemble
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from misfire_export.assemble import GraphScore, Source, assemble, require_free
from misfire_export.errors import ExportError, PrecisionError
from misfire_export.graph.check import require_small_scores
from misfire_export.graph.rename import own_name
from misfire_export.measure.calibrate import LEAST_FRAMES, require_frames
from misfire_export.measure.run import answers, open_session, run
from misfire_export.options import Options
from misfire_export.sources.detectors.base import QUERIES
from misfire_export.sources.detectors.cutting import feature_maps, keep_outputs
from misfire_export.sources.detectors.grafting import (
    DetectorHead,
    DetectorReference,
    append_head,
    expose_raw,
    require_same,
    trace_head,
)
from misfire_export.sources.detectors.labelled import check_classes, in_detectors_terms, order_known_classes
from misfire_export.sources.detectors.recognising import Recognised, recognise
from misfire_export.sources.facts import ModelFacts
from misfire_export.sources.frames import ASSUMED_PIXELS, Frames, labels_by_output
from misfire_export.sources.labels import ClassOrder
from misfire_export.sources.onnx.further import foreign_task, score_further
from misfire_export.sources.onnx.graft import FileProbe
from misfire_export.sources.onnx.importing import adapt
from misfire_export.sources.onnx.opening import class_names, file_outputs, load_graph, precision_of
from misfire_export.sources.onnx.outputs import fit_again, refit_of_file
from misfire_export.sources.score_names import ALL, HEAD
from misfire_runtime.boxes import SILENCE, BoxRule
from misfire_runtime.bundle import Bundle, Lineage, sha256_file
from misfire_runtime.preprocess import InputContract
from misfire_runtime.toml import explain
from misfire_train import scores as scoring
from misfire_train.boxes.columns import FINAL
from misfire_train.data import Examples, split
from misfire_train.errors import DatasetError
from misfire_train.scores.fitting import spread
from misfire_train.signals import Signals
from misfire_train.tasks.detection import Detection

MAX_FIT = 1_000
"""Frames that scores are fitted on: one thread of the CPU, perhaps frame by frame."""
UNCALIBRATED: Mapping[str, Mapping[str, Any]] = {
    name: {"right": (1.0, 0.0), "uncovered": (1.0, 0.0)} for name in ("expected_errors", "expected_lrp")
}
"""Options of scores without labels to fit them on: the detector's own scores stand for probabilities."""
SEEN = 0.4
"""Share of frames without labels that show what is usual."""
MOST_CHANNELS = 512
"""Of all feature maps: `silence` holds the square of them."""
_OWN_SCORES = (
    "expected errors use the detector's own scores as probabilities: without labels they cannot be calibrated"
)
_OF_PICTURES = ("classification", "multi-label")
"""Tasks whose labels are of a whole picture."""
_LEAST_THRESHOLD = 0.05
"""A suppression inside a file often lets nearly everything through; that is no deployed threshold."""


def export_detector(
    path: Path,
    frames: Frames,
    facts: ModelFacts,
    *,
    out: Path,
    options: Options,
    image: Mapping[str, Any] | None = None,
    layout: str = "",
    rule: Mapping[str, Any] | None = None,
) -> Bundle:
    """Writes a bundle of a foreign detector and returns it opened.

    Args:
        path: The .onnx file.
        frames: Frames with labelled boxes, or without labels for upload rates only.
        facts: Class names in the model's order. Its contract is not used: the layout states it.
        out: Folder of the bundle.
        options: How to make it. Scores: by default all free ones that can be fitted.
        image: Fields of the input contract that win over the layout's.
        layout: Name of the layout. Empty recognises it.
        rule: Fields of the box rule that win over the file's own thresholds.

    Raises:
        ExportError: Whatever is wrong; `out` then stays as it was.
        ConfigError: The layout or a field of the rule does not exist.
    """
    require_free(Path(out))
    require_frames(len(frames.calibration))
    if options.precision != "fp32":
        raise PrecisionError(
            f"--precision {options.precision}: a foreign detector is taken as it is; lower the file itself"
        )
    given = load_graph(Path(path))
    stated = facts.classes or class_names(given)
    labels = labels_by_output(frames, file_outputs(given), output=facts.output, also=facts.also)
    also = {name: foreign_task(kind) for name, kind in labels.also.items()}
    frames = labels.frames
    found = recognise(
        given,
        frames.calibration,
        image or {},
        layout=layout,
        classes=len(stated),
        at_least=len(frames.classes),
    )
    reading, contract = found.fit.reading, found.contract
    order = order_known_classes(
        frames.classes, reading.classes, stated=facts.classes, metadata=class_names(given)
    )
    task = Detection().with_rule(_rule(found, rule or {}), order.names)
    beside = _beside(labels.further, also, frames, contract)
    frames = in_detectors_terms(frames, contract, order, task)
    frames, apart = _set_aside(frames, task)
    whole, maps, notes = _network(found, frames.calibration, also=also)
    network = expose_raw(whole, [*found.fit.reading.tensors, *maps])
    session = open_session(network)
    plain = DetectorHead(reading.decoder, (), task=task, maps=len(maps)).eval()
    checked = _check(session, plain, frames, contract, order)
    labelled = frames.labelled and frames.holdout is not None
    sets = {
        key: _gather(session, plain, part, contract=contract)
        for key, part in (("fit", frames.fit), ("holdout", frames.holdout))
    }
    names = _names(
        options.scores,
        task,
        labelled=labelled,
        seen=sets["holdout"] is not None and bool(maps),
        spread=found.fit.spread,
    )
    probe = FileProbe(session, plain.signals)
    refit = refit_of_file(probe, task, frames, contract, seed=options.seed) if HEAD in names else None
    settings = {name: dict(value) for name, value in options.score_options.items()}
    if not labelled:
        for name in set(names) & set(UNCALIBRATED):
            settings.setdefault(name, dict(UNCALIBRATED[name]))
    free = [name for name in names if name != HEAD]
    built = scoring.build(free, task=task, fit=sets["fit"], holdout=sets["holdout"], **settings)
    if refit is not None:
        built.insert(0, fit_again(refit))
    require_small_scores(built)
    head = DetectorHead(reading.decoder, built, task=task, maps=len(maps)).eval()
    some = _raw(session, spread(frames.calibration, 4), contract)
    small = trace_head(head, some)
    require_same(head, small, some)
    further = score_further(whole, also, beside, contract, options)
    source = Source(
        graph=further.join(append_head(network, small)),
        contract=contract,
        task=task,
        output=task.output_name,
        scores=(
            *(GraphScore(score.name, score.definition, score.free) for score in built),
            *further.scores,
        ),
        lineage=Lineage(
            run_id=f"onnx-{sha256_file(Path(path))[:16]}",
            dataset=frames.dataset[0],
            dataset_sha256=frames.dataset[1],
            config={"onnx": Path(path).name},
        ),
        classes=order.names,
        reference=further.reference(DetectorReference(session, open_session(small), image=contract.name)),
        refit=refit,
        ranges=frames.fit,
        precision=precision_of(given),
        labelled=frames.labelled,
        further=further.answers,
        extra={
            "notes": [
                found.said,
                *reading.notes,
                *found.tail.notes,
                *notes,
                *([order.note] if order.note else []),
                *checked,
                *apart,
                *([_OWN_SCORES] if set(names) & set(UNCALIBRATED) and not labelled else []),
                # A detector's layout states how its pictures are normalised.
                *(note for note in frames.notes if note != ASSUMED_PIXELS),
                *further.notes,
            ],
            "surgery": _report(found),
        },
    )
    return assemble(source, calibration=frames.calibration, out=Path(out), options=options)


def _rule(found: Recognised, stated: Mapping[str, Any]) -> BoxRule:
    """Returns the rule: what the user states, else the file's own suppression, else the defaults."""
    tail, reading = found.tail, found.fit.reading
    own: dict[str, Any] = {}
    if tail.suppression is not None:
        own["suppression"] = tail.suppression
    if tail.threshold is not None and tail.threshold >= _LEAST_THRESHOLD:
        own["score_threshold"] = tail.threshold
    # Queries, end-to-end heads and chosen boxes are deployed without a further suppression.
    if reading.final or reading.strength == QUERIES or tail.cut == "TopK":
        own["suppression"] = 1.0
    try:
        return BoxRule.model_validate({**own, **stated})
    except ValidationError as error:
        raise ExportError(explain(error, file="--box-rule", most=1)) from error


def _set_aside(frames: Frames, task: Detection) -> tuple[Frames, tuple[str, ...]]:
    """Returns the frames, some of those without labels as holdout, and a note on how many.

    What is usual is learned on them; frames that a score has learned from would set its thresholds too low.
    """
    if frames.labelled:
        return frames, ()
    blank = task.stack([np.zeros((0, FINAL), np.float32)] * len(frames.calibration))
    unlabelled = replace(frames.calibration, targets=blank)
    frames = replace(frames, calibration=unlabelled)
    if len(unlabelled) < 2 * LEAST_FRAMES:
        few = f"{SILENCE} is left out: it needs {2 * LEAST_FRAMES} frames, half to learn what is usual"
        return frames, (few,)
    try:
        parts = split(unlabelled, fractions={"holdout": SEEN, "calibration": 1 - SEEN}, seed=0)
    except DatasetError:
        # Few groups: tenths of a drive follow each other, so whole stretches are still apart.
        middle = int(SEEN * len(unlabelled))
        parts = {
            "holdout": unlabelled.take(np.arange(middle)),
            "calibration": unlabelled.take(np.arange(middle, len(unlabelled))),
        }
    if len(parts["calibration"]) < LEAST_FRAMES:
        return frames, (f"{SILENCE} is left out: its groups leave too few frames to calibrate on",)
    note = f"{len(parts['holdout'])} frames show {SILENCE} what is usual; the others calibrate"
    return replace(frames, calibration=parts["calibration"], holdout=parts["holdout"]), (note,)


def _beside(
    labelled: Mapping[str, Frames | None], also: Iterable[str], frames: Frames, contract: InputContract
) -> dict[str, Frames]:
    """Returns the frames for each further answer, with its labels if they are of whole pictures.

    Labels of pixels are in the pixels of the data set, which the detector may see otherwise.
    """
    bare = frames.without_labels()
    same = frames.contract is not None and all(
        getattr(frames.contract, key) == getattr(contract, key) for key in ("width", "height", "resize")
    )
    found = {}
    for name in also:
        own = labelled.get(name)
        found[name] = own if own is not None and (same or own.task in _OF_PICTURES) else bare
    return found


def _network(
    found: Recognised, frames: Examples, *, also: Iterable[str]
) -> tuple[onnx.ModelProto, tuple[str, ...], tuple[str, ...]]:
    """Returns the network up to the tensors that the decoder reads, and what its last layers read.

    also: further outputs that it keeps. Its batch is free if possible. Second: feature maps. Third: notes.
    Raises ExportError if there is no such further output.
    """
    tensors = found.fit.reading.tensors
    further = [_output_named(name, found) for name in also]
    maps = [name for name in feature_maps(found.graph, tensors) if name not in tensors]
    # Without what chose the boxes, frames no longer depend on each other, so the batch is tried again.
    network, notes = adapt(keep_outputs(found.graph, [*tensors, *maps, *further]), found.contract)
    if maps:
        raw = open_session(expose_raw(network, [*tensors, *maps]))
        some = _raw(raw, spread(frames, 2), found.contract, rows=False)
        kept = _usable(some[len(tensors) :], min(2, len(frames)))
        maps = [maps[place] for place in kept]
        network, notes = adapt(keep_outputs(found.graph, [*tensors, *maps, *further]), found.contract)
    if not maps:
        notes = (*notes, f"no feature maps were found, so {SILENCE} and the embedding are left out")
    return network, tuple(maps), notes


def _output_named(name: str, found: Recognised) -> str:
    """Returns the tensor of an output of the file. Raises ExportError if there is none."""
    outputs = {own_name(output): output for output in found.tail.outputs}
    if name not in outputs:
        raise ExportError(f"--also: the graph has no output {name!r}; it has {', '.join(outputs)}")
    if outputs[name] in found.fit.reading.tensors:
        raise ExportError(f"--also: output {name} is part of the detector's own answer")
    return outputs[name]


def _usable(maps: Sequence[NDArray[np.float32]], frames: int) -> list[int]:
    """Returns which maps [n,C,h,w] or rows [n,Q,C] of the frames are taken, at most MOST_CHANNELS in all."""
    kept, channels = [], 0
    for place, value in enumerate(maps):
        if value.ndim not in (3, 4) or len(value) != frames or not np.isfinite(value).all():
            continue
        wide = value.shape[1] if value.ndim == 4 else value.shape[2]
        if channels + wide <= MOST_CHANNELS:
            kept.append(place)
            channels += wide
    return kept


def _raw(
    session: ort.InferenceSession, frames: Examples, contract: InputContract, *, rows: bool = True
) -> list[NDArray[np.float32]]:
    """Returns the raw tensors of some frames. rows: each must have one row for each frame, and be finite."""
    if not rows:
        # What looks like a map may be another tensor; frame by frame, its first axis shows.
        names = [value.name for value in session.get_outputs()]
        single = [
            run(session, frames.batch([i], contract).numpy(), contract=contract, names=names)
            for i in range(len(frames))
        ]
        return [np.concatenate([each[name] for each in single]) for name in names]
    parts = [list(values.values()) for _, values in answers(session, frames, contract=contract, batch=8)]
    return [np.concatenate(column) for column in zip(*parts, strict=True)]


def _passes(
    session: ort.InferenceSession, head: DetectorHead, frames: Examples, contract: InputContract
) -> Any:
    """Yields (positions, signals) of frames, batch by batch."""
    for part, values in answers(session, frames, contract=contract, batch=8):
        with torch.no_grad():
            yield part, head.signals([torch.from_numpy(value) for value in values.values()])


def _check(
    session: ort.InferenceSession,
    head: DetectorHead,
    frames: Frames,
    contract: InputContract,
    order: ClassOrder,
) -> tuple[str, ...]:
    """Returns notes on classes and on what is found, from boxes on some labelled frames."""
    if not frames.labelled:
        return ()
    some = spread(frames.calibration, 300)
    answered = []
    for part, signals in _passes(session, head, some, contract):
        boxes = head.task.answer(signals).numpy()
        answered += list(zip(boxes, some.targets[part], strict=True))
    return check_classes(answered, order, head.task)


def _gather(
    session: ort.InferenceSession, head: DetectorHead, part: Examples | None, *, contract: InputContract
) -> scoring.FitSet | None:
    """Returns signals of frames; None without frames."""
    if part is None or not len(part):
        return None
    chosen = spread(part, MAX_FIT)
    seen = [signals for _, signals in _passes(session, head, chosen, contract)]
    dense, means = (
        torch.cat(column) for column in zip(*((s.outputs, s.last_input) for s in seen), strict=True)
    )
    return scoring.FitSet(Signals(dense, means), head.task.collate(chosen.targets), int(dense.shape[2]) - 8)


def _names(
    wanted: Sequence[str] | None, task: Detection, *, labelled: bool, seen: bool, spread: bool
) -> list[str]:
    """Returns the scores to append. Raises ExportError if there is none, or one cannot be appended.

    labelled: there are held-out labels.  seen: there are feature maps of held-out frames.  spread: the
    detector's distributions were found.
    """
    known = scoring.scores_of(task)
    usual = [
        name
        for name, info in known.items()
        # Others read the features of each candidate, which a foreign graph does not name, or run it again.
        if info.exportable
        and info.free
        and info.passes == "one"
        and (spread or name != "box_spread")
        and (info.needs == "nothing" or (labelled and info.needs == "holdout") or name in UNCALIBRATED)
    ]
    usual += [SILENCE] if seen else []
    can = [*usual, *([HEAD] if labelled else [])]
    if not can:
        raise ExportError("no failure score serves a detector")
    if wanted is None:
        return usual
    if list(wanted) == [ALL]:
        return can
    unknown = [name for name in wanted if name not in can]
    if unknown:
        raise ExportError(
            f"score {unknown[0]!r} cannot be appended to this detector; there are {', '.join(can)}"
        )
    return list(wanted)


def _report(found: Recognised) -> dict[str, Any]:
    reading = found.fit.reading
    return {
        "layout": reading.layout,
        "why": reading.why,
        "tensors": [own_name(name) for name in reading.tensors],
        "cut_before": found.tail.cut if not reading.final else "",
        "misses_visible": not reading.final,
        "inside": found.fit.inside,
        "cells_away": None if np.isnan(found.fit.near) else found.fit.near,
    }
