"""Checks that the graph answers as the trained model does, on real images, output by output.

images --torch--> answers --\\
images --ONNX Runtime--> answers --> largest absolute difference per output, and the image it happened on
"""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import torch
from torch import nn

from misfire_export.errors import OutputError, ParityError
from misfire_export.measure.run import answers, require_finite
from misfire_runtime.bundle import Parity
from misfire_runtime.preprocess import InputContract
from misfire_train.data import Examples
from misfire_train.scores.fitting import spread

# Rounding of fp32 differs by about 2e-7 between torch and ONNX Runtime; a wrong operator by far more.
TOLERANCE = 1e-4
IMAGES = 64


def check_parity(
    model: nn.Module,
    session: ort.InferenceSession,
    examples: Examples,
    *,
    contract: InputContract,
    tolerance: float = TOLERANCE,
    images: int = IMAGES,
) -> Parity:
    """Compares up to `images` frames, spread evenly over the examples.

    Args:
        model: maps an image batch in the contract's form to {output: tensor}, in eval mode.
        session: of the graph.
        examples: real frames.
        contract: the graph's input.
        tolerance: largest absolute difference.
        images: maximum number of frames.

    Raises:
        ParityError: an output differs; names output, image and difference.
        OutputError: torch's answer is not finite.
    """
    chosen = spread(examples, images)
    worst: dict[str, tuple[float, str]] = {}
    for part, values in answers(session, chosen, contract=contract, batch=16):
        with torch.no_grad():
            expected = model(chosen.batch(np.arange(part.start, part.stop), contract))
        for name, value in values.items():
            truth = expected[name].numpy()
            require_finite(name, truth, chosen.ids[part])
            if truth.shape != value.shape:
                raise OutputError(
                    f"output {name} is {list(value.shape)} in the graph, {list(truth.shape)} in torch"
                )
            gaps = np.abs(value.astype(np.float64) - truth).reshape(len(truth), -1).max(axis=1)
            row = int(gaps.argmax())
            if gaps[row] > worst.get(name, (-1.0, ""))[0]:
                worst[name] = (float(gaps[row]), chosen.ids[part][row])
    broken = [(gap, name, image) for name, (gap, image) in worst.items() if gap > tolerance]
    if broken:
        gap, name, image = max(broken)
        raise ParityError(
            f"output {name} differs from the trained model by {gap:.2e} on image {image}"
            f" (tolerance {tolerance:g})"
            f"{f'; {len(broken) - 1} more outputs differ' if len(broken) > 1 else ''}"
        )
    return Parity(
        images=len(chosen), tolerance=tolerance, max_abs={name: gap for name, (gap, _) in worst.items()}
    )
