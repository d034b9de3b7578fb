"""Keeps what the detection benchmark saw of a seed in one file, so that heads can be fitted again in minutes.

detector, frames --passes--> Material --keep--> seen-SEED.npz --kept--> Material --heads--> views
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.record import plain
from misfire_train.heads.data import BoxSet

Floats = NDArray[np.float64]
Columns = dict[str, NDArray[Any]]
TRUTH = ("loss", "errors", "missed", "failed", "blind", "frame")


@dataclass(frozen=True)
class Seen:
    """One seed's frames in one view; frame: which test frame a row shows."""

    scores: Mapping[str, Floats]
    loss: Floats
    errors: Floats
    missed: Floats
    failed: NDArray[np.bool_]
    blind: NDArray[np.bool_]
    frame: NDArray[np.int64]

    def take(self, rows: NDArray[np.int64]) -> Seen:
        """The rows at these positions."""
        scores = {name: values[rows] for name, values in self.scores.items()}
        return Seen(scores, *(getattr(self, column)[rows] for column in TRUTH))


@dataclass(frozen=True)
class Shown:
    """Test frames in one weather: the scores of all but the head, and what the head reads."""

    seen: Seen
    boxes: BoxSet


@dataclass(frozen=True)
class Material:
    """A seed without its heads.

    clean: held-out frames.  copies: their corrupted copies, by third of the families.
    shown: of each view, in one part or in one for each third.  quality: of the detector.
    """

    clean: BoxSet
    copies: tuple[BoxSet, ...]
    shown: Mapping[str, tuple[Shown, ...]]
    quality: Mapping[str, Any]


def joined(views: Sequence[Seen]) -> Seen:
    """All rows of several views of the same scores."""
    scores = {name: np.concatenate([view.scores[name] for view in views]) for name in views[0].scores}
    columns = (np.concatenate([getattr(view, name) for view in views]) for name in TRUTH)
    return Seen(scores, *columns)


def keep(path: Path, material: Material) -> None:
    """Writes a seed."""
    columns = _boxes("clean", material.clean)
    for number, copies in enumerate(material.copies):
        columns |= _boxes(f"copies/{number}", copies)
    for view, parts in material.shown.items():
        for number, part in enumerate(parts):
            at = f"shown/{view}/{number}"
            columns |= _boxes(f"{at}/boxes", part.boxes)
            columns |= {f"{at}/score/{name}": values for name, values in part.seen.scores.items()}
            columns |= {f"{at}/{column}": getattr(part.seen, column) for column in TRUTH}
    words = {
        "quality": plain(dict(material.quality)),
        "copies": len(material.copies),
        "shown": {view: len(parts) for view, parts in material.shown.items()},
    }
    # A half-written file must not look like a seed that is done.
    part_file = path.with_suffix(".part.npz")
    np.savez(part_file, words=np.array(json.dumps(words)), **columns)
    part_file.replace(path)


def kept(path: Path) -> Material:
    """Returns what `keep` wrote."""
    with np.load(path) as file:
        columns = {name: file[name] for name in file.files}
    words = json.loads(str(columns.pop("words")))

    def shown(at: str) -> Shown:
        start = f"{at}/score/"
        scores = {name.removeprefix(start): v for name, v in columns.items() if name.startswith(start)}
        seen = Seen(scores, *(columns[f"{at}/{column}"] for column in TRUTH))
        return Shown(seen, _box_set(columns, f"{at}/boxes"))

    return Material(
        clean=_box_set(columns, "clean"),
        copies=tuple(_box_set(columns, f"copies/{number}") for number in range(words["copies"])),
        shown={
            view: tuple(shown(f"shown/{view}/{number}") for number in range(count))
            for view, count in words["shown"].items()
        },
        quality=words["quality"],
    )


def _boxes(at: str, data: BoxSet) -> Columns:
    columns = {f"{at}/part{number}": part.numpy() for number, part in enumerate(data.parts)}
    for name in _names():
        columns[f"{at}/{name}"] = getattr(data, name).numpy()
    return columns if data.group is None else {**columns, f"{at}/group": data.group}


def _box_set(columns: Mapping[str, NDArray[Any]], at: str) -> BoxSet:
    parts = [columns[f"{at}/part{number}"] for number in range(4)]
    return BoxSet(
        parts=tuple(torch.from_numpy(part) for part in parts),
        group=columns.get(f"{at}/group"),
        **{name: torch.from_numpy(columns[f"{at}/{name}"]) for name in _names()},
    )


def _names() -> list[str]:
    return [field.name for field in fields(BoxSet) if field.name not in ("parts", "group")]
