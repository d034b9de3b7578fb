"""Writes a regression task as files: handwritten digits, each rolled by a known angle, and a CSV of angles.

    python -m benchmarks.rolled_digits --out rolled
    misfire train --dataset csv-regression:rolled/table.csv --epochs 8 --out run
    misfire evaluate run --scores all --shift noise,fog,blur,night --out judged

The images are MNIST's, the angles are made: uniform in -60 to 60 degrees, in radians in the CSV (a scale of
about one). Training images come from MNIST's training half, test images from its test half.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import cv2
import numpy as np

from misfire_runtime.preprocess import Image
from misfire_train.data import Examples, load_dataset

MOST = math.radians(60)


def rolled(image: Image, angle: float) -> Image:
    """The image turned counter-clockwise about its middle; what comes in from outside is black."""
    height, width = image.shape[:2]
    turn = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), math.degrees(angle), 1.0)
    return np.asarray(cv2.warpAffine(image, turn, (width, height), flags=cv2.INTER_LINEAR), np.uint8)


def write_half(examples: Examples, name: str, folder: Path, *, count: int, seed: int) -> list[str]:
    """Lines of the CSV; the images are written to folder/name."""
    (folder / name).mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, name == "test"])
    lines = []
    for number, position in enumerate(np.sort(rng.choice(len(examples), count, replace=False))):
        angle = float(rng.uniform(-MOST, MOST))
        file = f"{name}/{number:05d}.png"
        cv2.imwrite(str(folder / file), rolled(examples.images[int(position)], angle))
        lines.append(f"{file},{angle:.6f},{name}")
    return lines


def main() -> None:
    """Writes OUT/table.csv and its images."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--train", type=int, default=6000)
    parser.add_argument("--test", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    mnist = load_dataset("mnist", root=options.data)
    lines = ["image,roll,split"]
    for name, examples, count in (("train", mnist.train, options.train), ("test", mnist.test, options.test)):
        lines += write_half(examples, name, options.out, count=count, seed=options.seed)
    (options.out / "table.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(options.out / "table.csv")


if __name__ == "__main__":
    main()
