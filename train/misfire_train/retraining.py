"""Retrains with what the fleet found: warm start, old data and uploads together, the head fitted anew.

uploads --by minute of a vehicle--> train | holdout
old train + uploads (mixed: fitting/mixture.py), old holdout + held-out uploads --Parts--> fit, from the
current weights --> RUN2, child of RUN

Before and after are measured on the data set's frozen test half, clean and shifted, on the same images. An
upload's part depends only on its group, so it stays on its side in every later retraining too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from misfire_runtime.errors import ConfigError
from misfire_runtime.preprocess import Image
from misfire_train.data import Dataset, Examples
from misfire_train.data.corruptions import FAMILIES, corrupt, image_seed
from misfire_train.data.examples import join
from misfire_train.data.images import DecodedImages
from misfire_train.data.splits import fraction_of
from misfire_train.fit import UPLOADS, Parts, finished_run, fit, fit_key
from misfire_train.fitting.mixture import shown_counts
from misfire_train.metrics import auroc, bootstrap_ratio_gain
from misfire_train.progress import Reporter
from misfire_train.runs import Run, read_splits, run_splits
from misfire_train.scores import compute
from misfire_train.train_config import MixtureTable, TrainConfig

HOLDOUT_SHARE = 0.25
EARLIER = "earlier-uploads"
"""The part of splits.json that names the uploads of a run's ancestors."""
Shares = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Of each example, what is right and what counts, [N] and [N]."""
# The middle of the five severities.
SHIFT_SEVERITY = 3


@dataclass(frozen=True)
class Retrained:
    """Holds the new run and its comparison with the old one.

    Attributes:
        run: the new one.
        before, after: accuracy (F1 for detection) `clean` and `shifted`, and the head's failure `auroc_*`.
        difference: after minus before with a paired 95 % interval, for `clean` and `shifted`.
        uploads: number of uploads by part.
    """

    run: Run
    before: dict[str, float]
    after: dict[str, float]
    difference: dict[str, tuple[float, float, float]]
    uploads: dict[str, int]


@dataclass(frozen=True)
class Schedule:
    """Holds what differs from the parent's configuration in training a child.

    Args:
        epochs: Maximum number of epochs. None: half of the parent's, at least 4.
        learning_rate: None: half of the parent's, since it starts from trained weights.
        seed: Random seed. None: the parent's.
        mixture: Shares of old data and uploads, and their balance. None: the parent's.
    """

    epochs: int | None = None
    learning_rate: float | None = None
    seed: int | None = None
    mixture: MixtureTable | None = None


def retrain_run(
    run: Run,
    uploads: Examples,
    *,
    dataset: Dataset,
    out: Path,
    schedule: Schedule = Schedule(),
    held: Examples | None = None,
    snapshot: str | None = None,
    slices: Mapping[str, str] | None = None,
    resume: bool = False,
    command: str = "",
    reporter: Reporter | None = None,
) -> Retrained:
    """Trains a child of `run` on its data and `uploads`, writes it to `out`, and measures both.

    Args:
        run: The parent.
        uploads: Labelled examples from the fleet.
        dataset: The data set that the parent was trained on.
        out: Folder of the child.
        schedule: What differs from the parent's configuration.
        held: Labelled examples to hold out for the failure score. None: a part of the uploads.
        snapshot: SHA-256 of the snapshot that the uploads are from, for run.json.
        slices: name of each upload's slice by its id, for the mixture's slice balance.
        resume: Go on from the checkpoint in `out`; a finished child is measured again.
        command: Recorded in run.json.
        reporter: Shows progress.

    Raises:
        ConfigError: `out` is taken, the data set is another, or an upload is a test example.
    """
    reporter = reporter or Reporter(quiet=True)
    config = child_config(run, schedule)
    parts = parts_with(
        run, uploads, dataset, held=held, snapshot=snapshot, mixture=config.mixture, slices=slices
    )
    counts = {name: len(parts.ids[f"{UPLOADS}{name}"]) for name in ("train", "holdout")}
    child = finished_run(out, fit_key(config, parts), resume=resume)
    if child is None:
        reporter.line(
            f"{sum(counts.values())} uploads: {counts['train']} to train on, {counts['holdout']} held out "
            "for the failure score"
        )
        child = fit(config, dataset, parts, out=out, resume=resume, command=command, reporter=reporter)
    return _compare(run, child, dataset, uploads=counts)


def parts_with(
    run: Run,
    uploads: Examples,
    dataset: Dataset,
    *,
    held: Examples | None = None,
    snapshot: str | None = None,
    mixture: MixtureTable | None = None,
    slices: Mapping[str, str] | None = None,
) -> Parts:
    """Returns the run's own parts with the uploads in them, starting from the run's weights.

    With `held` all uploads are trained on, and `held` is held out. `mixture`: None is the parent's.
    `slices`: name of each upload's slice by its id.

    Raises ConfigError if the data set is another, or an upload is a test example.
    """
    own = run_splits(run, dataset)
    # Before any training: accuracy on a test half that was trained on would mean nothing.
    given = {*uploads.ids, *(held.ids if held is not None else ())}
    overlap = given & set(own["test"].ids)
    if overlap:
        raise ConfigError(
            f"upload {sorted(overlap)[0]} is an example of the test half; it must not be trained on"
        )
    fitting, held = divide(uploads) if held is None else (uploads, held)
    mixture = run.config.mixture if mixture is None else mixture
    # The names are of all uploads; those that are held out are not mixed.
    named = None if slices is None else [slices[each] for each in fitting.ids]
    repeats = shown_counts(own["train"], fitting, table=mixture, task=run.task, slices=named)
    ids = {name: part.ids for name, part in own.items() if name != "test"}
    earlier = _earlier_uploads(run)
    if earlier:
        ids[EARLIER] = earlier
    return Parts(
        join([own["train"], fitting]) if len(fitting) else own["train"],
        own["validation"],
        join([own["holdout"], held]) if len(held) else own["holdout"],
        own["calibration"],
        ids={**ids, f"{UPLOADS}train": fitting.ids, f"{UPLOADS}holdout": held.ids},
        repeats=repeats,
        parent=run,
        snapshot=snapshot,
    )


def _earlier_uploads(run: Run) -> tuple[str, ...]:
    """Returns the ids of all uploads that the run and its ancestors were fitted on."""
    parts = read_splits(run.path)
    return tuple(
        sorted({i for name, ids in parts.items() if name.startswith((UPLOADS, EARLIER)) for i in ids})
    )


def child_config(run: Run, schedule: Schedule) -> TrainConfig:
    """Returns the parent's config with a gentler schedule: the child starts from trained weights."""
    parent = run.config
    budget = schedule.epochs if schedule.epochs is not None else max(4, parent.training.epochs // 2)
    rate = schedule.learning_rate
    if rate is None:
        rate = parent.training.learning_rate / 2
    training = parent.training.model_copy(update={"epochs": budget, "learning_rate": rate})
    # A child's head is fitted on losses that its network never saw, even if the parent's was trained along.
    head = parent.head.model_copy(update={"joint": False}) if parent.head.joint else parent.head
    chosen = parent.seed if schedule.seed is None else schedule.seed
    mixture = parent.mixture if schedule.mixture is None else schedule.mixture
    return parent.model_copy(update={"training": training, "head": head, "seed": chosen, "mixture": mixture})


def divide(uploads: Examples, *, share: float = HOLDOUT_SHARE) -> tuple[Examples, Examples]:
    """Returns (to train on, held out), decided only by each group's name.

    By id if one side would be empty.
    """
    # By the name's hash: an upload stays on its side when later retraining has more of them.
    for names in (uploads.groups, uploads.ids):
        held = np.array([fraction_of(name) < share for name in names])
        if held.any() and not held.all():
            break
    # A single upload is trained on rather than held out.
    if held.all():
        held[:] = False
    return uploads.take(np.flatnonzero(~held)), uploads.take(np.flatnonzero(held))


def shifted_test(test: Examples, *, severity: int = SHIFT_SEVERITY) -> Examples:
    """Returns every test image corrupted by a family that its id decides: the same shift for every run."""
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
        gain = bootstrap_ratio_gain(right[0], right[1])
        difference[view] = (gain.value, gain.low, gain.high)
    return Retrained(after, numbers[0], numbers[1], difference, uploads)


@torch.no_grad()
def _judge(run: Run, examples: Examples) -> tuple[Shares, float, float | None]:
    """Returns each test example's contribution, the task's accuracy, and the head's failure AUROC."""
    outputs = []
    for start in range(0, len(examples), 256):
        positions = np.arange(start, min(start + 256, len(examples)))
        outputs.append(run.task.condense(run.model(examples.batch(positions, run.contract))))
    joined, targets = torch.cat(outputs), run.task.collate(examples.targets)
    accuracy = float(run.task.accuracy(joined, targets))
    if not run.task.knows_failures:
        # Higher is better, as in the other case.
        losses = run.task.sample_loss(joined, targets).double().numpy()
        return (-losses, np.ones_like(losses)), accuracy, None
    failed = run.task.failed(joined, targets).numpy()
    area = None
    if run.head is not None and 0 < failed.sum() < len(failed):
        score = compute(run, examples, [run.head])[run.head.name]
        area = float(auroc(score, failed))
    right, counted = run.task.shares(joined, targets)
    return (right.numpy(), counted.numpy()), accuracy, area
