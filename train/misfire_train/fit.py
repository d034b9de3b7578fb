"""A training run from end to end: data -> parts -> task network -> failure score -> run folder.

    load, split --fit_network (resumable)--> network --fit_head (held-out losses)--> head --write_run--> RUN

What decides the result stands in TrainConfig; run.json repeats it with versions, seeds and checksums.
"""

from __future__ import annotations

import copy
import hashlib
import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from misfire_runtime.clock import utc_text, wall_time
from misfire_runtime.errors import ConfigError
from misfire_train.backbone import CHECKPOINT, FitData, Progressed, evaluate, fit_network
from misfire_train.data import Dataset, Examples, load_dataset, split
from misfire_train.data.examples import join
from misfire_train.failures import settle_failures
from misfire_train.heads import recipe_named
from misfire_train.heads.cross_fitting import cross_fit_head
from misfire_train.heads.joint import JointHead
from misfire_train.heads.training import Fitted, fit_head
from misfire_train.models import BuiltModel, build_model, default_model
from misfire_train.progress import Reporter
from misfire_train.runs import (
    RECORD,
    DatasetRecord,
    FailureRecord,
    HeadRecord,
    ModelRecord,
    Run,
    RunRecord,
    load_run,
    write_run,
)
from misfire_train.signals import Probe
from misfire_train.tasks import Task, get_task
from misfire_train.train_config import TrainConfig

_VERSIONED = ("misfire", "torch", "numpy", "accelerate", "safetensors", "opencv-python-headless")


@dataclass(frozen=True)
class Trained:
    """What came out, before it is written. failure: None where the task itself says what a failure is."""

    built: BuiltModel
    state: Progressed
    fitted: Fitted | None
    cross_fitted: bool = False
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

    resume: go on from the checkpoint in `out`, if there is one; a finished run is returned as it is.
    Raises ConfigError where `out` holds another run and `resume` is not set, or where the two do not match.
    """
    reporter = reporter or Reporter(quiet=True)
    out = Path(out)
    key = config_key(config)
    if (out / RECORD).exists():
        run = load_run(out)
        if not resume:
            raise ConfigError(f"{out} holds a finished run; choose another --out, or remove it")
        if config_key(TrainConfig.model_validate(run.record.config)) != key:
            raise ConfigError(f"{out} is a finished run of another configuration; choose another --out")
        return run
    if (out / CHECKPOINT).exists() and not resume:
        raise ConfigError(f"{out} holds an interrupted run; continue it with --resume, or remove it")
    if out.is_file():
        raise ConfigError(f"{out} is a file; --out names a folder")
    with _new_folder(out):
        dataset = load_dataset(config.dataset, root=config.data)
        task = get_task(dataset.task)
        parts = split_dataset(dataset, config)
        reporter.line(
            f"{dataset.name}: " + ", ".join(f"{len(part)} {name}" for name, part in parts.items())
            + f", {len(dataset.test)} test"
        )  # fmt: skip
        for note in dataset.notes:
            reporter.line(f"note: {note}")
        trained = _train(
            dataset,
            task,
            parts,
            config,
            checkpoint=out / CHECKPOINT,
            resume=resume,
            key=key,
            reporter=reporter,
        )
        metrics = measure(trained, dataset, task, parts, out_reporter=reporter)
        record = make_record(dataset, config, trained, metrics=metrics, command=command, counts=parts)
        head = trained.fitted.head if trained.fitted else None
        ids = {name: part.ids for name, part in parts.items()}
        write_run(out, record, model=trained.built.module, head=head, splits=ids)
    (out / CHECKPOINT).unlink(missing_ok=True)
    return load_run(out)


@contextmanager
def _new_folder(path: Path) -> Iterator[None]:
    """Makes the folder before the work, which shows that it can be written; removes it if nothing got in."""
    made = [each for each in (path, *path.parents) if not each.exists()]
    path.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for folder in made:
            if any(folder.iterdir()):
                break
            folder.rmdir()
        raise


def config_key(config: TrainConfig) -> str:
    """Identifies what a config trains; where the data lie does not count."""
    words = spelled_out(config).model_dump_json(exclude={"data"})
    return hashlib.sha256(words.encode()).hexdigest()


def split_dataset(dataset: Dataset, config: TrainConfig) -> dict[str, Examples]:
    """The parts of the training half, each a share of at most `limit` examples."""
    examples = dataset.train
    limit = config.split.limit
    if limit is not None and limit < len(examples):
        chosen = np.random.default_rng([config.seed, 7]).permutation(len(examples))[:limit]
        examples = examples.take(np.sort(chosen))
    grouped = config.split.by_group
    return split(examples, fractions=config.split.fractions(), seed=config.seed, by_group=grouped)


def _train(
    dataset: Dataset,
    task: Task,
    parts: Mapping[str, Examples],
    config: TrainConfig,
    *,
    checkpoint: Path,
    resume: bool,
    key: str,
    reporter: Reporter,
) -> Trained:
    torch.manual_seed(config.seed)
    built = build_model(
        config.model.name or default_model(task.name),
        task=task.name,
        outputs=len(dataset.classes),
        channels=dataset.contract.channels,
        **config.model.options,
    )
    layers = config.head.layers or built.feature_layers
    probe = probe_of(built, layers)
    recipe = (
        None if config.head.recipe == "none" else recipe_named(config.head.recipe).with_table(config.head)
    )
    joint = None
    if recipe is not None and recipe.joint and config.head.folds:
        raise ConfigError("head.folds: a head that trains along with the network has no folds; set it to 0")
    if recipe is not None and recipe.joint:
        joint = JointHead.attach(
            probe,
            recipe,
            contract=dataset.contract,
            weight=config.head.joint_weight,
            epochs=config.training.epochs,
        )
    folds = config.head.folds
    # Cross-fitted losses need no holdout, so the network may have those images too.
    pool = join([parts["train"], parts["holdout"]]) if folds else parts["train"]
    fresh = copy.deepcopy(built.module) if folds else None
    data = FitData(pool, parts["validation"], dataset.contract)
    state = fit_network(
        probe, data, task=task, table=config.training, seed=config.seed, checkpoint=checkpoint, resume=resume,
        key=key, joint=joint, reporter=reporter,
    )  # fmt: skip
    probe.requires_grad_(False)
    # Cross-fitting trains the network on the holdout too: then only the calibration part is unseen.
    part = "calibration" if folds else "holdout"
    task, failure = settle_failures(
        probe, task, parts[part], contract=dataset.contract, table=config.failure, part=part
    )
    if failure is not None:
        reporter.line(f"a failure is a loss above {failure.threshold:.4g}: {failure.source}")
    if recipe is None:
        return Trained(built, state, None, failure=failure)
    if fresh is not None:
        fitted = cross_fit_head(
            probe,
            fresh,
            task=task,
            recipe=recipe,
            pool=pool,
            validation=parts["validation"],
            contract=dataset.contract,
            table=config.training,
            folds=folds,
            seed=config.seed,
            reporter=reporter,
        )
    elif joint is not None:
        fitted = joint.finish(
            probe, task=task, holdout=parts["holdout"], contract=dataset.contract, state=state
        )
    else:
        fitted = fit_head(
            probe,
            task=task,
            recipe=recipe,
            train=pool,
            holdout=parts["holdout"],
            contract=dataset.contract,
            seed=config.seed,
            reporter=reporter,
        )
    return Trained(built, state, fitted, cross_fitted=bool(folds), failure=failure)


def probe_of(built: BuiltModel, layers: tuple[str, ...]) -> Probe:
    """A probe on the network. Raises ConfigError naming a layer that does not exist."""
    try:
        return Probe(built.module, last_layer=built.last_layer, features=layers)
    except ValueError as error:
        raise ConfigError(f"head.layers: {error}") from error


def measure(
    trained: Trained, dataset: Dataset, task: Task, parts: Mapping[str, Examples], *, out_reporter: Reporter
) -> dict[str, Any]:
    """Accuracy on parts that the network was not fitted on, and what the head's training showed."""
    model, contract = trained.built.module, dataset.contract
    metrics: dict[str, Any] = {"epochs": trained.state.epoch, "best_epoch": trained.state.best_epoch + 1}
    unseen = ("calibration",) if trained.cross_fitted else ("holdout", "calibration")
    for name in unseen:
        loss, accuracy = evaluate(model, parts[name], task=task, contract=contract)
        metrics[f"{name}_loss"], metrics[f"{name}_accuracy"] = loss, accuracy
    loss, accuracy = evaluate(model, dataset.test, task=task, contract=contract)
    metrics["test_loss"], metrics["test_accuracy"] = loss, accuracy
    metrics["history"] = trained.state.history
    if trained.fitted is not None:
        report = trained.fitted.report
        metrics["head"] = report.to_dict()
        if report.collapsed:
            out_reporter.line(f"warning: the head {report.collapsed}; use a free score")
    out_reporter.line(f"test accuracy {100 * accuracy:.2f} %")
    return metrics


def make_record(
    dataset: Dataset,
    config: TrainConfig,
    trained: Trained,
    *,
    metrics: dict[str, Any],
    command: str,
    counts: Mapping[str, Examples],
    parent: str | None = None,
    uploads: Mapping[str, int] | None = None,
) -> RunRecord:
    """run.json of a run that is about to be written."""
    built, fitted = trained.built, trained.fitted
    warnings = (fitted.report.collapsed,) if fitted is not None and fitted.report.collapsed else ()
    numbers = {name: len(part) for name, part in counts.items()}
    return RunRecord(
        run_id="",
        parent_run_id=parent,
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
            counts={**numbers, "test": len(dataset.test)},
            uploads=dict(uploads or {}),
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
    """The config with what its head's recipe says today."""
    if config.head.recipe == "none":
        return config
    recipe = recipe_named(config.head.recipe)
    return config.model_copy(update={"head": recipe.spelled_out(config.head)})


def versions() -> dict[str, str]:
    """Of Python, the system and the libraries that decide numbers."""
    found = {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    for name in _VERSIONED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    """The commit of the working tree that this package lies in, None outside one."""
    git = shutil.which("git")
    if git is None:
        return None
    here = Path(__file__).resolve().parent
    result = subprocess.run(
        [git, "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return result.stdout.strip() or None if result.returncode == 0 else None


def command_line() -> str:
    """The command as it was typed."""
    return " ".join(["misfire", *sys.argv[1:]])
