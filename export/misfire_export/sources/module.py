"""Makes a bundle of any nn.Module: `misfire export --torch module:factory --weights w.safetensors`.

factory() --weights--> module --attach to named layers--> LearningLoss++ head fitted on held-out frames
       --score, trace, assemble--> Bundle; the module's weights stay bit-identical
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from misfire_export.assemble import Further, GraphScore, Source, assemble, require_free
from misfire_export.errors import ExportError
from misfire_export.graph.check import require_small_scores
from misfire_export.graph.trace import PixelInput, trace
from misfire_export.graph.tunable import open_head
from misfire_export.measure.calibrate import require_frames
from misfire_export.options import Options
from misfire_export.sources.facts import ModelFacts
from misfire_export.sources.frames import Frames, labels_by_output, quantiles_only
from misfire_export.sources.module_checks import layer_notes, outputs_of, probe_of, settle_classes
from misfire_export.sources.score_names import HEAD, further_name, further_output, wanted_scores
from misfire_runtime.bundle import Bundle, Lineage, sha256_file
from misfire_train import scores as scoring
from misfire_train.attaching import Attached, attach
from misfire_train.data import Examples
from misfire_train.fitting.failures import settle_failures
from misfire_train.fitting.refit import Refit
from misfire_train.heads import recipe_named
from misfire_train.signals import Score, ScoredAnswers, ScoredModel
from misfire_train.tasks import Task, get_task
from misfire_train.tasks.custom import CustomTask
from misfire_train.train_config import FailureTable

RECIPE = "learning-loss-pp"
CUSTOM = CustomTask.name


def export_module_bundle(
    model: nn.Module | Attached, frames: Frames, facts: ModelFacts, *, out: Path, options: Options
) -> Bundle:
    """Writes a bundle of a module that maps image [N,C,H,W] to the task's output tensor.

    Args:
        model: The module, in eval mode; or what `attach` returned, fitted: then the bundle has its head and
            its task, and `facts.task`, `features`, `last_layer`, `output` and `also` are not read.
        frames: Frames, without labels for upload rates only. With `facts.features` a head is fitted on
            `holdout` and knows `fit`.
        facts: What is known of the module.
        out: Folder of the bundle.
        options: How to make it. Scores: by default the free scores of the task, and the head if there are
            `facts.features`.

    Returns:
        The bundle, opened.

    Raises:
        TraceError: The module has no last layer that scores can use.
        ExportError: Something else is wrong; `out` then stays as it was.
    """
    require_free(Path(out))
    require_frames(len(frames.calibration))
    attached = model if isinstance(model, Attached) else None
    labels = labels_by_output(
        frames,
        () if isinstance(model, Attached) else outputs_of(model, facts.contract),
        output=facts.output,
        also=facts.also,
    )
    facts = replace(facts, output=labels.output, task=labels.task or facts.task)
    own = _score_answer(model, labels.frames, facts, options)
    others = {
        further_name(name): _score_answer(
            model,
            labels.further.get(name) or frames.without_labels(),
            replace(facts, output=name, task=_further_task(task), classes=(), last_layer=None),
            replace(options, scores=None, score_options={}, failure_threshold=None),
        )
        for name, task in labels.also.items()
    }
    contract, kind = facts.contract, own.refit.task
    scored: nn.Module = own.model
    if others:
        parts = {name: other.model for name, other in others.items()}
        scored = ScoredAnswers(own.model, parts, outputs={name: further_output(name) for name in parts})
    source = Source(
        graph=trace(scored, contract=contract),
        contract=contract,
        task=kind,
        output=kind.output_name,
        scores=(
            *(GraphScore(score.name, score.definition, score.free) for score in own.scores),
            *(
                GraphScore(f"{name}_{score.name}", f"{score.definition}, of {name}", score.free, name)
                for name, other in others.items()
                for score in other.scores
            ),
        ),
        # The manifest needs a checksum; zeros mark an unknown data set.
        lineage=facts.lineage or Lineage(run_id="module", dataset="unknown", dataset_sha256="0" * 64),
        classes=own.classes,
        reference=PixelInput(scored, contract=contract) if contract.dtype == "uint8" else scored,
        refit=own.refit if facts.features or attached else None,
        ranges=own.frames.fit,
        labelled=own.frames.labelled,
        further=tuple(_further(name, other, headed=bool(facts.features)) for name, other in others.items()),
        head=next((score for score in own.scores if score.name == HEAD), None),
        extra={"notes": [*own.notes, *frames.notes, *_told_further(others)]},
    )
    return assemble(source, calibration=own.frames.calibration, out=Path(out), options=options)


@dataclass(frozen=True)
class _ScoredAnswer:
    """Holds one answer of a module with its scores, fitted on frames with its labels."""

    model: ScoredModel
    refit: Refit
    scores: tuple[Score, ...]
    classes: tuple[str, ...]
    frames: Frames
    notes: tuple[str, ...]


def _score_answer(
    model: nn.Module | Attached, frames: Frames, facts: ModelFacts, options: Options
) -> _ScoredAnswer:
    """Returns one answer with its scores. facts.output names it."""
    attached = model if isinstance(model, Attached) else None
    contract, kind = facts.contract, _task(facts) if attached is None else attached.task
    # With uint8 pixels the graph normalises by itself; the module takes what comes out of that.
    plain = contract.model_copy(update={"dtype": "float32"})
    probe = (
        probe_of(
            model,
            plain,
            last_layer=facts.last_layer,
            features=facts.features,
            output=facts.output,
            task=kind,
            frames=frames.calibration,
        )
        if isinstance(model, nn.Module)
        # The caller's network keeps its mode.
        else copy.deepcopy(model.probe).eval().requires_grad_(False)
    )
    notes = [f"last layer: {probe.last_layer}", *layer_notes(probe, plain, frames.calibration)]
    classes = frames.classes or tuple(facts.classes)
    if (kind.by_class or kind.independent) and frames.labelled:
        order, told = settle_classes(probe, frames, contract=plain, task=kind, stated=facts.classes)
        classes, notes, frames = order.names, [*notes, *told], frames.relabelled(order.of)
    if frames.holdout is not None and frames.labelled:
        table = FailureTable(threshold=options.failure_threshold)
        kind, _ = settle_failures(probe, kind, frames.holdout, contract=plain, table=table)
    refit = Refit(
        HEAD,
        probe,
        kind,
        recipe_named(RECIPE) if attached is None else attached.recipe,
        plain,
        train=frames.fit,
        holdout=frames.holdout,
        seed=options.seed,
    )
    features = facts.features if frames.labelled or not facts.output else ()
    built = _build_scores(refit, features, options, attached=attached, labelled=frames.labelled)
    require_small_scores(built)
    scored = ScoredModel(probe, built, output_name=kind.output_name, answer=kind.answer).eval()
    return _ScoredAnswer(scored, refit, tuple(built), classes, frames, tuple(notes))


def _further(name: str, answer: _ScoredAnswer, *, headed: bool) -> Further:
    labelled = answer.frames.labelled
    return Further(
        name,
        answer.refit.task,
        further_output(name),
        answer.classes,
        answer.frames.calibration if labelled else None,
        answer.refit if labelled and headed else None,
    )


def _further_task(name: str) -> str:
    """Returns a task that a further answer can have. Raises ExportError on any other."""
    if get_task(name).output_kind in ("boxes", "other"):
        raise ExportError(f"--also: a further answer cannot be {name}; make it the answer with --output")
    return name


def _told_further(others: Mapping[str, _ScoredAnswer]) -> list[str]:
    notes = [f"{name}: {note}" for name, other in others.items() for note in other.notes]
    bare = [name for name, other in others.items() if not other.frames.labelled]
    return [*notes, *([quantiles_only(bare)] if bare else [])]


def _task(facts: ModelFacts) -> Task:
    """Returns the task. Raises ExportError on "custom", which is the name of no task."""
    if isinstance(facts.task, Task):
        return facts.task
    if facts.task == CUSTOM:
        raise ExportError(
            "a custom task is not known by name: give what custom_task(...) returned, as "
            "ModelFacts(task=...), or --task module:task"
        )
    return get_task(facts.task)


def _build_scores(
    refit: Refit,
    features: Sequence[str],
    options: Options,
    *,
    attached: Attached | None,
    labelled: bool = True,
) -> list[Score]:
    """Returns the head, if it has layers to read, and the other scores by name."""
    headed = bool(features) or attached is not None
    names = wanted_scores(options.scores, task=refit.task, head=headed)
    if HEAD in names and not headed:
        raise ExportError(f"{HEAD} needs --features: the layers that its head reads")
    if not names:
        raise ExportError(
            f"the task {refit.task.name} has no free score, so the bundle would have no score at all: add "
            "--features for a learned head, --scores, or the task's own scores (custom_task(..., scores=))"
        )
    if attached is not None:
        learned = [copy.deepcopy(attached.score).eval().requires_grad_(False)]
    else:
        learned = [fit_head(refit, layers=features)] if features else []
    return [
        *(open_head(each, refittable=options.refittable) for each in learned if HEAD in names),
        *scoring.build(
            [name for name in names if name != HEAD],
            task=refit.task,
            fit=_gather(refit, refit.train if labelled else None),
            holdout=_gather(refit, refit.holdout if labelled else None),
            **dict(options.score_options),
        ),
    ]


def fit_head(refit: Refit, *, layers: Sequence[str]) -> Score:
    """Returns a LearningLoss++ head on these layers. Raises ExportError without frames to fit it on."""
    if refit.train is None or refit.holdout is None:
        raise ExportError(f"{HEAD} is fitted on held-out frames and knows the training frames; give both")
    probe = refit.probe
    attached = attach(
        probe.model, layers=layers, last_layer=probe.last_layer, task=refit.task, output=probe.output
    )
    attached.fit(train=refit.train, holdout=refit.holdout, contract=refit.contract, seed=refit.seed)
    return attached.score.eval().requires_grad_(False)


def module_lineage(target: str, weights: Path | None, dataset: tuple[str, str]) -> Lineage:
    """Returns the lineage of a foreign module: its run is its weights."""
    identity = sha256_file(weights)[:16] if weights is not None else "untrained"
    return Lineage(
        run_id=f"torch-{identity}", dataset=dataset[0], dataset_sha256=dataset[1], config={"torch": target}
    )


def _gather(refit: Refit, part: Examples | None) -> scoring.FitSet | None:
    if part is None or not len(part):
        return None
    part, task = scoring.spread(part, scoring.MAX_FIT), refit.task
    with torch.no_grad():
        return scoring.gather(
            refit.probe,
            part,
            task.collate(part.targets),
            contract=refit.contract,
            batch=64,
            lighten=task.lighten,
        )
