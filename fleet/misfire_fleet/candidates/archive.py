"""Packs a bundle into one archive that is the same bytes for the same files, and unpacks it.

The archive is a plain tar with the manifest and the files that it lists, sorted by name, without times,
owners or the engine cache of a vehicle. Its SHA-256 is the identity of a candidate.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path, PurePosixPath

from misfire_fleet.errors import StoreError
from misfire_runtime.bundle import MANIFEST, Bundle, Manifest
from misfire_runtime.errors import BundleError

MAX_BYTES = 2 * 1024**3
"""An archive is in memory when it is kept."""


class _Digest(io.RawIOBase):
    """Hashes what is written to it, and keeps nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.sha256 = hashlib.sha256()
        self.size = 0

    def write(self, data: object) -> int:
        """Adds bytes to the hash."""
        self.sha256.update(data)  # type: ignore[arg-type]
        self.size += len(data)  # type: ignore[arg-type]
        return len(data)  # type: ignore[arg-type]


def digest(bundle: Bundle) -> tuple[str, int]:
    """Returns SHA-256 and size of a bundle's archive, without making it. Raises BundleError."""
    sink = _Digest()
    _write(bundle, sink)
    return sink.sha256.hexdigest(), sink.size


def pack(bundle: Bundle) -> bytes:
    """Returns a bundle's archive. Raises BundleError if it is too large or a file cannot be read."""
    size = sum(entry.bytes for entry in bundle.manifest.files.values())
    if size > MAX_BYTES:
        raise BundleError(f"{bundle.path}: {size} bytes; a published bundle has at most {MAX_BYTES}")
    buffer = io.BytesIO()
    _write(bundle, buffer)
    return buffer.getvalue()


def unpack(archive: bytes, folder: Path) -> Bundle:
    """Writes the files of an archive to a new folder and verifies them.

    Raises:
        StoreError: it is no archive of a bundle, or has an entry that is no plain file inside of it.
        BundleError: a file is not what the manifest says.
    """
    folder.mkdir(parents=True)
    try:
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            for entry in tar:
                place = PurePosixPath(entry.name)
                if not entry.isreg() or place.is_absolute() or ".." in place.parts:
                    raise StoreError(f"archive of a bundle: {entry.name[:100]!r} is no plain file inside it")
                source = tar.extractfile(entry)
                target = folder / place
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(b"" if source is None else source.read())
    except tarfile.TarError as error:
        raise StoreError(f"archive of a bundle: {error}") from error
    return Bundle.open(folder)


def manifest_of(archive: bytes) -> Manifest:
    """Returns the manifest in an archive. Raises StoreError if there is none."""
    try:
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            source = tar.extractfile(MANIFEST)
            return Manifest.model_validate_json(b"" if source is None else source.read())
    except (tarfile.TarError, KeyError, ValueError) as error:
        raise StoreError(f"archive of a bundle: no readable {MANIFEST}") from error


def _write(bundle: Bundle, sink: io.RawIOBase | io.BytesIO) -> None:
    try:
        # "w|" writes front to back, so a sink need not seek.
        with tarfile.open(fileobj=sink, mode="w|", format=tarfile.PAX_FORMAT) as tar:
            for name in sorted({MANIFEST, *bundle.manifest.files}):
                file = bundle.path / name
                entry = tarfile.TarInfo(name)
                entry.size, entry.mode = file.stat().st_size, 0o644
                with file.open("rb") as source:
                    tar.addfile(entry, source)
    except OSError as error:
        raise BundleError(f"{bundle.path}: {error.strerror}") from error
