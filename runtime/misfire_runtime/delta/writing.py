"""Writes a bundle with a refitted head, and the delta that leads to it from the bundle before.

base + new tensors, golden answers, manifest --rebuild--> bundle  --what differs--> delta
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from misfire_runtime.bundle import (
    MANIFEST,
    MODEL,
    Bundle,
    FileEntry,
    Manifest,
    hash_files,
    sha256_file,
    write_manifest,
)
from misfire_runtime.clock import utc_text, wall_time
from misfire_runtime.delta.delta import (
    CONTENT,
    DELTA,
    BundleRef,
    Delta,
    DeltaManifest,
    Patch,
    rebuild,
    require_writable,
)
from misfire_runtime.errors import BundleError
from misfire_runtime.files import whole_folder

_LEVEL = 9
"""Of compression: a delta is made once and sent to every vehicle."""


@dataclass(frozen=True)
class Refitted:
    """Holds what changes from a bundle to the next one.

    Attributes:
        score: whose head was fitted again.
        tensors: new values by initialiser; those that stay the same may be left out.
        golden: new arrays of the golden frames.
        manifest: the next bundle's, without its files.
        report: what the head was fitted and judged on.
    """

    score: str
    tensors: Mapping[str, NDArray[np.float32]]
    golden: Mapping[str, NDArray[np.float32]]
    manifest: Manifest
    report: Mapping[str, Any]


def write_delta(base: Bundle, refitted: Refitted, *, out: Path, bundle_out: Path) -> Delta:
    """Writes the next bundle and the delta that makes it of `base`; returns the delta, opened.

    Args:
        base: the bundle before.
        refitted: what changes.
        out: folder of the delta; an older delta there is replaced.
        bundle_out: folder of the next bundle; an older one there is replaced.

    Raises:
        BundleError: something does not fit `base`; `out` is left as it was.
        OSError: a folder cannot be written.
    """
    require_delta_folder(out)
    require_writable(bundle_out)
    tensors, golden = dict(refitted.tensors), dict(refitted.golden)
    with whole_folder(bundle_out) as work:
        rebuild(base, work, tensors=tensors, golden=golden)
        manifest = refitted.manifest.model_copy(update={"files": hash_files(work)})
        write_manifest(work, manifest)
        made = Bundle.open(work)
        parts = [(work / MANIFEST).read_bytes()]
        parts += [values.astype("<f4").tobytes() for values in (*tensors.values(), *golden.values())]
        content = zlib.compress(b"".join(parts), _LEVEL)
        about = DeltaManifest(
            created_at=utc_text(wall_time()),
            score=refitted.score,
            base=_ref(base),
            result=_ref(made),
            manifest_bytes=len(parts[0]),
            tensors=_patches(tensors),
            golden=_patches(golden),
            content=FileEntry(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content)),
            report=dict(refitted.report),
        )
        with whole_folder(out) as folder:
            (folder / CONTENT).write_bytes(content)
            (folder / DELTA).write_text(about.model_dump_json(indent=2) + "\n", encoding="utf-8")
            # As a vehicle will: what it would refuse must not be shipped.
            Delta.open(folder).require_fits(base)
    return Delta.open(out)


def require_delta_folder(out: Path) -> None:
    """Raises BundleError if `out` is something else than a delta or an empty folder."""
    if out.exists() and not (out / DELTA).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise BundleError(f"{out} exists and is not a delta; choose another --out")


def _ref(bundle: Bundle) -> BundleRef:
    manifest = bundle.manifest
    return BundleRef(
        label=manifest.label,
        model=manifest.files[MODEL].sha256,
        manifest=sha256_file(bundle.path / MANIFEST),
    )


def _patches(arrays: Mapping[str, NDArray[np.float32]]) -> tuple[Patch, ...]:
    return tuple(
        Patch(
            name=name,
            shape=values.shape,
            sha256=hashlib.sha256(values.astype("<f4").tobytes()).hexdigest(),
        )
        for name, values in arrays.items()
    )
