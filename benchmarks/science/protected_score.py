"""What it costs to keep a protected group out of a failure score by gradient reversal.

    python benchmarks/science/protected_score.py --out benchmarks/results/science/protected_score.json

One small network for each seed, on digits. The group to protect are the digits that look alike (1, 8, 9), of
which more fail. The head is fitted without protection and with reversed gradients of several weights. On the
test half: how well the score tells the group (`told`, 0.5: not at all), failure AUROC over all images, and
within the groups, which is what remains if the group may not matter.
"""

from __future__ import annotations

import csv
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

if not __package__:  # started by its path: then the checkout's root is not where Python looks
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.record import command_line, finish, run
from misfire_train.data import Dataset, load_dataset
from misfire_train.fit import train_run
from misfire_train.heads import recipe_named
from misfire_train.heads.training import fit_head
from misfire_train.metrics import auroc
from misfire_train.runs import Run, run_splits
from misfire_train.scores import compute
from misfire_train.train_config import parse_train_config

ALIKE = (1, 8, 9)
WEIGHTS = (0.0, 1.0, 3.0, 10.0)
"""Of the reversed gradient; 0 is no protection."""
KEYS = ("told", "auroc", "within")


def main() -> int:
    """Runs it and prints a table, or JSON."""
    options = command_line(__doc__ or "", seeds=(0, 1, 2)).parse_args()
    digits = load_dataset("digits")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in options.seeds[:1] if options.quick else options.seeds:
            rows += measure(digits, Path(folder) / str(seed), seed=seed, quick=options.quick)
    means = [
        {"weight": weight}
        | {key: float(np.mean([r[key] for r in rows if r["weight"] == weight])) for key in KEYS}
        for weight in dict.fromkeys(row["weight"] for row in rows)
    ]
    lines = [f"{'weight':>8}{'told':>8}{'AUROC':>8}{'within':>8}"]
    lines += [f"{row['weight']:8g}" + "".join(f"{row[key]:8.3f}" for key in KEYS) for row in means]
    return finish(__file__, {"means": means, "rows": rows}, options, summary="\n".join(lines))


def measure(digits: Dataset, folder: Path, *, seed: int, quick: bool) -> list[dict[str, Any]]:
    """Returns a row for each weight."""
    folder.mkdir()
    config = {
        "dataset": "digits",
        "seed": seed,
        "model": {"options": {"width": 8}},
        "training": {"epochs": 1 if quick else 4},
        "head": {"recipe": "none"},
    }
    made = train_run(parse_train_config(config), out=folder / "run")
    file = folder / "groups.csv"
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", "looks"])
        for name, target in zip(digits.train.ids, digits.train.targets, strict=True):
            writer.writerow([name, "alike" if target in ALIKE else "other"])
    return [
        {"seed": seed, "weight": weight} | judged(made, digits, file, weight=weight, seed=seed, quick=quick)
        for weight in (WEIGHTS[:2] if quick else WEIGHTS)
    ]


def judged(
    made: Run, digits: Dataset, file: Path, *, weight: float, seed: int, quick: bool
) -> dict[str, float]:
    """Returns what the score of one head tells, on the test half."""
    recipe = replace(recipe_named("learning-loss-pp"), strength=1.0, columns="all")
    if quick:
        recipe = replace(recipe, steps=40, copies=1)
    if weight:
        recipe = replace(recipe, protect=str(file), protect_weight=weight)
    parts = run_splits(made, digits)
    fitted = fit_head(
        made.probe,
        task=made.task,
        recipe=recipe,
        train=parts["train"],
        holdout=parts["holdout"],
        contract=made.contract,
        seed=seed,
    )
    score = np.asarray(compute(made, digits.test, [fitted.head])[fitted.head.name])
    failed, alike = _failed(made, digits), np.isin(digits.test.targets, ALIKE)
    area = float(auroc(score, alike))
    within = [float(auroc(score[g], failed[g])) for g in (alike, ~alike) if 0 < failed[g].sum() < g.sum()]
    return {
        "told": max(area, 1 - area),
        "auroc": float(auroc(score, failed)),
        "within": float(np.mean(within)),
    }


@torch.no_grad()
def _failed(made: Run, digits: Dataset) -> np.ndarray[Any, np.dtype[np.bool_]]:
    outputs = made.model(digits.test.batch(np.arange(len(digits.test)), made.contract))
    return made.task.failed(outputs, torch.as_tensor(digits.test.targets)).numpy()


if __name__ == "__main__":
    run(main)
