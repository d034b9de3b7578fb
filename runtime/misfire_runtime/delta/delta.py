"""Opens, verifies and applies a head-only delta: other tensors for the failure head of one bundle.

    delta/delta.json   this module's `DeltaManifest`: which graph it fits, what it replaces, hashes
    delta/content.zz   the new manifest of the bundle, then the tensors, compressed with zlib

delta + the bundle that it fits --verify both, patch a copy, verify the result--> the next bundle

Only the head that the bundle's own manifest names can be replaced. The result must have the hash that the
delta names, so it is the bundle that the fleet made and judged, byte for byte.
It is written whole or not at all.
"""

from __future__ import annotations

import hashlib
import math
import shutil
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from misfire_runtime.bundle import (
    MANIFEST,
    MAX_MANIFEST_BYTES,
    MODEL,
    Bundle,
    FileEntry,
    Manifest,
    sha256_file,
)
from misfire_runtime.delta.golden import GOLDEN, rewrite
from misfire_runtime.delta.initialisers import patch
from misfire_runtime.errors import BundleError
from misfire_runtime.files import read_bounded, whole_folder
from misfire_runtime.toml import explain

DELTA, CONTENT = "delta.json", "content.zz"
MAX_DELTA_BYTES = 1024 * 1024
MAX_CONTENT_BYTES = 16 * 1024 * 1024
"""Of the content, compressed. A head of 1,000 classes has 5 MB."""
MAX_TENSOR_BYTES = 64 * 1024 * 1024
"""Of all tensors together, not compressed."""
KEPT = (
    "name",
    "task",
    "precision",
    "input",
    "outputs",
    "classes",
    "detection",
    "further",
    "upload_rate",
    "head",
    "parity",
)
"""Fields of a bundle's manifest that a delta leaves as they are."""
_Sha = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class BundleRef(_Part):
    """Names a bundle by its graph and its manifest."""

    label: str = Field(max_length=200)
    model: _Sha
    manifest: _Sha


class Patch(_Part):
    """Describes the new values of one initialiser, or of one array of the golden frames; all are float32."""

    name: str = Field(min_length=1, max_length=400)
    shape: tuple[Annotated[int, Field(ge=0, le=1 << 24)], ...] = Field(max_length=8)
    sha256: _Sha

    @property
    def bytes(self) -> int:
        """Returns the size of the values."""
        return 4 * math.prod(self.shape)


class DeltaManifest(_Part):
    """Describes a delta: the bundle that it fits, the bundle that it makes, and what it replaces."""

    schema_version: Literal[1] = 1
    created_at: str = Field(max_length=64)
    score: str = Field(max_length=64)
    """The score whose head is replaced."""
    base: BundleRef
    result: BundleRef
    manifest_bytes: int = Field(gt=0, le=MAX_MANIFEST_BYTES)
    tensors: tuple[Patch, ...] = Field(max_length=64)
    golden: tuple[Patch, ...] = Field(default=(), max_length=4)
    content: FileEntry
    report: dict[str, Any] = {}
    """What the new head was fitted and judged on; a vehicle ignores it."""


def is_delta(path: Path) -> bool:
    """Returns whether a folder looks like a delta."""
    return (path / DELTA).is_file()


@dataclass(frozen=True)
class Delta:
    """Holds a delta that is intact in itself.

    manifest_bytes: of the bundle that it makes. tensors: by initialiser. golden: by array.
    """

    path: Path
    about: DeltaManifest
    manifest_bytes: bytes
    tensors: dict[str, NDArray[np.float32]]
    golden: dict[str, NDArray[np.float32]]

    @classmethod
    def open(cls, path: Path) -> Delta:
        """Reads and verifies a delta.

        Raises:
            BundleError: a file is missing, too large, altered or unlisted, or a value is NaN or infinite.
        """
        about = _read_about(path)
        extra = sorted(file.name for file in path.iterdir() if file.name not in (DELTA, CONTENT))
        if extra:
            raise BundleError(f"{path}: {extra[0]} is not part of a delta")
        content = _read_content(path, about)
        size = about.manifest_bytes
        manifest, place = content[:size], size
        arrays: list[dict[str, NDArray[np.float32]]] = []
        for group in (about.tensors, about.golden):
            values, place = _split(path, content, place, group)
            arrays.append(values)
        if hashlib.sha256(manifest).hexdigest() != about.result.manifest:
            raise BundleError(f"{path}: the new manifest is not what {DELTA} says (sha256 differs)")
        return cls(path, about, manifest, *arrays)

    @property
    def bytes(self) -> int:
        """Returns the size of its files."""
        return sum((self.path / name).stat().st_size for name in (DELTA, CONTENT))

    def require_fits(self, base: Bundle) -> Manifest:
        """Returns the manifest of the bundle that it makes of `base`.

        Raises:
            BundleError: it fits another bundle, or changes more than the head.
        """
        about, own = self.about, base.manifest
        if own.files[MODEL].sha256 != about.base.model:
            raise BundleError(
                f"{self.path}: it fits {about.base.label} with the graph {about.base.model[:12]}; "
                f"{base.path} is {own.label} with the graph {own.files[MODEL].sha256[:12]}"
            )
        if sha256_file(base.path / MANIFEST) != about.base.manifest:
            raise BundleError(
                f"{self.path}: it fits {about.base.label} with another manifest than that of {base.path}"
            )
        if own.head is None or own.head.score != about.score:
            raise BundleError(f"{base.path}: it has no head of {about.score} that a delta could replace")
        foreign = [name for name in self.tensors if name not in own.head.tensors.values()]
        if foreign:
            raise BundleError(f"{self.path}: {foreign[0]!r} is not a tensor of the bundle's head")
        strange = [name for name in self.golden if name != f"output.score.{about.score}"]
        if strange:
            raise BundleError(f"{self.path}: it would change the golden frames' {strange[0]!r}")
        made = _parse(self.path, self.manifest_bytes)
        changed = [name for name in KEPT if getattr(made, name) != getattr(own, name)]
        if changed:
            raise BundleError(f"{self.path}: it would change {changed[0]!r} of the manifest")
        others = [each for each in own.scores if each.name != about.score]
        if others != [each for each in made.scores if each.name != about.score]:
            raise BundleError(f"{self.path}: it would change another score than {about.score}")
        touched = {MODEL, GOLDEN}
        if {n: e for n, e in made.files.items() if n not in touched} != {
            n: e for n, e in own.files.items() if n not in touched
        } or set(made.files) != set(own.files):
            raise BundleError(f"{self.path}: it would change other files than {MODEL} and {GOLDEN}")
        if made.files[MODEL].sha256 != about.result.model:
            raise BundleError(f"{self.path}: its two hashes of the new graph differ")
        return made

    def apply(self, base: Path, *, out: Path) -> Bundle:
        """Writes the bundle that the delta makes of `base`, and returns it opened.

        Args:
            base: folder of the bundle that it fits; it is verified, and only read unless `out` is the same.
            out: new or empty folder, or one with a bundle, which is replaced.

        Raises:
            BundleError: the bundle or the delta does not fit; `out` is left as it was.
            OSError: `out` cannot be written; it is left as it was.
        """
        require_writable(out)
        opened = Bundle.open(base)
        self.require_fits(opened)
        with whole_folder(out) as work:
            rebuild(opened, work, tensors=self.tensors, golden=self.golden)
            (work / MANIFEST).write_bytes(self.manifest_bytes)
            # Of the files as written: this is what a vehicle would run.
            Bundle.open(work)
        return Bundle.open(out)


def require_writable(out: Path) -> None:
    """Raises BundleError if `out` is something else than a bundle or an empty folder."""
    if out.exists() and not (out / MANIFEST).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise BundleError(f"{out} exists and is not a bundle; choose another --out")


def rebuild(
    base: Bundle,
    work: Path,
    *,
    tensors: dict[str, NDArray[np.float32]],
    golden: dict[str, NDArray[np.float32]],
) -> None:
    """Writes all files of a bundle but its manifest, with other tensors and golden answers.

    Raises:
        BundleError: an initialiser or an array is not there, or is of another shape or type.
        OSError: a file cannot be read or written.
    """
    for name in base.manifest.files:
        target = work / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if name == MODEL:
            patch(base.model_path, target, tensors)
        elif name == GOLDEN and golden:
            rewrite(base.path / name, target, golden)
        else:
            shutil.copyfile(base.path / name, target)


def _read_about(path: Path) -> DeltaManifest:
    file = path / DELTA
    try:
        return DeltaManifest.model_validate_json(read_bounded(file, max_bytes=MAX_DELTA_BYTES))
    except OSError as error:
        raise BundleError(f"{file}: {error.strerror}; is this a delta?") from error
    except ValidationError as error:
        raise BundleError(explain(error, file=str(file), most=1)) from error
    except ValueError as error:
        raise BundleError(str(error)) from error


def _read_content(path: Path, about: DeltaManifest) -> bytes:
    """Returns the content, decompressed: as many bytes as it says, and no more."""
    file = path / CONTENT
    wanted = about.manifest_bytes + sum(each.bytes for each in (*about.tensors, *about.golden))
    if wanted - about.manifest_bytes > MAX_TENSOR_BYTES:
        raise BundleError(f"{path}: its tensors have more than {MAX_TENSOR_BYTES} bytes")
    try:
        packed = read_bounded(file, max_bytes=MAX_CONTENT_BYTES)
    except OSError as error:
        raise BundleError(f"{file}: {error.strerror}") from error
    except ValueError as error:
        raise BundleError(str(error)) from error
    if len(packed) != about.content.bytes or hashlib.sha256(packed).hexdigest() != about.content.sha256:
        raise BundleError(f"{file}: not what {DELTA} says (sha256 differs)")
    unpacking = zlib.decompressobj()
    try:
        # With a limit: a few bytes may unpack to gigabytes.
        content = unpacking.decompress(packed, wanted + 1)
    except zlib.error as error:
        raise BundleError(f"{file}: damaged: {error}") from error
    if len(content) != wanted or not unpacking.eof:
        raise BundleError(f"{file}: it does not have the {wanted} bytes that {DELTA} describes")
    return content


def _split(
    path: Path, content: bytes, place: int, parts: tuple[Patch, ...]
) -> tuple[dict[str, NDArray[np.float32]], int]:
    """Returns arrays by name, and the place behind them. Raises BundleError on altered or unusable values."""
    found: dict[str, NDArray[np.float32]] = {}
    for part in parts:
        data = content[place : place + part.bytes]
        place += part.bytes
        if part.name in found:
            raise BundleError(f"{path}: {part.name!r} is there twice")
        if hashlib.sha256(data).hexdigest() != part.sha256:
            raise BundleError(f"{path}: the values of {part.name!r} were altered (sha256 differs)")
        values = np.frombuffer(data, "<f4").reshape(part.shape).astype(np.float32)
        if not np.isfinite(values).all():
            raise BundleError(f"{path}: {part.name!r} has values that are NaN or infinite")
        found[part.name] = values
    return found, place


def _parse(path: Path, data: bytes) -> Manifest:
    try:
        return Manifest.model_validate_json(data)
    except ValidationError as error:
        raise BundleError(explain(error, file=f"{path}: the new manifest", most=1)) from error
