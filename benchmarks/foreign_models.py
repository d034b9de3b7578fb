"""Graphs that others made, exported whole: what is found in them, and how closely their bundles answer.

    python -m benchmarks.foreign_models --json [--models resnet50,densenet121]

The networks are the onnx package's own files of the model zoo; they come with placeholder weights, which are
drawn here (seeded), so nothing is shown about how well scores find failures. The frames are real: crops of
scikit-learn's two sample photographs. `parity` is the largest difference over all outputs between the bundle
and the file as it was given, on 50 frames; `spread` is the deviation of the logits over the frames, which
says that the network answers at all.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from misfire_export.assemble import Options
from misfire_export.sources.onnx import export_onnx
from misfire_runtime.preprocess import InputContract
from misfire_train.data import Examples
from misfire_train.data.images import ImageArray

FILES = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
CONTRACT = InputContract(height=224, width=224)
MODELS = ("resnet50", "densenet121", "inception_v1", "inception_v2", "shufflenet", "squeezenet")
GAINS = {"resnet50": 1.0, "shufflenet": 1.0}
"""Of the kernels' variance where skip connections would let the signal grow without end; else 2."""
FRAMES, HELD_OUT, CLASSES = 50, 12, 1000


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints JSON or a table; exit 1 where a parity is above 1e-4 or the logits do not vary."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--out", type=Path, default=None, help="also write the result to this file")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        models = {name: measure(name, Path(folder)) for name in chosen.models.split(",")}
    result = {
        "benchmark": "foreign_models",
        "command": "python -m benchmarks.foreign_models --json",
        "frames": FRAMES,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "versions": {"onnx": onnx.__version__, "onnxruntime": ort.__version__, "torch": torch.__version__},
        "models": models,
    }
    text = json.dumps(result, indent=2)
    if chosen.out is not None:
        chosen.out.write_text(text + "\n", encoding="utf-8")
    print(
        text if chosen.json else "\n".join(f"{name:14} {row['parity']:.1e}" for name, row in models.items())
    )
    return 0 if all(row["parity"] <= 1e-4 and row["spread"] > 0 for row in models.values()) else 1


def measure(name: str, folder: Path) -> dict[str, Any]:
    """Exports one network and reports on its bundle."""
    held_out = photographs(HELD_OUT, seed=1)
    bundle = export_onnx(
        draw_weights(name, folder / f"{name}.onnx"),
        contract=CONTRACT,
        calibration=photographs(FRAMES, seed=0),
        holdout=held_out,
        out=folder / name,
        options=Options(name=name.replace("_", "-"), version="1.0.0"),
    )
    session = ort.InferenceSession(bundle.model_path, providers=["CPUExecutionProvider"])
    logits = session.run(["logits"], {"image": held_out.batch(range(4), CONTRACT).numpy()})[0]
    manifest = bundle.manifest
    assert manifest.parity is not None
    return {
        "scores": [score.name for score in manifest.scores],
        "notes": manifest.extra["notes"],
        "parity": max(manifest.parity.max_abs.values()),
        "spread": float(logits.std(axis=0).mean()),
        "nodes": len(onnx.load(bundle.model_path).graph.node),
    }


def draw_weights(name: str, path: Path) -> Path:
    """Writes the onnx package's network of that name to `path`, its placeholder weights drawn (seeded)."""
    model = onnx.load(FILES / f"light_{name}.onnx")
    rng = np.random.default_rng(0)
    shapes = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    uses = _uses(model.graph)
    kept = []
    for node in model.graph.node:
        if node.op_type != "ConstantOfShape" or node.input[0] not in shapes:
            kept.append(node)
            continue
        shape = tuple(int(size) for size in shapes[node.input[0]])
        drawn = _draw(rng, shape, uses[node.output[0]], gain=GAINS.get(name, 2.0))
        model.graph.initializer.append(numpy_helper.from_array(drawn.astype(np.float32), node.output[0]))
    del model.graph.node[:]
    model.graph.node.extend(kept)
    onnx.save(model, path)
    return path


def _uses(graph: onnx.GraphProto) -> dict[str, tuple[str, int]]:
    """(operator, which of its inputs) that reads each tensor, looking through reshapes."""
    uses: dict[str, tuple[str, int]] = {}
    for node in graph.node:
        for position, name in enumerate(node.input):
            uses.setdefault(name, (node.op_type, position))
    for node in graph.node:
        if node.op_type in ("Unsqueeze", "Reshape") and node.output[0] in uses:
            uses[node.input[0]] = uses[node.output[0]]
    return uses


def _draw(
    rng: np.random.Generator, shape: tuple[int, ...], use: tuple[str, int], *, gain: float
) -> NDArray[np.float64]:
    """Scales and variances near 1, kernels with the gain that keeps a signal alive, the rest near 0."""
    operator, position = use
    if operator == "Mul" or (operator == "BatchNormalization" and position in (1, 4)):
        return rng.uniform(0.8, 1.2, shape)
    if len(shape) > 1 and operator != "Add":
        return rng.normal(0, np.sqrt(gain / np.prod(shape[1:])), shape)
    return rng.normal(0, 0.05, shape)


def photographs(count: int, *, seed: int) -> Examples:
    """Crops of two real photographs, one after the other; their labels are drawn."""
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(seed)
    photos = load_sample_images().images
    images = np.stack([_crop(photos[i % len(photos)], rng) for i in range(count)])
    ids = tuple(f"crop-{seed}-{i}" for i in range(count))
    return Examples(ImageArray(images), rng.integers(0, CLASSES, count), ids, ids)


def _crop(photo: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    top = int(rng.integers(0, photo.shape[0] - CONTRACT.height))
    left = int(rng.integers(0, photo.shape[1] - CONTRACT.width))
    return photo[top : top + CONTRACT.height, left : left + CONTRACT.width]


if __name__ == "__main__":
    raise SystemExit(main())
