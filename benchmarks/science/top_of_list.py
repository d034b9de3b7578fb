"""How many failures the frames hold that a fleet uploads: the head against free scores at 0.5, 1, 2 and 5 %.

    python benchmarks/science/top_of_list.py --json --out benchmarks/results/science/top_of_list.json

Networks, heads and what they scored are those of well_trained.py, with whose --work nothing is trained
again: three data sets, three seeds, a head whose strength was chosen on held-out images; views `clean`,
`known` (under each of eight corruption families, with a head that knows them) and `left out` (with a head
that never saw the family). A corrupted view is a fleet of its own: the budget is spent within it, and
recalls and precisions are means over families. Differences are of recall, paired on the same resamples of
test images, drawn with all their copies, and averaged over seeds. The free score is the best one of the
view at that budget, in the mean over seeds and families, chosen on the same frames: it is flattered, the
head is not. Nothing is chosen on a test half.

`expected_loss`: a curve from score to loss, fitted on one half of the clean test images and judged on the
other; tenths of the frames within a factor of 1.25 of the truth, and of its 95 % interval.

--tune OBJECTIVE.. compares objectives of the top instead, on training images of Fashion-MNIST that neither
network nor head saw, with a smaller network (of detectors.py) and another seed. Networks and signals are kept
in --work.
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
from benchmarks.science.detectors import fresh_head, observe, observed, train, weather
from benchmarks.science.head_copies import unseen_by
from benchmarks.science.well_trained import SETS, judge
from benchmarks.science.well_trained import train as well_trained
from benchmarks.science.well_trained_table import FREE, HEAD, LEFT_OUT
from misfire_train.data import Dataset, Examples, load_dataset
from misfire_train.heads import HeadRecipe, ResidualHead, recipe_named
from misfire_train.heads.data import collect, image_batches, join_sets
from misfire_train.heads.training import candidate_heads, choose_base, fit_on_losses
from misfire_train.metrics import auroc, fit_loss_curve, fit_loss_scale, loss_reliability, reliability
from misfire_train.metrics.bootstrap import interval, resample_weights
from misfire_train.metrics.detection import recall_at_budget_rows
from misfire_train.metrics.ranking import Ranked, rank_scores
from misfire_train.runs import Run, run_splits
from misfire_train.scores import build
from misfire_train.scores.fitting import evaluating

Floats = NDArray[np.float64]
Drawn = dict[tuple[str, float], tuple[float, float, Floats]]
"""{(score, budget): recall, precision, replicates of the recall} of one view of one seed."""
BUDGETS = (0.005, 0.01, 0.02, 0.05)
VIEWS = ("clean", "known", "left out")
TUNING_SEED = 101
TUNING_FRAMES = 6_000
FAMILIES = ("noise", "blur", "night", "fog")
"""Sensor, lens, light, weather: what --tune judges under. Heads know others, too (LIBRARY)."""
LIBRARY = (*FAMILIES, "motion", "glare", "rain", "jpeg")
PAIRS = (("noise", "night"), ("blur", "fog"))


def tuning_network(options: argparse.Namespace) -> Run:
    """The network for --tune, one of detectors.py; one that is in --work is loaded."""
    epochs, limit = (2, 600) if options.quick else (10, 12_000)
    return train(TUNING_SEED, work=options.work, data=options.data, epochs=epochs, limit=limit)


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
    given: dict[str, Any] = {"task": run.task, "contract": run.contract}
    clean = [collect(run.probe, head, parts["holdout"], **given) for head in heads]
    chosen = choose_base(heads, [clean])
    head = heads[chosen]
    scorers = build(FREE, task="classification")
    fitting = {"clean": clean[chosen]}
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
        "options": head.options,
        "memory": head.memory.state_dict(),
        "opinions": head.opinions.state_dict(),
    }
    torch.save(result, cache)
    return result


def fit(gathered: dict[str, Any], *, left_out: str | None, recipe: HeadRecipe, seed: int) -> ResidualHead:
    """A head on everything but one family, alone or in a pair."""
    torch.manual_seed(seed)
    rows = [part for key, part in gathered["fitting"].items() if left_out not in key.split("+")]
    head = fit_on_losses(fresh_head(gathered), join_sets(rows), recipe=recipe, seed=seed).head
    assert isinstance(head, ResidualHead)
    return head


def tuned_views(gathered: dict[str, Any], *, seed: int, recipe: HeadRecipe) -> dict[str, list[Observed]]:
    """The observations of each view: one of the clean images, one per family of the others."""
    views = gathered["views"]
    # All columns, because the views were gathered with them; the strength is chosen once.
    head = fit(gathered, left_out=None, recipe=replace(recipe, columns="all"), seed=seed)
    recipe = replace(recipe, strength=head.strength, columns="all")
    apart = {family: fit(gathered, left_out=family, recipe=recipe, seed=seed) for family in FAMILIES}
    return {
        "clean": [observed(views["clean"], {HEAD: head})],
        "known": [observed(views[family], {HEAD: head}) for family in FAMILIES],
        "left out": [observed(views[family], {HEAD: apart[family]}) for family in FAMILIES],
    }


def by_view(judged: dict[str, list[Observed]]) -> tuple[list[dict[str, list[Observed]]], tuple[str, ...]]:
    """What well_trained.py observed, for each seed by view, and the names of the families."""
    families = tuple(family for family in judged if family != "clean")
    seeds = []
    for number in range(len(judged["clean"])):
        shown = [judged[family][number] for family in families]
        apart = [replace(one, scores={**one.scores, HEAD: one.scores[LEFT_OUT]}) for one in shown]
        seeds.append({"clean": [judged["clean"][number]], "known": shown, "left out": apart})
    return seeds, families


@torch.no_grad()
def clean_losses(name: str, dataset: Dataset, seed: int, options: argparse.Namespace) -> Floats:
    """True losses of the clean test images; kept in --work."""
    kept = options.work / f"losses-{name}-{seed}.npy"
    if kept.is_file():
        found: Floats = np.load(kept)
        return found
    own = well_trained(name, seed, options=options)
    with evaluating(own.probe):
        outputs = torch.cat(
            [own.probe(images).outputs for images in image_batches(dataset.test, own.contract)]
        )
    losses = own.task.sample_loss(outputs, own.task.collate(dataset.test.targets)).double().numpy()
    np.save(kept, losses)
    return losses


def recalls(view: Observed, *, replicates: int) -> Drawn:
    """Recall and precision of every score of one view of one seed."""
    names = [name for name in (*FREE, HEAD) if name in view.scores]
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


def compare(each: Sequence[Drawn], *, frames: int) -> dict[str, dict[str, Any]]:
    """{budget: the head against the free score that finds most at it}, mean over seeds and families.

    frames: of a view.
    """
    result = {}
    names = list(dict.fromkeys(name for name, _ in each[0]))
    for budget in BUDGETS:
        mean = {
            name: tuple(np.mean([found[name, budget][k] for found in each], axis=0) for k in range(3))
            for name in names
        }
        best = max((name for name in names if name != HEAD), key=lambda name: float(mean[name][0]))
        low, high, _ = interval(mean[HEAD][2] - mean[best][2])
        result[f"{budget:.1%}"] = {
            "uploads_per_view": max(1, round(budget * frames)),
            "free": best,
            "free_recall": float(mean[best][0]),
            "free_precision": float(mean[best][1]),
            "head_recall": float(mean[HEAD][0]),
            "head_precision": float(mean[HEAD][1]),
            "recall_difference": float(mean[HEAD][0] - mean[best][0]),
            "low": low,
            "high": high,
            "above": low > 0,
            "below": high < 0,
        }
    return result


def expected_loss(view: Observed, losses: Floats, *, seed: int) -> dict[str, Any]:
    """The head's expected loss on half of the clean images, by a curve and by one constant of the other."""
    first = np.random.default_rng(seed).permutation(len(losses)) < len(losses) // 2
    score = view.scores[HEAD]
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
    seeds: Sequence[dict[str, list[Observed]]],
    losses: Sequence[Floats],
    families: Sequence[str],
    *,
    replicates: int,
) -> dict[str, Any]:
    """All comparisons of one data set."""
    drawn = [
        {view: [recalls(one, replicates=replicates) for one in seed[view]] for view in VIEWS}
        for seed in seeds
    ]
    frames = {view: len(seeds[0][view][0].failed) for view in VIEWS}
    return {
        "images": frames["clean"],
        "shifted_images": frames["known"],
        "accuracy": [float(1 - seed["clean"][0].failed.mean()) for seed in seeds],
        "views": {
            view: compare([one for seed in drawn for one in seed[view]], frames=frames[view])
            for view in VIEWS
        },
        "families": {
            view: {
                family: compare([seed[view][k] for seed in drawn], frames=frames[view])
                for k, family in enumerate(families)
            }
            for view in ("known", "left out")
        },
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


def loss_table(result: dict[str, Any]) -> str:
    """Markdown: how well a curve predicts the loss of tenths of the frames, and how well a constant."""
    lines = [
        "| data, by seed | curve: tenths within a factor of 1.25 | of the truth's interval | "
        "lowest tenth, predicted / observed | error, % | constant: within | lowest tenth | error, % |",
        "|---" * 8 + "|",
    ]
    for name, found in result.items():
        curve = [one["curve"] for one in found["expected_loss"]]
        constant = [one["constant"] for one in found["expected_loss"]]
        columns = (
            [f"{one['within']} of {one['tenths']}" for one in curve],
            [f"{one['consistent']} of {one['tenths']}" for one in curve],
            *_lowest_and_error(curve),
            [str(one["within"]) for one in constant],
            *_lowest_and_error(constant),
        )
        lines.append(f"| {name} | {' | '.join(', '.join(column) for column in columns)} |")
    return "\n".join(lines)


def _lowest_and_error(found: Sequence[dict[str, Any]]) -> tuple[list[str], list[str]]:
    lowest = [f"{one['lowest_predicted'] / one['lowest_observed']:.3g}" for one in found]
    return lowest, [f"{100 * one['relative_error']:.0f}" for one in found]


def tuning_table(tuning: dict[str, Any]) -> str:
    """Markdown: precision at every budget of the best free score, and of the head by objective; AUROC."""
    lines = [
        "| objective | clean | four known families | left out | AUROC clean / known / left out |",
        "|---" * 5 + "|",
    ]
    first = next(iter(tuning.values()))
    rows = {"best free score": (first["views"], "free_precision", "")}
    for name, found in tuning.items():
        areas = " / ".join(f"{100 * found['auroc'][view]:.1f}" for view in VIEWS)
        rows[name] = (found["views"], "head_precision", areas)
    for name, (views, key, areas) in rows.items():
        cells = [" / ".join(f"{100 * one[key]:.0f}" for one in views[view].values()) for view in VIEWS]
        lines.append(f"| {name} | {' | '.join(cells)} | {areas} |")
    return "\n".join(lines)


def tune(options: argparse.Namespace) -> dict[str, Any]:
    """Objectives of the top, on images of the training half; nothing of a test half is read."""
    dataset = load_dataset("fashion-mnist", root=options.data)
    own = tuning_network(options)
    count = 300 if options.quick else TUNING_FRAMES
    images = unseen_by(own, dataset.train, count=count, seed=TUNING_SEED)
    cache = options.work / f"tuning-{TUNING_SEED}.pt"
    gathered = gather(own, dataset, seed=TUNING_SEED, judged=images, cache=cache)
    losses = gathered["views"]["clean"].data.frame_losses.double().numpy()
    default = recipe_named("learning-loss-pp")
    default = replace(default, steps=40) if options.quick else default
    found: dict[str, Any] = {}
    for name in options.tune:
        recipe = default if name == "none" else replace(default, top=name, top_weight=0.25)
        seeds = [tuned_views(gathered, seed=seed, recipe=recipe) for seed in options.seeds]
        each = summarise(seeds, [losses] * len(seeds), FAMILIES, replicates=options.replicates)
        areas = {
            view: float(
                np.mean([auroc(one.scores[HEAD], one.failed) for seed in seeds for one in seed[view]])
            )
            for view in VIEWS
        }
        found[name] = {**each, "auroc": areas}
        write(record(__file__, {"tuning": found}, options), options.out)
    return found


def main() -> int:
    """Runs it and prints a table, or JSON."""
    parser = command_line(__doc__, seeds=(0, 1, 2))
    parser.add_argument("--data", type=Path)
    parser.add_argument(
        "--work", type=Path, help="that of well_trained.py; networks and signals are kept here"
    )
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS)
    parser.add_argument("--replicates", type=int, default=300)
    parser.add_argument("--tune", nargs="+", default=[], help="objectives of the top, or none")
    options = parser.parse_args()
    options.work = work_folder(options)
    if options.quick:
        options.seeds, options.replicates, options.sets = options.seeds[:1], 50, ["traffic-lights"]
    if options.tune:
        found = tune(options)
        return finish(__file__, {"tuning": found}, options, summary=tuning_table(found))
    result: dict[str, Any] = {}
    for name in options.sets:
        dataset = load_dataset(name, root=options.data)
        judged, facts = judge(name, dataset, options)
        seeds, families = by_view(judged)
        losses = [clean_losses(name, dataset, seed, options) for seed in options.seeds]
        found = summarise(seeds, losses, families, replicates=options.replicates)
        result[name] = {**found, "heads": facts["heads"]}
        # After every data set, so that an interrupted benchmark has something to show.
        write(record(__file__, {"sets": result, "goals": goals(result)}, options), options.out)
    reached = goals(result)
    return finish(
        __file__,
        {"sets": result, "goals": reached},
        options,
        summary=table(result),
        met=options.quick or all(reached.values()),
    )


if __name__ == "__main__":
    run_benchmark(main)
