"""Measures the accuracy that a campaign's samples give: trained with them, and with as many random ones.

    train side of a snapshot --campaign's samples--> retrain_run, seed 0, 1, 2 --+
                             --as many random ones--> retrain_run, same seeds ---+--> frozen test side

Both arms start from the same run and differ in nothing but the samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from misfire_fleet.bought.findings import both_filters, ids_of
from misfire_fleet.candidates.frames import open_frames
from misfire_fleet.errors import StoreError
from misfire_fleet.retrain.snapshot import member_uploads, refuse_run, snapshot_uploads
from misfire_fleet.store import Store
from misfire_fleet.store.records import SampleFilter
from misfire_train.data import Dataset, Examples
from misfire_train.judge.evidence import MIN_CLUSTERS
from misfire_train.metrics import Estimate, resample_weights
from misfire_train.metrics.bootstrap import estimate
from misfire_train.progress import Reporter
from misfire_train.retraining import Schedule, retrain_run
from misfire_train.runs import Run

LEAST = 5
"""With fewer samples in an arm there is nothing to compare."""
_BATCH = 256
Shares = NDArray[np.float64]


@dataclass(frozen=True)
class Gain:
    """Holds what samples gave.

    Attributes:
        metric: its name.
        samples: number that each arm was trained with.
        available: (campaign's, random) samples on the train side.
        frames, groups: of the frozen test side.
        before: of the run that both arms start from.
        campaign, random: of the arms, by seed.
        campaign_gain, random_gain: over `before`.
        difference: campaign minus random, paired on the frames and over the seeds.
    """

    metric: str
    samples: int
    available: tuple[int, int]
    frames: int
    groups: int
    seeds: tuple[int, ...]
    before: float
    campaign: tuple[float, ...]
    random: tuple[float, ...]
    campaign_gain: Estimate
    random_gain: Estimate
    difference: Estimate


def measure_gain(
    store: Store,
    run: Run,
    *,
    where: SampleFilter,
    snapshot: str,
    dataset: Dataset,
    out: Path,
    seeds: Sequence[int] = (0, 1, 2),
    epochs: int | None = None,
    replicates: int = 1000,
    reporter: Reporter | None = None,
) -> Gain:
    """Trains both arms and judges them on the frozen test side of a snapshot.

    A run that is finished in `out` is not trained again.

    Args:
        store: the fleet's store.
        run: both arms start from it.
        where: what the campaign took.
        snapshot: its train side is divided into both arms, its holdout side is held out for the failure
            score of both, and its frozen test side judges.
        dataset: the data set of `run`.
        out: folder for the runs.
        seeds: of the training; both arms use the same ones.
        epochs: maximum number of epochs; None: as `misfire retrain` does.
        replicates: number of resamples.
        reporter: prints progress.

    Raises:
        StoreError: the test side is not frozen, something was altered, or an arm has too few samples.
        ConfigError: the campaign is the random stream, or labels do not fit the run.
    """
    frames = open_frames(store, snapshot)
    refuse_run(store, run)
    given = snapshot_uploads(store, snapshot, run=run)
    held = None if given.holdout is None else given.holdout.examples
    arms, available = _arms(store, given.train.examples, where)
    test = member_uploads(store, list(frames.members.values()), run=run, what=f"the test side of {snapshot}")
    first = _shares(run, test.examples)
    found: dict[str, list[tuple[Shares, Shares]]] = {"campaign": [], "random": []}
    for seed in seeds:
        for name, examples in arms.items():
            made = retrain_run(
                run,
                examples(seed),
                held=held,
                snapshot=given.sha256,
                dataset=dataset,
                out=out / f"{name}-{seed}",
                schedule=Schedule(epochs=epochs, seed=seed),
                resume=True,
                reporter=reporter,
            )
            found[name].append(_shares(made.run, test.examples))
    return _gain(run, first, found, test.examples, seeds=seeds, available=available, replicates=replicates)


def _arms(
    store: Store, train: Examples, where: SampleFilter
) -> tuple[dict[str, Callable[[int], Examples]], tuple[int, int, int]]:
    """Returns the samples of both arms by seed, and how many there are (campaign's, random, used)."""
    filters = both_filters(where)
    places = []
    for each in filters:
        wanted = ids_of(store, each)
        places.append(np.array([i for i, name in enumerate(train.ids) if name in wanted], np.int64))
    count = min(map(len, places))
    if count < LEAST:
        raise StoreError(
            f"the train side has {len(places[0])} samples of the campaign and {len(places[1])} random ones; "
            f"{LEAST} of each are needed"
        )

    def drawn(which: NDArray[np.int64]) -> Callable[[int], Examples]:
        def of_seed(seed: int) -> Examples:
            chosen = np.random.default_rng(seed).permutation(which)[:count]
            return train.take(np.sort(chosen))

        return of_seed

    arms = {"campaign": drawn(places[0]), "random": drawn(places[1])}
    return arms, (len(places[0]), len(places[1]), count)


@torch.no_grad()
def _shares(run: Run, test: Examples) -> tuple[Shares, Shares]:
    """Returns what each test frame adds to the task metric: right and counted, [N] each."""
    right, counted = [], []
    for start in range(0, len(test), _BATCH):
        positions = np.arange(start, min(start + _BATCH, len(test)))
        outputs = run.task.condense(run.model(test.batch(positions, run.contract)))
        above, below = run.task.shares(outputs, run.task.collate(test.targets[positions]))
        right.append(above.double().numpy())
        counted.append(below.double().numpy())
    return np.concatenate(right), np.concatenate(counted)


def _gain(
    run: Run,
    first: tuple[Shares, Shares],
    found: dict[str, list[tuple[Shares, Shares]]],
    test: Examples,
    *,
    seeds: Sequence[int],
    available: tuple[int, int, int],
    replicates: int,
) -> Gain:
    groups = len(set(test.groups))
    clusters: NDArray[Any] = np.array(test.groups) if groups >= MIN_CLUSTERS else np.arange(len(test))
    # Seeds are drawn too: what differs from one training to the next is part of the uncertainty.
    picks = np.random.default_rng(0).integers(0, len(seeds), (replicates, len(seeds)))
    base = _drawn(first, clusters, replicates)
    drawn = {}
    for name, shares in found.items():
        every = np.stack([_drawn(each, clusters, replicates) for each in shares], axis=1)
        drawn[name] = np.take_along_axis(every, picks, axis=1).mean(axis=1)
    values = {name: tuple(_ratio(*each) for each in shares) for name, shares in found.items()}
    before = _ratio(*first)
    means = {name: float(np.mean(each)) for name, each in values.items()}
    detector = run.task.form == "detection"
    return Gain(
        metric=run.task.accuracy_name if detector or run.task.form == "classification" else "frames right",
        samples=available[2],
        available=available[:2],
        frames=len(test),
        groups=groups,
        seeds=tuple(seeds),
        before=before,
        campaign=values["campaign"],
        random=values["random"],
        campaign_gain=estimate(means["campaign"] - before, drawn["campaign"] - base),
        random_gain=estimate(means["random"] - before, drawn["random"] - base),
        difference=estimate(means["campaign"] - means["random"], drawn["campaign"] - drawn["random"]),
    )


def _drawn(shares: tuple[Shares, Shares], clusters: NDArray[Any], replicates: int) -> Shares:
    above, below = shares
    parts = [
        (weights @ above) / np.maximum(weights @ below, 1e-12)
        for weights in resample_weights(clusters, replicates=replicates, seed=0)
    ]
    return np.concatenate(parts)


def _ratio(above: Shares, below: Shares) -> float:
    return float(above.sum() / max(float(below.sum()), 1e-12))
