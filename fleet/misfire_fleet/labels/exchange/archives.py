"""Unpacks archives of strangers into a temporary folder, and packs exports.

An archive is refused as a whole if a member leads out of it (by its path or as a link), is no ordinary file,
or occurs twice; if it has too many members or bytes, or grows too much; or if it is damaged or was cut off.
Its statements about itself are checked first, and what really comes out is counted.
"""

from __future__ import annotations

import gzip
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from misfire_fleet.labels.formats.parts.tar_headers import BoundedHeader
from misfire_fleet.labels.formats.registry import format_of
from misfire_runtime.errors import ConfigError

ARCHIVES = (".zip", ".tar.gz", ".tgz", ".tar")
_COPY = 1024 * 1024
_TAR_END = bytes(1024)
_STORED = frozenset({".jpg", ".jpeg", ".png", ".webp", ".parquet"})
"""Endings of files that are compressed already."""
_SYSTEM = frozenset({"__MACOSX", ".DS_Store", "Thumbs.db"})


@dataclass(frozen=True)
class Limits:
    """Limits what an archive may become.

    Attributes:
        max_bytes: of all files; never more than nine tenths of the free disk.
        max_members: files and folders.
        max_ratio: bytes for each byte of the archive, beyond the first 64 MiB. Pictures are near 1, label
            texts below 50; a bomb has a thousand and more.
        max_depth: folders in folders.
    """

    max_bytes: int = 256 * 1024**3
    max_members: int = 1_000_000
    max_ratio: float = 200.0
    max_depth: int = 32


_FREE_BYTES = 64 * 1024 * 1024


@contextmanager
def unpacked(path: Path, limits: Limits = Limits()) -> Iterator[Path]:
    """Yields a folder with an archive's content, or the path itself if it is no archive.

    If all of an archive is in one folder, that folder is yielded. Shards of a WebDataset stay packed.

    Raises:
        ConfigError: there is no such path, or the archive is refused; nothing is left on the disk.
    """
    if not path.exists():
        raise ConfigError(f"{path}: there is no such file or folder")
    kind = _kind_of(path)
    if kind is None:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="misfire-import-") as folder:
        budget = _Budget(path, limits, free=shutil.disk_usage(folder).free * 9 // 10)
        try:
            (_unzip if kind == "zip" else _untar)(path, Path(folder), budget)
        except (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, NotImplementedError) as error:
            raise ConfigError(f"{path}: the archive is damaged or was cut off ({error})") from error
        except OSError as error:
            raise ConfigError(f"{path}: cannot be unpacked ({error.strerror or error})") from error
        yield _single_folder(Path(folder))


def pack(folder: Path, archive: Path, *, like: str) -> None:
    """Packs a folder's files into an archive.

    Args:
        folder: with the files.
        archive: to be written.
        like: a name with one of ARCHIVES as its ending, which says the kind.

    Raises:
        OSError: it cannot be written.
    """
    kind = like.lower()
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    if kind.endswith(".zip"):
        with zipfile.ZipFile(archive, "w", allowZip64=True) as packed:
            for file in files:
                stored = file.suffix.lower() in _STORED
                method = zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED
                packed.write(file, file.relative_to(folder).as_posix(), compress_type=method)
        return
    mode = "w" if kind.endswith(".tar") else "w:gz"
    with tarfile.open(archive, cast(Any, mode)) as into:
        for file in files:
            into.add(file, file.relative_to(folder).as_posix(), recursive=False)
            into.members.clear()  # type: ignore[attr-defined]


def _kind_of(path: Path) -> str | None:
    """Returns "zip" or "tar" by the first bytes, None for anything else."""
    if not path.is_file():
        return None
    try:
        with path.open("rb") as stream:
            head = stream.read(512)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "zip"
    if head.startswith(b"\x1f\x8b"):
        return "tar"
    if path.name.lower().endswith(ARCHIVES) and head[257:262] != b"ustar":
        raise ConfigError(f"{path}: has the ending of an archive, but is none")
    if head[257:262] == b"ustar" and format_of("webdataset").recognise(path) is None:
        return "tar"
    return None


class _Budget:
    """Counts what comes out of an archive. Raises ConfigError if it is too much."""

    def __init__(self, path: Path, limits: Limits, *, free: int) -> None:
        self.path, self._limits = path, limits
        grown = _FREE_BYTES + int(limits.max_ratio * path.stat().st_size)
        self.max_bytes = min(limits.max_bytes, free, grown)
        self._why = (
            f"grows more than {limits.max_ratio:g} times" if self.max_bytes == grown else "has too many bytes"
        )
        self._bytes = 0
        self._names: set[str] = set()

    def take(self, size: int) -> None:
        """Counts bytes."""
        self._bytes += size
        if self._bytes > self.max_bytes:
            raise ConfigError(f"{self.path}: the archive {self._why}: more than {self.max_bytes:,} bytes")

    def place(self, name: str) -> PurePosixPath:
        """Returns a member's place in the folder."""
        plain = PurePosixPath(name.replace("\\", "/"))
        parts = [part for part in plain.parts if part != "."]
        if plain.is_absolute() or ".." in parts or "\0" in name or (parts and parts[0].endswith(":")):
            raise ConfigError(f"{self.path}: member {name[:100]!r} leads out of the archive")
        if len(parts) > self._limits.max_depth or any(len(part.encode()) > 255 for part in parts):
            raise ConfigError(f"{self.path}: member {name[:100]!r} is too deep or its name too long")
        place = PurePosixPath(*parts)
        if str(place) in self._names:
            raise ConfigError(f"{self.path}: member {name[:100]!r} occurs twice")
        self._names.add(str(place))
        if len(self._names) > self._limits.max_members:
            raise ConfigError(f"{self.path}: the archive has more than {self._limits.max_members:,} members")
        return place

    def copy(self, source: IO[bytes], target: Path) -> None:
        """Writes a member's bytes."""
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as into:
            while data := source.read(_COPY):
                self.take(len(data))
                into.write(data)


def _unzip(path: Path, folder: Path, budget: _Budget) -> None:
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        # What it states about itself, before a byte is written.
        if sum(member.file_size for member in members) > budget.max_bytes:
            budget.take(budget.max_bytes + 1)
        for member in members:
            place = budget.place(member.filename)
            kind = stat.S_IFMT(member.external_attr >> 16)
            if member.flag_bits & 0x1:
                raise ConfigError(f"{path}: member {member.filename[:100]!r} is encrypted")
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise ConfigError(f"{path}: member {member.filename[:100]!r} is a link or a device")
            if member.is_dir() or _SYSTEM & set(place.parts):
                continue
            with archive.open(member) as source:
                budget.copy(source, folder / place)


class _Counted:
    """Reads the bytes of a tar, counts them, and remembers the last ones."""

    def __init__(self, stream: IO[bytes], budget: _Budget) -> None:
        self._stream, self._budget = stream, budget
        self.last = b""

    def read(self, size: int = -1) -> bytes:
        """Returns up to `size` bytes."""
        data = self._stream.read(size if 0 <= size < _COPY else _COPY)
        self._budget.take(len(data))
        self.last = (self.last + data)[-len(_TAR_END) :]
        return data


def _untar(path: Path, folder: Path, budget: _Budget) -> None:
    with path.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        stream = cast(IO[bytes], gzip.GzipFile(fileobj=raw)) if packed else raw
        # Its own bytes are not counted twice: members are copied without taking from the budget.
        counted = _Counted(stream, budget)
        with tarfile.open(fileobj=cast(IO[bytes], counted), mode="r|", tarinfo=BoundedHeader) as archive:
            for member in archive:
                archive.members.clear()  # type: ignore[attr-defined]
                place = budget.place(member.name)
                if member.isdir() or (member.isfile() and _SYSTEM & set(place.parts)):
                    continue
                if not member.isfile() or member.issparse():
                    raise ConfigError(f"{path}: member {member.name[:100]!r} is a link, a device or sparse")
                source = archive.extractfile(member)
                if source is not None:
                    _copy(source, folder / place)
        while counted.read(_COPY):
            pass
    if counted.last != _TAR_END:
        raise ConfigError(f"{path}: the archive has no end: it was cut off")


def _copy(source: IO[bytes], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("xb") as into:
        shutil.copyfileobj(source, into, _COPY)


def _single_folder(folder: Path) -> Path:
    inside = list(folder.iterdir())
    return inside[0] if len(inside) == 1 and inside[0].is_dir() else folder
