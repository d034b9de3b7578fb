"""Does a correction that fades on unfamiliar frames lose less under weather that the head never saw?

    python benchmarks/science/fading.py --work WORK --json --out benchmarks/results/science/fading.json

A search, so no test half is read: of the images that well_trained.py (whose --work it takes) held out for the
head, one half fits heads and the other judges them, clean and under eight corruption families. Heads have
full strength. For each pair of families that a head left out, an idea's one number is chosen on the other
families, each with a head that left it out as well; `known` and `clean` are of the head that knows all, with
the number chosen on all families left out. Gains are over the free score that the head starts from, points
of AUROC.

full       the correction as fitted
weaker     the correction at one of the strengths
agreement  c * c^2 / (c^2 + k s^2), c and s the mean and the deviation of the committee's members
excess, rms, residual
           c / (1 + (d / (m q))^4), d how far the frame's statistics are from those that the head was fitted
           on: what lies beyond three deviations, their root mean square, or what 32 principal components
           leave; q is the 95 % quantile of d on the fitted rows
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

if not __package__:  # started by its path: then the checkout's root is not where Python looks
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.record import command_line, finish, record, run, work_folder, write
from benchmarks.science.detectors import fitting_versions, weather
from benchmarks.science.well_trained import LEFT_OUT_PAIRS as PAIRS
from benchmarks.science.well_trained import fit, train
from misfire_train.data import load_dataset
from misfire_train.heads import LossHead, ResidualHead, recipe_named
from misfire_train.heads.data import LossSet, collect, collect_each
from misfire_train.heads.training import candidate_heads, choose_base
from misfire_train.metrics import auroc
from misfire_train.runs import run_splits

SETS = ("traffic-lights", "mnist", "fashion-mnist")
FITTED, JUDGED = 1_200, 2_500
"""Images at most."""
LEAST = 8
"""Failures, and successes, of a view that counts."""
COMPONENTS = 32
CHOICES: dict[str, tuple[float, ...]] = {
    "full": (1.0,),
    "weaker": (0.125, 0.25, 0.5, 1.0),
    "agreement": (0.0, 0.5, 1.0, 2.0, 4.0),
    **dict.fromkeys(("excess", "rms", "residual"), (0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 1e9)),
}
FAMILIES = tuple(sorted(family for pair in PAIRS for family in pair))
LeftOut = tuple[int, ...]
"""Numbers of the pairs that a head never saw."""


@dataclass(frozen=True)
class Answer:
    """What a head says of a view. free: [N]; mean, deviation: [N], of its members; far: {idea: [N]}."""

    free: Tensor
    mean: Tensor
    deviation: Tensor
    far: Mapping[str, Tensor]
    failed: np.ndarray[Any, np.dtype[np.bool_]]


def gather(name: str, seed: int, options: Any) -> tuple[LossHead, dict[str, LossSet], dict[str, LossSet]]:
    """An untrained head, what heads are fitted on, and the views; kept in --work."""
    kept = options.work / f"fading-{name}-{seed}.pt"
    if kept.is_file():
        found: tuple[LossHead, dict[str, LossSet], dict[str, LossSet]] = torch.load(kept, weights_only=False)
        return found
    own = train(name, seed, options=options)
    parts = run_splits(own, load_dataset(name, root=options.data))
    holdout = parts["holdout"]
    given: dict[str, Any] = {"task": own.task, "contract": own.contract}
    fitted = holdout.take(range(0, len(holdout), 2)[:FITTED])
    judged = holdout.take(range(1, len(holdout), 2)[:JUDGED])
    torch.manual_seed(seed)
    recipe = recipe_named("learning-loss-pp")
    heads = candidate_heads(own.probe, recipe, train=parts["train"], seed=seed, **given)
    sets = {"clean": collect_each(own.probe, heads, fitted, **given)}
    for key, version in fitting_versions(fitted, seed=seed, versions_per_family=1):
        sets[key] = collect_each(own.probe, heads, version, clean=False, **given)
    chosen = choose_base(heads, list(sets.values()))
    views = {"clean": collect(own.probe, heads[chosen], judged, **given)}
    for number, family in enumerate(FAMILIES):
        copy = weather(judged, (family,), seed=9_000_000 + number)
        views[family] = collect(own.probe, heads[chosen], copy, clean=False, **given)
    result = heads[chosen], {key: versions[chosen] for key, versions in sets.items()}, views
    torch.save(result, kept)
    return result


def fitted_heads(
    name: str, seed: int, blank: LossHead, sets: dict[str, LossSet], options: Any
) -> dict[LeftOut, ResidualHead]:
    """{pairs left out: a head of full strength}; kept in --work."""
    kept = options.work / f"fading-heads-{name}-{seed}.pt"
    if kept.is_file():
        found: dict[LeftOut, ResidualHead] = torch.load(kept, weights_only=False)
        return found
    recipe = replace(recipe_named("learning-loss-pp"), strength=1.0, columns="all")
    recipe = replace(recipe, steps=20) if options.quick else recipe
    heads: dict[LeftOut, ResidualHead] = {}
    numbers = range(len(PAIRS))
    every: list[LeftOut] = [(), *((k,) for k in numbers), *itertools.combinations(numbers, 2)]
    for left in every:
        heads[left] = fit(blank, sets, left_out=families_of(left), recipe=recipe, seed=seed)[0]
    torch.save(heads, kept)
    return heads


def families_of(left: LeftOut) -> tuple[str, ...]:
    """The families of these pairs."""
    return tuple(family for number in left for family in PAIRS[number])


@torch.no_grad()
def answers(
    head: ResidualHead, left: LeftOut, sets: Mapping[str, LossSet], views: Mapping[str, LossSet]
) -> dict[str, Answer]:
    """What a head says of the views that it is judged on: those that it left out, or all if it knows all."""
    rows = [
        part.parts[1].flatten(0, 1)
        for key, part in sets.items()
        if not set(key.split("#")[0].split("+")) & set(families_of(left))
    ]
    # Columns that never varied have a huge spread.
    live = head.spread < 900

    def standard(x: Tensor) -> Tensor:
        return ((x - head.center) / head.spread)[:, live]

    known = standard(torch.cat(rows)).clamp(-6, 6)
    middle = known.mean(0)
    vectors = torch.linalg.eigh((known - middle).T @ (known - middle) / len(known))[1][:, -COMPONENTS:]

    def far(z: Tensor) -> dict[str, Tensor]:
        moved = z.clamp(-6, 6) - middle
        outside = moved.square().sum(1) - (moved @ vectors).square().sum(1)
        return {
            "excess": torch.relu(z.abs() - 3).mean(1),
            "rms": z.square().mean(1).sqrt(),
            "residual": outside.clamp_min(0).sqrt(),
        }

    usual = {idea: torch.quantile(d, 0.95).clamp_min(1e-6) for idea, d in far(known).items()}
    found: dict[str, Answer] = {}
    for view in families_of(left) or tuple(views):
        base, x = views[view].parts
        members = head.committee(head._rows(x))
        distances = {idea: d / usual[idea] for idea, d in far(standard(x.flatten(0, 1))).items()}
        failed = views[view].failed
        assert failed is not None
        free = (head.scale * base + head.bias)[:, 0]
        found[view] = Answer(free, members.mean(0), members.std(0), distances, failed.numpy())
    return found


def gain(answer: Answer, idea: str, number: float) -> float:
    """Points of AUROC over the free score; NaN with too few failures or successes."""
    if not LEAST <= answer.failed.sum() <= len(answer.failed) - LEAST:
        return float("nan")
    mean, deviation = answer.mean, answer.deviation
    if idea in answer.far:
        kept = 1 / (1 + (answer.far[idea] / number) ** 4)
    elif idea == "agreement":
        kept = mean.square() / (mean.square() + number * deviation.square() + 1e-12)
    else:
        kept = torch.full_like(mean, number)
    scores = answer.free + kept * mean
    return 100 * float(
        auroc(scores.double().numpy(), answer.failed) - auroc(answer.free.double().numpy(), answer.failed)
    )


def best_number(idea: str, gains: Callable[[float], Sequence[float]]) -> float:
    """The number with the largest mean and worst gain over families."""

    def worth(number: float) -> float:
        found = np.array(gains(number))
        return -np.inf if np.isnan(found).all() else float(np.nanmean(found) + np.nanmin(found))

    return max(CHOICES[idea], key=worth)


def measure(name: str, seed: int, options: Any) -> dict[str, Any]:
    """{idea: gains left out by family, known by family, clean, and the numbers}, of a data set and seed."""
    blank, sets, views = gather(name, seed, options)
    heads = fitted_heads(name, seed, blank, sets, options)
    said = {left: answers(head, left, sets, views) for left, head in heads.items()}
    numbers = range(len(PAIRS))
    result: dict[str, Any] = {}
    for idea in CHOICES:
        left_out: dict[str, float] = {}
        used: dict[str, float] = {}
        for outer in numbers:

            def inner(number: float, outer: int = outer, idea: str = idea) -> list[float]:
                pairs = {k: said[min(outer, k), max(outer, k)] for k in numbers if k != outer}
                return [gain(found[f], idea, number) for k, found in pairs.items() for f in PAIRS[k]]

            number = best_number(idea, inner)
            for family in PAIRS[outer]:
                left_out[family], used[family] = gain(said[outer,][family], idea, number), number

        def every(number: float, idea: str = idea) -> list[float]:
            return [gain(said[k,][f], idea, number) for k in numbers for f in PAIRS[k]]

        number = best_number(idea, every)
        known = {family: gain(said[()][family], idea, number) for family in FAMILIES}
        clean = gain(said[()]["clean"], idea, number)
        result[idea] = {"left_out": left_out, "used": used, "known": known, "clean": clean, "number": number}
    return result


def summarise(sets: Mapping[str, Sequence[dict[str, Any]]]) -> dict[str, Any]:
    """{set: {idea: means over seeds}}."""
    found: dict[str, Any] = {}
    for name, seeds in sets.items():
        for idea in CHOICES:
            each = [seed[idea] for seed in seeds]
            by_family = {
                view: {family: nan_mean([one[view][family] for one in each]) for family in FAMILIES}
                for view in ("left_out", "known")
            }
            found.setdefault(name, {})[idea] = {
                **by_family,
                "left_out_mean": nan_mean(list(by_family["left_out"].values())),
                "left_out_worst": float(np.nanmin(list(by_family["left_out"].values()))),
                "known_mean": nan_mean(list(by_family["known"].values())),
                "clean": nan_mean([one["clean"] for one in each]),
                "numbers": [one["number"] for one in each],
                "numbers_night": [one["used"]["night"] for one in each],
            }
    return found


def nan_mean(values: Sequence[float]) -> float:
    """The mean of those that are known, NaN without any."""
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")


def markdown(found: Mapping[str, Any]) -> str:
    """One row per data set and idea."""
    lines = [
        "| data | correction | left out, mean | worst family | night | known, mean | clean |",
        "|---" * 7 + "|",
    ]
    for name, ideas in found.items():
        for idea, one in ideas.items():
            values = (
                one["left_out_mean"],
                one["left_out_worst"],
                one["left_out"]["night"],
                one["known_mean"],
            )
            cells = ["" if np.isnan(v) else f"{v:+.1f}" for v in (*values, one["clean"])]
            lines.append(f"| {name} | {idea} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    """Runs it and prints a table, or JSON."""
    parser = command_line(__doc__ or "", seeds=(0, 1))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--work", type=Path, help="that of well_trained.py; signals and heads are kept here")
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS)
    options = parser.parse_args()
    options.work = work_folder(options)
    if options.quick:
        options.seeds, options.sets = options.seeds[:1], ["traffic-lights"]
    measured: dict[str, list[dict[str, Any]]] = {}
    for name in options.sets:
        for seed in options.seeds:
            measured.setdefault(name, []).append(measure(name, seed, options))
            print(f"{name}, seed {seed}", file=sys.stderr, flush=True)
            write(record(__file__, {"sets": summarise(measured)}, options), options.out)
    found = summarise(measured)
    return finish(__file__, {"sets": found}, options, summary=markdown(found))


if __name__ == "__main__":
    run(main)
