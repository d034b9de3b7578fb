"""How many failures the frames hold that a fleet uploads: the head against free scores at 0.5, 1, 2 and 5 %.

    python benchmarks/science/top_of_list.py --json --out benchmarks/results/science/top_of_list.json

Per data set and seed: a network is trained on a part of the training half, heads on images that it never saw,
clean and corrupted, and both are judged on the test half: clean; under each of four corruption families with
a head that knows them (`known`); and under each with a head that never saw it (`left out`). A corrupted view
is a fleet of its own: the budget is spent within it, and recalls and precisions are means over families.
Differences are of recall, paired on the same resamples of test images, drawn with all their copies, and
averaged over seeds. The free score is the best one of the view at that budget, in the mean over seeds and
families, chosen on the same frames: it is flattered, the head is not. Nothing is chosen on the test half.

`expected_loss`: a curve from score to loss, fitted on one half of the clean test images and judged on the
other; tenths of the frames within a factor of 1.25 of the truth, and of its 95 % interval.

--tune OBJECTIVE.. compares objectives of the top instead, on training images that neither network nor head
saw, with a network of another seed. Networks and signals are kept in --work.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

if not __package__:  # started by its path: then the checkout's root is not where Python looks
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.record import command_line, finish, record, work_folder, write
from benchmarks.record import run as run_benchmark
from benchmarks.science.detection_table import Observed
from benchmarks.science.detectors import fresh_head, observe, observed, weather
from benchmarks.science.head_copies import unseen_by
from misfire_train.data import Dataset, Examples, load_dataset
from misfire_train.fit import train_run
from misfire_train.heads import HeadRecipe, LossHead, recipe_named
from misfire_train.heads.data import collect, join_sets
from misfire_train.heads.training import best_base, candidate_heads, fit_on_losses
from misfire_train.metrics import fit_loss_curve, fit_loss_scale, loss_reliability, reliability
from misfire_train.metrics.bootstrap import interval, resample_weights
from misfire_train.metrics.detection import recall_at_budget_rows
from misfire_train.metrics.ranking import Ranked, rank_scores
from misfire_train.progress import Reporter
from misfire_train.runs import Run, run_splits
from misfire_train.scores import build
from misfire_train.train_config import parse_train_config

Floats = NDArray[np.float64]
FREE = ("entropy", "msp", "margin", "energy", "max_logit")
FAMILIES = ("noise", "blur", "night", "fog")
"""Sensor, lens, light, weather. Heads know others, too (LIBRARY)."""
LIBRARY = (*FAMILIES, "motion", "glare", "rain", "jpeg")
PAIRS = (("noise", "night"), ("blur", "fog"))
BUDGETS = (0.005, 0.01, 0.02, 0.05)
NAME = "learning_loss_pp"
VIEWS = ("clean", "known", "left out")
SETS: dict[str, dict[str, Any]] = {
    "fashion-mnist": {
        "split.limit": 8_000,
        "split.train": 0.58,
        "split.validation": 0.05,
        "split.holdout": 0.35,
        "split.calibration": 0.02,
        "training.epochs": 7,
    },
    # 1,187 crops: half of them for the network leaves the head nearly five hundred.
    "traffic-lights": {
        "split.train": 0.5,
        "split.validation": 0.08,
        "split.holdout": 0.41,
        "split.calibration": 0.01,
        "training.epochs": 20,
        "training.flip": True,
    },
}
TUNING_SEED = 101
TEST_FRAMES = 6_000


def train(name: str, seed: int, *, options: argparse.Namespace) -> Run:
    """The task network of a seed; one that is in --work is loaded."""
    small = {"split.limit": 600, "training.epochs": 2} if options.quick else {}
    config = parse_train_config(
        {"dataset": name, "data": None if options.data is None else str(options.data), "seed": seed},
        overrides={**SETS[name], **small, "head.recipe": "none"},
    )
    return train_run(config, out=options.work / f"{name}-{seed}", resume=True, reporter=Reporter(quiet=True))


def judged_frames(dataset: Dataset) -> Examples:
    """The test half, or TEST_FRAMES of it, the same for every seed."""
    if len(dataset.test) <= TEST_FRAMES:
        return dataset.test
    rows = np.random.default_rng(0).permutation(len(dataset.test))[:TEST_FRAMES]
    return dataset.test.take(np.sort(rows))


def gather(run: Run, dataset: Dataset, *, seed: int, judged: Examples, cache: Path) -> dict[str, Any]:
    """All that heads and judges need from the network's forward passes; kept in `cache`."""
    if cache.is_file():
        loaded: dict[str, Any] = torch.load(cache, weights_only=False)
        return loaded
    parts = run_splits(run, dataset)
    recipe = recipe_named("learning-loss-pp")
    heads = candidate_heads(
        run.probe, recipe, contract=run.contract, task=run.task, train=parts["train"], seed=seed
    )
    clean = collect(run.probe, heads[0], parts["holdout"], task=run.task, contract=run.contract)
    head = heads[best_base(run.probe, heads, parts["holdout"], clean, contract=run.contract)]
    scorers = build(FREE, task="classification")
    fitting = {"clean": collect(run.probe, head, parts["holdout"], task=run.task, contract=run.contract)}
    for number, families in enumerate((family,) for family in LIBRARY):
        copy = weather(parts["holdout"], families, seed=1000 * seed + number)
        fitting[families[0]] = observe(run, copy, head, [], clean=False).data
    for number, pair in enumerate(PAIRS):
        copy = weather(parts["holdout"], pair, seed=1000 * seed + 900 + number, mixed=1.0)
        fitting["+".join(pair)] = observe(run, copy, head, [], clean=False).data
    views = {"clean": observe(run, judged, head, scorers, clean=True)}
    for number, family in enumerate(FAMILIES):
        copy = weather(judged, (family,), seed=7_000_000 + 1000 * seed + number)
        views[family] = observe(run, copy, head, scorers, clean=False)
    result = {
        "fitting": fitting,
        "views": views,
        "families": families,
        "options": head.options,
        "memory": head.memory.state_dict(),
        "opinions": head.opinions.state_dict(),
        "groups": parts["holdout"].groups,
    }
    torch.save(result, cache)
    return result


def fit(gathered: dict[str, Any], *, left_out: str | None, recipe: HeadRecipe, seed: int) -> LossHead:
    """A head on everything but one family, alone or in a pair."""
    torch.manual_seed(seed)
    rows = [part for key, part in gathered["fitting"].items() if left_out not in key.split("+")]
    return fit_on_losses(fresh_head(gathered), join_sets(rows), recipe=recipe, seed=seed).head


def judge_seed(
    gathered: dict[str, Any], *, seed: int, recipe: HeadRecipe, cache: Path | None = None
) -> dict[str, list[Observed]]:
    """The observations of each view: one of the clean images, one per family of the others."""
    if cache is not None and cache.is_file():
        kept: dict[str, Any] = torch.load(cache, weights_only=False)
        if kept["recipe"] == recipe:
            found: dict[str, list[Observed]] = kept["views"]
            return found
    views = gathered["views"]
    head = fit(gathered, left_out=None, recipe=recipe, seed=seed)
    apart = {family: fit(gathered, left_out=family, recipe=recipe, seed=seed) for family in FAMILIES}
    result = {
        "clean": [observed(views["clean"], {NAME: head})],
        "known": [observed(views[family], {NAME: head}) for family in FAMILIES],
        "left out": [observed(views[family], {NAME: apart[family]}) for family in FAMILIES],
    }
    if cache is not None:
        torch.save({"recipe": recipe, "views": result}, cache)
    return result


def losses_of(gathered: dict[str, Any]) -> Floats:
    """True losses of the clean judged images."""
    found: Floats = gathered["views"]["clean"].data.frame_losses.double().numpy()
    return found


def recalls(view: Observed, *, replicates: int) -> dict[tuple[str, float], tuple[float, float, Floats]]:
    """{(score, budget): recall, precision, replicates of the recall} of one view of one seed."""
    names = (*FREE, NAME)
    ranked = {name: Ranked(rank_scores(view.scores[name]), failed=view.failed) for name in names}
    found, failures = {}, float(view.failed.sum())
    rows: dict[tuple[str, float], list[Floats]] = {(name, b): [] for name in names for b in BUDGETS}
    # The same seed gives the same resamples of images in every view and for every network.
    for weights in resample_weights(view.image, replicates=replicates, seed=0):
        for name in names:
            sums = ranked[name].sums(weights)
            for budget in BUDGETS:
                rows[name, budget].append(recall_at_budget_rows(sums, budget=budget))
    for (name, budget), drawn in rows.items():
        recall = float(recall_at_budget_rows(ranked[name].sums(), budget=budget)[0])
        precision = recall * failures / max(1, round(budget * len(view.failed)))
        found[name, budget] = recall, precision, np.concatenate(drawn)
    return found


def compare(seeds: Sequence[Sequence[Observed]], *, replicates: int) -> dict[str, dict[str, Any]]:
    """{budget: the head against the free score that finds most at it}, mean over seeds and families."""
    each = [recalls(view, replicates=replicates) for views in seeds for view in views]
    result = {}
    for budget in BUDGETS:
        mean = {
            name: tuple(np.mean([found[name, budget][k] for found in each], axis=0) for k in range(3))
            for name in (*FREE, NAME)
        }
        best = max(FREE, key=lambda name: float(mean[name][0]))
        low, high, _ = interval(mean[NAME][2] - mean[best][2])
        result[f"{budget:.1%}"] = {
            "uploads_per_view": max(1, round(budget * len(seeds[0][0].failed))),
            "free": best,
            "free_recall": float(mean[best][0]),
            "free_precision": float(mean[best][1]),
            "head_recall": float(mean[NAME][0]),
            "head_precision": float(mean[NAME][1]),
            "recall_difference": float(mean[NAME][0] - mean[best][0]),
            "low": low,
            "high": high,
            "above": low > 0,
            "below": high < 0,
        }
    return result


def expected_loss(view: Observed, losses: Floats, *, seed: int) -> dict[str, Any]:
    """The head's expected loss on half of the clean images, by a curve and by one constant of the other."""
    first = np.random.default_rng(seed).permutation(len(losses)) < len(losses) // 2
    score = view.scores[NAME]
    curve = fit_loss_curve(score[first], losses[first])
    assert curve is not None
    by_curve = reliability(curve.predict(score[~first]), losses[~first])
    scale = fit_loss_scale(score[first], losses[first])
    by_scale = loss_reliability(score[~first], losses[~first], scale=scale)
    return {
        name: {
            "tenths": len(found.bins),
            "within": found.within(),
            "consistent": found.consistent(),
            "lowest_predicted": found.bins[0].predicted,
            "lowest_observed": found.bins[0].observed,
            "relative_error": found.relative_error,
        }
        for name, found in (("curve", by_curve), ("constant", by_scale))
    }


def summarise(
    seeds: Sequence[dict[str, list[Observed]]], losses: Sequence[Floats], *, replicates: int
) -> dict[str, Any]:
    """All comparisons of one data set."""
    views = {view: compare([seed[view] for seed in seeds], replicates=replicates) for view in VIEWS}
    families = {
        view: {
            family: compare([[seed[view][k]] for seed in seeds], replicates=replicates)
            for k, family in enumerate(FAMILIES)
        }
        for view in ("known", "left out")
    }
    return {
        "images": len(seeds[0]["clean"][0].failed),
        "accuracy": [float(1 - seed["clean"][0].failed.mean()) for seed in seeds],
        "views": views,
        "families": families,
        "expected_loss": [
            expected_loss(seed["clean"][0], true, seed=number)
            for number, (seed, true) in enumerate(zip(seeds, losses, strict=True))
        ],
    }


def goals(result: dict[str, Any]) -> dict[str, bool]:
    """Above at every budget in known families, and significantly below in no view and no single family."""
    every = [one for found in result.values() for one in found["views"].values()]
    single = [
        one for found in result.values() for view in found["families"].values() for one in view.values()
    ]
    return {
        "known_above": all(b["above"] for found in result.values() for b in found["views"]["known"].values()),
        "nowhere_below": not any(budget["below"] for view in every for budget in view.values()),
        "no_family_below": not any(budget["below"] for view in single for budget in view.values()),
    }


def table(result: dict[str, Any]) -> str:
    """Markdown: precision of the best free score and of the head, and the difference of recall."""
    lines = [
        "| data | view | uploads | free score | its precision | head's | recall, points |",
        "|---" * 7 + "|",
    ]
    for name, found in result.items():
        for view, budgets in found["views"].items():
            for budget, one in budgets.items():
                interval_text = f"{100 * one['low']:+.2f} .. {100 * one['high']:+.2f}"
                gain = f"{100 * one['recall_difference']:+.2f} ({interval_text})"
                lines.append(
                    f"| {name} | {view} | {budget.replace('%', ' %')} | {one['free']} | "
                    f"{100 * one['free_precision']:.1f} | {100 * one['head_precision']:.1f} | {gain} |"
                )
    return "\n".join(lines)


def tune(options: argparse.Namespace) -> dict[str, Any]:
    """Objectives of the top, on images of the training half; nothing of a test half is read."""
    dataset = load_dataset("fashion-mnist", root=options.data)
    own = train("fashion-mnist", TUNING_SEED, options=options)
    images = unseen_by(own, dataset.train, count=300 if options.quick else TEST_FRAMES, seed=TUNING_SEED)
    cache = options.work / f"tuning-{TUNING_SEED}.pt"
    gathered = gather(own, dataset, seed=TUNING_SEED, judged=images, cache=cache)
    default = recipe_named("learning-loss-pp")
    default = replace(default, steps=40) if options.quick else default
    found = {}
    for name in options.tune:
        recipe = default if name == "none" else replace(default, top=name, top_weight=0.25)
        seeds = [judge_seed(gathered, seed=seed, recipe=recipe) for seed in options.seeds]
        found[name] = summarise(seeds, [losses_of(gathered)] * len(seeds), replicates=options.replicates)
    return found


def main() -> int:
    """Runs it and prints a table, or JSON."""
    parser = command_line(__doc__, seeds=(0, 1, 2))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--work", type=Path, help="networks and signals are kept here")
    parser.add_argument("--replicates", type=int, default=300)
    parser.add_argument("--tune", nargs="+", default=[], help="objectives of the top, or none")
    options = parser.parse_args()
    options.work = work_folder(options)
    if options.quick:
        options.seeds, options.replicates = options.seeds[:1], 50
    if options.tune:
        found = tune(options)
        return finish(__file__, {"tuning": found}, options, summary=table(found))
    result: dict[str, Any] = {}
    for name in SETS:
        dataset = load_dataset(name, root=options.data)
        judged = (
            dataset.test.take(range(min(200, len(dataset.test)))) if options.quick else judged_frames(dataset)
        )
        recipe = recipe_named("learning-loss-pp")
        recipe = replace(recipe, steps=40) if options.quick else recipe
        seeds, losses = [], []
        for seed in options.seeds:
            cache = options.work / f"{name}-{seed}.pt"
            own = train(name, seed, options=options)
            gathered = gather(own, dataset, seed=seed, judged=judged, cache=cache)
            kept = options.work / f"judged-{name}-{seed}.pt"
            seeds.append(judge_seed(gathered, seed=seed, recipe=recipe, cache=kept))
            losses.append(losses_of(gathered))
            print(f"{name}, seed {seed} judged", file=sys.stderr, flush=True)
        result[name] = summarise(seeds, losses, replicates=options.replicates)
        # After every data set, so that an interrupted benchmark has something to show.
        write(record(__file__, {"sets": result, "goals": goals(result)}, options), options.out)
    reached = goals(result)
    return finish(
        __file__,
        {"sets": result, "goals": reached},
        options,
        summary=table(result),
        met=all(reached.values()),
    )


if __name__ == "__main__":
    run_benchmark(main)
