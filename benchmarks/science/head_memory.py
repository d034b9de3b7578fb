"""How much of the training set the default head must remember: rows of the bank, and numbers kept of each.

    python benchmarks/science/head_memory.py --seeds 101 102 --out benchmarks/results/science/head_memory.json

For choosing sizes, so it never looks at a test half: networks and images are those of head_copies.py. The
small ResNet's embedding has 128 numbers and is kept whole by default; here also by 32 and 16 principal
components, a quarter and an eighth, as 512 numbers are by 128 and 64. `megabytes` is what a vehicle reads for
every frame. Per setting: points of failure AUROC above the better of entropy and MSP, as in head_copies.py.
"""

from __future__ import annotations

import copy
import functools
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

if not __package__:  # started by its path: then the checkout's root is not where Python looks
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.record import run
from benchmarks.science.detectors import observe, shifted_views
from benchmarks.science.head_copies import UNSEEN, Rows, gains, gather, tuning, unseen_by
from misfire_train.data.corruptions import FAMILIES
from misfire_train.heads import ResidualHead, recipe_named
from misfire_train.heads.data import collect, join_sets
from misfire_train.heads.memory import Memory
from misfire_train.heads.training import best_base, candidate_heads, fit_on_losses
from misfire_train.runs import Run, run_splits
from misfire_train.scores import build

SETTINGS = ((2048, 128), (1024, 128), (512, 128), (256, 128), (2048, 32), (1024, 32), (2048, 16))
"""(rows, numbers kept of each)."""
COPIES = 8


def tune(run: Run, dataset: Any, *, seed: int, frames: int, quick: bool) -> Rows:
    """One row per setting."""
    table: Rows = []
    for rows, kept in SETTINGS[:2] if quick else SETTINGS:
        table.append(judge(run, dataset, rows=rows, kept=kept, seed=seed, frames=frames, quick=quick))
        print(json.dumps(table[-1]), file=sys.stderr, flush=True)
    return table


def judge(
    run: Run, dataset: Any, *, rows: int, kept: int, seed: int, frames: int, quick: bool
) -> dict[str, Any]:
    """One row of the table."""
    # At full strength, since settings are compared and not heads.
    recipe = replace(recipe_named("learning-loss-pp"), strength=1.0)
    parts = run_splits(run, dataset)
    holdout = parts["holdout"]
    sized = functools.partial(Memory.fit, rows=rows, kept=kept)
    with mock.patch.object(Memory, "fit", sized):
        heads = candidate_heads(
            run.probe, recipe, contract=run.contract, task=run.task, train=parts["train"], seed=seed
        )
    clean = collect(run.probe, heads[0], holdout, task=run.task, contract=run.contract)
    blank = heads[best_base(run.probe, heads, holdout, clean, contract=run.contract)]
    assert isinstance(blank, ResidualHead) and blank.memory.bank.shape[1] == kept
    scorers = build(["entropy", "msp"], task="classification")
    images = unseen_by(run, dataset.train, count=frames, seed=seed)
    views = {
        name: observe(run, seen, blank, scorers, clean=name == "clean")
        for name, seen in shifted_views(images, seed=seed)
    }
    rest = [family for family in FAMILIES if family not in UNSEEN]
    found = []
    for families, names in ((list(FAMILIES), list(views)), (rest, UNSEEN)):
        data = join_sets(gather(run, blank, holdout, families, most=COPIES, seed=seed))
        own = replace(recipe, steps=40 if quick else recipe.steps)
        torch.manual_seed(seed)
        fitted = fit_on_losses(copy.deepcopy(blank), data, recipe=own, seed=seed)
        found.append(gains(views, fitted.head, names))
    memory = blank.memory
    numbers = memory.bank.numel() + memory.prototypes.numel() + (memory.width * kept if kept < 128 else 0)
    return {
        "rows": rows,
        "kept": kept,
        "megabytes": 4 * numbers / 1e6,
        "clean": found[0]["clean"],
        "families": float(np.mean([found[0][family] for family in FAMILIES])),
        "unseen": float(np.mean(list(found[1].values()))),
    }


def markdown(seeds: Sequence[Rows]) -> str:
    """Mean over seeds, points of AUROC."""
    lines = ["| rows | kept | MB | clean | families | four unseen |", "|---" * 6 + "|"]
    for same in zip(*seeds, strict=True):
        means = [100 * float(np.mean([row[key] for row in same])) for key in ("clean", "families", "unseen")]
        first = same[0]
        cells = " | ".join(f"{mean:+.2f}" for mean in means)
        lines.append(f"| {first['rows']} | {first['kept']} | {first['megabytes']:.2f} | {cells} |")
    return "\n".join(lines)


def main() -> int:
    """Runs it and prints a table, or JSON."""
    return tuning(__file__, __doc__, tune, markdown)


if __name__ == "__main__":
    run(main)
