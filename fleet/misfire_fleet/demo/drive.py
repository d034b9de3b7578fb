"""Writes the drive of one of the demo's vehicles: real images in order, the second half in bad weather.

The files are PNG, which vehicles upload byte for byte. A sample's id is the SHA-256 of those bytes, so it
leads back to the frame's truth: this is the demo's oracle.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from misfire_runtime.preprocess import encode_png
from misfire_train.data import Examples
from misfire_train.data.corruptions import corrupt


@dataclass(frozen=True)
class Frame:
    """Describes one file of a drive: `sample` is its id when uploaded, `target` its truth."""

    file: Path
    sample: str
    target: Any
    bad_weather: bool


def write_drive(
    folder: Path, examples: Examples, *, weather: Sequence[str], severity: int, frames: int, seed: int
) -> list[Frame]:
    """Writes PNGs in driving order and returns them.

    Args:
        folder: receives the files, and is created if needed.
        examples: images and targets to draw from.
        weather: names of corruptions; each frame of the second half gets a random one.
        severity: corruption severity at the end of the drive, 1 to 5; it rises from 1 from half way on.
        frames: number of frames. Fewer are written if two of them have equal pixels.
        seed: random seed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    dry = min(frames // 2, len(examples))
    # Each image once in dry weather; in bad weather it may come again, under another corruption.
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
        if sample in written:  # equal bytes have the same id, and the store keeps them once
            continue
        file.write_bytes(data)
        written[sample] = Frame(file, sample, examples.targets[int(index)], wet)
    return list(written.values())
