"""Any nn.Module becomes a bundle: `misfire export --torch module:factory --weights w.safetensors`.

factory() --weights--> module --attach to named layers--> LearningLoss++ head fitted on held-out frames
       --score, trace, assemble--> Bundle; the module's weights stay bit-identical
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from misfire_export.assemble import GraphScore, Options, Source, assemble, require_free
from misfire_export.errors import ExportError
from misfire_export.graph.check import require_small_scores
from misfire_export.graph.trace import PixelInput, trace
from misfire_export.measure.calibrate import require_frames
from misfire_export.sources.module_checks import layer_notes, probe_of, settle_classes
from misfire_runtime.bundle import Bundle, Lineage, sha256_file
from misfire_runtime.preprocess import InputContract
from misfire_train import scores as scoring
from misfire_train.attaching import attach
from misfire_train.data import Examples
from misfire_train.failures import settle_failures
from misfire_train.heads import recipe_named
from misfire_train.heads.refit import Refit
from misfire_train.signals import Probe, Score, ScoredModel
from misfire_train.tasks import Task, get_task
from misfire_train.train_config import FailureTable

HEAD = "learning_loss_pp"
RECIPE = "learning-loss-pp"


def export_module_bundle(
    model: nn.Module,
    *,
    contract: InputContract,
    calibration: Examples,
    out: Path,
    options: Options,
    task: str | Task = "classification",
    classes: Sequence[str] = (),
    model_classes: Sequence[str] = (),
    features: Sequence[str] = (),
    last_layer: str | None = None,
    output: str = "",
    data_contract: InputContract | None = None,
    scores: Sequence[str] | None = None,
    fit: Examples | None = None,
    holdout: Examples | None = None,
    lineage: Lineage | None = None,
    score_options: Mapping[str, Mapping[str, Any]] | None = None,
    seed: int = 0,
) -> Bundle:
    """Writes a bundle of a module that maps image [N,C,H,W] to the task's output tensor.

    task: the name of a built-in task, or a `Task`, such as one made by `custom_task`.
    classes: names that the targets count.  model_classes: names in the order of the module's outputs.
    output: of a module that gives a dict or a tuple, the key or position of the answer.
    features: layers that a LearningLoss++ head reads; the head is fitted on `holdout` and knows `fit`.
    last_layer: its last nn.Linear or 1x1 nn.Conv2d, found where it is not named.
    scores: default, the free scores of the task, and the head where `features` are named.
    Raises TraceError where the module has no last layer that scores can use, or an ExportError.
    """
    require_free(Path(out))
    require_frames(len(calibration))
    kind = get_task(task) if isinstance(task, str) else task
    # With uint8 pixels the graph normalises by itself; the module takes what comes out of that.
    plain = contract.model_copy(update={"dtype": "float32"})
    probe = probe_of(model, plain, last_layer=last_layer, features=features, output=output)
    notes = [f"last layer: {probe.last_layer}", *layer_notes(probe, plain)]
    names_in_order = tuple(classes)
    if kind.by_class:
        order, told = settle_classes(
            probe,
            calibration,
            contract=plain,
            data=data_contract or contract,
            task=kind,
            classes=classes,
            stated=model_classes,
        )
        names_in_order, notes = order.names, [*notes, *told]
        calibration = order.of(calibration)
        fit, holdout = (None if part is None else order.of(part) for part in (fit, holdout))
    if holdout is not None:
        table = FailureTable(threshold=options.failure_threshold)
        kind, _ = settle_failures(probe, kind, holdout, contract=plain, table=table)
    recipe = recipe_named(RECIPE)
    refit = Refit(HEAD, probe, kind, recipe, plain, train=fit, holdout=holdout, seed=seed)
    learned = [fit_head(refit, layers=features)] if features else []
    names = list(scores if scores is not None else kind.default_scores)
    sets = {key: _gather(probe, part, plain, kind) for key, part in (("fit", fit), ("holdout", holdout))}
    others = [name for name in names if name != HEAD]
    built = [
        *(learned if scores is None or HEAD in names else []),
        *scoring.build(
            others, task=kind, fit=sets["fit"], holdout=sets["holdout"], **dict(score_options or {})
        ),
    ]
    if HEAD in names and not learned:
        raise ExportError(f"{HEAD} needs --features: the layers that its head reads")
    require_small_scores(built)
    scored = ScoredModel(probe, built, output_name=kind.output_name).eval()
    source = Source(
        graph=trace(scored, contract=contract),
        contract=contract,
        task=kind,
        output=kind.output_name,
        scores=tuple(GraphScore(score.name, score.definition, score.free) for score in built),
        lineage=lineage or Lineage(run_id="module", dataset="unknown", dataset_sha256="0" * 64),
        classes=names_in_order,
        reference=PixelInput(scored, contract=contract) if contract.dtype == "uint8" else scored,
        refit=refit if learned else None,
        ranges=fit,
        extra={"notes": notes},
    )
    return assemble(source, calibration=calibration, out=Path(out), options=options)


def fit_head(refit: Refit, *, layers: Sequence[str]) -> Score:
    """A LearningLoss++ head on these layers. Raises ExportError without frames to fit it on."""
    if refit.train is None or refit.holdout is None:
        raise ExportError(f"{HEAD} is fitted on held-out frames and knows the training frames; give both")
    probe = refit.probe
    attached = attach(
        probe.model, layers=layers, last_layer=probe.last_layer, task=refit.task, output=probe.output
    )
    attached.fit(train=refit.train, holdout=refit.holdout, contract=refit.contract, seed=refit.seed)
    return attached.score.eval().requires_grad_(False)


def module_lineage(target: str, weights: Path | None, dataset: tuple[str, str]) -> Lineage:
    """A foreign module's run is its weights."""
    identity = sha256_file(weights)[:16] if weights is not None else "untrained"
    return Lineage(
        run_id=f"torch-{identity}", dataset=dataset[0], dataset_sha256=dataset[1], config={"torch": target}
    )


def _gather(
    probe: Probe, part: Examples | None, contract: InputContract, task: Task
) -> scoring.FitSet | None:
    if part is None or not len(part):
        return None
    part = scoring.spread(part, scoring.MAX_FIT)
    with torch.no_grad():
        return scoring.gather(probe, part, task.collate(part.targets), contract=contract, batch=64)
