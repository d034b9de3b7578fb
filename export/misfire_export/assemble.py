"""Turns a graph and what is known of it into a bundle folder: checked, measured, written whole or not at all.

Source(graph, task, scores, reference) --check, parity, precision, measure, calibrate--> manifest + files

Every source (a run, a torch module, a foreign graph) ends here, so every bundle is checked the same way. The
folder is built beside its destination and renamed at the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import onnx
from torch import nn

from misfire_export.errors import ExportError, PrecisionError
from misfire_export.graph.check import check_graph
from misfire_export.graph.tunable import place_of
from misfire_export.measure.calibrate import calibrate, operating_points, report, require_frames, score_notes
from misfire_export.measure.conformance import check_conformance
from misfire_export.measure.folds import Folds, deal
from misfire_export.measure.golden import write_golden
from misfire_export.measure.parity import check_parity
from misfire_export.measure.run import Measurement, measure, open_session
from misfire_export.measure.trigger import choose_trigger, scores_by_rate
from misfire_export.options import Options, require_options
from misfire_export.precision.lower import compare, lower
from misfire_runtime.bundle import (
    MANIFEST,
    MODEL,
    Bundle,
    FurtherAnswer,
    HeadPlace,
    Lineage,
    Manifest,
    OutputSpec,
    Parity,
    ScoreSpec,
    hash_files,
    write_manifest,
)
from misfire_runtime.choices import Precision
from misfire_runtime.clock import utc_text, wall_time
from misfire_runtime.files import whole_folder
from misfire_runtime.preprocess import InputContract
from misfire_train.data import Examples
from misfire_train.fitting.refit import Refit
from misfire_train.heads.residual import ResidualHead
from misfire_train.signals import Score
from misfire_train.tasks import Task
from misfire_train.tasks.base import OutputKind

ENGINE = "onnxruntime-cpu"
"""The engine that calibration runs on, by the name that the vehicle's engine reports."""
NO_LABELS = "no labels were given, so no score could be judged"
LEARNED_LOSS = ("learning_loss_pp",)
"""Scores that predict the logarithm of the loss up to a constant."""


@dataclass(frozen=True)
class GraphScore:
    """Describes a score in the graph: its output is `score.<name>`.

    of: name of a further answer of the graph, which the score's name begins with; "" for the task's own.
    """

    name: str
    definition: str
    free: bool
    of: str = ""

    @property
    def plain(self) -> str:
        """Returns its name without that of the answer."""
        return self.name.removeprefix(f"{self.of}_") if self.of else self.name

    @property
    def predicts_loss(self) -> bool:
        """Returns whether c * exp(score) is the predicted loss."""
        return self.plain in LEARNED_LOSS


@dataclass(frozen=True)
class Further:
    """Holds a further answer of a network with several tasks.

    Attributes:
        name: of the answer; its scores are named `<name>_<score>`.
        output: of the graph.
        calibration: the calibration frames with its labels; None if they have none.
        refit: how to fit its learned head again.
    """

    name: str
    task: Task
    output: str
    classes: tuple[str, ...] = ()
    calibration: Examples | None = None
    refit: Refit | None = None


@dataclass(frozen=True)
class Source:
    """Holds a graph and what must be known of it.

    Attributes:
        output: the task's output.
        reference: the trained module that returns {output: tensor} for a batch in the contract's form; None
            if there is none to compare with.
        refit: how to fit the learned head again, for the gate.
        ranges: frames for int8's activation ranges; None takes the calibration frames.
        precision: of the graph as it came.
        labelled: the calibration frames have labels. Without, nothing is judged.
        further: answers beside that of `task`.
        head: its learned head, if it has one.
    """

    graph: onnx.ModelProto
    contract: InputContract
    task: Task
    output: str
    scores: tuple[GraphScore, ...]
    lineage: Lineage
    precision: Precision = "fp32"
    classes: tuple[str, ...] = ()
    reference: nn.Module | None = None
    refit: Refit | None = None
    ranges: Examples | None = None
    labelled: bool = True
    further: tuple[Further, ...] = ()
    head: Score | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


def assemble(source: Source, *, calibration: Examples, out: Path, options: Options) -> Bundle:
    """Checks, measures and writes a bundle; returns it opened, and so verified once more.

    Args:
        source: the graph.
        calibration: frames that nothing was fitted on, labelled if `source.labelled`.
        out: folder of the bundle. An older bundle there is replaced; any other folder is not touched.
        options: how to make it.

    Raises:
        ExportError: something is wrong; `out` is left as it was.
    """
    # Cheap checks come first: measuring takes minutes.
    require_free(out)
    require_frames(len(calibration))
    require_options(options, [score.name for score in source.scores])
    answers = [source.output, *(answer.output for answer in source.further)]
    check_graph(source.graph, source.contract, outputs=[*answers, *_score_outputs(source)])
    session = open_session(source.graph)
    # Of the graph as traced: a lower precision differs from torch on purpose.
    parity = _parity(source, session, calibration, options)
    graph, reports = source.graph, dict(source.extra)
    if options.precision != "fp32":
        _require_full(source, options)
        graph = lower(
            source.graph,
            precision=options.precision,
            target=options.target,
            ranges=source.ranges or calibration,
            contract=source.contract,
            output=source.output,
        )
        # Failures of both are by the threshold of the full graph: else a shifted loss would hide itself.
        full = _measure(source, session, calibration, threshold=options.failure_threshold)
        # From here on everything is measured on the graph that ships.
        session = open_session(graph)
        lowered = _measure(source, session, calibration, threshold=full.threshold)
        reports["precision"] = compare(full, lowered, precision=options.precision, target=options.target)
    # Before the scores are judged: a graph that is refused needs no numbers.
    if options.target == "tensorrt":
        reports["tensorrt"] = check_conformance(graph)
    measured = _measure(source, session, calibration, threshold=options.failure_threshold)
    folds = deal(measured.groups, seed=options.seed)
    precision = source.precision if options.precision == "fp32" else options.precision
    parts = {"": measured, **_measure_further(source, session, measured)}
    specs, reports["scores"] = _score_specs(source, parts, folds, precision, seed=options.seed)
    default, reports["gate"] = _default_score(source, measured, calibration, session, options)
    if source.further:
        reports["further"] = _report_further(source, parts, session, options)
    of = next(score.of for score in source.scores if score.name == default)
    judged = replace(measured, failed=parts[of].failed)
    notes = [*reports.get("notes", ()), *score_notes(judged, default)]
    if notes:
        reports["notes"] = notes
    reports["calibration"] = {
        "frames": len(measured),
        "cross_fitted": folds.about,
        "labelled": measured.labelled,
        "failures": int(measured.failed.sum()) if measured.labelled else None,
        "failure_threshold": measured.threshold,
        "accuracy": measured.accuracy if measured.labelled else None,
        "target": options.target,
    }
    with whole_folder(out) as work:
        (work / MODEL).write_bytes(graph.SerializeToString(deterministic=True))
        write_golden(work, session, calibration, contract=source.contract, seed=options.seed)
        manifest = Manifest(
            name=options.name,
            version=options.version,
            task=source.task.bundle_task,
            created_at=utc_text(wall_time()),
            precision=precision,
            input=source.contract,
            outputs=_outputs(graph, source),
            classes=source.classes,
            detection=source.task.box_rule,
            further=tuple(
                FurtherAnswer(
                    name=answer.name,
                    output=answer.output,
                    kind=answer.task.output_kind,
                    classes=answer.classes,
                )
                for answer in source.further
            ),
            scores=specs,
            default_score=default,
            scores_by_rate=scores_by_rate(reports["gate"]),
            upload_rate=options.upload_rate,
            head=_head_place(graph, source),
            parity=parity,
            lineage=source.lineage,
            extra=reports,
            files=hash_files(work),
        )
        # Last, because it holds the checksums of all other files.
        write_manifest(work, manifest)
        # A bundle that cannot be opened must not replace one that can.
        Bundle.open(work)
    return Bundle.open(out)


def _parity(source: Source, session: Any, calibration: Examples, options: Options) -> Parity | None:
    if source.reference is None:
        return None
    return check_parity(
        source.reference, session, calibration, contract=source.contract, tolerance=options.tolerance
    )


def _require_full(source: Source, options: Options) -> None:
    if source.precision != "fp32":
        raise PrecisionError(
            f"--precision {options.precision}: the graph is {source.precision} already; leave it out, "
            "or export the fp32 file"
        )


def _measure_further(source: Source, session: Any, own: Measurement) -> dict[str, Measurement]:
    """Returns scores of each further answer by their own names, with its failures if it has labels."""
    found = {}
    for answer in source.further:
        names = [score.name for score in source.scores if score.of == answer.name]
        # Failures of the task say nothing about another answer.
        measured = replace(own, scores={name: own.scores[name] for name in names}, labelled=False)
        if answer.calibration is not None:
            measured = _measure_answer(source, answer, session, answer.calibration, threshold=None)
        found[answer.name] = measured
    return found


def _measure_answer(
    source: Source, answer: Further, session: Any, frames: Examples, *, threshold: float | None
) -> Measurement:
    return measure(
        session,
        frames,
        contract=source.contract,
        task=answer.task,
        output=answer.output,
        scores=[score.name for score in source.scores if score.of == answer.name],
        threshold=threshold,
    )


def _report_further(
    source: Source, parts: Mapping[str, Measurement], session: Any, options: Options
) -> dict[str, Any]:
    """Returns accuracy, failures and the gate's choice of each further answer."""
    reports: dict[str, Any] = {}
    for answer in source.further:
        measured = parts[answer.name]
        report: dict[str, Any] = {"task": answer.task.name, "labelled": measured.labelled}
        if answer.calibration is not None:
            trigger, gate = _choose_further(source, answer, measured, session, options)
            report |= {
                "accuracy": measured.accuracy,
                "failures": int(measured.failed.sum()),
                "failure_threshold": measured.threshold,
                "trigger": trigger,
                "gate": gate,
            }
        reports[answer.name] = report
    return reports


def _choose_further(
    source: Source, answer: Further, measured: Measurement, session: Any, options: Options
) -> tuple[str, dict[str, Any]]:
    """Returns the score of a further answer that its gate chooses, and the gate's report in plain names."""
    own = [score for score in source.scores if score.of == answer.name]
    plain = {score.name: score.plain for score in own}
    free = {score.plain for score in own if score.free}
    preferred = answer.task.default_free_score
    assert answer.calibration is not None

    def renamed(found: Measurement) -> Measurement:
        return replace(found, scores={plain[name]: values for name, values in found.scores.items()})

    def measured_again(frames: Examples) -> Measurement:
        return renamed(_measure_answer(source, answer, session, frames, threshold=measured.threshold))

    chosen, report = choose_trigger(
        renamed(measured),
        answer.calibration,
        measure=measured_again,
        free=free,
        fallback=preferred if preferred in free else None,
        refit=answer.refit,
        shifts=options.shifts,
        seed=options.seed,
    )
    return f"{answer.name}_{chosen}", report


def _score_specs(
    source: Source, parts: Mapping[str, Measurement], folds: Folds, precision: Precision, *, seed: int
) -> tuple[tuple[ScoreSpec, ...], dict[str, Any]]:
    specs, reports = [], {}
    for score in source.scores:
        judged = parts[score.of]
        calibration = calibrate(
            score.name,
            judged,
            engine=ENGINE,
            precision=precision,
            predicts_loss=score.predicts_loss,
        )
        specs.append(
            ScoreSpec(
                name=score.name,
                definition=score.definition,
                free=score.free,
                of=score.of,
                calibration=calibration,
                operating_points=operating_points(score.name, judged, folds=folds, seed=seed),
            )
        )
        reports[score.name] = report(
            score.name, judged, folds=folds, predicts_loss=calibration.expected_loss is not None
        )
    return tuple(specs), reports


def _default_score(
    source: Source, measured: Measurement, calibration: Examples, session: Any, options: Options
) -> tuple[str, dict[str, Any]]:
    """Returns the trigger score: the requested one, or the gate's winner among what this engine measured."""
    names = [score.name for score in source.scores if not score.of]
    if options.default_score is not None:
        return options.default_score, {"verdict": "chosen by hand"}
    free = {score.name for score in source.scores if score.free and not score.of}
    if not free:
        return names[0], {"verdict": f"no free score in the bundle to compare with: trigger on {names[0]}"}
    preferred = source.task.default_free_score
    if not measured.labelled:
        chosen = preferred if preferred in free else next(name for name in names if name in free)
        return chosen, {"verdict": f"{NO_LABELS}: trigger on the free score {chosen}"}
    own = replace(source, scores=tuple(score for score in source.scores if not score.of))
    return choose_trigger(
        replace(measured, scores={name: measured.scores[name] for name in names}),
        calibration,
        measure=lambda frames: _measure(own, session, frames, threshold=measured.threshold),
        free=free,
        fallback=preferred if preferred in free else None,
        refit=source.refit,
        shifts=options.shifts,
        seed=options.seed,
        budget=options.upload_rate,
    )


def _measure(source: Source, session: Any, frames: Examples, *, threshold: float | None) -> Measurement:
    return measure(
        session,
        frames,
        contract=source.contract,
        task=source.task,
        output=source.output,
        scores=[score.name for score in source.scores],
        threshold=threshold,
        labelled=source.labelled,
    )


def _outputs(graph: onnx.ModelProto, source: Source) -> tuple[OutputSpec, ...]:
    specs = []
    kind: OutputKind | Literal["score", "box", "embedding"]
    for value in graph.graph.output:
        dims = value.type.tensor_type.shape.dim
        shape = tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in dims)
        if value.name == source.output:
            kind = source.task.output_kind
        elif value.name.startswith("score."):
            kind = "score"
        else:
            kind = "embedding" if value.name == "embedding" else "other"
            if value.name.startswith("box."):
                kind = "box"
        specs.append(OutputSpec(name=value.name, kind=kind, shape=shape))
    return tuple(specs)


def _head_place(graph: onnx.ModelProto, source: Source) -> HeadPlace | None:
    """Returns where the learned head is in the shipped graph; None if none can be fitted again."""
    if not isinstance(source.head, ResidualHead):
        return None
    return place_of(graph.graph, source.head, score=source.head.name)


def _score_outputs(source: Source) -> list[str]:
    return [f"score.{score.name}" for score in source.scores]


def require_free(out: Path) -> None:
    """Raises ExportError if `out` is something else than a bundle or an empty folder."""
    if out.exists() and not (out / MANIFEST).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise ExportError(f"{out} exists and is not a bundle; choose another --out")
