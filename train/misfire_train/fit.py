"""Fits a run from end to end: parts -> task network -> failure threshold -> failure score -> run folder.

    parts --fit_network (resumable)--> network --settle_failures--> what a failure is
          --fit_head (held-out losses) | folds | along with the network--> head --write_run--> RUN

`misfire train` fits the parts of a data set. Retraining fits them and uploads, from a parent's weights. What
decides the result is in TrainConfig; run.json repeats it with versions, seeds and checksums.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from misfire_runtime.clock import utc_text, wall_time
from misfire_runtime.errors import ConfigError
from misfire_train.data import Dataset, Examples, load_dataset, split
from misfire_train.data.examples import join
from misfire_train.fitting.backbone import CHECKPOINT, FitData, Progressed, Saving, evaluate, fit_network
from misfire_train.fitting.cross_fitting import (
    FoldNetwork,
    deal_folds,
    fit_folds,
    fit_head_on_folds,
    networks_of_folds,
    require_foldable,
    with_new,
)
from misfire_train.fitting.failures import settle_failures
from misfire_train.fitting.joint import JointHead
from misfire_train.heads import recipe_named
from misfire_train.heads.fitted import Fitted
from misfire_train.heads.training import fit_head
from misfire_train.models import BuiltModel, build_model, default_model
from misfire_train.progress import Reporter
from misfire_train.provenance import git_commit, versions
from misfire_train.runs import (
    RECORD,
    DatasetRecord,
    FailureRecord,
    HeadRecord,
    ModelRecord,
    Run,
    RunRecord,
    fold_ids,
    fold_weights,
    load_run,
    read_splits,
    rebuild_model,
    write_run,
)
from misfire_train.signals import Probe
from misfire_train.tasks import Task, get_task
from misfire_train.train_config import TrainConfig, completed, shown_training

UPLOADS = "uploads-"
"""How the parts of splits.json begin whose frames are a fleet's uploads."""


@dataclass(frozen=True)
class Parts:
    """Holds what a run is fitted on, and where it starts.

    Args:
        train: Frames that fit the network.
        validation: Frames that stop it.
        holdout: Frames whose losses the head learns; with `head.folds` they fit the network, too.
        calibration: Frames only for failure thresholds and the export.
        ids: Ids of every part for splits.json; uploads are in parts of their own, "uploads-...".
        repeats: How often an epoch shows each frame of `train`. None: once.
        parent: The run whose weights it starts from. None: random weights.
        snapshot: SHA-256 of the fleet's snapshot that uploads are from, for run.json.
    """

    train: Examples
    validation: Examples
    holdout: Examples
    calibration: Examples
    ids: Mapping[str, tuple[str, ...]]
    repeats: NDArray[np.int64] | NDArray[np.float64] | None = None
    parent: Run | None = None
    snapshot: str | None = None


@dataclass(frozen=True)
class Trained:
    """Holds what was fitted, before it is written. failure: None if the task itself defines failures."""

    built: BuiltModel
    state: Progressed
    fitted: Fitted | None
    folds: Sequence[FoldNetwork] = ()
    failure: FailureRecord | None = None


def train_run(
    config: TrainConfig,
    *,
    out: Path,
    resume: bool = False,
    command: str = "",
    reporter: Reporter | None = None,
) -> Run:
    """Trains as configured and writes the run to `out`.

    Args:
        config: decides the result.
        out: the run's folder.
        resume: continue from the checkpoint in `out`, if there is one; a finished run is returned as it is.
        command: recorded in run.json.
        reporter: shows progress.

    Raises:
        ConfigError: `out` holds another run and `resume` is not set, or the two do not match.
    """
    reporter = reporter or Reporter(quiet=True)
    # Before the data are read, which may take long.
    require_free(Path(out), resume=resume)
    with _new_folder(Path(out)):
        dataset = load_dataset(config.dataset, root=config.data)
        config, given = completed(config, get_task(dataset.task).training_defaults)
        finished = finished_run(Path(out), fit_key(config), resume=resume)
        if finished is not None:
            return finished
        parts = split_dataset(dataset, config)
        reporter.line(
            f"{dataset.name}: " + ", ".join(f"{len(part)} {name}" for name, part in parts.items())
            + f", {len(dataset.test)} test"
        )  # fmt: skip
        for note in dataset.notes:
            reporter.line(f"note: {note}")
        reporter.line(f"training: {shown_training(config.training)}")
        if given:
            reporter.line(
                f"  of these, {', '.join(given)} are defaults of {dataset.task}; a config can state others"
            )
        whole = Parts(
            parts["train"],
            parts["validation"],
            parts["holdout"],
            parts["calibration"],
            ids={name: part.ids for name, part in parts.items()},
        )
        return fit(config, dataset, whole, out=Path(out), resume=resume, command=command, reporter=reporter)


def require_free(out: Path, *, resume: bool) -> None:
    """Raises ConfigError if `out` is a file, or holds a run or its checkpoint that is not to be resumed."""
    if out.is_file():
        raise ConfigError(f"{out} is a file; --out names a folder")
    if (out / RECORD).exists() and not resume:
        load_run(out)
        raise ConfigError(f"{out} holds a finished run; choose another --out, or remove it")
    if (out / CHECKPOINT).exists() and not resume:
        raise ConfigError(f"{out} holds an interrupted run; continue it with --resume, or remove it")


def finished_run(out: Path, key: str, *, resume: bool) -> Run | None:
    """Returns the finished run in `out` if it is to be resumed, None if there is none.

    key: identifies the fit. Raises ConfigError if `out` holds a file, or another run.
    """
    require_free(out, resume=resume)
    if not (out / RECORD).exists():
        return None
    run = load_run(out)
    if _key_of(run) != key:
        raise ConfigError(f"{out} is a finished run of another configuration; choose another --out")
    return run


def fit(
    config: TrainConfig,
    dataset: Dataset,
    parts: Parts,
    *,
    out: Path,
    resume: bool = False,
    command: str = "",
    reporter: Reporter | None = None,
) -> Run:
    """Fits network, failure threshold and head, and writes the run to `out`.

    Args:
        config: What decides the result.
        dataset: The data set that the parts are of; its test half is measured on, never fitted.
        parts: Frames by use, and the parent whose weights the network starts from.
        out: The run's folder; a checkpoint is written into it after every epoch.
        resume: Start from that checkpoint, if there is one.
        command: Recorded in run.json.
        reporter: Shows progress.

    Raises:
        ConfigError: The configuration does not fit the data, or the loss is not finite.
    """
    reporter = reporter or Reporter(quiet=True)
    with _new_folder(out):
        saving = Saving(out / CHECKPOINT, resume=resume, key=fit_key(config, parts))
        trained = _fit(config, dataset, parts, saving=saving, reporter=reporter)
        metrics = measure(trained, dataset, parts, config, reporter=reporter)
        record = make_record(dataset, config, parts, trained, metrics=metrics, command=command)
        folds = {f"fold-{k}": network.unseen.ids for k, network in enumerate(trained.folds)}
        write_run(
            out,
            record,
            model=trained.built.module,
            head=trained.fitted.head if trained.fitted else None,
            splits={**parts.ids, **folds},
            folds=[network.weights for network in trained.folds],
        )
    # Last: if writing the run failed, the checkpoint can still be resumed.
    (out / CHECKPOINT).unlink(missing_ok=True)
    return load_run(out)


@contextmanager
def _new_folder(path: Path) -> Iterator[None]:
    """Makes the folder before the work, which shows that it can be written; removes it if nothing got in."""
    made = [each for each in (path, *path.parents) if not each.exists()]
    path.mkdir(parents=True, exist_ok=True)
    try:
        yield
    # Also on Ctrl-C: an interrupted start must not leave an empty folder.
    except BaseException:
        for folder in made:
            if any(folder.iterdir()):
                break
            folder.rmdir()
        raise


def config_key(config: TrainConfig) -> str:
    """Identifies what a config trains; the folder of the data does not count."""
    # The recipe's values are part of the key: another version may give them other defaults.
    words = spelled_out(config).model_dump_json(exclude={"data"})
    return hashlib.sha256(words.encode()).hexdigest()


def fit_key(config: TrainConfig, parts: Parts | None = None) -> str:
    """Identifies a fit: what its config trains and, of a child, the parent and the uploads."""
    parent = None if parts is None or parts.parent is None else parts.parent.record.run_id
    return _key(config, parent, {} if parts is None else parts.ids)


def _key_of(run: Run) -> str:
    return _key(run.config, run.record.parent_run_id, read_splits(run.path))


def _key(config: TrainConfig, parent: str | None, ids: Mapping[str, Sequence[str]]) -> str:
    if parent is None:
        return config_key(config)
    added = sorted(i for name, part in ids.items() if name.startswith(UPLOADS) for i in part)
    return hashlib.sha256("".join([config_key(config), parent, *added]).encode()).hexdigest()


def split_dataset(dataset: Dataset, config: TrainConfig) -> dict[str, Examples]:
    """Returns the parts of the training half, each a share of at most `limit` examples."""
    examples = dataset.train
    limit = config.split.limit
    if limit is not None and limit < len(examples):
        # The 7 keeps this draw apart from others of the same seed.
        chosen = np.random.default_rng([config.seed, 7]).permutation(len(examples))[:limit]
        examples = examples.take(np.sort(chosen))
    grouped = config.split.by_group
    return split(examples, fractions=config.split.fractions(), seed=config.seed, by_group=grouped)


def _fit(
    config: TrainConfig, dataset: Dataset, parts: Parts, *, saving: Saving, reporter: Reporter
) -> Trained:
    parent, folds = parts.parent, config.head.folds
    # A child sees the frames in another order than its parent did.
    seed = config.seed + (parent is not None)
    torch.manual_seed(seed)
    recipe = (
        None if config.head.recipe == "none" else recipe_named(config.head.recipe).with_table(config.head)
    )
    if recipe is not None and folds:
        require_foldable(recipe)
    built = rebuild_model(parent.record) if parent is not None else new_model(config, dataset)
    # The folds' networks start from the same random weights.
    fresh = {name: tensor.clone() for name, tensor in built.module.state_dict().items()}
    if parent is not None:
        built.module.load_state_dict(parent.model.state_dict())
    probe = probe_of(built, config.head.layers or built.feature_layers)
    joint = None
    if recipe is not None and recipe.joint:
        joint = JointHead.attach(
            probe,
            recipe,
            contract=dataset.contract,
            weight=config.head.joint_weight,
            epochs=config.training.epochs,
        )
    # Cross-fitted losses need no holdout, so the network may have those images too.
    pool, repeats = _pool(parts, folds=bool(folds))
    data = FitData(pool, parts.validation, dataset.contract, repeats)
    task = _task_of(config, dataset) if parent is None else parent.task
    state = fit_network(
        probe,
        data,
        task=task,
        table=config.training,
        seed=seed,
        saving=saving,
        joint=joint,
        reporter=reporter,
    )
    probe.requires_grad_(False)
    task, failure = _failures(probe, task, config, dataset, parts)
    if failure is not None:
        reporter.line(f"a failure is a loss above {failure.threshold:.4g}: {failure.source}")
    networks: list[FoldNetwork] = []
    fitted = None
    if recipe is not None and folds:
        networks = _fit_folds(probe, fresh, config, parts, data, task=task, reporter=reporter)
        fitted = fit_head_on_folds(
            probe,
            networks,
            task=task,
            recipe=recipe,
            pool=data.train,
            contract=dataset.contract,
            seed=config.seed,
            reporter=reporter,
        )
    elif joint is not None:
        fitted = joint.finish(probe, task=task, holdout=parts.holdout, contract=dataset.contract, state=state)
    elif recipe is not None:
        fitted = fit_head(
            probe,
            task=task,
            recipe=recipe,
            train=data.train,
            holdout=parts.holdout,
            contract=dataset.contract,
            seed=config.seed,
            reporter=reporter,
        )
    return Trained(built, state, fitted, networks, failure)


def _task_of(config: TrainConfig, dataset: Dataset) -> Task:
    return get_task(dataset.task).configured(config, dataset.classes)


def new_model(config: TrainConfig, dataset: Dataset) -> BuiltModel:
    """Returns the configured network with random weights."""
    return build_model(
        config.model.name or default_model(dataset.task),
        task=dataset.task,
        outputs=len(dataset.classes),
        channels=dataset.contract.channels,
        **config.model.options,
    )


def _pool(parts: Parts, *, folds: bool) -> tuple[Examples, NDArray[np.int64] | NDArray[np.float64] | None]:
    """Returns (what the network is fitted on, how often each is seen)."""
    if not folds:
        return parts.train, parts.repeats
    pool = join([parts.train, parts.holdout])
    if parts.repeats is None:
        return pool, None
    return pool, np.concatenate([parts.repeats, np.ones(len(parts.holdout), np.int64)])


def _failures(
    probe: Probe, task: Task, config: TrainConfig, dataset: Dataset, parts: Parts
) -> tuple[Task, FailureRecord | None]:
    """Returns (the task that knows its failures, the record of it)."""
    if parts.parent is not None:
        # The parent's failures stay the child's: before and after are counted by the same rule.
        return task, parts.parent.record.failure
    # Cross-fitting trains the network on the holdout too: then only the calibration part is unseen.
    part = "calibration" if config.head.folds else "holdout"
    held_out = parts.calibration if config.head.folds else parts.holdout
    return settle_failures(probe, task, held_out, contract=dataset.contract, table=config.failure, part=part)


def _fit_folds(
    probe: Probe,
    fresh: Mapping[str, Tensor],
    config: TrainConfig,
    parts: Parts,
    data: FitData,
    *,
    task: Task,
    reporter: Reporter,
) -> list[FoldNetwork]:
    """Returns the folds' networks, trained: from random weights, or from those of the parent's folds.

    A child keeps its parent's folds, and each upload has a fold by its group's name: a network that goes on
    from the parent's must never have seen its fold in any generation.
    """
    parent = parts.parent
    starts: Sequence[Mapping[str, Tensor]] = () if parent is None else fold_weights(parent)
    table, ids = config.training, []
    if parent is not None and starts:
        ids = with_new(fold_ids(parent), data.train)
    else:
        # A parent of an older version kept no folds: they start anew, by its own, longer schedule.
        table = config.training if parent is None else parent.config.training
        added = np.array([i for name, part in parts.ids.items() if name.startswith(UPLOADS) for i in part])
        own = data.train.take(np.flatnonzero(~np.isin(np.array(data.train.ids), added)))
        ids = with_new(deal_folds(own, folds=config.head.folds, seed=config.seed), data.train)
        starts = [fresh] * len(ids)
    networks = networks_of_folds(probe, data.train, ids, starts)
    fit_folds(
        networks,
        task=task,
        validation=parts.validation,
        contract=data.contract,
        table=table,
        seed=config.seed + (parent is not None),
        reporter=reporter,
    )
    return networks


def probe_of(built: BuiltModel, layers: tuple[str, ...]) -> Probe:
    """Returns a probe on the network. Raises ConfigError that names a layer that does not exist."""
    try:
        return Probe(built.module, last_layer=built.last_layer, features=layers)
    except ValueError as error:
        raise ConfigError(f"head.layers: {error}") from error


def measure(
    trained: Trained, dataset: Dataset, parts: Parts, config: TrainConfig, *, reporter: Reporter
) -> dict[str, Any]:
    """Returns accuracy on parts that the network was not fitted on, and what the head's training showed."""
    model, contract, task = trained.built.module, dataset.contract, _task_of(config, dataset)
    metrics: dict[str, Any] = {"epochs": trained.state.epoch, "best_epoch": trained.state.best_epoch + 1}
    unseen = {"calibration": parts.calibration, "test": dataset.test}
    if not config.head.folds:
        unseen = {"holdout": parts.holdout, **unseen}
    for name, part in unseen.items():
        loss, accuracy = evaluate(model, part, task=task, contract=contract)
        metrics[f"{name}_loss"], metrics[f"{name}_accuracy"] = loss, accuracy
    metrics["history"] = trained.state.history
    if trained.fitted is not None:
        report = trained.fitted.report
        metrics["head"] = report.to_dict()
        if report.collapsed:
            reporter.line(f"warning: the head {report.collapsed}; use a free score")
    reporter.line(f"test accuracy {100 * metrics['test_accuracy']:.2f} %")
    return metrics


def make_record(
    dataset: Dataset,
    config: TrainConfig,
    parts: Parts,
    trained: Trained,
    *,
    metrics: dict[str, Any],
    command: str,
) -> RunRecord:
    """Returns run.json of a run that is about to be written."""
    built, fitted = trained.built, trained.fitted
    warnings = (fitted.report.collapsed,) if fitted is not None and fitted.report.collapsed else ()
    counts = {name: len(ids) for name, ids in parts.ids.items() if not name.startswith(UPLOADS)}
    return RunRecord(
        run_id="",
        parent_run_id=None if parts.parent is None else parts.parent.record.run_id,
        snapshot=parts.snapshot,
        created_at=utc_text(wall_time()),
        command=command,
        config=json.loads(spelled_out(config).model_dump_json()),
        versions=versions(),
        git_commit=git_commit(),
        seeds={"seed": config.seed},
        dataset=DatasetRecord(
            name=dataset.name,
            sha256=dataset.sha256,
            licence=dataset.licence,
            counts={**counts, "test": len(dataset.test)},
            uploads={
                name.removeprefix(UPLOADS): len(ids)
                for name, ids in parts.ids.items()
                if name.startswith(UPLOADS)
            },
            notes=dataset.notes,
        ),
        model=ModelRecord(name=built.name, options=built.options, outputs=len(dataset.classes)),
        contract=dataset.contract,
        task=dataset.task,
        classes=dataset.classes,
        last_layer=built.last_layer,
        feature_layers=config.head.layers or built.feature_layers,
        head=None if fitted is None else HeadRecord(recipe=fitted.report.recipe, options=fitted.head.options),
        failure=trained.failure,
        metrics=metrics,
        warnings=warnings,
    )


def spelled_out(config: TrainConfig) -> TrainConfig:
    """Returns the config with the values of its head's recipe filled in."""
    if config.head.recipe == "none":
        return config
    recipe = recipe_named(config.head.recipe)
    return config.model_copy(update={"head": recipe.spelled_out(config.head)})
