"""How well a few labels tell the failure rate of all frames: coverage of intervals, and their width.

    python benchmarks/science/field_truth.py --json --out benchmarks/results/science/field_truth.json

Simulated: scores of failures and successes are normal (AUROC .9), and each repetition draws labels anew.
`coverage` is the share of repetitions whose 95 % interval has the true rate, by estimator and rate. `width`
is the mean width over that of plain labels, at equally many of them. `stratified` is the default of `misfire
fleet truth`; that was decided before, and no data set chooses. `stratified afterwards` has labels that were
drawn uniformly. Probabilities for `prediction-powered` and `combined` are calibrated on other frames, with
10 % failures whatever the rate. `frames`: a real stream, with a network that is trained here, its bundle's
own score, Fashion-MNIST's test images clean and under corruptions that the network never saw, the data set's
labels. `rejected`: what was tried and lost. `sequence`: coverage of the betting sequence at all looks.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

if not __package__:  # started by its path: then the checkout's root is not where Python looks
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.record import command_line, finish, run, work_folder
from misfire_fleet.truth.curve import cut, deal, stratum_of, worth
from misfire_fleet.truth.histogram import Histogram, binned
from misfire_fleet.truth.intervals import Interval, plain
from misfire_fleet.truth.powered import combined, prediction_powered
from misfire_fleet.truth.sequence import betting_sequence
from misfire_fleet.truth.stratified import merge, stratified
from misfire_runtime.bundle import Bundle

Array = NDArray[np.float64]
RATES = (0.02, 0.05, 0.15, 0.30)
DEFAULT = "stratified"
ESTIMATORS = ("plain", "prediction-powered", DEFAULT, "stratified afterwards", "combined")
LEAST, MOST, WIDTH_GOAL = 0.94, 0.98, 0.78
AUROC = 0.9
LABELS = 300
_FRAMES = 400_000
_BLOCK = 1000


@dataclass(frozen=True)
class Population:
    """Holds all frames of a stream: their score (of its bin), whether they fail, the assumed probability."""

    score: Array
    failed: Array
    predicted: Array

    @property
    def rate(self) -> float:
        """The failure rate that is to be found."""
        return float(self.failed.mean())

    @property
    def auroc(self) -> float:
        """The probability that a failure has the higher score."""
        values, place = np.unique(self.score, return_inverse=True)
        bad = np.bincount(place, self.failed, len(values))
        good = np.bincount(place, 1 - self.failed, len(values))
        return float((bad * (np.cumsum(good) - good / 2)).sum() / (bad.sum() * good.sum()))


def simulated(rate: float, auroc: float, rng: np.random.Generator, *, frames: int) -> Population:
    """Draws frames with normal scores; the assumed probabilities are those at 10 % failures."""
    apart = np.sqrt(2) * NormalDist().inv_cdf(auroc)
    failed = (rng.permutation(frames) < round(rate * frames)).astype(float)
    score = rng.normal(size=frames) + apart * failed
    odds = 0.1 / 0.9 * np.exp(apart * score - apart**2 / 2)
    return Population(binned(score), failed, odds / (1 + odds))


def calibrated(score: Array, failed: Array, other: NDArray[np.bool_]) -> Array:
    """Fits log-odds of failure, linear in the rank of the score, on the frames in `other` (Newton)."""
    inverse = NormalDist().inv_cdf
    order = np.argsort(np.argsort(score, kind="stable"), kind="stable")
    z = np.array([inverse(share) for share in (order + 0.5) / len(score)])
    design = np.stack([np.ones(len(z)), z], 1)
    weights = np.zeros(2)
    for _step in range(30):
        p = 1 / (1 + np.exp(-design[other] @ weights))
        slope = design[other].T @ (failed[other] - p) - 1e-3 * weights
        curve = (design[other] * (p * (1 - p))[:, None]).T @ design[other] + 1e-3 * np.eye(2)
        weights = weights + np.linalg.solve(curve, slope)
    return np.asarray(1 / (1 + np.exp(-design @ weights)))


def trial(
    frames: Population, *, labels: int, repeats: int, rng: np.random.Generator
) -> dict[str, tuple[float, float]]:
    """Coverage and mean width of each estimator."""
    found = [_block(frames, labels, min(_BLOCK, repeats - done), rng) for done in range(0, repeats, _BLOCK)]
    sizes = np.array([len(block["plain"].rate) for block in found], float)
    result = {}
    for name in ESTIMATORS:
        covered = [((b[name].low <= frames.rate) & (frames.rate <= b[name].high)).mean() for b in found]
        width = [b[name].width.mean() for b in found]
        result[name] = (float(np.average(covered, weights=sizes)), float(np.average(width, weights=sizes)))
    return result


@dataclass(frozen=True)
class Strata:
    """Holds the fleet's strata of a population: of each frame, shares, and labels dealt to each."""

    stratum: NDArray[np.int64]
    shares: Array
    dealt: NDArray[np.int64]

    @classmethod
    def of(cls, frames: Population, labels: int) -> Strata:
        """Cuts and deals as `misfire fleet truth` does."""
        histogram = Histogram()
        histogram.add_scores(frames.score)
        values, counts = histogram.table()
        edges = cut(values, counts)
        stratum = stratum_of(frames.score, edges)
        sizes = np.bincount(stratum, minlength=len(edges) + 1)
        worths = np.bincount(stratum_of(values, edges), worth(counts), len(sizes))
        return cls(stratum, sizes / len(stratum), deal(labels, worths, sizes))

    def draw(self, repeats: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Draws the dealt labels of each stratum, with replacement: [repeats, labels] frames."""
        parts = [
            rng.choice(np.flatnonzero(self.stratum == k), (repeats, size))
            for k, size in enumerate(self.dealt)
        ]
        return np.concatenate(parts, axis=1)

    def failures(self, failed: Array, drawn: NDArray[np.int64]) -> Array:
        """Failures in each stratum, [repeats, K]."""
        return _by_stratum(failed, self.stratum[drawn], len(self.shares))


def _block(frames: Population, labels: int, repeats: int, rng: np.random.Generator) -> dict[str, Interval]:
    strata = Strata.of(frames, labels)
    stratum, shares, dealt = strata.stratum, strata.shares, strata.dealt
    even = rng.integers(0, len(stratum), (repeats, labels))
    drawn = strata.draw(repeats, rng)
    failures = strata.failures(frames.failed[drawn], drawn)
    predicted = np.bincount(stratum, frames.predicted, len(shares)) / np.bincount(stratum)
    return {
        "plain": plain(frames.failed[even]),
        "prediction-powered": prediction_powered(
            frames.failed[even], frames.predicted[even], frames.predicted.mean()
        ),
        DEFAULT: stratified(shares, np.broadcast_to(dealt, failures.shape), failures),
        "stratified afterwards": _afterwards(frames.failed[even], stratum[even], shares),
        "combined": combined(
            shares, frames.failed[drawn], frames.predicted[drawn], stratum[drawn], predicted
        ),
    }


def _by_stratum(values: Array, stratum: NDArray[np.int64], strata: int) -> Array:
    return np.stack([np.where(stratum == k, values, 0.0).sum(-1) for k in range(strata)], -1)


def _afterwards(failed: Array, stratum: NDArray[np.int64], shares: Array) -> Interval:
    labels = _by_stratum(np.ones(failed.shape), stratum, len(shares))
    failures = _by_stratum(failed, stratum, len(shares))
    # Merged strata leave empty places, which weigh nothing.
    padded = np.zeros((3, len(labels), len(shares)))
    padded[1] = 1.0
    for row, (n, x) in enumerate(zip(labels, failures, strict=True)):
        merged = merge(shares, n, x)
        padded[:, row, : len(merged[0])] = merged
    return stratified(*padded)


def sequence(rate: float, *, labels: int, repeats: int, rng: np.random.Generator) -> dict[str, float]:
    """How often the betting sequence has the rate at every look, and its last width over Wilson's."""
    missed, width, plain_width = 0, [], []
    for done in range(0, repeats, 250):
        values = (rng.random((min(250, repeats - done), labels)) < rate).astype(float)
        found = betting_sequence(values, grid=501)
        missed += int(((found.low > rate) | (found.high < rate)).any(-1).sum())
        width.append(found.width[:, -1].mean())
        plain_width.append(plain(values).width.mean())
    return {"coverage": 1 - missed / repeats, "width_ratio": float(np.mean(width) / np.mean(plain_width))}


def real_stream(options: argparse.Namespace, work: Path, *, seed: int, part: float) -> Population:
    """A trained network's bundle on images of which a part is corrupted; labels are the data set's."""
    from misfire_export.options import Options
    from misfire_export.sources.frames import frames_of_run
    from misfire_export.sources.run import export_run
    from misfire_runtime.engines.scoring import Scorer
    from misfire_train.data import load_dataset
    from misfire_train.data.corruptions import FAMILIES, corrupt
    from misfire_train.fit import train_run
    from misfire_train.train_config import parse_train_config

    small = {"split.limit": 1500} if options.quick else {"split.limit": 9000}
    config = parse_train_config(
        {"dataset": options.dataset, "data": options.data, "seed": seed},
        overrides={**(small if options.dataset != "digits" else {}),
                   "training.epochs": 2 if options.quick else 8, "head.recipe": "none"},
    )  # fmt: skip
    run_folder, bundle_folder = work / f"run-{seed}", work / f"bundle-{seed}"
    dataset = load_dataset(options.dataset, root=options.data)
    trained = train_run(config, out=run_folder, resume=True)
    if bundle_folder.exists():
        bundle = Bundle.open(bundle_folder)
    else:
        bundle = export_run(
            trained, frames_of_run(trained, dataset), out=bundle_folder, options=Options("truth", "1.0.0")
        )
    rng = np.random.default_rng([seed, 7])
    test = dataset.test
    families = sorted(FAMILIES)
    scorer = Scorer.load(bundle)
    scores, failed = np.zeros(len(test)), np.zeros(len(test))
    try:
        for index in range(len(test)):
            image = test.images[index]
            if rng.random() < part:
                family = families[int(rng.integers(len(families)))]
                image = corrupt(image, family, severity=int(rng.integers(1, 4)), seed=index)
            answer = scorer.score(image)
            scores[index] = answer.scores[scorer.default_score]
            failed[index] = answer.prediction["class"] != dataset.classes[int(test.targets[index])]
    finally:
        scorer.close()
    other = rng.random(len(test)) < 0.2
    predicted = calibrated(scores, failed, other)
    return Population(binned(scores[~other]), failed[~other], predicted[~other])


def rejected(
    frames: Population, *, labels: int, repeats: int, rng: np.random.Generator
) -> dict[str, tuple[float, float]]:
    """Coverage and mean width over plain of what was tried and lost."""
    z = NormalDist().inv_cdf(0.975)
    strata = Strata.of(frames, labels)
    even, drawn = rng.integers(0, len(frames.failed), (repeats, labels)), strata.draw(repeats, rng)
    y, f = frames.failed[even], frames.predicted[even]
    rate, variance = _powered(labels, [each.sum(1) for each in (y, f, f * f, y * f)], frames)
    error = np.sqrt(variance)
    # The same resamples for all repetitions: each is a fair bootstrap, and sums become one product.
    counts = rng.multinomial(labels, np.full(labels, 1 / labels), size=499).astype(float)
    again, spread = _powered(labels, [counts @ each.T for each in (y, f, f * f, y * f)], frames)
    low, high = np.quantile((again - rate) / np.sqrt(np.maximum(spread, 1e-12)), (0.975, 0.025), axis=0)
    p = strata.failures(frames.failed[drawn], drawn) / strata.dealt
    four = (p * strata.dealt + 2) / (strata.dealt + 4)
    middle = (strata.shares * p).sum(-1)
    plugged, plus = (
        z * np.sqrt((strata.shares**2 * each * (1 - each) / strata.dealt).sum(-1)) for each in (p, four)
    )
    found = {
        "prediction-powered, normal": Interval(rate, rate - z * error, rate + z * error),
        "prediction-powered, bootstrap-t": Interval(rate, rate - low * error, rate - high * error),
        "stratified, plugged-in variance": Interval(middle, middle - plugged, middle + plugged),
        "stratified, plus four": Interval(middle, middle - plus, middle + plus),
    }
    known = plain(y).width.mean()
    return {
        name: (
            float(((each.low <= frames.rate) & (frames.rate <= each.high)).mean()),
            float(each.width.mean() / known),
        )
        for name, each in found.items()
    }


def _powered(count: int, sums: Sequence[Array], frames: Population) -> tuple[Array, Array]:
    """The prediction-powered rate and its plugged-in variance, from sums of y, f, ff, yf over the labels."""
    y, f, ff, yf = sums
    mean, spread = f / count, np.maximum(ff / count - (f / count) ** 2, 1e-12)
    rate = y / count
    shared = yf / count - rate * mean
    power = np.maximum(shared / spread, 0)
    variance = (rate * (1 - rate) - 2 * power * shared + power**2 * spread) / (count - 2)
    return rate + power * (frames.predicted.mean() - mean), np.maximum(variance, 0)


def _relative(found: dict[str, tuple[float, float]]) -> dict[str, dict[str, float]]:
    return {
        "coverage": {name: each[0] for name, each in found.items()},
        "width": {name: each[1] / found["plain"][1] for name, each in found.items()},
    }


def simulate(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Coverage and widths by rate, the table of widths by labels, and other AUROCs."""
    rng = np.random.default_rng([seed, 1])
    frames = 100_000 if options.quick else _FRAMES
    main: dict[str, Any] = {}
    for rate in RATES:
        population = simulated(rate, AUROC, rng, frames=frames)
        main[f"{rate:g}"] = _relative(
            trial(population, labels=options.labels, repeats=options.repeats, rng=rng)
        )
    spent, others = [], []
    fewer = max(200, options.repeats // 5)
    for labels in (100, 300) if options.quick else (50, 100, 200, 300, 500, 1000):
        for rate in RATES:
            population = simulated(rate, AUROC, rng, frames=frames)
            found = trial(population, labels=labels, repeats=fewer, rng=rng)
            spent.append(
                {"labels": labels, "rate": rate, "plain_width": found["plain"][1], **_relative(found)}
            )
    for auroc in () if options.quick else (0.5, 0.7, 0.8, 0.96):
        for rate in RATES:
            population = simulated(rate, auroc, rng, frames=frames)
            found = trial(population, labels=options.labels, repeats=fewer, rng=rng)
            others.append({"auroc": auroc, "rate": rate, **_relative(found)})
    lost = {}
    for rate in RATES:
        population = simulated(rate, AUROC, rng, frames=frames)
        found = rejected(population, labels=options.labels, repeats=min(fewer, 4000), rng=rng)
        lost[f"{rate:g}"] = {name: {"coverage": each[0], "width": each[1]} for name, each in found.items()}
    looks = {
        f"{rate:g}": sequence(rate, labels=options.labels, repeats=min(fewer, 2000), rng=rng)
        for rate in RATES
    }
    return {
        "coverage": {n: {r: main[r]["coverage"][n] for r in main} for n in ESTIMATORS},
        "width": {n: {r: main[r]["width"][n] for r in main} for n in ESTIMATORS},
        "by_labels": spent,
        "by_auroc": others,
        "rejected": lost,
        "sequence": looks,
    }


def main() -> int:
    """Runs it and prints tables, or JSON."""
    parser = command_line(__doc__)
    parser.add_argument("--repeats", type=int, default=20_000, help="repetitions of each simulation")
    parser.add_argument("--labels", type=int, default=LABELS, help="labels of each repetition")
    parser.add_argument("--dataset", default="fashion-mnist", help="data set of the real stream")
    parser.add_argument("--data", default=None, help="folder of data sets")
    parser.add_argument("--work", type=Path, default=None, help="keeps the trained network here")
    options = parser.parse_args()
    seed = options.seeds[0]
    if options.quick:
        options.repeats, options.dataset = min(options.repeats, 2000), "digits"
    result = simulate(options, seed)
    work = work_folder(options)
    real = []
    for part in (0.0, 0.5) if options.quick else (0.0, 0.2, 0.5, 1.0):
        population = real_stream(options, work, seed=seed, part=part)
        rng = np.random.default_rng([seed, 2])
        found = trial(population, labels=options.labels, repeats=min(options.repeats, 10_000), rng=rng)
        real.append(
            {"corrupted": part, "frames": len(population.score), "rate": population.rate,
             "auroc": population.auroc, "plain_width": found["plain"][1], **_relative(found)}
        )  # fmt: skip
    above = [result["width"][DEFAULT][f"{rate:g}"] for rate in RATES if rate >= 0.05]
    coverages = [value for by_rate in result["coverage"].values() for value in by_rate.values()]
    report = {
        "repeats": options.repeats,
        "labels": options.labels,
        "auroc": AUROC,
        "default": DEFAULT,
        "width_ratio": max(above),
        "ratios": {"width_ratio": max(above), "least coverage": min(coverages), "most": max(coverages)},
        **result,
        "dataset": options.dataset,
        "frames": real,
    }
    # A short run has too few repetitions to tell .94 from .95.
    slack = 0.012 if options.quick else 0.0
    met = LEAST - slack <= min(coverages) and max(coverages) <= MOST + slack and max(above) <= WIDTH_GOAL
    return finish(__file__, report, options, summary=markdown(report), met=met)


def markdown(report: dict[str, Any]) -> str:
    """Coverage and width of each estimator by rate, simulated and real."""
    heads = [f"{float(rate):.0%}" for rate in report["coverage"]["plain"]]
    lines = [
        f"{report['labels']} labels, AUROC {report['auroc']:g}: coverage / width over plain",
        "",
        "| estimator | " + " | ".join(heads) + " |",
        "|---" * (len(heads) + 1) + "|",
    ]
    for name, by_rate in report["coverage"].items():
        cells = [f"{100 * value:.1f} / {report['width'][name][rate]:.2f}" for rate, value in by_rate.items()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", f"{report['dataset']}, a trained bundle's own score:", ""]
    lines += ["| failures | AUROC | " + " | ".join(ESTIMATORS) + " |", "|---" * (len(ESTIMATORS) + 2) + "|"]
    for one in report["frames"]:
        cells = [f"{100 * one['coverage'][n]:.1f} / {one['width'][n]:.2f}" for n in ESTIMATORS]
        lines.append(f"| {one['rate']:.1%} | {one['auroc']:.3f} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    run(main)
