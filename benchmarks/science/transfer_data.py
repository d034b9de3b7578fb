"""What transfer.py measures on: data sets whose groups have fixed roles, and a task network for each seed.

groups.toml --roles--> Parts of whole groups --fit (no head)--> a run in --work, which a later call loads
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from misfire_runtime.toml import read_toml
from misfire_train.data import Dataset, Examples, load_dataset
from misfire_train.data.examples import join
from misfire_train.errors import DatasetError
from misfire_train.fit import Parts, fit
from misfire_train.progress import Reporter
from misfire_train.runs import RECORD, Run, load_run
from misfire_train.train_config import parse_train_config

GROUPS_FILE = Path(__file__).with_name("groups.toml")
ROLES = ("network", "validation", "calibration", "head", "tuning", "judging")
_FAST = {"training.precision": "bf16", "training.patience": 20}
_SMALL = _FAST | {"model.options": {"width": 8}, "training.batch": 32}
SETTINGS: dict[str, dict[str, Any]] = {
    "drive-garments": _FAST | {"training.epochs": 16, "training.batch": 64},
    "drive-lights": _FAST | {"training.epochs": 16, "training.batch": 32},
    "drive-figures": _FAST | {"training.epochs": 12, "training.batch": 32},
    "drive-parts": _SMALL | {"training.epochs": 8},
    "drive-boxes": _SMALL | {"training.epochs": 10},
    "carla-masks": _SMALL | {"training.epochs": 14, "training.batch": 16},
    # As recipes have it; the detectors of detection.py serve here too, if they lie in --work.
    "carla-detection": {},
    "street": _FAST | {"training.epochs": 20, "model.options": {"width": 8, "tower": 32}},
}
"""How the task network of each set is trained: small, and good enough to fail sometimes."""


@dataclass(frozen=True)
class Bench:
    """A data set with the examples of each role."""

    dataset: Dataset
    parts: dict[str, Examples]


def read_roles(name: str) -> dict[str, tuple[str, ...]]:
    """{role: patterns of groups} of a data set. Raises DatasetError on a set that the file does not have."""
    tables = read_toml(GROUPS_FILE).values
    for table in tables.values():
        if name in table["sets"]:
            return {role: tuple(table[role]) for role in ROLES}
    raise DatasetError(f"{GROUPS_FILE.name} has no data set {name!r}")


def load_bench(name: str, *, data: Path | None, most: int | None = None) -> Bench:
    """A data set by role. most: examples of each role, for a short run."""
    dataset = load_dataset(name, root=data)
    everything = join([dataset.train, dataset.test])
    parts = {}
    for role, patterns in read_roles(name).items():
        rows = [row for row, group in enumerate(everything.groups) if any(_is(group, p) for p in patterns)]
        if not rows and patterns:
            raise DatasetError(f"{name}: no frame for {role}: {', '.join(patterns)}")
        chosen = rows if most is None else rows[:: max(1, len(rows) // most)]
        parts[role] = everything.take(chosen)
    return Bench(dataset, parts)


def _is(group: str, pattern: str) -> bool:
    return group.startswith(pattern[:-1]) if pattern.endswith("*") else group == pattern


def network(bench: Bench, seed: int, *, work: Path, epochs: int | None = None) -> Run:
    """The task network of a seed; an existing one is loaded."""
    name = bench.dataset.name
    settings = dict(SETTINGS[name]) | ({} if epochs is None else {"training.epochs": epochs})
    config = parse_train_config(
        {"dataset": name, "seed": seed}, overrides={**settings, "head.recipe": "none"}
    )
    parts = bench.parts
    given = Parts(
        parts["network"],
        parts["validation"],
        parts["head"],
        parts["calibration"],
        ids={
            "train": parts["network"].ids,
            "validation": parts["validation"].ids,
            "holdout": parts["head"].ids,
            "calibration": parts["calibration"].ids,
        },
    )
    # A fit measures its accuracy on the test half; that of groups that are not judged suffices here.
    shown = replace(bench.dataset, test=parts["tuning"] if len(parts["tuning"]) else parts["calibration"])
    out = work / f"{name}-{seed}"
    if (out / RECORD).exists():
        return load_run(out)
    return fit(config, shown, given, out=out, resume=True, reporter=Reporter())


def units_of(examples: Examples) -> tuple[str, ...]:
    """What is left out together: a drive, or the town of a stretch."""
    return tuple(group.split("/")[0] for group in examples.groups)
