"""Trains on with what the fleet found: warm start, old data and uploads together, the head fitted anew.

uploads --by minute of a vehicle--> train | holdout
old train + uploads (each seen several times) --fit_network from the current weights--> network
old holdout + held-out uploads --fit_head--> failure score --write_run--> RUN2, child of RUN

Before and after are measured on the data set's frozen test half, clean and shifted, on the very same images.
An upload's part depends on its group alone, so it stays on its side in every later retraining too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from misfire_runtime.errors import ConfigError
from misfire_runtime.preprocess import Image
from misfire_train.backbone import CHECKPOINT, FitData, fit_network
from misfire_train.data import Dataset, Examples
from misfire_train.data.corruptions import FAMILIES, corrupt, image_seed
from misfire_train.data.examples import join
from misfire_train.data.images import DecodedImages
from misfire_train.fit import Trained, config_key, make_record
from misfire_train.heads import recipe_named
from misfire_train.heads.training import fit_head
from misfire_train.judge.metrics import auroc
from misfire_train.progress import Reporter
from misfire_train.runs import (
    MODEL_FILE,
    RECORD,
    Run,
    load_run,
    read_tensors,
    rebuild_model,
    run_splits,
    write_run,
)
from misfire_train.scores import compute
from misfire_train.signals import Probe
from misfire_train.train_config import TrainConfig

HOLDOUT_SHARE = 0.25
UPLOAD_WEIGHT = 0.5
"""Uploads fill half as many places of an epoch as the old training data, as far as `MAX_REPEATS` allows."""
MAX_REPEATS = 8
SHIFT_SEVERITY = 3


@dataclass(frozen=True)
class Retrained:
    """run: the new one.  before, after: accuracy `clean` and `shifted`, and the head's failure `auroc_*`.

    difference: after minus before with a paired 95 % interval, for `clean` and `shifted`.
    """

    run: Run
    before: dict[str, float]
    after: dict[str, float]
    difference: dict[str, tuple[float, float, float]]
    uploads: dict[str, int]


def retrain_run(
    run: Run,
    uploads: Examples,
    *,
    dataset: Dataset,
    out: Path,
    epochs: int | None = None,
    learning_rate: float | None = None,
    seed: int | None = None,
    resume: bool = False,
    command: str = "",
    reporter: Reporter | None = None,
) -> Retrained:
    """A child of `run`, trained on its data and `uploads`, written to `out`.

    epochs: default half of the parent's budget, at least 4.  learning_rate: default half of the parent's.
    Raises ConfigError where `out` is taken, the data set is another, or an upload is a test example.
    """
    reporter = reporter or Reporter(quiet=True)
    if (out / RECORD).exists():
        raise ConfigError(f"{out} holds a finished run; choose another --out, or remove it")
    if (out / CHECKPOINT).exists() and not resume:
        raise ConfigError(f"{out} holds an interrupted run; continue it with --resume, or remove it")
    config = child_config(run, epochs=epochs, learning_rate=learning_rate, seed=seed)
    parts = run_splits(run, dataset)
    overlap = set(uploads.ids) & set(dataset.test.ids)
    if overlap:
        raise ConfigError(
            f"upload {sorted(overlap)[0]} is an example of the test half; it must not be trained on"
        )
    fitting, held = divide(uploads)
    reporter.line(
        f"{len(uploads)} uploads: {len(fitting)} to train on, {len(held)} held out for the failure score"
    )
    data, holdout = _mixed(parts, fitting, held, run)
    out.mkdir(parents=True, exist_ok=True)
    key = hashlib.sha256((config_key(config) + run.record.run_id + "".join(uploads.ids)).encode()).hexdigest()
    trained = _train(
        run, data, holdout, config, checkpoint=out / CHECKPOINT, resume=resume, key=key, reporter=reporter
    )
    counts = {name: part for name, part in parts.items() if name != "test"}
    record = make_record(
        dataset,
        config,
        trained,
        metrics=_metrics(trained),
        command=command,
        counts=counts,
        parent=run.record.run_id,
        uploads={"train": len(fitting), "holdout": len(held)},
    )
    ids = {name: part.ids for name, part in counts.items()}
    ids |= {"uploads-train": fitting.ids, "uploads-holdout": held.ids}
    write_run(
        out,
        record,
        model=trained.built.module,
        head=trained.fitted.head if trained.fitted else None,
        splits=ids,
    )
    (out / CHECKPOINT).unlink(missing_ok=True)
    return _compare(run, load_run(out), dataset, uploads={"train": len(fitting), "holdout": len(held)})


def child_config(
    run: Run, *, epochs: int | None = None, learning_rate: float | None = None, seed: int | None = None
) -> TrainConfig:
    """The parent's config with a gentler schedule: it starts from trained weights."""
    parent = TrainConfig.model_validate(run.record.config)
    budget = epochs if epochs is not None else max(4, parent.training.epochs // 2)
    rate = learning_rate if learning_rate is not None else parent.training.learning_rate / 2
    training = parent.training.model_copy(update={"epochs": budget, "learning_rate": rate})
    head = parent.head if parent.head.joint is None else parent.head.model_copy(update={"joint": None})
    chosen = parent.seed if seed is None else seed
    return parent.model_copy(update={"training": training, "head": head, "seed": chosen})


def divide(uploads: Examples, *, share: float = HOLDOUT_SHARE) -> tuple[Examples, Examples]:
    """(to train on, held out), decided by each group's name alone; by id where one side would stay empty."""
    for names in (uploads.groups, uploads.ids):
        held = np.array([_fraction(name) < share for name in names])
        if held.any() and not held.all():
            break
    if held.all():
        held[:] = False
    return uploads.take(np.flatnonzero(~held)), uploads.take(np.flatnonzero(held))


def _fraction(name: str) -> float:
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return float(int.from_bytes(digest, "big")) / 2.0**64


def _mixed(
    parts: Mapping[str, Examples], fitting: Examples, held: Examples, run: Run
) -> tuple[FitData, Examples]:
    old = parts["train"]
    train = join([old, fitting]) if len(fitting) else old
    repeats = np.ones(len(train), np.int64)
    if len(fitting):
        times = round(UPLOAD_WEIGHT * len(old) / len(fitting))
        repeats[len(old) :] = int(np.clip(times, 1, MAX_REPEATS))
    holdout = join([parts["holdout"], held]) if len(held) else parts["holdout"]
    return FitData(train, parts["validation"], run.contract, repeats), holdout


def _train(
    run: Run,
    data: FitData,
    holdout: Examples,
    config: TrainConfig,
    *,
    checkpoint: Path,
    resume: bool,
    key: str,
    reporter: Reporter,
) -> Trained:
    record = run.record
    built = rebuild_model(record)
    built.module.load_state_dict(read_tensors(run.path / MODEL_FILE))
    probe = Probe(built.module, last_layer=record.last_layer, features=record.feature_layers)
    state = fit_network(
        probe,
        data,
        task=run.task,
        table=config.training,
        seed=config.seed + 1,
        checkpoint=checkpoint,
        resume=resume,
        key=key,
        reporter=reporter,
    )
    probe.requires_grad_(False)
    if config.head.recipe == "none":
        return Trained(built, state, None, failure=record.failure)
    recipe = recipe_named(config.head.recipe).with_table(config.head)
    fitted = fit_head(
        probe,
        task=run.task,
        recipe=recipe,
        train=data.train,
        holdout=holdout,
        contract=run.contract,
        seed=config.seed,
        reporter=reporter,
    )
    # The parent's failures stay the child's: before and after are counted by the same rule.
    return Trained(built, state, fitted, failure=record.failure)


def _metrics(trained: Trained) -> dict[str, Any]:
    metrics: dict[str, Any] = {"epochs": trained.state.epoch, "best_epoch": trained.state.best_epoch + 1}
    metrics["history"] = trained.state.history
    if trained.fitted is not None:
        metrics["head"] = trained.fitted.report.to_dict()
    return metrics


def shifted_test(test: Examples, *, severity: int = SHIFT_SEVERITY) -> Examples:
    """Every test image by a family of its own, decided by its id: the same shift for every run."""
    families = list(FAMILIES)

    def decode(index: int) -> Image:
        seed = image_seed(0, test.ids[index])
        return corrupt(test.images[index], families[seed % len(families)], severity=severity, seed=seed)

    return Examples(DecodedImages(decode, count=len(test)), test.targets, test.ids, test.groups)


def _compare(before: Run, after: Run, dataset: Dataset, *, uploads: dict[str, int]) -> Retrained:
    views = {"clean": dataset.test, "shifted": shifted_test(dataset.test)}
    numbers: tuple[dict[str, float], dict[str, float]] = ({}, {})
    difference = {}
    for view, examples in views.items():
        right = []
        for run, found in zip((before, after), numbers, strict=True):
            correct, accuracy, area = _judge(run, examples)
            found[view] = accuracy
            if area is not None:
                found[f"auroc_{view}"] = area
            right.append(correct)
        difference[view] = _paired(right[1] - right[0])
    return Retrained(after, numbers[0], numbers[1], difference, uploads)


@torch.no_grad()
def _judge(run: Run, examples: Examples) -> tuple[NDArray[np.float64], float, float | None]:
    """[N] what each test example contributes, the task's accuracy, and the head's failure AUROC."""
    outputs = []
    for start in range(0, len(examples), 256):
        positions = np.arange(start, min(start + 256, len(examples)))
        outputs.append(run.model(examples.batch(positions, run.contract)))
    joined, targets = torch.cat(outputs), run.task.collate(examples.targets)
    accuracy = float(run.task.accuracy(joined, targets))
    if not run.task.knows_failures:
        return -run.task.sample_loss(joined, targets).double().numpy(), accuracy, None
    failed = run.task.failed(joined, targets).numpy()
    area = None
    if run.head is not None and 0 < failed.sum() < len(failed):
        score = compute(run, examples, [run.head])[run.head.name]
        area = float(auroc(score, failed))
    return 1.0 - failed, accuracy, area


def _paired(gain: NDArray[np.float64], *, replicates: int = 1000) -> tuple[float, float, float]:
    """Mean of [N] differences with its bootstrap interval."""
    generator = np.random.default_rng(0)
    means = [gain[generator.integers(0, len(gain), len(gain))].mean() for _ in range(replicates)]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(gain.mean()), float(low), float(high)
