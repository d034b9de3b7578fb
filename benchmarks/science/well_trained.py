"""Is a learned head worth it on well-trained networks? Against free scores and a three-network ensemble.

    python benchmarks/science/well_trained.py --json --out benchmarks/results/science/well_trained.json

Per data set and seed: a network is trained on most of the training half as well as minutes of one core allow,
the default head on images that it never saw (clean, once under each corruption family, and under six pairs),
and both are judged on the test half: all of it clean, and SHIFTED_FRAMES of it under each of eight families,
with a head that knows them all (`known`) and with a head that saw neither this family nor another one, of the
same strength and columns (`left out`). Means over families are of values within a family. The ensemble is the
networks of all seeds, three passes for the failures of one of them. The best free score of a view or family
is the best in hindsight, in the mean over seeds on the very test frames: it is flattered, the head is not.
Intervals draw test images with all their copies and average over seeds. Nothing is chosen on a test half.

Networks, heads and observations are kept in --work; an interrupted benchmark goes on where it stopped.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

if not __package__:  # started by its path: then the checkout's root is not where Python looks
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.record import command_line, finish, record, work_folder, write
from benchmarks.record import run as run_benchmark
from benchmarks.science.detection_table import Observed
from benchmarks.science.detectors import fitting_versions, weather
from benchmarks.science.well_trained_table import HEAD, markdown, reached, summarise
from misfire_train.data import Dataset, Examples, load_dataset
from misfire_train.fit import train_run
from misfire_train.heads import HeadRecipe, LossHead, ResidualHead, recipe_named
from misfire_train.heads.data import LossSet, collect_each, image_batches, join_sets, on_cpu
from misfire_train.heads.fitted import HeadReport
from misfire_train.heads.training import candidate_heads, choose_base, fit_on_losses
from misfire_train.progress import Reporter
from misfire_train.runs import Run, run_splits
from misfire_train.scores import build, names_for
from misfire_train.scores.fitting import evaluating
from misfire_train.train_config import parse_train_config

SETS: dict[str, dict[str, Any]] = {
    "fashion-mnist": {
        "split.train": 0.82,
        "split.validation": 0.02,
        "split.holdout": 0.15,
        "split.calibration": 0.01,
        "training.epochs": 16,
        "training.learning_rate": 3e-3,
        "training.shift": 1,
        "training.flip": True,
    },
    # One frame in 150 fails: the head needs more of them.
    "mnist": {
        "split.train": 0.7,
        "split.validation": 0.02,
        "split.holdout": 0.27,
        "split.calibration": 0.01,
        "training.epochs": 2,
        "training.learning_rate": 3e-3,
    },
    "traffic-lights": {
        "split.train": 0.55,
        "split.validation": 0.06,
        "split.holdout": 0.38,
        "split.calibration": 0.01,
        "training.epochs": 24,
        "training.flip": True,
    },
}
MOST_COPIED = 2_000
"""Held-out images that are also shown corrupted, 21 times each."""
SHIFTED_FRAMES = 5_000
LEFT_OUT_PAIRS = (("noise", "fog"), ("blur", "night"), ("motion", "glare"), ("rain", "jpeg"))
"""Families that one head leaves out together, none of them like its partner: those of top_of_list.py."""


def train(name: str, seed: int, *, options: argparse.Namespace) -> Run:
    """The network of a seed; one that is in --work is loaded, an interrupted one goes on."""
    small = {"training.epochs": 2, "split.limit": 500} if options.quick else {}
    config = parse_train_config(
        {"dataset": name, "data": None if options.data is None else str(options.data), "seed": seed},
        overrides={
            "model.name": "convnet-small",
            "training.patience": 100,
            "training.precision": "bf16",
            "head.recipe": "none",
            **SETS[name],
            **small,
        },
    )
    reporter = Reporter(quiet=options.quick)
    return train_run(config, out=options.work / f"{name}-{seed}", resume=True, reporter=reporter)


def gather(run: Run, dataset: Dataset, *, seed: int, quick: bool) -> tuple[LossHead, dict[str, LossSet]]:
    """An untrained head on the free score that suits, and what it is fitted on, by corruption."""
    torch.manual_seed(seed)
    parts = run_splits(run, dataset)
    given: dict[str, Any] = {"task": run.task, "contract": run.contract}
    holdout = parts["holdout"]
    recipe = recipe_named("learning-loss-pp")
    heads = candidate_heads(run.probe, recipe, train=parts["train"], seed=seed, **given)
    sets = {"clean": collect_each(run.probe, heads, holdout, **given)}
    # The first of them, so that rows of copies name the same images.
    copied = holdout.take(range(min(len(holdout), MOST_COPIED)))
    for key, version in fitting_versions(copied, seed=seed, versions_per_family=1):
        if not quick or key.split("#")[0] in ("noise", "fog", "jpeg"):
            sets[key] = collect_each(run.probe, heads, version, clean=False, **given)
    chosen = choose_base(heads, list(sets.values()))
    return heads[chosen], {key: versions[chosen] for key, versions in sets.items()}


def fit_heads(
    run: Run, dataset: Dataset, *, seed: int, options: argparse.Namespace
) -> tuple[dict[str, ResidualHead], dict[str, Any]]:
    """{family: a head that never saw it; "": one that knows all}, and what the latter chose; kept."""
    kept = options.work / f"heads-{run.record.dataset.name}-{seed}.pt"
    if kept.is_file():
        found: tuple[dict[str, ResidualHead], dict[str, Any]] = torch.load(kept, weights_only=False)
        return found
    recipe = recipe_named("learning-loss-pp")
    recipe = replace(recipe, steps=40) if options.quick else recipe
    blank, sets = gather(run, dataset, seed=seed, quick=options.quick)
    head, report = fit(blank, sets, left_out=(), recipe=recipe, seed=seed)
    made = report.choice or {}
    choice = {"base": head.base, **{k: made.get(k) for k in ("strength", "columns", "by", "gains")}}
    recipe = replace(recipe, strength=head.strength, columns=head.columns)
    heads = {"": head}
    for pair in pairs(options):
        apart, _ = fit(blank, sets, left_out=pair, recipe=recipe, seed=seed)
        heads |= dict.fromkeys(pair, apart)
    torch.save((heads, choice), kept)
    return heads, choice


def fit(
    blank: LossHead, sets: dict[str, LossSet], *, left_out: Sequence[str], recipe: HeadRecipe, seed: int
) -> tuple[ResidualHead, HeadReport]:
    """A head on every set in which none of these families occurs."""
    torch.manual_seed(seed)
    rows = [part for key, part in sets.items() if not set(key.split("#")[0].split("+")) & set(left_out)]
    fitted = fit_on_losses(copy.deepcopy(blank), join_sets(rows), recipe=recipe, seed=seed)
    assert isinstance(fitted.head, ResidualHead)
    return fitted.head, fitted.report


def pairs(options: argparse.Namespace) -> tuple[tuple[str, str], ...]:
    """The families that are judged, by the head that leaves them out."""
    return LEFT_OUT_PAIRS[:1] if options.quick else LEFT_OUT_PAIRS


def views(test: Examples, options: argparse.Namespace) -> Iterator[tuple[str, Examples]]:
    """The test images clean, and some of them once under each family; the same for every network."""
    yield "", test
    some = np.sort(np.random.default_rng(0).permutation(len(test))[:SHIFTED_FRAMES])
    for number, family in enumerate(sorted(family for pair in pairs(options) for family in pair)):
        worse = weather(test.take(some), (family,), seed=7_000_000 + number)
        # Corrupted once for all networks.
        yield family, replace(worse, images=list(worse.images))


@torch.no_grad()
def pass_over(
    run: Run, examples: Examples, heads: dict[str, ResidualHead]
) -> tuple[dict[str, np.ndarray], torch.Tensor]:
    """Free scores and heads, and the network's probabilities, of one pass."""
    scorers = build(names_for("classification", free=True), task="classification")
    columns: dict[str, list[torch.Tensor]] = {}
    outputs = []
    with evaluating(run.probe, *scorers, *heads.values()):
        for images in image_batches(examples, run.contract):
            signals = on_cpu(run.probe(images))
            for name, score in (*((s.name, s) for s in scorers), *heads.items()):
                columns.setdefault(name, []).append(score(signals))
            outputs.append(torch.softmax(signals.outputs.double(), 1))
    return {name: torch.cat(found).double().numpy() for name, found in columns.items()}, torch.cat(outputs)


def ensemble_scores(probabilities: torch.Tensor, answer: torch.Tensor) -> dict[str, np.ndarray]:
    """Scores of the mean of all networks: its entropy, its doubt, and its doubt of one network's answer."""
    mean = probabilities.mean(0)
    of_answer = mean.gather(1, answer[:, None])[:, 0]
    return {
        "ensemble_entropy": torch.special.entr(mean).sum(1).numpy(),
        "ensemble_msp": (1 - mean.amax(1)).numpy(),
        "ensemble_answer": (1 - of_answer).numpy(),
    }


def judge(
    name: str, dataset: Dataset, options: argparse.Namespace
) -> tuple[dict[str, list[Observed]], dict[str, Any]]:
    """{view: one observation per seed}, and facts of the networks; views are kept in --work.

    Views are "clean" and each family; in those the head that never saw it is a score of its own.
    """
    runs = [train(name, seed, options=options) for seed in options.seeds]
    made = []
    for seed, own in zip(options.seeds, runs, strict=True):
        made.append(fit_heads(own, dataset, seed=seed, options=options))
        print(f"{name}, seed {seed}: {made[-1][1]}", file=sys.stderr, flush=True)
    kept = options.work / f"judged-{name}.pt"
    if kept.is_file():
        judged: dict[str, list[Observed]] = torch.load(kept, weights_only=False)
    else:
        judged = {}
        for family, images in views(dataset.test, options):
            judged[family or "clean"] = observe(runs, [heads for heads, _ in made], family, images)
        torch.save(judged, kept)
    facts = {
        "test_images": len(dataset.test),
        "accuracy": [float(1 - seen.failed.mean()) for seen in judged["clean"]],
        "failures": [int(seen.failed.sum()) for seen in judged["clean"]],
        "train_images": [len(run_splits(own, dataset)["train"]) for own in runs],
        "head_images": [len(run_splits(own, dataset)["holdout"]) for own in runs],
        "heads": [choice for _, choice in made],
    }
    return judged, facts


def observe(
    runs: Sequence[Run],
    heads: Sequence[dict[str, ResidualHead]],
    family: str,
    images: Examples,
) -> list[Observed]:
    """One observation per seed of one view."""
    seen, probabilities = [], []
    for own, made in zip(runs, heads, strict=True):
        used = {HEAD: made[""]} | ({f"{HEAD}, left out": made[family]} if family else {})
        scores, p = pass_over(own, images, used)
        seen.append(scores)
        probabilities.append(p)
    stack, truth = torch.stack(probabilities), torch.as_tensor(images.targets)
    found = []
    for scores, p in zip(seen, probabilities, strict=True):
        answer = p.argmax(1)
        failed = (answer != truth).numpy()
        own_scores = {**scores, **ensemble_scores(stack, answer)}
        found.append(Observed(own_scores, failed, failed.astype(np.float64), np.arange(len(failed))))
    return found


def main() -> int:
    """Runs it and prints a table, or JSON."""
    parser = command_line(__doc__ or "", seeds=(0, 1, 2))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--work", type=Path, help="networks, heads and observations are kept here")
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS)
    parser.add_argument("--replicates", type=int, default=300)
    options = parser.parse_args()
    options.work = work_folder(options)
    if options.quick:
        options.seeds, options.replicates, options.sets = options.seeds[:2], 30, ["traffic-lights"]
    sets: dict[str, Any] = {}
    for name in options.sets:
        judged, facts = judge(name, load_dataset(name, root=options.data), options)
        sets[name] = {**facts, **summarise(judged, replicates=options.replicates)}
        # After every data set, so that an interrupted benchmark has something to show.
        write(record(__file__, {"sets": sets, "goals": reached(sets)}, options), options.out)
    goals = reached(sets)
    met = options.quick or all(goal for each in goals.values() for goal in each.values())
    return finish(__file__, {"sets": sets, "goals": goals}, options, summary=markdown(sets), met=met)


if __name__ == "__main__":
    run_benchmark(main)
