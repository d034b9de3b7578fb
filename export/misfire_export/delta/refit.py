"""Makes the next bundle of a bundle by a head-only round: other tensors of its head, calibrated in the field.

bundle's graph, labelled frames --read, copy, weigh--> rows --refit_head--> tensors --patch--> new graph
new graph, frames of the stream --ONNX Runtime--> quantiles, thresholds, expected loss --> Refitted

The network is never run by anything but its own graph, and its answers are compared before and after.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray

from misfire_export.delta.calibrating import StreamFrames, field_spec, join_streams
from misfire_export.delta.reading import HeadGraph, scores_of
from misfire_export.errors import ExportError
from misfire_export.measure.run import answers, open_session
from misfire_runtime.bundle import Bundle
from misfire_runtime.clock import utc_text, wall_time
from misfire_runtime.delta import Refitted
from misfire_runtime.delta.golden import GOLDEN
from misfire_runtime.delta.initialisers import patch
from misfire_train.data import Examples
from misfire_train.data.examples import join
from misfire_train.fitting import head_only
from misfire_train.fitting.head_only import FieldRecipe, FieldRows, refit_head, stream_weights
from misfire_train.heads import recipe_named
from misfire_train.heads.data import LossSet, corrupted_copies, join_sets
from misfire_train.heads.residual import ResidualHead
from misfire_train.heads.strength import LEAST_PER_FOLD, auroc_influence

_COMPARED = 64
"""Frames on which the network's answers before and after are compared, bit for bit."""
_CLOSE = 1e-3
"""Largest difference between the head in torch and in the graph, relative to a score of 1."""


@dataclass(frozen=True)
class FieldFrames:
    """Holds labelled frames of the field, and frames of the unbiased stream without labels.

    Attributes:
        fit: to fit on.  fit_random: [N] bool, of the unbiased stream.
        held: of other groups, to judge the result on; None if there are none.  held_random: as above.
        stream: without labels, of groups that are not fitted on; their targets are not read.
    """

    fit: Examples
    fit_random: NDArray[np.bool_]
    held: Examples | None = None
    held_random: NDArray[np.bool_] = field(default_factory=lambda: np.empty(0, bool))
    stream: Examples | None = None


@dataclass(frozen=True)
class RoundOptions:
    """Specifies the next bundle.

    snapshot_id: hash of the labels' snapshot.
    """

    version: str
    snapshot_id: str | None = None
    recipe: FieldRecipe = field(default_factory=FieldRecipe)
    seed: int = 0


def refit_bundle(bundle: Bundle, frames: FieldFrames, options: RoundOptions) -> Refitted:
    """Returns what the next bundle has of its own: tensors, golden answers, manifest, report.

    Args:
        bundle: the bundle as it is.
        frames: labelled frames of the field.
        options: of the round.

    Raises:
        ExportError: the bundle has no head that can be fitted again, or the stream has too few frames.
        ConfigError: there are too few labelled frames, or they do not fit the task.
    """
    graph = HeadGraph.open(bundle)
    old, manifest, score = graph.head(), bundle.manifest, graph.place.score
    rows = _rows(graph, frames, options)
    _require_same_head(graph, old, frames, score)
    found = refit_head(old, rows, recipe=options.recipe, seed=options.seed)
    notes = _fit_notes(frames, rows, found)
    held = None if frames.held is None else graph.rows(frames.held)
    check = _check(found, old, held, frames)
    if check.get("worse"):
        found = replace(found, head=old, new=found.old, choice=replace(found.choice, strength=0.0))
        notes.append("on the held-out frames the new head is worse than the old one: the old one is kept")
    tensors = _changed(graph, old, found.head)
    with tempfile.TemporaryDirectory(prefix="misfire-head-") as folder:
        model = Path(folder) / "model.onnx"
        patch(bundle.model_path, model, tensors)
        compared = _require_same_network(bundle, model, frames, score)
        # The rows of the frames as they were come first.
        own = rows.data.take(torch.arange(len(frames.fit)))
        stream = _stream(model, frames, bundle, found=found, own=own, held=held, score=score)
        spec, curves, told = field_spec(
            manifest.score(score), stream, precision=manifest.precision, seed=options.seed
        )
        golden = _golden(bundle, model, score)
    if found.changed and old.strength == 0:
        definition = (
            f"log-loss predicted as {old.base} + correction from output statistics, fitted in the field"
        )
        spec = spec.model_copy(update={"definition": definition})
    report = {
        "score": score,
        "snapshot": options.snapshot_id,
        "labelled": {
            "fitted_on": len(frames.fit),
            "of_the_random_stream": int(frames.fit_random.sum()),
            "held_out": 0 if frames.held is None else len(frames.held),
            "held_out_of_the_random_stream": int(frames.held_random.sum()),
        },
        "stream_frames": len(stream.all),
        "strength": found.choice.strength,
        "left_out": _left_out(found, rows),
        "held_out": check,
        "network_compared_on": compared,
        "notes": [*notes, *told],
    }
    scores = tuple(spec if each.name == score else each for each in manifest.scores)
    old_curves: Mapping[str, Any] = manifest.extra.get("scores", {})
    extra = {**manifest.extra, "scores": {**old_curves, score: curves}, "head_only": report}
    lineage = manifest.lineage.model_copy(
        update={} if options.snapshot_id is None else {"snapshot_id": options.snapshot_id}
    )
    changed = {
        "version": options.version,
        "created_at": utc_text(wall_time()),
        "scores": scores,
        "lineage": lineage,
        "extra": extra,
    }
    return Refitted(score, tensors, golden, manifest.model_copy(update=changed), report)


def _rows(graph: HeadGraph, frames: FieldFrames, options: RoundOptions) -> FieldRows:
    """Returns rows of the labelled frames and their corrupted copies, weighted as the stream has them."""
    recipe = replace(recipe_named("learning-loss-pp"), copies=options.recipe.copies)
    copies = corrupted_copies(frames.fit, recipe, seed=options.seed) if options.recipe.copies else []
    own = graph.rows(frames.fit)
    data = join_sets([own, *(graph.rows(copy, clean=False) for copy in copies)])
    random = frames.fit_random
    weights: NDArray[np.float64] = np.ones(len(frames.fit))
    if random.any() and not random.all():
        trigger = graph.bundle.manifest.default_score
        parts = [frames.fit.take(np.flatnonzero(random))]
        if frames.stream is not None:
            parts.append(frames.stream)
        at = {
            name: scores_of(graph.bundle.model_path, part, graph.bundle.manifest, [trigger])[trigger]
            for name, part in (("stream", _together(parts)), ("fit", frames.fit))
        }
        weights = stream_weights(at["stream"], at["fit"])
    # Uploads were chosen by a score, which may be the old head: judging on them would favour the new one.
    judged = random if _can_judge(own, random) else np.ones(len(random), bool)
    return FieldRows(data, torch.from_numpy(weights), judged)


def _together(parts: list[Examples]) -> Examples:
    """Returns the images of several sets; their labels are not read."""
    bare = [replace(part, targets=np.zeros(len(part), np.int64)) for part in parts]
    return bare[0] if len(bare) == 1 else join(bare)


def _can_judge(own: LossSet, random: NDArray[np.bool_]) -> bool:
    if own.failed is None:
        return bool(random.any())
    failed = own.failed.numpy()[random]
    return min(int(failed.sum()), int((~failed).sum())) >= 2 * LEAST_PER_FOLD


def _fit_notes(frames: FieldFrames, rows: FieldRows, found: head_only.Refitted) -> list[str]:
    notes = []
    if not frames.fit_random.any():
        notes.append(
            "no labelled frame to fit on is of the random stream: all were chosen by a score, and nothing "
            "says how often such frames are"
        )
    elif not np.array_equal(rows.judged, frames.fit_random):
        notes.append(
            "the random stream has too few labelled failures or successes: heads were compared on uploads, "
            "too, which were chosen by a score"
        )
    if not found.changed:
        failures = int(found.failed[rows.judged].sum())
        notes.append(
            f"the old head is kept: on groups left out ({failures} failures among {int(rows.judged.sum())} "
            "frames) no new one was better beyond one standard error"
        )
    elif found.choice.strength < 1:
        notes.append(
            f"the new head goes {found.choice.strength:g} of the way from the old one: more was not better "
            "on groups left out"
        )
    return notes


def _left_out(found: head_only.Refitted, rows: FieldRows) -> dict[str, Any]:
    """Returns AUROCs on groups left out of the frames to fit on."""
    choice = found.choice
    gain = choice.gain
    return {
        "by": choice.by,
        "count": choice.count,
        "frames": int(rows.judged.sum()),
        "failures": int(found.failed[rows.judged].sum()),
        "auroc_before": choice.free,
        "gain": None if gain is None else gain.both,
        "error": None if gain is None else gain.error,
    }


def _check(
    found: head_only.Refitted, old: ResidualHead, held: LossSet | None, frames: FieldFrames
) -> dict[str, Any]:
    """Returns AUROCs of both heads on held-out frames, of the stream if those suffice."""
    if held is None or held.failed is None:
        return {"frames": 0}
    random = frames.held_random
    use = random if _can_judge(held, random) else np.ones(len(random), bool)
    failed = held.failed.numpy()[use]
    result: dict[str, Any] = {
        "frames": int(use.sum()),
        "failures": int(failed.sum()),
        "random": bool(np.array_equal(use, random)),
    }
    if min(int(failed.sum()), int((~failed).sum())) < LEAST_PER_FOLD:
        return result
    with torch.no_grad():
        before, after = (
            head.pool(head.predict(held.parts)).double().numpy()[use] for head in (old, found.head)
        )
    (area, influence), (new_area, new_influence) = (auroc_influence(each, failed) for each in (before, after))
    error = float(np.sqrt(np.square(new_influence - influence).sum()))
    gain = new_area - area
    return {
        **result,
        "auroc_before": area,
        "auroc_after": new_area,
        "gain": gain,
        "low": gain - 1.96 * error,
        "high": gain + 1.96 * error,
        # One standard error, as for the choice: two hundred frames show no more.
        "worse": bool(found.changed and gain + error < 0),
    }


def _changed(graph: HeadGraph, old: ResidualHead, new: ResidualHead) -> dict[str, NDArray[np.float32]]:
    """Returns the tensors that differ, by initialiser."""
    before, after = old.state_dict(), new.state_dict()
    return {
        initialiser: after[name].numpy().astype(np.float32)
        for name, initialiser in graph.place.tensors.items()
        if not torch.equal(before[name], after[name])
    }


def _require_same_head(graph: HeadGraph, head: ResidualHead, frames: FieldFrames, score: str) -> None:
    """Raises ExportError if the head in torch is not the one in the graph."""
    some = frames.fit.take(np.arange(min(_COMPARED, len(frames.fit))))
    data = graph.rows(some)
    with torch.no_grad():
        here = head.pool(head.predict(data.parts)).double().numpy()
    there = scores_of(graph.bundle.model_path, some, graph.bundle.manifest, [score])[score]
    worst = float(np.abs(here - there).max() / max(1.0, float(np.abs(there).max())))
    if not worst <= _CLOSE:
        raise ExportError(
            f"{graph.bundle.path}: {score} of the graph differs from its head by {worst:.2g}: the manifest "
            "describes another head"
        )


def _require_same_network(bundle: Bundle, model: Path, frames: FieldFrames, score: str) -> int:
    """Compares all outputs but the score bit for bit, and returns on how many frames.

    Raises ExportError if one differs.
    """
    some = frames.fit.take(np.arange(min(_COMPARED, len(frames.fit))))
    before, after = (open_session(path.read_bytes()) for path in (bundle.model_path, model))
    names = [output.name for output in before.get_outputs() if output.name != f"score.{score}"]
    contract = bundle.manifest.input
    pairs = zip(
        answers(before, some, contract=contract, names=names),
        answers(after, some, contract=contract, names=names),
        strict=True,
    )
    for (_, left), (_, right) in pairs:
        for name in names:
            if left[name].tobytes() != right[name].tobytes():
                raise ExportError(f"output {name} of the network changed with its head: nothing was written")
    return len(some)


def _stream(
    model: Path,
    frames: FieldFrames,
    bundle: Bundle,
    *,
    found: head_only.Refitted,
    own: LossSet,
    held: LossSet | None,
    score: str,
) -> StreamFrames:
    """Returns the frames of the random stream with the scores of heads that were not fitted on them."""
    none = np.empty(0)
    random = np.flatnonzero(frames.fit_random)
    parts = [
        StreamFrames(
            found.new[random],
            own.frame_losses.double().numpy()[random],
            found.failed[random],
            tuple(frames.fit.groups[i] for i in random),
            tuple(frames.fit.ids[i] for i in random),
            none,
        )
    ]
    if frames.held is not None and held is not None and frames.held_random.any():
        places = np.flatnonzero(frames.held_random)
        kept = frames.held.take(places)
        losses = held.frame_losses.double().numpy()[places]
        failed = held.failed.numpy()[places] if held.failed is not None else losses > np.quantile(losses, 0.8)
        values = scores_of(model, kept, bundle.manifest, [score])[score]
        parts.append(StreamFrames(values, losses, failed, kept.groups, kept.ids, none))
    whole = join_streams(*parts)
    if frames.stream is None or not len(frames.stream):
        return whole
    return replace(whole, unlabelled=scores_of(model, frames.stream, bundle.manifest, [score])[score])


def _golden(bundle: Bundle, model: Path, score: str) -> dict[str, NDArray[np.float32]]:
    """Returns the answers of the new head to the golden frames."""
    if GOLDEN not in bundle.manifest.files:
        return {}
    with np.load(bundle.path / GOLDEN, allow_pickle=False) as archive:
        image = archive["image"]
    session: ort.InferenceSession = open_session(model.read_bytes())
    values = session.run([f"score.{score}"], {bundle.manifest.input.name: image})[0]
    return {f"output.score.{score}": np.asarray(values, np.float32)}
