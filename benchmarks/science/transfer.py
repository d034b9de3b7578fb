"""What a head is worth on the next drive: every task, groups that neither network nor head ever saw.

    python benchmarks/science/transfer.py --seeds 0 1 2 --out benchmarks/results/science/transfer.json

Per data set and seed: a small network on the groups of `network` in groups.toml, the default head on those of
`head`, and each group of `judging` by itself, clean and under a corruption family of its own for each frame.
The head is compared with the free score that is best in the mean over these very groups, in hindsight, which
no user could have chosen. Failures of a task with a loss are above the threshold that a fifth of the head's
clean groups exceed. `full` is the head at strength 1 with all columns: what it was before the strength was
chosen. `--tuning` judges on the groups for tuning instead. Whatever was judged stays in --work, per seed and
data set; an interrupted benchmark goes on there.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

if not __package__:  # started by its path: then the checkout's root is not where Python looks
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.record import command_line, finish, record, run, work_folder, write
from benchmarks.science.transfer_data import SETTINGS, Bench, load_bench, network, units_of
from misfire_runtime.preprocess import InputContract, resize_image
from misfire_train.data import Examples
from misfire_train.data.corruptions import FAMILIES
from misfire_train.data.images import ImageArray
from misfire_train.fitting.failures import settle_failures
from misfire_train.heads import HeadRecipe, LossHead, recipe_named
from misfire_train.heads.box_training import collect_boxes, fit_on_boxes, new_box_head
from misfire_train.heads.boxes import BoxHead
from misfire_train.heads.data import (
    BoxSet,
    LossSet,
    checked_losses,
    collect_each,
    corrupted_copies,
    join_sets,
)
from misfire_train.heads.fitted import Fitted
from misfire_train.heads.training import candidate_heads, choose_base, fit_on_losses
from misfire_train.metrics import auroc
from misfire_train.runs import Run
from misfire_train.scores import build, gather, names_for, scores_of
from misfire_train.scores.fitting import FitSet, batches, evaluating
from misfire_train.signals import Score
from misfire_train.tasks import Task
from misfire_train.tasks.detection import Detection
from misfire_train.train_config import FailureTable

TASKS = tuple(name for name in SETTINGS if name != "street")
HEAD, FULL = "learning_loss_pp", "full"
VIEWS = ("clean", "shifted")
FRAMES = {"judging": 1200, "tuning": 600}
"""Frames of each role at most."""
LEAST = 5
"""Failures, and successes, of a group below which it has no AUROC; it then counts with its neighbours."""
HEAD_FRAMES, HEAD_COPIES = 800, 3
"""Frames that a head is fitted on, and corrupted copies of each."""
FEW_UNITS = 3
"""Towns below which a head leaves out stretches of them, as it does for a user."""
WORST_ALLOWED = -0.5
"""Points of AUROC: the goal for the worst task."""
Floats = NDArray[np.float64]
Choice = dict[str, Any]
"""What the head chose, as JSON has it."""
Judged = dict[str, "Seen"]
"""{view: what was seen}."""
Results = dict[str, list[tuple[Judged, Choice]]]
"""{data set: one per seed}."""


@dataclass(frozen=True)
class Seen:
    """What was seen of one seed in one view. scores: {name: [N]}; failed, group: [N]."""

    scores: dict[str, Floats]
    failed: NDArray[np.bool_]
    group: NDArray[np.str_]


def at_network_size(examples: Examples, contract: InputContract) -> Examples:
    """The same frames as the network sees them: corrupting large pictures would take most of the time."""
    images = ImageArray(
        np.stack([resize_image(np.asarray(examples.images[i]), contract) for i in range(len(examples))])
    )
    return replace(examples, images=images, groups=units_of(examples))


def thinned(examples: Examples, most: int) -> Examples:
    """At most about so many frames, evenly spaced."""
    return examples.take(np.arange(0, len(examples), max(1, len(examples) // most)))


def shifted(examples: Examples, *, seed: int) -> Examples:
    """Each frame under a family and a severity of its own."""
    recipe = replace(recipe_named("learning-loss-pp"), copies=1, families=tuple(FAMILIES), mixed=0.0)
    return corrupted_copies(examples, recipe, seed=8_000_000 + seed)[0]


@dataclass(frozen=True)
class Begun:
    """An untrained head on the free score that suits, and the losses of the head's groups in all versions."""

    head: LossHead
    data: LossSet | BoxSet


def begin(run: Run, task: Task, bench: Bench, holdout: Examples, *, recipe: HeadRecipe, seed: int) -> Begun:
    """Everything that comes before training the head."""
    torch.manual_seed(seed)
    given: dict[str, Any] = {"task": task, "contract": run.contract}
    if isinstance(task, Detection):
        blank = new_box_head(run.probe, recipe=recipe, **given)
        boxes = [collect_boxes(run.probe, blank, holdout, clean=True, **given)]
        for version in corrupted_copies(holdout, recipe, seed=seed):
            boxes.append(collect_boxes(run.probe, blank, version, clean=False, **given))
        return Begun(blank, BoxSet.join(boxes))
    train = at_network_size(bench.parts["network"], run.contract)
    heads = candidate_heads(run.probe, recipe, train=train, seed=seed, **given)
    sets = [collect_each(run.probe, heads, holdout, **given)]
    for version in corrupted_copies(holdout, recipe, seed=seed):
        sets.append(collect_each(run.probe, heads, version, clean=False, **given))
    chosen = choose_base(heads, sets)
    return Begun(heads[chosen], join_sets([version[chosen] for version in sets]))


def fit_begun(begun: Begun, task: Task, recipe: HeadRecipe, *, seed: int) -> Fitted:
    """A head on what was gathered, of boxes or of units."""
    torch.manual_seed(seed)
    head = copy.deepcopy(begun.head)
    if isinstance(begun.data, LossSet):
        return fit_on_losses(head, begun.data, recipe=recipe, seed=seed)
    assert isinstance(head, BoxHead) and isinstance(task, Detection)
    return fit_on_boxes(head, begun.data, task=task, recipe=recipe, seed=seed)


def fitted_heads(
    begun: Begun, task: Task, recipe: HeadRecipe, *, seed: int
) -> tuple[dict[str, LossHead], Choice]:
    """The default head and the one at full strength, and what was chosen."""
    chosen = fit_begun(begun, task, recipe, seed=seed)
    found = chosen.report.choice or {}
    choice = {
        **{key: found.get(key) for key in ("columns", "by", "count", "folds", "free")},
        # Of a head that had no choice.
        "strength": found.get("strength", 1.0),
        "base": chosen.report.base,
        "gains": found.get("gains", ()),
    }
    heads: dict[str, LossHead] = {HEAD: chosen.head, FULL: chosen.head}
    if (choice["strength"], choice["columns"] or "all") != (1.0, "all"):
        whole = replace(recipe, strength=1.0, columns="all")
        heads[FULL] = fit_begun(begun, task, whole, seed=seed).head
    return heads, choice


@torch.no_grad()
def observe(
    run: Run, task: Task, examples: Examples, scorers: Sequence[Score], heads: dict[str, LossHead]
) -> Seen:
    """Free scores, heads and truth from one pass."""
    columns: dict[str, list[torch.Tensor]] = {}
    failed = []
    with evaluating(run.probe, *scorers, *heads.values()):
        for rows, images in batches(examples, contract=run.contract, size=64):
            signals = run.probe(images)
            for name, score in (*((s.name, s) for s in scorers), *heads.items()):
                columns.setdefault(name, []).append(score(signals))
            targets, answer = task.collate(examples.targets[rows]), task.condense(signals.outputs)
            checked_losses(task, answer, targets, ids=examples.ids[rows])
            failed.append(task.failed(answer, targets))
    return Seen(
        {name: torch.cat(values).double().numpy() for name, values in columns.items()},
        torch.cat(failed).numpy(),
        np.array(examples.groups, np.str_),
    )


def judge_seed(name: str, seed: int, options: argparse.Namespace) -> tuple[Judged, Choice]:
    """Both views of the groups of the role, and what the head chose; kept in --work."""
    quick, role = options.quick, "tuning" if options.tuning else "judging"
    kept = options.work / f"{name}-{seed}-{role}.npz"
    if kept.exists():
        return load_seen(kept)
    bench = load_bench(name, data=options.data, most=60 if quick else None)
    own = network(bench, seed, work=options.work, epochs=1 if quick else None)
    recipe = recipe_named("learning-loss-pp")
    recipe = replace(recipe, copies=1, steps=20) if quick else replace(recipe, copies=options.copies)
    chosen = thinned(bench.parts["head"], options.frames)
    holdout = at_network_size(chosen, own.contract)
    if len(set(holdout.groups)) < FEW_UNITS:
        holdout = replace(holdout, groups=chosen.groups)
    task, _ = settle_failures(
        own.probe, own.task, holdout, contract=own.contract, table=FailureTable(), part="head"
    )
    # Kept for transfer_tried.py, which fits other heads on the same losses.
    gathered = options.work / f"{name}-{seed}-begun.pt"
    if gathered.exists():
        begun = Begun(*torch.load(gathered, weights_only=False))
    else:
        begun = begin(own, task, bench, holdout, recipe=recipe, seed=seed)
        torch.save((begun.head, begun.data), gathered)
    heads, choice = fitted_heads(begun, task, recipe, seed=seed)
    scorers = free_scorers(own, task, at_network_size(bench.parts["network"], own.contract), holdout)
    examples = at_network_size(thinned(bench.parts[role], FRAMES[role]), own.contract)
    judged = {
        "clean": observe(own, task, examples, scorers, heads),
        "shifted": observe(own, task, shifted(examples, seed=seed), scorers, heads),
    }
    save_seen(kept, judged, choice)
    return judged, choice


def free_scorers(run: Run, task: Task, train: Examples, holdout: Examples) -> list[Score]:
    """Every free score of one pass.

    Some are fitted on the training set's answers, those of boxes on answers to frames that were held out.
    """
    known = scores_of(task)
    names = [name for name in names_for(task, free=True) if known[name].passes == "one"]

    def of(examples: Examples) -> FitSet:
        some = thinned(examples, 500)
        return gather(
            run.probe,
            some,
            task.collate(some.targets),
            classes=len(run.record.classes) if task.by_class else None,
            contract=run.contract,
            batch=task.score_batch,
            lighten=task.lighten,
        )

    held_out = of(holdout) if isinstance(task, Detection) else None
    return list(build(names, task=task, fit=of(train), holdout=held_out))


def save_seen(path: Path, judged: Judged, choice: Choice) -> None:
    """Writes what was observed, whole or not at all."""
    arrays: dict[str, Any] = {"choice": np.array(json.dumps(choice))}
    for view, one in judged.items():
        arrays |= {f"{view}/score/{name}": values for name, values in one.scores.items()}
        arrays |= {f"{view}/failed": one.failed, f"{view}/group": one.group}
    temporary = path.with_name(f".{path.name}")
    np.savez_compressed(temporary, **arrays)
    temporary.replace(path)


def load_seen(path: Path) -> tuple[Judged, Choice]:
    """What save_seen wrote."""
    with np.load(path) as kept:
        arrays = {name: kept[name] for name in kept.files}
    judged: Judged = {}
    for view in VIEWS:
        start = f"{view}/score/"
        scores = {k.removeprefix(start): v for k, v in arrays.items() if k.startswith(start)}
        judged[view] = Seen(scores, arrays[f"{view}/failed"], arrays[f"{view}/group"])
    return judged, json.loads(str(arrays["choice"]))


def compare_task(seeds: Sequence[Seen], *, replicates: int) -> dict[str, Any]:
    """Per group and in the mean: head, best free score, difference with interval, in points of AUROC.

    Resamples draw the frames of each group anew; the interval of the mean also draws groups anew.
    """
    units = group_rows(seeds[0])
    learned = [name for name in (HEAD, FULL) if name in seeds[0].scores]
    free = [name for name in seeds[0].scores if name not in (HEAD, FULL)]
    values = {
        name: np.array([[area(s, name, rows) for rows in group_rows(s, list(units)).values()] for s in seeds])
        for name in (*learned, *free)
    }
    best = max(free, key=lambda name: float(np.nanmean(values[name])))
    rng = np.random.default_rng(0)
    rows_of = [list(group_rows(s, list(units)).values()) for s in seeds]
    drawn = np.full((replicates, len(seeds), len(units), len(learned)), np.nan)
    for r in range(replicates):
        for i, s in enumerate(seeds):
            for g, rows in enumerate(rows_of[i]):
                some = rows[rng.integers(len(rows), size=len(rows))]
                base = area(s, best, some)
                for k, name in enumerate(learned):
                    drawn[r, i, g, k] = area(s, name, some) - base
    groups = {}
    for g, group in enumerate(units):
        difference = values[HEAD][:, g] - values[best][:, g]
        # Resamples without a failure have no value; of one seed that leaves empty means.
        known = drawn[:, :, g, 0][~np.isnan(drawn[:, :, g, 0]).all(1)]
        low, high = np.percentile(np.nanmean(known, 1), [2.5, 97.5])
        groups[group] = {
            "head": 100 * float(np.nanmean(values[HEAD][:, g])),
            "free": 100 * float(np.nanmean(values[best][:, g])),
            "difference": 100 * float(np.nanmean(difference)),
            "low": 100 * float(low),
            "high": 100 * float(high),
            "failures": int(np.mean([s.failed[rows_of[i][g]].sum() for i, s in enumerate(seeds)])),
            "frames": len(rows_of[0][g]),
        }
    means = {name: 100 * float(np.nanmean(found)) for name, found in values.items()}
    result: dict[str, Any] = {"best_free": best, "scores": means, "groups": groups}
    for k, name in enumerate(learned):
        picks = rng.integers(len(units), size=(replicates, len(units)))
        mean = [np.nanmean(drawn[r][:, picks[r], k]) for r in range(replicates)]
        low, high = np.percentile(mean, [2.5, 97.5])
        result[name] = {
            "difference": means[name] - means[best],
            "low": 100 * float(low),
            "high": 100 * float(high),
        }
    return result


def group_rows(seen: Seen, names: Sequence[str] | None = None) -> dict[str, NDArray[np.intp]]:
    """{group: rows}; a group with too few failures or successes is joined with the next."""
    if names == ["all"]:
        return {"all": np.arange(len(seen.failed))}
    if names is not None:
        return {name: np.flatnonzero(np.isin(seen.group, name.split("+"))) for name in names}
    found: dict[str, NDArray[np.intp]] = {}
    waiting: list[str] = []
    for group in sorted(set(seen.group.tolist())):
        waiting.append(group)
        rows = np.flatnonzero(np.isin(seen.group, waiting))
        if LEAST <= seen.failed[rows].sum() <= len(rows) - LEAST:
            found["+".join(waiting)] = rows
            waiting = []
    if not found:
        return {"all": np.arange(len(seen.failed))}
    if waiting:
        last, rows = found.popitem()
        found[f"{last}+{'+'.join(waiting)}"] = np.concatenate(
            [rows, np.flatnonzero(np.isin(seen.group, waiting))]
        )
    return found


def area(seen: Seen, name: str, rows: NDArray[np.intp]) -> float:
    """AUROC of a score on rows; NaN if all or none of them failed."""
    failed = seen.failed[rows]
    if failed.all() or not failed.any():
        return float("nan")
    return float(auroc(seen.scores[name][rows], failed))


def summarise(judged: Results, *, role: str, replicates: int) -> dict[str, Any]:
    """All tasks: per group and view, and the worst and the mean difference over tasks."""
    tasks: dict[str, Any] = {}
    for name, seeds in judged.items():
        tasks[name] = {"seeds": len(seeds), "choices": [choice for _, choice in seeds]}
        for view in VIEWS:
            tasks[name][view] = compare_task([seen[view] for seen, _ in seeds], replicates=replicates)
    found = {
        head: {name: [task[view][head]["difference"] for view in VIEWS] for name, task in tasks.items()}
        for head in (HEAD, FULL)
    }
    worst = {head: min(min(two) for two in each.values()) for head, each in found.items()}
    mean = {head: float(np.mean(list(each.values()))) for head, each in found.items()}
    return {
        "role": role,
        "tasks": tasks,
        # Over tasks and over both views.
        "worst_difference": worst[HEAD],
        "mean_difference": mean[HEAD],
        "full_strength": {"worst_difference": worst[FULL], "mean_difference": mean[FULL]},
        "goals_met": {"worst": worst[HEAD] >= WORST_ALLOWED, "mean": mean[HEAD] > 0},
    }


def markdown(result: dict[str, Any]) -> str:
    """One row per task."""
    lines = [
        "| data | best free | AUROC | head, clean | shifted | strength | columns | full, clean | shifted |",
        "|---" * 9 + "|",
    ]
    for name, task in result["tasks"].items():
        clean, worse = task["clean"], task["shifted"]
        strengths = ", ".join(f"{choice['strength']:g}" for choice in task["choices"])
        columns = ", ".join(dict.fromkeys(str(choice["columns"] or "all") for choice in task["choices"]))
        free = clean["best_free"]
        cells = (
            *(name, free, f"{clean['scores'][free]:.1f}", _gain(clean[HEAD]), _gain(worse[HEAD])),
            *(strengths, columns, _gain(clean[FULL]), _gain(worse[FULL])),
        )
        lines.append(f"| {' | '.join(cells)} |")
    whole = result["full_strength"]
    lines += ["", "| over data sets and both views | head | full strength |", "|---" * 3 + "|"]
    for name in ("worst_difference", "mean_difference"):
        lines.append(f"| {name.replace('_', ' ')} | {result[name]:+.2f} | {whole[name]:+.2f} |")
    return "\n".join(lines)


def _gain(found: dict[str, float]) -> str:
    return f"{found['difference']:+.1f} ({found['low']:+.1f} .. {found['high']:+.1f})"


def options_of() -> argparse.Namespace:
    """The command line."""
    parser = command_line(__doc__ or "", seeds=(0, 1, 2))
    parser.add_argument("--data", type=Path, help="Folder of the published sets.")
    parser.add_argument("--work", type=Path, help="Networks and what was judged are kept here.")
    parser.add_argument(
        "--tasks", nargs="+", default=list(TASKS), choices=TASKS, help="Data sets to measure."
    )
    parser.add_argument("--tuning", action="store_true", help="Judge on the groups for tuning.")
    parser.add_argument("--frames", type=int, default=HEAD_FRAMES, help="Frames that the head is fitted on.")
    parser.add_argument("--copies", type=int, default=HEAD_COPIES, help="Corrupted copies of each.")
    parser.add_argument("--replicates", type=int, default=200, help="Resamples of an interval.")
    options = parser.parse_args()
    options.work = work_folder(options)
    if options.quick:
        options.seeds, options.replicates = options.seeds[:1], 20
        if options.tasks == list(TASKS):
            options.tasks = ["drive-lights"]
    return options


def main() -> int:
    """Runs it and prints a table, or JSON."""
    options = options_of()
    judged: Results = {}
    result: dict[str, Any] = {}
    role = "tuning" if options.tuning else "judging"
    for seed in options.seeds:
        for name in options.tasks:
            judged.setdefault(name, []).append(judge_seed(name, seed, options))
            choice = judged[name][-1][1]
            print(f"{name}, seed {seed}: strength {choice['strength']}", file=sys.stderr, flush=True)
        # After every seed, so that an interrupted benchmark has something to show.
        result = summarise(judged, role=role, replicates=options.replicates)
        write(record(__file__, result, options), options.out)
    met = options.quick or all(result["goals_met"].values())
    return finish(__file__, result, options, summary=markdown(result), met=met)


if __name__ == "__main__":
    run(main)
