"""Writes a regression task as files: handwritten digits, each rolled by a known angle, and a CSV of angles.

    python benchmarks/science/rolled_digits.py --folder rolled
    misfire train --dataset csv-regression:rolled/table.csv --epochs 8 --out run
    misfire evaluate run --scores all --shift noise,fog,blur,night --out judged

The images are MNIST's, the angles are made: uniform in -60 to 60 degrees, in radians in the CSV (a scale of
about one). Training images come from MNIST's training half, test images from its test half.
"""

from __future__ import annotations

import hashlib
import math
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np

if not __package__:  # started by its path: then the checkout's root is not where Python looks
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.record import command_line, finish, run
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


def main() -> int:
    """Writes FOLDER/table.csv and its images."""
    parser = command_line(__doc__)
    parser.add_argument("--folder", type=Path, help="where to write; rolled, or a temporary one if quick")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--train", type=int, default=6000)
    parser.add_argument("--test", type=int, default=3000)
    options = parser.parse_args()
    if options.quick:
        options.train, options.test = 100, 50
    mnist = load_dataset("mnist", root=options.data)
    with tempfile.TemporaryDirectory(prefix="misfire-rolled-") as temporary:
        folder = options.folder or Path(temporary if options.quick else "rolled")
        lines = ["image,roll,split"]
        halves = (("train", mnist.train, options.train), ("test", mnist.test, options.test))
        for name, examples, count in halves:
            lines += write_half(examples, name, folder, count=count, seed=options.seeds[0])
        table = "\n".join(lines) + "\n"
        (folder / "table.csv").write_text(table, encoding="utf-8")
    result = {"images": len(lines) - 1, "table_sha256": hashlib.sha256(table.encode()).hexdigest()}
    return finish(__file__, result, options)


if __name__ == "__main__":
    run(main)
