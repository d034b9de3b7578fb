"""Makes networks of others, as files, and photographs to run them on.

The networks are the onnx package's own files of the model zoo, which come with placeholder weights.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from misfire_runtime.preprocess import InputContract
from misfire_train.data import Examples
from misfire_train.data.images import ImageArray

FILES = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
CONTRACT = InputContract(height=224, width=224)
GAINS = {"resnet50": 1.0, "shufflenet": 1.0}
"""Of the kernels' variance where skip connections would let the signal grow without end; else 2."""
CLASSES = 1000


def draw_weights(name: str, path: Path) -> Path:
    """Writes the onnx package's network of that name to `path`, its placeholder weights drawn (seeded)."""
    model = onnx.load(FILES / f"light_{name}.onnx")
    rng = np.random.default_rng(0)
    shapes = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    uses = _uses(model.graph)
    kept = []
    for node in model.graph.node:
        # The package replaces weights by nodes that make constants of their shape.
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
    """Returns the (operator, which of its inputs) that reads each tensor, looking through reshapes."""
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
    """Draws scales and variances near 1, kernels with the gain that keeps a signal alive, the rest near 0."""
    operator, position = use
    if operator == "Mul" or (operator == "BatchNormalization" and position in (1, 4)):
        return rng.uniform(0.8, 1.2, shape)
    if len(shape) > 1 and operator != "Add":
        # Divided by the number of inputs: signals keep their size from layer to layer.
        return rng.normal(0, np.sqrt(gain / np.prod(shape[1:])), shape)
    return rng.normal(0, 0.05, shape)


def photographs(count: int, *, seed: int) -> Examples:
    """Returns crops of two real photographs in turn; their labels are drawn."""
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
