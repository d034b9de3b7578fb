"""Which score finds the frames whose joints are wrong: free scores of heatmaps against the per-joint head.

    python benchmarks/keypoints.py --seeds 0 1 2 --json --out benchmarks/results/keypoints.json

Data: `figures`, articulated figures drawn over real photographs (made, not photographed); the test half
stands on other photographs than the training half. Per seed a small heatmap network is trained, then the
per-joint head on images that it never saw, clean and corrupted. Scored: the test half, clean and with every
image under one corruption family at a random severity (`shifted`: families known; `left out`: heads of
three groups of families, each judged on the group that it never saw). AURC is of the loss; a failure is a
loss above the task's threshold. --quick: a small part, to see that it runs.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from detection_table import Observed, differences, markdown, plain, points, pool

from misfire_runtime.clock import utc_text, wall_time
from misfire_train.data import Dataset, Examples, load_dataset
from misfire_train.data.corruptions import FAMILIES
from misfire_train.head_data import collect, corrupted_copies, image_batches
from misfire_train.head_training import fit_head
from misfire_train.heads import HeadRecipe, LossHead, recipe_named
from misfire_train.loop import git_commit, train_run, versions
from misfire_train.progress import Reporter
from misfire_train.runs import Run, run_splits
from misfire_train.scores import build
from misfire_train.scores.fitting import evaluating
from misfire_train.tasks import get_task
from misfire_train.train_config import parse_train_config

FREE = ("mean_peak", "self_residual", "multi_peak_entropy", "heatmap_entropy")
REFERENCES = ("mean_peak", "self_residual", "multi_peak_entropy")
GROUPS = tuple(tuple(list(FAMILIES)[k::3]) for k in range(3))
METRICS = ("aurc", "auroc")
VIEWS = ("clean", "shifted", "left out")


def train(seed: int, *, work: Path, data: Path | None, limit: int, epochs: int) -> Run:
    """The task network of a seed; an existing one is loaded."""
    config = parse_train_config(
        {"dataset": "figures", "data": None if data is None else str(data), "seed": seed},
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
    return train_run(config, out=work / f"keypoints-{seed}", resume=True, reporter=Reporter())


def shifted(test: Examples, families: tuple[str, ...], *, seed: int) -> Examples:
    """Each image under one of the families at a severity of its own."""
    recipe = replace(recipe_named("learning-loss-pp"), copies=1, families=families, mixed=0.0)
    return corrupted_copies(test, recipe, seed=seed)[0]


def fit(run: Run, dataset: Dataset, *, recipe: HeadRecipe, seed: int) -> LossHead:
    """The per-joint head."""
    parts = run_splits(run, dataset)
    return fit_head(
        run.probe,
        task=run.task,
        recipe=recipe,
        train=parts["train"],
        holdout=parts["holdout"],
        contract=run.contract,
        seed=seed,
    ).head


@torch.no_grad()
def observe(run: Run, examples: Examples, head: LossHead) -> Observed:
    """Free scores and the head on a set of images."""
    scorers = build(FREE, task="keypoints")
    columns: dict[str, list[torch.Tensor]] = {score.name: [] for score in (*scorers, head)}
    with evaluating(run.probe, *scorers, head):
        for images in image_batches(examples, run.contract):
            signals = run.probe(images)
            for score in (*scorers, head):
                columns[score.name].append(score(signals))
    truth = collect(run.probe, head, examples, task=run.task, contract=run.contract)
    assert truth.failed is not None
    return Observed(
        scores={name: torch.cat(values).double().numpy() for name, values in columns.items()},
        failed=truth.failed.numpy(),
        loss=truth.frame_losses.double().numpy(),
        image=np.arange(len(examples)),
    )


def judge_seed(
    run: Run, dataset: Dataset, test: Examples, *, recipe: HeadRecipe, seed: int
) -> dict[str, Observed]:
    """The three views of a seed."""
    head = fit(run, dataset, recipe=recipe, seed=seed)
    result = {"clean": observe(run, test, head)}
    result["shifted"] = observe(run, shifted(test, tuple(FAMILIES), seed=7_000_000 + seed), head)
    apart = []
    for group in GROUPS:
        known = tuple(family for family in FAMILIES if family not in group)
        other = fit(run, dataset, recipe=replace(recipe, families=known), seed=seed)
        apart.append(observe(run, shifted(test, group, seed=8_000_000 + seed), other))
    result["left out"] = pool(apart)
    return result


def main() -> None:
    """Runs it and prints a table, or JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--work", type=Path, default=Path("detectors-work"))
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--replicates", type=int, default=500)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    dataset = load_dataset("figures", root=options.data)
    test = dataset.test.take(range(120)) if options.quick else dataset.test
    recipe = recipe_named("learning-loss-pp")
    recipe = replace(recipe, steps=40, copies=1) if options.quick else recipe
    judged = []
    accuracy = []
    for seed in options.seeds:
        limit, epochs = (300, 1) if options.quick else (4_000, options.epochs)
        run = train(seed, work=options.work, data=options.data, limit=limit, epochs=epochs)
        accuracy.append(run.record.metrics["test_accuracy"])
        judged.append(judge_seed(run, dataset, test, recipe=recipe, seed=seed))
        print(f"seed {seed} judged", file=sys.stderr, flush=True)
    tables = {view: points([s[view] for s in judged], metrics=METRICS) for view in VIEWS}
    paired = {
        view: differences(
            [s[view] for s in judged],
            winner="learning_loss_pp",
            references=REFERENCES,
            metrics=METRICS,
            replicates=options.replicates,
        )
        for view in VIEWS
    }
    met = {view: all(paired[view][name]["aurc"]["wins"] for name in REFERENCES) for view in VIEWS}
    result = {
        "command": f"python benchmarks/keypoints.py --seeds {' '.join(map(str, options.seeds))} "
        f"--epochs {options.epochs} --replicates {options.replicates}" + " --quick" * options.quick,
        "date": utc_text(wall_time()),
        "git_commit": git_commit(),
        "versions": versions(),
        "seeds": options.seeds,
        "quick": options.quick,
        "data": "figures drawn over real photographs; not photographs of people",
        "test_images": len(test),
        "pck_at_0.1": accuracy,
        "failure_threshold": get_task("keypoints").failure_threshold,
        "tables": tables,
        "differences": paired,
        "goals_met": met,
    }
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(plain(result), indent=1) + "\n", encoding="utf-8")
    print(json.dumps(plain(result)) if options.json else markdown(tables, metrics=METRICS))


if __name__ == "__main__":
    main()
