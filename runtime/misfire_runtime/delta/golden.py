"""Writes golden frames with other answers of one score, so that a vehicle's self-test still holds.

The archive is written without compression and without times: the same arrays are the same bytes on every
machine, whatever its zlib, so that a patched bundle has the hash that its manifest names.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from misfire_runtime.errors import BundleError

GOLDEN = "golden.npz"
_EPOCH = (1980, 1, 1, 0, 0, 0)
"""The earliest time of a zip entry."""
_UNIX = 3
"""What wrote the entry: Python would take the machine it runs on."""


def rewrite(source: Path, target: Path, values: Mapping[str, NDArray[np.float32]]) -> None:
    """Writes a copy of golden frames in which these arrays have other values.

    Raises:
        BundleError: an array is not there, or is of another shape or type, or the archive is damaged.
        OSError: it cannot be read or written.
    """
    try:
        with np.load(source, allow_pickle=False) as archive:
            arrays: dict[str, NDArray[Any]] = {name: archive[name] for name in archive.files}
    except (ValueError, KeyError, zipfile.BadZipFile) as error:
        raise BundleError(f"{source}: not golden frames: {error}") from error
    for name, array in values.items():
        old = arrays.get(name)
        if old is None:
            raise BundleError(f"{source}: there is no {name!r}")
        if old.shape != array.shape or old.dtype != array.dtype:
            raise BundleError(
                f"{source}: {name} is {old.dtype} {list(old.shape)}, not {array.dtype} {list(array.shape)}"
            )
        arrays[name] = array
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as written:
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.save(buffer, array, allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy", _EPOCH)
            entry.create_system = _UNIX
            written.writestr(entry, buffer.getvalue())
