"""Do uploads that misfire chooses teach a drifting fleet's network more than as many random ones?

    python benchmarks/science/loop.py --json --out benchmarks/results/science/loop.json

Per data set and seed: a small network is trained on a few hundred clean frames. Then come five rounds. In
each, vehicles see new frames, of which a growing share is in bad weather (10, 20, .. 50 %), with one kind of
weather more from round to round, in an order that the seed decides. An arm uploads and labels the same number
of them, and retrains as `misfire retrain` does (warm start, replay), on all its labels so far:

    misfire   of four times as many frames with the highest free failure score of its own network (entropy, or
              the expected errors of boxes), those that are unlike one another and all that is labelled, the
              training set included (`misfire select --method score-diversity --labelled`)
    random    an even draw

Both arms see the same frames, and train with the same schedule and seed. No network or score sees bad weather
before its frames are labelled.

The test is frozen: the test half, every frame in bad weather, the same for all arms and seeds. Nothing of
it is trained on; of carla_detection it is another town. `gain` is misfire's accuracy (F1 for boxes) less that
of random, per number of labels, mean over seeds, with 95 % intervals over seeds and test frames.
`label_ratio` is the number of labels after which misfire's curve (mean over seeds, straight between rounds)
reaches the final accuracy of random, over random's labels; if it is not reached, it is above 1 and null.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

if not __package__:  # started by its path: then the checkout's root is not where Python looks
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.record import command_line, finish, record, work_folder, write
from benchmarks.record import run as run_benchmark
from misfire_runtime.preprocess import Image
from misfire_train.data import Dataset, Examples, load_dataset
from misfire_train.data.corruptions import corrupt, image_seed
from misfire_train.data.examples import join
from misfire_train.data.images import DecodedImages
from misfire_train.fit import Parts, finished_run, fit, fit_key, split_dataset
from misfire_train.progress import Reporter
from misfire_train.retraining import Schedule, child_config, parts_with
from misfire_train.runs import Run, run_splits
from misfire_train.scores import build, compute
from misfire_train.scores.fitting import batches, evaluating, gather
from misfire_train.selection import select
from misfire_train.signals import Score
from misfire_train.tasks import get_task
from misfire_train.train_config import completed, parse_train_config

Floats = NDArray[np.float64]
WEATHER = ("fog", "rain", "snow", "night", "glare")
ROUNDS = 5
SEVERITY = 3
"""Of the test; frames of the drift have 2 to 4."""
ARMS = ("misfire", "random")
GOAL = 0.5
"""Share of random's labels after which misfire should be where random ends."""


@dataclass(frozen=True)
class Plan:
    """How a data set takes part.

    Attributes:
        labels: of each round.
        frames: of each round.
        epochs: of a retraining.
        training: keys of the training configuration.
        test: judged frames; None: all of the test half.
        learning_rate: of a retraining; None: half of the parent's.
    """

    labels: int
    frames: int
    epochs: int
    training: Mapping[str, Any]
    test: int | None = None
    learning_rate: float | None = None


_FAST = {
    "head.recipe": "none",
    "training.precision": "bf16",
    "split.holdout": 0.02,
    "split.calibration": 0.02,
}
PLANS = {
    "fashion-mnist": Plan(
        labels=30,
        frames=500,
        epochs=4,
        test=1500,
        learning_rate=1e-3,
        training=_FAST
        | {
            "split.limit": 3600,
            "split.train": 0.22,
            "split.validation": 0.04,
            "split.field": 0.7,
            "model.options": {"width": 8},
            "training.epochs": 15,
            "training.batch": 64,
        },
    ),
    "traffic-lights": Plan(
        labels=10,
        frames=140,
        epochs=5,
        learning_rate=1e-3,
        training=_FAST
        | {
            "split.train": 0.2,
            "split.validation": 0.08,
            "split.field": 0.65,
            "model.options": {"width": 8},
            "training.epochs": 20,
            "training.batch": 32,
            "training.flip": True,
        },
    ),
    "carla-detection": Plan(
        labels=8,
        frames=40,
        epochs=1,
        training=_FAST
        | {
            "split.by_group": False,
            "split.train": 0.26,
            "split.validation": 0.04,
            "split.holdout": 0.08,
            "split.field": 0.58,
            "model.options": {"width": 8, "tower": 32},
            "training.epochs": 14,
            "training.mosaic": 0.0,
        },
    ),
}


def in_weather(examples: Examples, families: Sequence[str], severities: Sequence[int]) -> Examples:
    """Each example under its own family and severity; "" leaves it as it is."""

    def decode(index: int) -> Image:
        image = examples.images[index]
        if not families[index]:
            return image
        seed = image_seed(0, examples.ids[index])
        return corrupt(image, families[index], severity=severities[index], seed=seed)

    return Examples(
        DecodedImages(decode, count=len(examples)), examples.targets, examples.ids, examples.groups
    )


def frozen_test(dataset: Dataset, most: int | None) -> Examples:
    """The test half in bad weather, each frame in a kind that its id decides."""
    test = dataset.test
    if most is not None and most < len(test):
        test = test.take(np.sort(np.random.default_rng(0).permutation(len(test))[:most]))
    kinds = [WEATHER[image_seed(1, name) % len(WEATHER)] for name in test.ids]
    return in_weather(test, kinds, [SEVERITY] * len(test))


def drift(field: Examples, frames: int, seed: int) -> list[Examples]:
    """The frames of each round, with more bad weather of more kinds from round to round."""
    return [frames_ for frames_, _families in drift_by_family(field, frames, seed)]


def drift_by_family(field: Examples, frames: int, seed: int) -> list[tuple[Examples, list[str]]]:
    """The frames of each round, and the weather of each; "" is none."""
    rng = np.random.default_rng([seed, 11])
    order = rng.permutation(len(field))
    kinds = [WEATHER[k] for k in rng.permutation(len(WEATHER))]
    rounds = []
    for number in range(ROUNDS):
        rows = order[number::ROUNDS][:frames]
        bad = rng.random(len(rows)) < 0.1 * (number + 1)
        drawn = rng.integers(0, number + 1, len(rows))
        families = [kinds[k] if wet else "" for k, wet in zip(drawn, bad, strict=True)]
        severities = rng.integers(2, 5, len(rows)).tolist()
        rounds.append((in_weather(field.take(rows), families, severities), families))
    return rounds


@torch.no_grad()
def embeddings(run: Run, examples: Examples) -> NDArray[np.float32]:
    """What the last layer sees, pooled: [N,C]."""
    found = []
    with evaluating(run.probe):
        for _, images in batches(examples, contract=run.contract, size=64):
            signals = run.probe(images)
            found.append(
                signals.last_input.float().flatten(2).mean(2)
                if signals.last_input.ndim > 2
                else signals.last_input.float()
            )
    return torch.cat(found).numpy()


def trigger_score(run: Run, holdout: Examples) -> Score:
    """The free score that vehicles of this task trigger on by default."""
    name = "entropy" if run.task.by_class else "expected_errors"
    known = None
    if run.task.name == "detection":
        targets = run.task.collate(holdout.targets)
        known = gather(run.probe, holdout, targets, contract=run.contract, batch=run.task.score_batch)
    return build([name], task=run.task, holdout=known)[0]


def chosen(
    arm: str,
    run: Run,
    frames: Examples,
    known: Examples,
    count: int,
    *,
    holdout: Examples,
    seed: int,
) -> NDArray[np.int64]:
    """The rows of the frames that an arm has labelled."""
    if arm == "random":
        return select(method="random", k=count, scores=np.zeros(len(frames)), seed=seed)
    score = trigger_score(run, holdout)
    scores = compute(run, frames, [score])[score.name]
    # Vehicles upload the top of the score; of those, the server has labelled what is unlike the rest.
    top = np.argsort(-scores, kind="stable")[: 4 * count]
    # Unlike the training set, too: a clean frame that is merely hard has neighbours there, and fog has none.
    outside = embeddings(run, known)
    rows = select(
        embeddings(run, frames.take(top)),
        method="score-diversity",
        k=count,
        scores=scores[top],
        labelled=outside,
        seed=seed,
    )
    return top[rows]


@torch.no_grad()
def right_and_counted(run: Run, test: Examples) -> NDArray[np.float64]:
    """What each test frame adds to the accuracy, [2,N]: what is right, and what counts."""
    outputs = []
    with evaluating(run.probe):
        for _, images in batches(test, contract=run.contract, size=64):
            outputs.append(run.task.condense(run.probe(images).outputs))
    right, counted = run.task.shares(torch.cat(outputs), run.task.collate(test.targets))
    return np.stack((right.double().numpy(), counted.double().numpy()))


def first_run(name: str, seed: int, dataset: Dataset, *, options: argparse.Namespace) -> Run:
    """The network and its failure score before the drift; one that is in --work is loaded."""
    small = {"training.epochs": 1, "split.limit": 300} if options.quick else {}
    config = parse_train_config(
        {"dataset": name, "data": None if options.data is None else str(options.data), "seed": seed},
        overrides={**PLANS[name].training, **small},
    )
    config, _ = completed(config, get_task(dataset.task).training_defaults)
    parts = split_dataset(dataset, config)
    given = [parts[part] for part in ("train", "validation", "holdout", "calibration")]
    ids = {part: examples.ids for part, examples in parts.items()}
    # A fit measures its test half, too; a few frames of it are enough here.
    shown = replace(dataset, test=dataset.test.take(range(8)))
    out = options.work / f"{name}-{seed}"
    return finished_run(out, fit_key(config), resume=True) or fit(
        config, shown, Parts(*given, ids=ids), out=out, resume=True, reporter=Reporter(quiet=True)
    )


def next_run(run: Run, uploads: Examples, dataset: Dataset, *, plan: Plan, out: Path, quick: bool) -> Run:
    """The child of a run, trained on its own data and all uploads of the arm so far."""
    schedule = Schedule(
        epochs=1 if quick else plan.epochs,
        learning_rate=plan.learning_rate,
    )
    config = child_config(run, schedule)
    parts = parts_with(run, uploads, dataset)
    return fit(config, dataset, parts, out=out, resume=True, reporter=Reporter(quiet=True))


def play(
    arm: str,
    first: Run,
    rounds: Sequence[Examples],
    dataset: Dataset,
    test: Examples,
    *,
    train: Examples,
    holdout: Examples,
    plan: Plan,
    seed: int,
    options: argparse.Namespace,
) -> NDArray[np.float64]:
    """Accuracy's numerators and denominators after 0..ROUNDS rounds of an arm, [ROUNDS+1,2,N]."""
    cache = options.work / f"{dataset.name}-{seed}-{arm}.npy"
    if cache.is_file():
        return np.asarray(np.load(cache))
    count = 6 if options.quick else plan.labels
    # A fit measures its test half, too; a few frames of it are enough here.
    shown = replace(dataset, test=test.take(range(8)))
    run, uploads = first, None
    found = [right_and_counted(run, test)]
    for number, frames in enumerate(rounds):
        known = train if uploads is None else join([train, uploads])
        rows = chosen(arm, run, frames, known, count, holdout=holdout, seed=1000 * seed + number)
        labelled = frames.take(rows)
        uploads = labelled if uploads is None else join([uploads, labelled])
        out = options.work / f"{dataset.name}-{seed}-{arm}-{number + 1}"
        run = next_run(run, uploads, shown, plan=plan, out=out, quick=options.quick)
        found.append(right_and_counted(run, test))
    made = np.stack(found)
    np.save(cache.with_suffix(".new.npy"), made)
    cache.with_suffix(".new.npy").replace(cache)
    return made


def curves(name: str, *, options: argparse.Namespace) -> dict[str, NDArray[np.float64]]:
    """What all seeds of a data set gave, by arm: [seeds,ROUNDS+1,2,N]."""
    plan = PLANS[name]
    dataset = load_dataset(name, root=options.data)
    test = frozen_test(dataset, 60 if options.quick else plan.test)
    found: dict[str, list[NDArray[np.float64]]] = {arm: [] for arm in ARMS}
    for seed in options.seeds:
        first = first_run(name, seed, dataset, options=options)
        parts = run_splits(first, dataset)
        field = parts["field"]
        rounds = drift(field, 40 if options.quick else plan.frames, seed)
        for arm in ARMS:
            began = time.monotonic()
            made = play(
                arm,
                first,
                rounds,
                dataset,
                test,
                train=parts["train"],
                holdout=parts["holdout"],
                plan=plan,
                seed=seed,
                options=options,
            )
            found[arm].append(made)
            share = made[:, 0].sum(1) / np.maximum(made[:, 1].sum(1), 1e-12)
            words = " ".join(f"{100 * value:.1f}" for value in share)
            print(
                f"{name} seed {seed} {arm}: {words}  ({time.monotonic() - began:.0f} s)",
                file=sys.stderr,
                flush=True,
            )
    return {arm: np.stack(each) for arm, each in found.items()}


def accuracy(counts: NDArray[np.float64], weights: Floats | None = None) -> Floats:
    """Accuracy [...,ROUNDS+1] of counts [...,ROUNDS+1,2,N], with a weight of each frame."""
    totals = counts.sum(-1) if weights is None else counts @ weights
    return np.asarray(totals[..., 0] / np.maximum(totals[..., 1], 1e-12), np.float64)


def labels_needed(curve: Floats, goal: float) -> float | None:
    """Rounds after which a curve [ROUNDS+1] reaches the goal, straight between them; None if it does not.

    Also None if it begins there: then the other arm has learned nothing that labels could be compared by.
    """
    reached = np.flatnonzero(curve >= goal)
    if not len(reached) or not reached[0]:
        return None
    after = int(reached[0])
    low, high = curve[after - 1], curve[after]
    return float(after - 1 + (goal - low) / (high - low))


def compare(counts: Mapping[str, NDArray[np.float64]], plan: Plan, *, replicates: int) -> dict[str, Any]:
    """The curves, misfire's gain and its ratio of labels, with intervals over seeds and test frames."""
    ours, even = counts["misfire"], counts["random"]
    means = {arm: accuracy(each).mean(0) for arm, each in counts.items()}
    rng = np.random.default_rng(0)
    seeds, frames = ours.shape[0], ours.shape[-1]
    gains, ratios = [], []
    for _ in range(replicates):
        drawn = rng.integers(0, seeds, seeds)
        weights = np.bincount(rng.integers(0, frames, frames), minlength=frames).astype(np.float64)
        pair = [accuracy(each[drawn], weights).mean(0) for each in (ours, even)]
        gains.append(pair[0] - pair[1])
        needed = labels_needed(pair[0], pair[1][-1])
        # Not reached: above every ratio that can be.
        ratios.append(np.inf if needed is None else needed / ROUNDS)
    needed = labels_needed(means["misfire"], means["random"][-1])
    low, high = np.quantile(ratios, (0.025, 0.975), method="nearest")
    return {
        "labels": [plan.labels * number for number in range(ROUNDS + 1)],
        "accuracy": means,
        "accuracy_by_seed": {arm: accuracy(each) for arm, each in counts.items()},
        "gain": [_gain(means, np.array(gains), number) for number in range(ROUNDS + 1)],
        "label_ratio": None if needed is None else needed / ROUNDS,
        "label_ratio_interval": [low, high],
    }


def _gain(means: Mapping[str, Floats], replicates: Floats, number: int) -> list[float]:
    value = float(means["misfire"][number] - means["random"][number])
    low, high = np.quantile(replicates[:, number], (0.025, 0.975))
    return [value, float(low), float(high)]


def main() -> int:
    """Runs all data sets; 1 if misfire needs more than half of random's labels on one of them."""
    parser = command_line(__doc__, seeds=range(5))
    parser.add_argument("--datasets", nargs="+", default=list(PLANS), choices=list(PLANS))
    parser.add_argument("--data", type=Path, help="folder of the published sets")
    parser.add_argument("--work", type=Path, help="keeps networks and results of seeds (default loop-work)")
    options = parser.parse_args()
    if options.quick:
        options.seeds = options.seeds[:1]
    elif options.work is None:
        options.work = Path("loop-work")
    options.work = work_folder(options)
    torch.set_num_threads(1)
    sets: dict[str, Any] = {}
    for name in options.datasets:
        counts = curves(name, options=options)
        found = compare(counts, PLANS[name], replicates=200 if options.quick else 2000)
        sets[name] = {"seeds": options.seeds, **found}
        write(record(__file__, {"sets": sets}, options), options.out)
    ratios = {f"labels_{name}": each["label_ratio"] for name, each in sets.items()}
    met = all(value is not None and value <= GOAL for value in ratios.values())
    text = "\n".join(_line(name, each) for name, each in sets.items())
    return finish(__file__, {"sets": sets, "ratios": ratios}, options, summary=text, met=met or options.quick)


def _line(name: str, found: Mapping[str, Any]) -> str:
    value, low, high = (100 * each for each in found["gain"][-1][:3])
    needed = "not reached" if found["label_ratio"] is None else f"{found['label_ratio']:.2f}"
    shown = [f"{100 * found['accuracy'][arm][-1]:.1f}" for arm in ARMS]
    return (
        f"{name}: misfire {shown[0]}, random {shown[1]} after {found['labels'][-1]} labels, "
        f"{value:+.1f} [{low:+.1f}, {high:+.1f}]; share of random's labels {needed} (goal {GOAL})"
    )


if __name__ == "__main__":
    run_benchmark(main)
