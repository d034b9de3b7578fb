"""Any nn.Module becomes a bundle: `misfire export --torch module:factory --weights w.safetensors`.

factory() --weights--> module --attach to named layers--> LearningLoss++ head fitted on held-out frames
       --score, trace, assemble--> Bundle; the module's weights stay bit-identical
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from misfire_export.assembling import GraphScore, Options, Source, assemble, require_free
from misfire_export.calibrating import require_frames
from misfire_export.checking import require_small_scores
from misfire_export.errors import ExportError, TraceError
from misfire_export.refitting import Refit
from misfire_export.tracing import PixelInput, trace
from misfire_runtime.bundle import Bundle, Lineage, sha256_file
from misfire_runtime.preprocess import InputContract
from misfire_train import scores as scoring
from misfire_train.attach import attach, find_last_layer
from misfire_train.data import Examples
from misfire_train.failures import settle_failures
from misfire_train.heads import recipe_named
from misfire_train.runs import read_tensors
from misfire_train.signals import Probe, Score, ScoredModel
from misfire_train.tasks import get_task
from misfire_train.train_config import FailureTable

HEAD = "learning_loss_pp"
RECIPE = "learning-loss-pp"


def load_module(target: str, *, weights: Path | None = None) -> nn.Module:
    """The module that `package.module:factory` makes, in eval mode, with weights of a safetensors file.

    A factory is a function or class without required arguments, or a module. The current folder is searched.
    Raises ExportError where it cannot be imported, called, or loaded into.
    """
    name, _, attribute = target.partition(":")
    if not name or not attribute:
        raise ExportError(f"--torch is {target!r}; expected module:factory")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(name), attribute)
        model = found if isinstance(found, nn.Module) else found()
    except Exception as error:
        raise ExportError(f"--torch {target}: {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise ExportError(f"--torch {target} gave {type(model).__name__}; expected an nn.Module")
    if weights is not None:
        try:
            model.load_state_dict(read_tensors(weights))
        except RuntimeError as error:
            raise ExportError(
                f"{weights} does not fit {target}: {str(error).splitlines()[-1].strip()}"
            ) from error
    return model.eval().requires_grad_(False)


def export_module_bundle(
    model: nn.Module,
    *,
    contract: InputContract,
    calibration: Examples,
    out: Path,
    options: Options,
    task: str = "classification",
    classes: Sequence[str] = (),
    features: Sequence[str] = (),
    last_layer: str | None = None,
    scores: Sequence[str] | None = None,
    fit: Examples | None = None,
    holdout: Examples | None = None,
    lineage: Lineage | None = None,
    score_options: Mapping[str, Mapping[str, Any]] | None = None,
    seed: int = 0,
) -> Bundle:
    """Writes a bundle of a module that maps image [N,C,H,W] to the task's output tensor.

    features: layers that a LearningLoss++ head reads; the head is fitted on `holdout` and knows `fit`.
    last_layer: its last nn.Linear or 1x1 nn.Conv2d, found where it is not named.
    scores: default, the free scores of the task, and the head where `features` are named.
    Raises TraceError where the module has no last layer that scores can use, or an ExportError.
    """
    require_free(Path(out))
    require_frames(len(calibration))
    try:
        last = last_layer or find_last_layer(model)
        probe = Probe(model, last_layer=last, features=features).eval()
    except Exception as error:
        raise TraceError(f"no recognisable last layer: {error}") from error
    kind = get_task(task)
    if holdout is not None:
        table = FailureTable(threshold=options.failure_threshold)
        kind, _ = settle_failures(probe, kind, holdout, contract=contract, table=table)
    recipe = recipe_named(RECIPE)
    refit = Refit(HEAD, probe, kind, recipe, contract, train=fit, holdout=holdout, seed=seed)
    learned = [fit_head(refit, layers=features)] if features else []
    names = list(scores) if scores is not None else _default_names(task)
    sets = {key: _gather(probe, part, contract) for key, part in (("fit", fit), ("holdout", holdout))}
    others = [name for name in names if name != HEAD]
    built = [
        *(learned if scores is None or HEAD in names else []),
        *scoring.build(
            others, task=task, fit=sets["fit"], holdout=sets["holdout"], **dict(score_options or {})
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
        classes=tuple(classes),
        reference=PixelInput(scored, contract=contract) if contract.dtype == "uint8" else scored,
        refit=refit if learned else None,
        ranges=fit,
        extra={"notes": [f"last layer: {last}"]},
    )
    return assemble(source, calibration=calibration, out=Path(out), options=options)


def fit_head(refit: Refit, *, layers: Sequence[str]) -> Score:
    """A LearningLoss++ head on these layers. Raises ExportError without frames to fit it on."""
    if refit.train is None or refit.holdout is None:
        raise ExportError(f"{HEAD} is fitted on held-out frames and knows the training frames; give both")
    probe = refit.probe
    attached = attach(probe.model, layers=layers, last_layer=probe.last_layer, task=refit.task)
    attached.fit(train=refit.train, holdout=refit.holdout, contract=refit.contract, seed=refit.seed)
    return attached.score.eval().requires_grad_(False)


def module_lineage(target: str, weights: Path | None, dataset: tuple[str, str]) -> Lineage:
    """A foreign module's run is its weights."""
    identity = sha256_file(weights)[:16] if weights is not None else "untrained"
    return Lineage(
        run_id=f"torch-{identity}", dataset=dataset[0], dataset_sha256=dataset[1], config={"torch": target}
    )


def _default_names(task: str) -> list[str]:
    free = {"classification": ["entropy", "msp"], "segmentation": ["entropy", "energy"]}
    return free.get(task) or [n for n in scoring.names_for(task, free=True) if n != "egl_unweighted"]


def _gather(probe: Probe, part: Examples | None, contract: InputContract) -> scoring.FitSet | None:
    if part is None or not len(part):
        return None
    with torch.no_grad():
        return scoring.gather(probe, part, part.targets, contract=contract, batch=64)
