"""How should a retraining mix old data and uploads? One retraining for each mixture.

    python benchmarks/science/mixture.py --json --out benchmarks/results/science/mixture.json

Per data set and seed: a small network is trained, and uploads are chosen from five rounds of a drift as in
loop.py, all by the first network. Then it is retrained once with each mixture, on the same uploads, from the
same weights. `shifted` is the accuracy on frames in bad weather, `clean` that on frames as they are; both are
given as points above the default mixture (replay .67, at most 8 repeats, no balance), mean over sets and
seeds with its standard error. Slices are the uploads' weather. The seeds are others than those of loop.py, so
what is chosen here is not chosen on what is reported there.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

if not __package__:  # started by its path: then the checkout's root is not where Python looks
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.record import command_line, finish, work_folder
from benchmarks.record import run as run_benchmark
from benchmarks.science import loop
from misfire_train.data import Dataset, Examples, load_dataset
from misfire_train.data.examples import join
from misfire_train.fit import fit
from misfire_train.progress import Reporter
from misfire_train.retraining import Schedule, child_config, parts_with
from misfire_train.runs import Run, run_splits

MIXTURES: dict[str, dict[str, float]] = {
    "default": {},
    "class balance .5": {"class_balance": 0.5},
    "class balance 1": {"class_balance": 1.0},
    "replay .5": {"replay": 0.5},
    "3 repeats": {"max_repeats": 3.0},
    "class balance .5, replay .5": {"class_balance": 0.5, "replay": 0.5},
    "slice balance .5": {"slice_balance": 0.5},
    "class and slice balance .5": {"class_balance": 0.5, "slice_balance": 0.5},
}
TEST = 1000
DIGITS = loop.Plan(
    labels=20,
    frames=120,
    epochs=5,
    learning_rate=1e-3,
    training={
        "head.recipe": "none",
        "split.holdout": 0.02,
        "split.calibration": 0.02,
        "split.train": 0.2,
        "split.validation": 0.08,
        "split.field": 0.65,
        "model.options": {"width": 8},
        "training.epochs": 25,
        "training.batch": 32,
    },
)
SETS = ("digits", "traffic-lights", "fashion-mnist")


def uploads_of(
    first: Run, dataset: Dataset, plan: loop.Plan, seed: int, *, frames: int
) -> tuple[Examples, dict[str, str]]:
    """Returns the labelled uploads of all rounds, and the weather of each by its id."""
    parts = run_splits(first, dataset)
    known, uploads, weather = parts["train"], [], []
    for number, (given, families) in enumerate(loop.drift_by_family(parts["field"], frames, seed)):
        rows = loop.chosen(
            *("misfire", first, given, known, plan.labels),
            holdout=parts["holdout"],
            seed=1000 * seed + number,
        )
        uploads.append(given.take(rows))
        weather += [families[row] for row in rows]
        known = join([known, uploads[-1]])
    joined = join(uploads)
    return joined, dict(zip(joined.ids, weather, strict=True))


def measure(name: str, seed: int, options: argparse.Namespace) -> dict[str, list[float]]:
    """Returns accuracy on shifted and on clean frames, by mixture; what is in --work is not done again."""
    cache = Path(options.work) / f"{name}-{seed}.json"
    found: dict[str, list[float]] = json.loads(cache.read_text()) if cache.is_file() else {}
    if set(found) == set(MIXTURES):
        return found
    plan, dataset = loop.PLANS[name], load_dataset(name, root=options.data)
    most = 60 if options.quick else TEST
    shifted = loop.frozen_test(dataset, most)
    order = np.random.default_rng(0).permutation(len(dataset.test))[:most]
    tests = (shifted, dataset.test.take(np.sort(order)))
    first = loop.first_run(name, seed, dataset, options=options)
    uploads, weather = uploads_of(first, dataset, plan, seed, frames=40 if options.quick else plan.frames)
    # A fit measures its test half, too; a few frames of it are enough here.
    shown = replace(dataset, test=shifted.take(range(8)))
    for label, values in MIXTURES.items():
        mixture = first.config.mixture.model_copy(update=values)
        epochs = 1 if options.quick else plan.epochs
        config = child_config(
            first, Schedule(epochs=epochs, learning_rate=plan.learning_rate, mixture=mixture)
        )
        parts = parts_with(first, uploads, shown, mixture=mixture, slices=weather)
        out = Path(options.work) / f"{name}-{seed}-{len(found)}"
        run = fit(config, shown, parts, out=out, resume=True, reporter=Reporter(quiet=True))
        counts = [loop.right_and_counted(run, test) for test in tests]
        found[label] = [float(right.sum() / counted.sum()) for right, counted in counts]
    cache.write_text(json.dumps(found))
    return found


def gains(found: Mapping[tuple[str, int], Mapping[str, list[float]]]) -> dict[str, Any]:
    """Returns what each mixture gains over the default, in points, with standard errors."""
    result: dict[str, Any] = {}
    for label in MIXTURES:
        points = np.array([np.subtract(each[label], each["default"]) for each in found.values()]) * 100
        errors = points.std(0, ddof=1) / np.sqrt(len(points)) if len(points) > 1 else np.full(2, np.nan)
        result[label] = {
            view: {
                "gain": float(points[:, column].mean()),
                "error": float(errors[column]),
                "wins": int((points[:, column] > 0).sum()),
                "of": len(points),
                "by_set": {
                    name: float(
                        np.mean(
                            [p for p, key in zip(points[:, column], found, strict=True) if key[0] == name]
                        )
                    )
                    for name in dict.fromkeys(key[0] for key in found)
                },
            }
            for column, view in enumerate(("shifted", "clean"))
        }
    return result


def main() -> int:
    """Runs all mixtures and prints a table, or JSON."""
    parser = command_line(__doc__, seeds=range(10, 13))
    parser.add_argument("--datasets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--data", type=Path, help="folder of the published sets")
    parser.add_argument(
        "--work", type=Path, help="keeps networks and results of seeds (default mixture-work)"
    )
    options = parser.parse_args()
    if options.quick:
        options.seeds, options.datasets = options.seeds[:1], ["digits"]
    elif options.work is None:
        options.work = Path("mixture-work")
    options.work = work_folder(options)
    torch.set_num_threads(1)
    loop.PLANS["digits"] = DIGITS
    found = {
        (name, seed): measure(name, seed, options) for name in options.datasets for seed in options.seeds
    }
    table = gains(found)
    accuracies = {f"{name} {seed}": each for (name, seed), each in found.items()}
    text = "\n".join(
        f"{label:<28} shifted {each['shifted']['gain']:+.2f} (error {each['shifted']['error']:.2f}), "
        f"clean {each['clean']['gain']:+.2f} (error {each['clean']['error']:.2f})"
        for label, each in table.items()
    )
    return finish(__file__, {"mixtures": table, "accuracy": accuracies}, options, summary=text, met=True)


if __name__ == "__main__":
    run_benchmark(main)
