"""Writes and reads the spool's files. A sample is written completely or not at all, followed by its offer.

write: tmp/X -> fsync -> rename to samples/ID -> fsync of samples/
A file is payload, offer (JSON), trailer. The payload is first, so an offset in the sample is an offset in the
file. The offer is included, so the database can be rebuilt from the files. Damaged files move to quarantine/,
rejected samples to rejected/; both folders are bounded.
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

# Ends every file, so that a file that was cut short is recognised without its hash.
MAGIC = b"mfs1"
_TRAILER = struct.Struct("<I4s")
"""Length of the offer in bytes, MAGIC."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""A full disk, a used up quota, and a file above the process's or the file system's limit."""
# Bounds the memory of a check: a sample may be a video of many MiB.
_BLOCK = 1024 * 1024
# Both folders are outside of the spool's `max_bytes`, so they have bounds of their own.
MAX_QUARANTINE_FILES = 100
MAX_QUARANTINE_BYTES = 64 * 1024 * 1024
MAX_REJECTED_FILES = 1000
MAX_REJECTED_BYTES = 64 * 1024 * 1024


class SampleFiles:
    """Manages the folders of one spool. Thread-safe: a sample removed during a read is read, or missing.

    Args:
        root: folder of the spool.
        max_open: number of files that stay open between reads.

    Raises:
        SpoolError: the folders cannot be used.
    """

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
            # Left by a process that died while it wrote; their samples were never reported as captured.
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
        """Writes a file durably and returns its length in bytes.

        Raises:
            DiskFullError: the disk is full; nothing is left of the file.
            SpoolError: it cannot be written; nothing is left of it.
        """
        # Unique: two threads may write the same sample at the same time.
        temporary = self.tmp / f"{sample}.{secrets.token_hex(4)}"
        # The length comes after the offer, because the file is read from its end.
        trailer = offer + _TRAILER.pack(len(offer), MAGIC)
        try:
            # Only the vehicle's user may read pictures of other people.
            write_through(temporary, payload, trailer, mode=0o600)
            temporary.rename(self.samples / sample)
            os.fsync(self._folder)  # a power cut could otherwise undo the rename
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise self._explain(error, sample) from error
        return len(payload) + len(trailer)

    def read(self, sample: str, offset: int, size: int, *, total: int) -> bytes | None:
        """Returns bytes of the payload; None if the file is missing, too short, or has a wrong hash.

        Args:
            sample: id of the sample.
            offset: first byte.
            size: maximum number of bytes.
            total: bytes of the whole payload.

        Raises:
            SpoolError: the file cannot be read for another reason.
        """
        try:
            with self._lock:
                handle = self._handle(sample, total)
                if handle is None:
                    return None
                # pread has no file position, so reads of several chunks do not disturb each other.
                data = os.pread(handle, max(0, min(size, total - offset)), offset)
        except OSError as error:
            # EIO: the disk cannot read the sectors any more; for the caller the file is damaged.
            if error.errno in (errno.ENOENT, errno.EIO):
                return None
            raise SpoolError(f"spool file {self.samples / sample}: {error.strerror}") from error
        return data if len(data) == max(0, min(size, total - offset)) else None

    def length(self, sample: str) -> int:
        """Returns the length of a file in bytes; -1 if it does not exist."""
        try:
            return (self.samples / sample).stat().st_size
        except OSError:
            return -1

    def names(self) -> Iterator[str]:
        """Yields the names of all files, in any order."""
        with os.scandir(self.samples) as entries:
            for entry in entries:
                yield entry.name

    def recover(self, name: str) -> Offer | None:
        """Returns the offer in a file; None if the file is damaged."""
        offer = _offer_behind(self.samples / name)
        # The cheap check first: the hash needs the whole file.
        return offer if offer is not None and self._intact_file(name, offer.size) else None

    def remove(self, sample: str) -> None:
        """Deletes a file if it exists."""
        self._release(sample)
        with suppress(FileNotFoundError):
            # No fsync: if a power cut brings the file back, the next start removes it, for it has no row.
            os.unlink(sample, dir_fd=self._folder)

    def isolate(self, name: str) -> None:
        """Moves a damaged file to quarantine/, and deletes the oldest ones above its limits."""
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
                # Keeps the order of rejection for the next start: the kernel's own timestamps are only
                # updated every few milliseconds, so several files would have the same one.
                now = int(wall_time() * 1e9)
                os.utime(self.rejected / sample, ns=(now, now))
                self._rejected[sample] = (self.rejected / sample).stat().st_size
            while (
                len(self._rejected) > MAX_REJECTED_FILES or sum(self._rejected.values()) > MAX_REJECTED_BYTES
            ):
                self.forget_rejected(next(iter(self._rejected)))

    def take_back(self, room: int) -> dict[str, tuple[Offer, int]]:
        """Moves rejected files back to samples/, the oldest first.

        The moves are durable on return, so the database may then list them as pending. Damaged files move to
        quarantine/.

        Args:
            room: maximum number of bytes to move.

        Returns:
            (offer, length of the file) by sample id.

        Raises:
            SpoolError: a file cannot be moved; the next start moves those that were back to rejected/.
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
            # Stops at the first that does not fit, so that the oldest come back first.
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
        """Deletes a rejected sample's file; returns the number of freed bytes."""
        with self._lock:
            size = self._rejected.pop(sample, None)
            if size is not None:
                (self.rejected / sample).unlink(missing_ok=True)
        return size or 0

    @property
    def oldest_rejected(self) -> str | None:
        """Returns the id of the oldest rejected sample whose file is kept; None if there is none."""
        return next(iter(self._rejected), None)

    def close(self) -> None:
        """Closes all files. Idempotent."""
        for sample in list(self._open):
            self._release(sample)
        # -1 first: a second `close` must not close a number that another file has by now.
        folder, self._folder = self._folder, -1
        if folder >= 0:
            os.close(folder)

    def _handle(self, sample: str, total: int) -> int | None:
        """Returns a descriptor of a file whose hash was correct when it was opened; None if it is not.

        The last few files stay open, so the hash is computed once per upload and not once per chunk.
        """
        if sample in self._open:
            self._open.move_to_end(sample)
            return self._open[sample]
        handle = os.open(sample, os.O_RDONLY, dir_fd=self._folder)
        if not _intact(handle, sample, total):
            os.close(handle)
            return None
        # Bounds the open files: a process has a limit of descriptors, often 1024.
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
    """Yields the offers of the samples in `folder`, the oldest file first; ignores other files."""
    try:
        files = sorted((file.stat().st_mtime_ns, file) for file in folder.iterdir())
    except OSError:
        return
    for _time, file in files:
        offer = _offer_behind(file)
        if offer is not None:
            yield offer


def _offer_behind(file_path: Path) -> Offer | None:
    """Returns the offer in a file, if it fits the file's name and length; does not check the hash."""
    try:
        with file_path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - _TRAILER.size))
            length, magic = _TRAILER.unpack(file.read(_TRAILER.size))
            # Checked before the read: a damaged length must not ask for gigabytes of memory.
            if magic != MAGIC or length > min(MAX_JSON_BYTES, end - _TRAILER.size):
                return None
            file.seek(end - _TRAILER.size - length)
            offer = decode(Offer, file.read(length))
    except (OSError, struct.error, MessageError):
        return None
    fits = offer.id == file_path.name and offer.size == end - _TRAILER.size - length
    return offer if fits else None


def _intact(handle: int, sample: str, total: int) -> bool:
    """Returns True if the SHA-256 of the first `total` bytes is the sample's id."""
    digest, offset = hashlib.sha256(), 0
    while offset < total:
        block = os.pread(handle, min(_BLOCK, total - offset), offset)
        if not block:
            return False
        digest.update(block)
        offset += len(block)
    return digest.hexdigest() == sample
