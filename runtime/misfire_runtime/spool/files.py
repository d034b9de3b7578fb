"""The spool's files: a sample is written whole or not at all, and carries its offer behind its bytes.

write: tmp/X -> fsync -> rename to samples/ID -> fsync of samples/.  A file is payload, offer (JSON), trailer:
the payload first, so that an offset of the sample is an offset of the file; the offer, so that the database
can be rebuilt from the files alone. What is damaged moves to quarantine/, what the fleet rejected to
rejected/; both are bounded.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import struct
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from misfire_runtime.clock import wall_time
from misfire_runtime.errors import DiskFullError, MessageError, SpoolError
from misfire_runtime.files import write_through
from misfire_runtime.messages import MAX_JSON_BYTES, Offer, decode

MAGIC = b"mfs1"
_TRAILER = struct.Struct("<I4s")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_BLOCK = 1024 * 1024
MAX_QUARANTINE_FILES = 100
MAX_QUARANTINE_BYTES = 64 * 1024 * 1024
MAX_REJECTED_FILES = 1000
MAX_REJECTED_BYTES = 64 * 1024 * 1024


class SampleFiles:
    """The folders of one spool. Thread-safe: a sample that is removed while it is read is gone, or read."""

    def __init__(self, root: Path, *, max_open: int = 16) -> None:
        self.samples = root / "samples"
        self.tmp = root / "tmp"
        self.quarantine = root / "quarantine"
        self.rejected = root / "rejected"
        self._max_open = max_open
        self._open: OrderedDict[str, int] = OrderedDict()
        self._lock = threading.RLock()
        try:
            for folder in (self.samples, self.tmp, self.quarantine, self.rejected):
                folder.mkdir(parents=True, exist_ok=True)
            for left in self.tmp.iterdir():
                left.unlink()
            kept = sorted(
                (file.stat().st_mtime_ns, file.name, file.stat().st_size) for file in self.rejected.iterdir()
            )
            self._rejected = OrderedDict((name, size) for _time, name, size in kept)
            self._folder = os.open(self.samples, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise SpoolError(f"spool {root}: {error.strerror}") from error

    def write(self, sample: str, payload: bytes, offer: bytes) -> int:
        """Makes the file durable; returns its length. Raises DiskFullError, SpoolError: nothing is left."""
        temporary = self.tmp / f"{sample}.{secrets.token_hex(4)}"
        trailer = offer + _TRAILER.pack(len(offer), MAGIC)
        try:
            write_through(temporary, payload, trailer, mode=0o600)
            temporary.rename(self.samples / sample)
            os.fsync(self._folder)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise self._explain(error, sample) from error
        return len(payload) + len(trailer)

    def read(self, sample: str, offset: int, size: int, *, total: int) -> bytes | None:
        """Bytes of the payload; None where the file is missing, short, or not the sample's bytes."""
        try:
            with self._lock:
                handle = self._handle(sample, total)
                if handle is None:
                    return None
                data = os.pread(handle, max(0, min(size, total - offset)), offset)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EIO):
                return None
            raise SpoolError(f"spool file {self.samples / sample}: {error.strerror}") from error
        return data if len(data) == max(0, min(size, total - offset)) else None

    def length(self, sample: str) -> int:
        """Of the file in bytes; -1 where there is none."""
        try:
            return (self.samples / sample).stat().st_size
        except OSError:
            return -1

    def names(self) -> Iterator[str]:
        """All files, in no order."""
        with os.scandir(self.samples) as entries:
            for entry in entries:
                yield entry.name

    def recover(self, name: str) -> Offer | None:
        """The offer behind the payload, where the file is whole and says who it is."""
        offer = _offer_behind(self.samples / name)
        return offer if offer is not None and self._intact_file(name, offer.size) else None

    def remove(self, sample: str) -> None:
        """Deletes a file; one that is gone already is no error."""
        self._release(sample)
        with suppress(FileNotFoundError):
            os.unlink(sample, dir_fd=self._folder)

    def isolate(self, name: str) -> None:
        """Moves a damaged file to quarantine/, and lets the oldest go where that is full."""
        self._release(name)
        try:
            (self.samples / name).rename(self.quarantine / name)
            kept, size = 0, 0
            for file in sorted(self.quarantine.iterdir(), key=lambda f: f.stat().st_mtime, reverse=True):
                kept, size = kept + 1, size + file.stat().st_size
                if kept > MAX_QUARANTINE_FILES or size > MAX_QUARANTINE_BYTES:
                    file.unlink(missing_ok=True)
        except OSError:
            (self.samples / name).unlink(missing_ok=True)

    def reject(self, sample: str) -> None:
        """Moves a rejected sample's file to rejected/, and deletes the oldest ones beyond the limits."""
        self._release(sample)
        with self._lock:
            with suppress(FileNotFoundError):
                (self.samples / sample).rename(self.rejected / sample)
                # The order of rejection, for the next start: the kernel's own stamps are some ms apart.
                now = int(wall_time() * 1e9)
                os.utime(self.rejected / sample, ns=(now, now))
                self._rejected[sample] = (self.rejected / sample).stat().st_size
            while (
                len(self._rejected) > MAX_REJECTED_FILES or sum(self._rejected.values()) > MAX_REJECTED_BYTES
            ):
                self.forget_rejected(next(iter(self._rejected)))

    def take_back(self, room: int) -> dict[str, tuple[Offer, int]]:
        """Moves rejected files of at most `room` bytes back, the oldest first: offers and lengths by id.

        On return their places are durable: books that call them pending may be written. A file that is no
        whole sample any more goes to quarantine/. Raises SpoolError; the next start moves them to rejected/.
        """
        try:
            with self._lock:
                taken = self._take_back(room)
                os.fsync(self._folder)
        except OSError as error:
            raise SpoolError(f"{self.rejected}: samples cannot be taken back: {error.strerror}") from error
        return taken

    def _take_back(self, room: int) -> dict[str, tuple[Offer, int]]:
        taken = {}
        for sample, size in list(self._rejected.items()):
            if size > room:
                break
            with suppress(FileNotFoundError):
                (self.rejected / sample).rename(self.samples / sample)
            del self._rejected[sample]
            offer = self.recover(sample)
            if offer is None:
                self.isolate(sample)
                continue
            taken[sample] = (offer, size)
            room -= size
        return taken

    def forget_rejected(self, sample: str) -> int:
        """Deletes a rejected sample's file; how many bytes that freed."""
        with self._lock:
            size = self._rejected.pop(sample, None)
            if size is not None:
                (self.rejected / sample).unlink(missing_ok=True)
        return size or 0

    @property
    def oldest_rejected(self) -> str | None:
        """Of the files that are kept."""
        return next(iter(self._rejected), None)

    def close(self) -> None:
        """Closes handles. Idempotent."""
        for sample in list(self._open):
            self._release(sample)
        folder, self._folder = self._folder, -1
        if folder >= 0:
            os.close(folder)

    def _handle(self, sample: str, total: int) -> int | None:
        """An open file whose hash was right when it was opened; the most recent few stay open."""
        if sample in self._open:
            self._open.move_to_end(sample)
            return self._open[sample]
        handle = os.open(sample, os.O_RDONLY, dir_fd=self._folder)
        if not _intact(handle, sample, total):
            os.close(handle)
            return None
        while len(self._open) >= self._max_open:
            self._release(next(iter(self._open)))
        self._open[sample] = handle
        return handle

    def _intact_file(self, sample: str, total: int) -> bool:
        handle = os.open(sample, os.O_RDONLY, dir_fd=self._folder)
        try:
            return _intact(handle, sample, total)
        finally:
            os.close(handle)

    def _release(self, sample: str) -> None:
        with self._lock:
            handle = self._open.pop(sample, None)
            if handle is not None:
                os.close(handle)

    def _explain(self, error: OSError, sample: str) -> SpoolError:
        if error.errno in _FULL:
            return DiskFullError(f"no room in {self.samples} for sample {sample}: {error.strerror}")
        return SpoolError(f"spool file {self.samples / sample}: {error.strerror}")


def kept_offers(folder: Path) -> Iterator[Offer]:
    """Offers of the samples in `folder`, the oldest file first; what is no sample's file is passed over."""
    try:
        files = sorted((file.stat().st_mtime_ns, file) for file in folder.iterdir())
    except OSError:
        return
    for _time, file in files:
        offer = _offer_behind(file)
        if offer is not None:
            yield offer


def _offer_behind(file_path: Path) -> Offer | None:
    """The offer behind a file's payload, if both fit the file's name and length; the hash is not checked."""
    try:
        with file_path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - _TRAILER.size))
            length, magic = _TRAILER.unpack(file.read(_TRAILER.size))
            if magic != MAGIC or length > min(MAX_JSON_BYTES, end - _TRAILER.size):
                return None
            file.seek(end - _TRAILER.size - length)
            offer = decode(Offer, file.read(length))
    except (OSError, struct.error, MessageError):
        return None
    fits = offer.id == file_path.name and offer.size == end - _TRAILER.size - length
    return offer if fits else None


def _intact(handle: int, sample: str, total: int) -> bool:
    """Whether the first `total` bytes are those whose hash is the sample's id."""
    digest, offset = hashlib.sha256(), 0
    while offset < total:
        block = os.pread(handle, min(_BLOCK, total - offset), offset)
        if not block:
            return False
        digest.update(block)
        offset += len(block)
    return digest.hexdigest() == sample
