"""Checks that the graph answers as the trained model does, on real images, output by output.

images --torch--> answers --\\
images --ONNX Runtime--> answers --> largest absolute difference per output, and the image it happened on

Sums that run in another order differ by some 1e-7. Where an answer jumps, such as at the last candidate of a
detector or at two boxes of one score, that decides which of two answers a frame gets. Both are right, so a
frame that differs is compared once more, with what torch answers if its pixels change by as little.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from misfire_export.errors import OutputError, ParityError
from misfire_export.measure.run import answers, require_finite
from misfire_runtime.bundle import Parity
from misfire_runtime.preprocess import InputContract
from misfire_train.data import Examples
from misfire_train.scores.fitting import spread

# Rounding of fp32 differs by about 2e-7 between torch and ONNX Runtime; a wrong operator by far more.
TOLERANCE = 1e-4
IMAGES = 64
MOST_JUMPS = 4
"""Frames whose answer may hang on rounding: where more of them differ, the graph is another one."""
DRAWS = 24
ROUNDING = 3e-6
"""Change of the pixels, in deviations of the input: what rounding adds up to over a network."""


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
    jumps = 0
    for part, values in answers(session, chosen, contract=contract, batch=16):
        batch = chosen.batch(np.arange(part.start, part.stop), contract)
        with torch.no_grad():
            expected = model(batch)
        found = {}
        for name, value in values.items():
            truth = expected[name].numpy()
            require_finite(name, truth, chosen.ids[part])
            if truth.shape != value.shape:
                raise OutputError(
                    f"output {name} is {list(value.shape)} in the graph, {list(truth.shape)} in torch"
                )
            found[name] = _gaps(value, truth)
        for row in np.flatnonzero(np.max(list(found.values()), axis=0) > tolerance):
            jumps += 1
            if jumps > MOST_JUMPS:
                break
            own = {name: value[row : row + 1] for name, value in values.items()}
            for name, gap in _rounded(model, batch[row : row + 1], own, tolerance=tolerance).items():
                found[name][row] = gap
        for name, gaps in found.items():
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


def _gaps(value: NDArray[np.float32], truth: NDArray[np.float32]) -> NDArray[np.float64]:
    """Returns the largest absolute difference of each frame, [N]."""
    gaps: NDArray[np.float64] = np.abs(value.astype(np.float64) - truth).reshape(len(truth), -1).max(axis=1)
    return gaps


def _rounded(
    model: nn.Module, image: Tensor, answer: Mapping[str, NDArray[np.float32]], *, tolerance: float
) -> dict[str, float]:
    """Returns the differences of a frame's answer to one that torch gives if the pixels change by ROUNDING.

    Empty if torch never gives such an answer, or the pixels are whole numbers.
    """
    if not image.is_floating_point():
        return {}
    generator = torch.Generator().manual_seed(0)
    for _ in range(DRAWS):
        change = ROUNDING * torch.randn(image.shape, generator=generator)
        with torch.no_grad():
            other = model(image + change)
        gaps = {name: float(_gaps(value, other[name].numpy())[0]) for name, value in answer.items()}
        # The change itself moves every output by a little.
        if max(gaps.values()) <= tolerance:
            return gaps
    return {}
