"""Writes files and folders whole or not at all, also at a power cut, and reads files with a bound.

bytes -> temporary file beside the target -> fsync -> rename -> fsync of the folder
`write_durably` does all of it. What is written in groups, or by another library, uses the parts:
`write_through` for the bytes, `replace_durably` for the name. `whole_folder` does the same for a folder.
"""

from __future__ import annotations

import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def read_bounded(path: Path, *, max_bytes: int) -> bytes:
    """Reads a regular file; never blocks on a pipe and never reads a device.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not a regular file, or has more than `max_bytes`.
    """
    # O_NONBLOCK: opening a pipe without a writer would wait for ever.
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        # Of the open file, not of the path: the name could be another file a moment later.
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise ValueError(f"{path}: not a regular file")
        data = b""
        # One byte more than allowed: only so is a file of exactly the limit told from a larger one.
        while len(data) <= max_bytes and (block := os.read(handle, min(max_bytes + 1 - len(data), 1 << 20))):
            data += block
    finally:
        os.close(handle)
    if len(data) > max_bytes:
        raise ValueError(f"{path}: larger than {max_bytes} bytes")
    return data


def write_durably(path: Path, data: bytes, *, mode: int = 0o666, temporary: Path | None = None) -> None:
    """Replaces `path`; when this returns, the new content survives a power cut.

    Args:
        path: the file; its folder must exist.
        data: the whole content.
        mode: permissions of the file, less the process's umask.
        temporary: name to write under first, in the same folder. By default it is unique, so that several
            processes may write one file. A file with a single writer names a fixed one, which the next write
            reuses after a crash.

    Raises:
        OSError: the disk refuses; the old content is left, and no temporary file.
    """
    # Beside the target: a rename between file systems is a copy, and not atomic.
    part = temporary or path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    if temporary is not None:
        part.unlink(missing_ok=True)  # of a process that was killed
    try:
        write_through(part, data, mode=mode)
        part.replace(path)
    except OSError:
        with suppress(OSError):
            part.unlink()
        raise
    sync(path.parent)


def write_through(
    name: str | Path, *parts: bytes, mode: int = 0o666, folder: int | None = None, durable: bool = True
) -> None:
    """Creates a file and returns when its bytes are on the disk; its name is not durable yet.

    Args:
        name: the new file, relative to `folder` where one is given.
        parts: the content, one after the other.
        mode: permissions of the file, less the process's umask.
        folder: descriptor of an open folder.
        durable: False if the caller makes many files durable at once, with `os.sync`.

    Raises:
        OSError: the file exists, or the disk refuses; what was written is then the caller's to remove.
    """
    # O_EXCL: an existing file, or a link that somebody put there, is never written through.
    handle = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode, dir_fd=folder)
    try:
        for part in parts:
            view = memoryview(part)
            while view:  # one write takes at most 2 GiB, and less where a signal comes
                view = view[os.write(handle, view) :]
        if durable:
            os.fsync(handle)
    finally:
        os.close(handle)


def replace_durably(temporary: Path, path: Path) -> None:
    """Gives a finished file its name, in the same folder: content first, then the name. Raises OSError."""
    # Before the rename: otherwise a power cut may leave the new name with an empty file.
    sync(temporary)
    temporary.replace(path)
    sync(path.parent)


def remove_durably(path: Path) -> None:
    """Removes `path` if it is there. Raises OSError."""
    path.unlink(missing_ok=True)
    sync(path.parent)


def sync(path: Path) -> None:
    """Makes a file's content, or the names in a folder, durable. Raises OSError."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yields an empty folder beside `path`, which takes its place when the block ends without an error.

    An older folder of that name goes only when the new one is in its place. Raises OSError; then, as after
    an error in the block, the older one is left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as around:
        work, old = Path(around) / "new", Path(around) / "old"
        work.mkdir()
        yield work
        # "." is the folder itself, whose names must be durable, too.
        for folder, _folders, files in os.walk(work):
            for name in (*files, "."):
                sync(Path(folder) / name)
        # A folder with content cannot be replaced by a rename, so the old one steps aside first.
        if path.exists():
            path.rename(old)
        try:
            work.rename(path)
        except OSError:
            if old.exists():
                old.rename(path)
            raise
        sync(path.parent)
        # Last: until the new folder is durable, the old one is the only copy.
        shutil.rmtree(old, ignore_errors=True)
