"""How many corrupted copies of each held-out image the default head is worth fitting on (`head.copies`).

    python benchmarks/science/head_copies.py --seeds 101 102 --out benchmarks/results/science/head_copies.json

For choosing the default, so it never looks at a test half: networks of other seeds than detectors.py's,
judged on images of the training half that neither network nor head saw. Copies are those that `misfire train`
makes (each image by a family and severity of its own, a quarter by two), so that the first four of twenty are
those of `copies = 4`. Per setting: points of failure AUROC above the better of entropy and MSP, clean and in
the mean of all families; and under four families for a head whose copies hold none of them.
"""

from __future__ import annotations

import copy
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

if not __package__:  # started by its path: then the checkout's root is not where Python looks
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.record import finish, run
from benchmarks.science.detection_table import Observed, View, points
from benchmarks.science.detectors import observe, observed, options_of, settle, shifted_views, sizes, train
from misfire_train.data import Examples, load_dataset
from misfire_train.data.corruptions import FAMILIES
from misfire_train.heads import LossHead, recipe_named
from misfire_train.heads.data import LossSet, collect, corrupted_copies, join_sets
from misfire_train.heads.training import best_base, candidate_heads, fit_on_losses
from misfire_train.runs import Run, read_splits, run_splits
from misfire_train.scores import build

SETTINGS = ((0, 700), (4, 700), (8, 700), (16, 700), (20, 700), (8, 1400), (20, 1400))
"""(copies, steps)."""
UNSEEN = ("night", "fog", "noise", "rain")
NAME = "learning_loss_pp"
Rows = list[dict[str, Any]]


class Tune(Protocol):
    """What a tuning benchmark does with one network."""

    def __call__(self, run: Run, dataset: Any, *, seed: int, frames: int, quick: bool) -> Rows:
        """One row per setting."""


def unseen_by(run: Run, examples: Examples, *, count: int, seed: int) -> Examples:
    """Images of the training half that the run knows nothing of."""
    known = {identity for part in read_splits(run.path).values() for identity in part}
    left = [row for row, identity in enumerate(examples.ids) if identity not in known]
    return examples.take(np.sort(np.random.default_rng(seed).permutation(left)[:count]))


def gather(
    run: Run, head: LossHead, holdout: Examples, families: Sequence[str], *, most: int, seed: int
) -> list[LossSet]:
    """The clean holdout and `most` copies of it."""
    recipe = replace(recipe_named("learning-loss-pp"), copies=most, families=tuple(families))
    sets = [collect(run.probe, head, holdout, task=run.task, contract=run.contract)]
    for version in corrupted_copies(holdout, recipe, seed=seed):
        sets.append(collect(run.probe, head, version, task=run.task, contract=run.contract, clean=False))
    return sets


def gains(views: dict[str, View], head: LossHead, names: Sequence[str]) -> dict[str, float]:
    """{view: AUROC above the better of entropy and MSP}."""
    result = {}
    for name in names:
        seen: Observed = observed(views[name], {NAME: head})
        table = points([seen], metrics=("auroc",))
        result[name] = table[NAME]["auroc"] - max(table["entropy"]["auroc"], table["msp"]["auroc"])
    return result


def tune(run: Run, dataset: Any, *, seed: int, frames: int, quick: bool) -> Rows:
    """One row per setting."""
    steps_scale = 0.05 if quick else 1.0
    # At full strength, since settings are compared and not heads.
    recipe = replace(recipe_named("learning-loss-pp"), strength=1.0)
    parts = run_splits(run, dataset)
    heads = candidate_heads(
        run.probe, recipe, contract=run.contract, task=run.task, train=parts["train"], seed=seed
    )
    clean = collect(run.probe, heads[0], parts["holdout"], task=run.task, contract=run.contract)
    blank = heads[best_base(run.probe, heads, parts["holdout"], clean, contract=run.contract)]
    scorers = build(["entropy", "msp"], task="classification")
    images = unseen_by(run, dataset.train, count=frames, seed=seed)
    views = {
        name: observe(run, seen, blank, scorers, clean=name == "clean")
        for name, seen in shifted_views(images, seed=seed)
    }
    settings = SETTINGS[:3] if quick else SETTINGS
    most = max(copies for copies, _ in settings)
    rest = [family for family in FAMILIES if family not in UNSEEN]
    started = time.monotonic()
    known = gather(run, blank, parts["holdout"], list(FAMILIES), most=most, seed=seed)
    per_copy = (time.monotonic() - started) / (most + 1)
    blind = gather(run, blank, parts["holdout"], rest, most=most, seed=seed)
    rows = []
    for copies, steps in settings:
        own = replace(recipe, copies=copies, steps=max(1, int(steps * steps_scale)))
        fitted = []
        for sets in (known, blind):
            torch.manual_seed(seed)
            fitted.append(
                fit_on_losses(copy.deepcopy(blank), join_sets(sets[: copies + 1]), recipe=own, seed=seed).head
            )
        found = gains(views, fitted[0], list(views))
        rows.append(
            {
                "copies": copies,
                "steps": steps,
                "clean": found["clean"],
                "families": float(np.mean([found[family] for family in FAMILIES])),
                "clean without": gains(views, fitted[1], ["clean"])["clean"],
                "unseen": gains(views, fitted[1], UNSEEN),
                "seconds": per_copy * copies,
            }
        )
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return rows


def tuning(file: str, description: str, tune: Tune, table: Callable[[Sequence[Rows]], str]) -> int:
    """Runs a benchmark on tuning networks: `tune` gives a network's rows, `table` prints their means."""
    parser = options_of(description, seeds=(101, 102))
    parser.add_argument("--frames", type=int, default=4000, help="Images to judge on.")
    options = parser.parse_args()
    settle(options, seeds=(101, 102))
    dataset = load_dataset("fashion-mnist", root=options.data)
    frames = 300 if options.quick else options.frames
    rows: dict[str, Rows] = {}
    for seed in options.seeds:
        own = train(seed, **sizes(options))
        rows[str(seed)] = tune(own, dataset, seed=seed, frames=frames, quick=options.quick)
    return finish(file, {"frames": frames, "rows": rows}, options, summary=table(list(rows.values())))


def markdown(seeds: Sequence[Rows]) -> str:
    """Mean over seeds, points of AUROC."""
    lines = ["| copies | steps | clean | families | clean, four unseen | unseen |", "|---" * 6 + "|"]
    for same in zip(*seeds, strict=True):
        numbers = [
            100 * float(np.mean([row[key] for row in same])) for key in ("clean", "families", "clean without")
        ]
        numbers.append(100 * float(np.mean([list(row["unseen"].values()) for row in same])))
        cells = " | ".join(f"{number:+.2f}" for number in numbers)
        lines.append(f"| {same[0]['copies']} | {same[0]['steps']} | {cells} |")
    return "\n".join(lines)


def main() -> int:
    """Runs it and prints a table, or JSON."""
    return tuning(__file__, __doc__, tune, markdown)


if __name__ == "__main__":
    run(main)
