"""Chooses the scores that the demo's vehicles trigger on, as a team would: on labelled frames held out.

calibration frames, clean and in the drives' weather --bundle--> scores, failures
sets of scores, each with its share of the uploads --> the set that finds the most failures
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from misfire_fleet.demo.counting import fails
from misfire_runtime.bundle import Bundle
from misfire_runtime.engines.scoring import Scorer
from misfire_train.data import Examples
from misfire_train.data.corruptions import corrupt
from misfire_train.tasks import Task

DEFAULT = "default"
"""Stands for the score that the bundle's gate chose."""
COPIES = 3
"""Versions of each frame in bad weather: a hundred frames alone decide by chance."""


@dataclass(frozen=True)
class Choice:
    """Holds the chosen scores, and the failures among the uploads and in a random sample of that size."""

    scores: tuple[str, ...]
    found: int
    random: float
    uploads: int


def choose_scores(
    bundle: Path,
    examples: Examples,
    task: Task,
    *,
    candidates: Sequence[Sequence[str]],
    weather: Sequence[str],
    severity: int,
    rate: float,
    seed: int,
) -> Choice:
    """Returns the set of scores whose first uploads hold the most failures; of equal ones the first.

    Args:
        bundle: folder of the bundle.
        examples: labelled frames that neither the network nor a score was fitted on.
        task: says what a failure is.
        candidates: sets of scores of which each gets an equal share of the uploads.
        weather: names of corruptions.
        severity: the highest corruption severity.
        rate: share of the frames that is uploaded.
        seed: of the weather.
    """
    scorer = Scorer.load(Bundle.open(bundle))
    rng = np.random.default_rng(seed)
    rows: list[Mapping[str, float]] = []
    failed: list[bool] = []
    try:
        for copy in range(1 + COPIES):
            for index in range(len(examples)):
                image = examples.images[index]
                if copy:
                    family = weather[int(rng.integers(len(weather)))]
                    worse = int(rng.integers(1, severity + 1))
                    image = corrupt(image, family, severity=worse, seed=seed + copy * len(examples) + index)
                scored = scorer.score(image)
                rows.append(scored.scores)
                failed.append(fails(scored, examples.targets[index], task))
        sets = [
            tuple(scorer.default_score if name == DEFAULT else name for name in names) for names in candidates
        ]
    finally:
        scorer.close()
    wrong, count = np.array(failed), max(1, round(rate * len(failed)))
    columns = {name: np.array([row[name] for row in rows]) for name in {n for names in sets for n in names}}
    orders = [wrong[_in_order(columns, names)] for names in sets]
    best = int(np.argmax([_lift(order, count) for order in orders]))
    found = int(orders[best][:count].sum())
    return Choice(sets[best], found, round(float(wrong.mean()) * count, 1), count)


def _lift(failed: NDArray[np.bool_], count: int) -> float:
    """Returns how many failures the first frames hold for one of a random sample.

    failed: of frames in the order in which they are taken. The mean of one, two and three times as many
    uploads: the first few alone decide by chance.
    """
    found = [failed[: count * times].sum() / (times * count) for times in (1, 2, 3)]
    return float(np.mean(found)) / max(float(failed.mean()), 1e-9)


def _in_order(columns: Mapping[str, NDArray[np.float64]], names: Sequence[str]) -> NDArray[np.int64]:
    """Returns the frames in the order in which triggers on these scores take them: the highest in turn."""
    orders = [np.argsort(-columns[name], kind="stable") for name in names]
    ranked = np.stack(orders, 1).reshape(-1)
    _, first = np.unique(ranked, return_index=True)
    return np.asarray(ranked[np.sort(first)], np.int64)


def write_triggers(file: Path, scores: Sequence[str], *, rate: float) -> Path:
    """Writes a vehicle's configuration with one trigger for each score, which share the rate."""
    share: dict[str, Any] = {"kind": '"target-rate"', "rate": round(rate / len(scores), 6)}
    tables = [
        "\n".join(
            [f"[triggers.{name}]", f'score = "{name}"', *(f"{key} = {value}" for key, value in share.items())]
        )
        for name in scores
    ]
    file.write_text("version = 1\n\n" + "\n\n".join(tables) + "\n", encoding="utf-8")
    return file
