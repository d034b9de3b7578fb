"""What keypoints.py and segmentation.py share: heads that learn unit by unit, against the free scores.

Per seed: a small task network -> a failure threshold off the clean holdout -> heads fitted on the holdout,
clean and corrupted -> three views of the test half. `clean`; `shifted`, every image under one corruption
family at a random severity, all families known to the head; `left out`, heads of three groups of families,
each judged on the group that it never saw. All heads of a seed start as the same untrained one, on the same
clean losses. A seed that was judged is kept in --work; --resume takes it from there.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.record import command_line, finish, work_folder
from benchmarks.science.detection_table import Observed, differences, markdown, points, pool
from misfire_train.data import Dataset, Examples, load_dataset
from misfire_train.data.corruptions import FAMILIES
from misfire_train.fit import train_run
from misfire_train.fitting.failures import settle_failures
from misfire_train.heads import HeadRecipe, LossHead, ResidualHead, recipe_named
from misfire_train.heads.data import LossSet, checked_losses, collect, corrupted_copies, join_sets
from misfire_train.heads.training import best_base, candidate_heads, fit_on_losses
from misfire_train.progress import Reporter
from misfire_train.runs import FailureRecord, Run, run_splits
from misfire_train.scores import build, names_for
from misfire_train.scores.fitting import batches, evaluating
from misfire_train.tasks import Task
from misfire_train.train_config import FailureTable, parse_train_config

GROUPS = tuple(tuple(list(FAMILIES)[k::3]) for k in range(3))
METRICS = ("aurc", "auroc")
VIEWS = ("clean", "shifted", "left out")
HEAD = "learning_loss_pp"


@dataclass(frozen=True)
class Bench:
    """What to measure. references: free scores that the goal compares with.  accuracy: its JSON name."""

    dataset: str
    task: str
    data_note: str
    accuracy: str
    references: tuple[str, ...]

    @property
    def free(self) -> list[str]:
        """Every free score of the task."""
        return names_for(self.task, free=True)


def train(bench: Bench, seed: int, *, work: Path, data: Path | None, limit: int, epochs: int) -> Run:
    """The task network of a seed; an existing one is loaded."""
    config = parse_train_config(
        {"dataset": bench.dataset, "data": None if data is None else str(data), "seed": seed},
        overrides={
            "split.limit": limit,
            "split.by_group": False,
            "split.train": 0.6,
            "split.validation": 0.05,
            "split.holdout": 0.34,
            "split.calibration": 0.01,
            "training.epochs": epochs,
            "training.batch": 32,
            "head.recipe": "none",
        },
    )
    return train_run(config, out=work / f"{bench.task}-{seed}", resume=True, reporter=Reporter())


def shifted(test: Examples, families: tuple[str, ...], *, seed: int) -> Examples:
    """Each image under one of the families at a severity of its own."""
    recipe = replace(recipe_named("learning-loss-pp"), copies=1, families=families, mixed=0.0)
    return corrupted_copies(test, recipe, seed=seed)[0]


@dataclass(frozen=True)
class Start:
    """An untrained head with its memory, on the free score that suits, and the clean held-out losses."""

    head: LossHead
    clean: LossSet


def start(run: Run, task: Task, parts: dict[str, Examples], *, recipe: HeadRecipe, seed: int) -> Start:
    """The first half of `fit_head`, which no corruption enters."""
    probe, contract, holdout = run.probe, run.contract, parts["holdout"]
    torch.manual_seed(seed)
    heads = candidate_heads(probe, recipe, contract=contract, task=task, train=parts["train"], seed=seed)
    clean = collect(probe, heads[0], holdout, task=task, contract=contract)
    chosen = best_base(probe, heads, holdout, clean, contract=contract)
    if chosen != 0:
        clean = collect(probe, heads[chosen], holdout, task=task, contract=contract)
    return Start(heads[chosen], clean)


def fit(run: Run, task: Task, begun: Start, holdout: Examples, *, recipe: HeadRecipe, seed: int) -> LossHead:
    """The second half: the head, unit by unit, on clean images and corrupted copies."""
    head = copy.deepcopy(begun.head)
    worse = [
        collect(run.probe, head, version, task=task, contract=run.contract, clean=False)
        for version in corrupted_copies(holdout, recipe, seed=seed)
    ]
    return fit_on_losses(head, join_sets([begun.clean, *worse]), recipe=recipe, seed=seed).head


@torch.no_grad()
def observe(run: Run, task: Task, examples: Examples, head: LossHead, *, free: Sequence[str]) -> Observed:
    """Free scores, the head, and the truth of a set of images, from one pass."""
    scorers = build(free, task=task.name)
    columns: dict[str, list[torch.Tensor]] = {score.name: [] for score in (*scorers, head)}
    losses, failed = [], []
    with evaluating(run.probe, *scorers, head):
        for rows, images in batches(examples, contract=run.contract, size=256):
            signals = run.probe(images)
            for score in (*scorers, head):
                columns[score.name].append(score(signals))
            targets = torch.as_tensor(examples.targets[rows])
            losses.append(checked_losses(task, signals.outputs, targets, ids=examples.ids[rows]))
            failed.append(task.failed(signals.outputs, targets))
    return Observed(
        scores={name: torch.cat(values).double().numpy() for name, values in columns.items()},
        failed=torch.cat(failed).numpy(),
        loss=torch.cat(losses).double().numpy(),
        image=np.arange(len(examples)),
    )


def judge_seed(
    bench: Bench, run: Run, dataset: Dataset, test: Examples, *, recipe: HeadRecipe, seed: int
) -> tuple[dict[str, Observed], FailureRecord]:
    """The three views of a seed, and what a failure is in them."""
    parts = run_splits(run, dataset)
    task, failure = settle_failures(
        run.probe, run.task, parts["holdout"], contract=run.contract, table=FailureTable()
    )
    failure = run.record.failure or failure
    assert failure is not None
    begun = start(run, task, parts, recipe=recipe, seed=seed)
    head = fit(run, task, begun, parts["holdout"], recipe=recipe, seed=seed)
    if isinstance(head, ResidualHead):
        # Heads without a group of families have the strength and the columns of the one that is shipped.
        recipe = replace(recipe, strength=head.strength, columns=head.columns)
    everything = shifted(test, tuple(FAMILIES), seed=7_000_000 + seed)
    result = {
        "clean": observe(run, task, test, head, free=bench.free),
        "shifted": observe(run, task, everything, head, free=bench.free),
    }
    apart = []
    for group in GROUPS:
        known = tuple(family for family in FAMILIES if family not in group)
        other = fit(run, task, begun, parts["holdout"], recipe=replace(recipe, families=known), seed=seed)
        unseen = shifted(test, group, seed=8_000_000 + seed)
        apart.append(observe(run, task, unseen, other, free=bench.free))
    result["left out"] = pool(apart)
    return result, failure


def save_views(path: Path, views: dict[str, Observed], failure: FailureRecord) -> None:
    """Everything that was observed of a seed, whole or not at all."""
    arrays = {"failure": np.array(failure.model_dump_json())}
    for view, seen in views.items():
        arrays |= {f"{view}/score/{name}": values for name, values in seen.scores.items()}
        arrays |= {f"{view}/{name}": getattr(seen, name) for name in ("failed", "loss", "image")}
    temporary = path.with_name(f".{path.name}")
    np.savez_compressed(temporary, **arrays)
    temporary.replace(path)


def load_views(path: Path) -> tuple[dict[str, Observed], FailureRecord]:
    """What save_views wrote."""
    with np.load(path) as kept:
        arrays = {name: kept[name] for name in kept.files}
    views = {}
    for view in VIEWS:
        start_of = f"{view}/score/"
        scores = {k.removeprefix(start_of): v for k, v in arrays.items() if k.startswith(start_of)}
        views[view] = Observed(scores, *(arrays[f"{view}/{name}"] for name in ("failed", "loss", "image")))
    return views, FailureRecord.model_validate_json(str(arrays["failure"]))


def options_of(description: str) -> argparse.Namespace:
    """The command line of both benchmarks."""
    parser = command_line(description, seeds=(0, 1, 2))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--work", type=Path, help="networks and scores are kept here; default detectors-work")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--replicates", type=int, default=500)
    parser.add_argument("--resume", action="store_true", help="Take judged seeds from --work.")
    chosen = parser.parse_args()
    chosen.work = work_folder(chosen)
    if chosen.quick:
        chosen.replicates = min(chosen.replicates, 50)
        chosen.seeds = chosen.seeds[:1]
    return chosen


def measure(bench: Bench, chosen: argparse.Namespace) -> dict[str, Any]:
    """All seeds: tables, paired differences to every free score, and whether the goal is met in each view."""
    dataset = load_dataset(bench.dataset, root=chosen.data)
    test = dataset.test.take(range(48)) if chosen.quick else dataset.test
    recipe = recipe_named("learning-loss-pp")
    recipe = replace(recipe, steps=40, copies=1) if chosen.quick else recipe
    judged, accuracy, failures = [], [], []
    for seed in chosen.seeds:
        limit, epochs = (300, 1) if chosen.quick else (4_000, chosen.epochs)
        run = train(bench, seed, work=chosen.work, data=chosen.data, limit=limit, epochs=epochs)
        accuracy.append(run.record.metrics["test_accuracy"])
        kept = chosen.work / f"judged-{run.record.run_id}-{len(test)}.npz"
        if chosen.resume and kept.exists():
            views, failure = load_views(kept)
        else:
            views, failure = judge_seed(bench, run, dataset, test, recipe=recipe, seed=seed)
            save_views(kept, views, failure)
        judged.append(views)
        failures.append(failure)
        print(f"seed {seed} judged, a failure is a loss above {failure.threshold:.4f}", file=sys.stderr)
    tables = {view: points([s[view] for s in judged], metrics=METRICS) for view in VIEWS}
    paired = {
        view: differences(
            [s[view] for s in judged],
            winner=HEAD,
            references=bench.free,
            metrics=METRICS,
            replicates=chosen.replicates,
        )
        for view in VIEWS
    }
    met = {view: all(paired[view][name]["aurc"]["wins"] for name in bench.references) for view in VIEWS}
    return {
        "data": bench.data_note,
        "epochs": chosen.epochs,
        "replicates": chosen.replicates,
        "test_images": len(test),
        bench.accuracy: accuracy,
        "failure_thresholds": [failure.threshold for failure in failures],
        "failure_source": sorted({failure.source for failure in failures}),
        "failure_rates": {view: [float(s[view].failed.mean()) for s in judged] for view in VIEWS},
        "tables": tables,
        "differences": paired,
        "goals_met": met,
    }


def judge(file: str, description: str, bench: Bench) -> int:
    """Runs one of the benchmarks, given its file and docstring, and returns the exit status."""
    chosen = options_of(description)
    result = measure(bench, chosen)
    return finish(file, result, chosen, summary=markdown(result["tables"], metrics=METRICS))
