"""Writes golden inputs: a few real frames and the graph's own answers, so that a vehicle can test itself.

golden.npz holds `image` [n,C,H,W] as the graph takes it, `ids`, and `output.<name>` for every output.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from misfire_export.measure.run import run
from misfire_runtime.preprocess import InputContract
from misfire_train.data import Examples

GOLDEN = "golden.npz"
FRAMES = 4
# The earliest time of a zip entry; np.savez would write the present one, so equal content would differ.
_EPOCH = (1980, 1, 1, 0, 0, 0)


def write_golden(
    folder: Path, session: ort.InferenceSession, examples: Examples, *, contract: InputContract, seed: int
) -> Path:
    """Writes `folder/golden.npz` from a few frames; the same frames and graph give the same bytes."""
    # A graph with a fixed batch takes exactly that many frames.
    fixed = session.get_inputs()[0].shape[0]
    count = min(fixed if isinstance(fixed, int) else FRAMES, len(examples))
    # Sorted: frames in the order of the set, whatever the order of the draw.
    chosen = np.sort(np.random.default_rng(seed).choice(len(examples), count, replace=False))
    image = examples.batch(chosen, contract).numpy()
    names = [output.name for output in session.get_outputs()]
    values = run(session, image, contract=contract, names=names)
    arrays: dict[str, NDArray[Any]] = {"image": image, "ids": np.array([examples.ids[i] for i in chosen])}
    arrays.update({f"output.{name}": value for name, value in values.items()})
    path = folder / GOLDEN
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, value in arrays.items():
            buffer = io.BytesIO()
            np.save(buffer, value, allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", _EPOCH), buffer.getvalue(), zipfile.ZIP_DEFLATED)
    return path
