"""What keypoints.py and segmentation.py share: heads that learn unit by unit, against the free scores.

Per seed: a small task network -> a failure threshold off the clean holdout -> heads fitted on the holdout,
clean and corrupted -> three views of the test half. `clean`; `shifted`, every image under one corruption
family at a random severity, all families known to the head; `left out`, heads of three groups of families,
each judged on the group that it never saw.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detection_table import Observed, differences, markdown, plain, points, pool

from misfire_runtime.clock import utc_text, wall_time
from misfire_train.data import Dataset, Examples, load_dataset
from misfire_train.data.corruptions import FAMILIES
from misfire_train.failures import settle_failures
from misfire_train.head_data import checked_losses, corrupted_copies
from misfire_train.head_training import fit_head
from misfire_train.heads import HeadRecipe, LossHead, recipe_named
from misfire_train.loop import git_commit, train_run, versions
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

    script: str
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


def fit(run: Run, task: Task, parts: dict[str, Examples], *, recipe: HeadRecipe, seed: int) -> LossHead:
    """The head, unit by unit."""
    return fit_head(
        run.probe,
        task=task,
        recipe=recipe,
        train=parts["train"],
        holdout=parts["holdout"],
        contract=run.contract,
        seed=seed,
    ).head


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
    head = fit(run, task, parts, recipe=recipe, seed=seed)
    everything = shifted(test, tuple(FAMILIES), seed=7_000_000 + seed)
    result = {
        "clean": observe(run, task, test, head, free=bench.free),
        "shifted": observe(run, task, everything, head, free=bench.free),
    }
    apart = []
    for group in GROUPS:
        known = tuple(family for family in FAMILIES if family not in group)
        other = fit(run, task, parts, recipe=replace(recipe, families=known), seed=seed)
        unseen = shifted(test, group, seed=8_000_000 + seed)
        apart.append(observe(run, task, unseen, other, free=bench.free))
    result["left out"] = pool(apart)
    return result, failure


def options(description: str) -> argparse.Namespace:
    """The command line of both benchmarks."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--work", type=Path, default=Path("detectors-work"))
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--replicates", type=int, default=500)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true")
    return parser.parse_args()


def measure(bench: Bench, chosen: argparse.Namespace) -> dict[str, Any]:
    """All seeds: tables, paired differences to every free score, and whether the goal is met in each view."""
    dataset = load_dataset(bench.dataset, root=chosen.data)
    test = dataset.test.take(range(120)) if chosen.quick else dataset.test
    recipe = recipe_named("learning-loss-pp")
    recipe = replace(recipe, steps=40, copies=1) if chosen.quick else recipe
    judged, accuracy, failures = [], [], []
    for seed in chosen.seeds:
        limit, epochs = (300, 1) if chosen.quick else (4_000, chosen.epochs)
        run = train(bench, seed, work=chosen.work, data=chosen.data, limit=limit, epochs=epochs)
        accuracy.append(run.record.metrics["test_accuracy"])
        views, failure = judge_seed(bench, run, dataset, test, recipe=recipe, seed=seed)
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
        "command": " ".join(["python", f"benchmarks/{bench.script}", *sys.argv[1:]]),
        "date": utc_text(wall_time()),
        "git_commit": git_commit(),
        "versions": versions(),
        "seeds": chosen.seeds,
        "quick": chosen.quick,
        "data": bench.data_note,
        "test_images": len(test),
        bench.accuracy: accuracy,
        "failure_thresholds": [failure.threshold for failure in failures],
        "failure_source": sorted({failure.source for failure in failures}),
        "failure_rates": {view: [float(s[view].failed.mean()) for s in judged] for view in VIEWS},
        "tables": tables,
        "differences": paired,
        "goals_met": met,
    }


def main(bench: Bench, description: str) -> None:
    """Runs it, writes --out, and prints a table, or JSON."""
    chosen = options(description)
    result = measure(bench, chosen)
    if chosen.out is not None:
        chosen.out.parent.mkdir(parents=True, exist_ok=True)
        chosen.out.write_text(json.dumps(plain(result), indent=1) + "\n", encoding="utf-8")
    print(json.dumps(plain(result)) if chosen.json else markdown(result["tables"], metrics=METRICS))
