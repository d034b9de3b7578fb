"""A vehicle's drive for the demo: real images in order, the second half of them in bad weather.

The files are PNG, so that what is uploaded is byte for byte what lies in the folder and a sample's id (the
SHA-256 of those bytes) leads back to its true label: that is the demo's oracle.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from misfire_runtime.preprocess import encode_png
from misfire_train.data import Examples
from misfire_train.data.corruptions import corrupt


@dataclass(frozen=True)
class Frame:
    """One file of a drive. `sample`: the id it has when uploaded; `label`: its true class."""

    file: Path
    sample: str
    label: int
    bad_weather: bool


def write_drive(
    folder: Path, examples: Examples, *, weather: Sequence[str], severity: int, frames: int, seed: int
) -> list[Frame]:
    """Writes `frames` PNGs in driving order and returns them.

    The first half shows `examples` as they are, the second half again in shuffled order under one of the
    `weather` families each; severity rises to `severity` while the vehicle drives.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    dry = min(frames // 2, len(examples))
    order = np.concatenate(
        [rng.permutation(len(examples))[:dry], rng.integers(0, len(examples), frames - dry)]
    )
    written: dict[str, Frame] = {}
    for position, index in enumerate(order):
        image = examples.images[int(index)]
        wet = position >= dry
        if wet:
            progress = (position - dry) / max(1, frames - dry)
            family = weather[int(rng.integers(len(weather)))]
            image = corrupt(
                image, family, severity=1 + round(progress * (severity - 1)), seed=seed + position
            )
        data = encode_png(image)
        file = folder / f"{position:06d}.png"
        sample = hashlib.sha256(data).hexdigest()
        if sample in written:  # the same picture twice is one sample
            continue
        file.write_bytes(data)
        written[sample] = Frame(file, sample, int(examples.targets[int(index)]), wet)
    return list(written.values())
