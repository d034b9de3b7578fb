"""Blobs by content: the SHA-256 of the bytes is the name, so writing twice is writing once.

Beside each blob lies its offer record (`<id>.json`), from which the blob's row can be built again, and in
`ledger/` what was deleted and held. Two homes behind one interface: a folder and an object store (S3 and
everything else that obstore speaks).
`stage` makes a blob and its record durable, from as many threads as the caller likes; `publish` gives a
group of them their names. In a folder that is: tmp files and fsync; then renames and one fsync of the folder
for the group. An object store does it in two puts at once. A crash leaves whole files or none under a name.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol, cast

from misfire_fleet.errors import SampleGoneError, StoreError, StoreUnavailableError
from misfire_runtime.clock import wall_time

_TMP = "tmp"
_LEDGER = "ledger"
_OFFER = ".json"
_NAME = re.compile(r"([0-9a-f]{64})(\.json)?")
_ABANDONED_S = 3600.0
_DURABLY = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_DSYNC
"""A write returns when its bytes, and the length that they need, are on the disk."""


@dataclass(frozen=True)
class Staged:
    """A blob and its record that are durable; `temporary` is where, None where they have their names."""

    sample: str
    temporary: str | None


@dataclass(frozen=True)
class Entry:
    """A blob, or an offer record (`is_offer`), as a listing shows it. `modified_at`: seconds since 1970."""

    sample: str
    is_offer: bool
    size: int
    modified_at: float


class Blobs(Protocol):
    """Where the bytes of samples live, and beside them their offers."""

    def stage(self, sample: str, data: bytes, offer: bytes) -> Staged:
        """Makes a blob and its offer record durable, not yet under their names.

        Raises StoreUnavailableError, with nothing left.
        """

    def publish(self, staged: Sequence[Staged]) -> list[str]:
        """Names what was staged; returns the ids whose staged bytes are gone, which must be staged anew.

        Raises StoreUnavailableError; may be called again with the same group.
        """

    def get(self, sample: str) -> bytes:
        """Raises SampleGoneError where there is none, StoreUnavailableError where it cannot be read now."""

    def exists(self, sample: str) -> bool:
        """True where the blob is there."""

    def offer(self, sample: str) -> bytes:
        """The offer record. Raises SampleGoneError, StoreUnavailableError."""

    def keep_offer(self, sample: str, offer: bytes) -> None:
        """Writes an offer record beside a blob that has none, durably. Raises StoreUnavailableError."""

    def delete_many(self, samples: Iterable[str]) -> int:
        """Removes blobs and their offer records; counts the blobs that were there."""

    def names(self) -> Iterator[str]:
        """The ids of all blobs, in no order."""

    def entries(self) -> Iterator[Entry]:
        """All blobs and offer records, in no order. Raises StoreUnavailableError."""

    def note(self, name: str, data: bytes) -> None:
        """Writes one entry of the ledger, durably. Raises StoreUnavailableError."""

    def notes(self) -> Iterator[bytes]:
        """All entries of the ledger, by name. Raises StoreUnavailableError."""

    def close(self) -> None:
        """Frees threads and connections."""


def open_blobs(where: str | Path, *, options: Mapping[str, str] | None = None) -> Blobs:
    """A folder for a path or file:// URL, else an object store for s3://, gs://, az:// URLs.

    `options` go to the object store (endpoint, region, keys); obstore also reads AWS_* and the like.
    """
    text = str(where)
    if "://" not in text:
        return FolderBlobs(Path(text))
    if text.startswith("file://"):
        return FolderBlobs(Path(text.removeprefix("file://")))
    return ObjectBlobs(text, options=options or {})


class FolderBlobs:
    """`root/<id>` and `root/<id>.json`: blobs and offer records in one flat folder; `root/tmp/` for new ones.

    Flat, because a group of blobs then needs one fsync of one folder; spread over 256 folders the same group
    took six times as long. Where a folder would hold more than some millions of files, use an object store.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._token, self._number = secrets.token_hex(8), itertools.count()
        try:
            for folder in (_TMP, _LEDGER):
                (root / folder).mkdir(parents=True, exist_ok=True)
            _remove_abandoned(root / _TMP)
            self._folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise StoreError(f"blob folder {root}: {error.strerror}") from error

    def stage(self, sample: str, data: bytes, offer: bytes) -> Staged:
        """Written through to the disk, under a name that no other writer has."""
        temporary = f"{_TMP}/{sample}.{self._token}{next(self._number)}"
        try:
            self._write(temporary, data)
            self._write(temporary + _OFFER, offer)
        except OSError as error:
            for name in (temporary, temporary + _OFFER):
                with suppress(OSError):
                    os.unlink(name, dir_fd=self._folder)
            raise StoreUnavailableError(f"blob folder {self.root}: {error.strerror}") from error
        return Staged(sample, temporary)

    def publish(self, staged: Sequence[Staged]) -> list[str]:
        """Renames all, then one fsync of the folder."""
        try:
            gone = [blob.sample for blob in staged if not self._named(blob)]
            os.fsync(self._folder)
        except OSError as error:
            raise StoreUnavailableError(f"blob folder {self.root}: {error.strerror}") from error
        return gone

    def get(self, sample: str) -> bytes:
        """Reads the whole file."""
        return self._read(_checked(sample), sample, "blob")

    def offer(self, sample: str) -> bytes:
        """Reads the whole file."""
        return self._read(_checked(sample) + _OFFER, sample, "offer")

    def keep_offer(self, sample: str, offer: bytes) -> None:
        """Temporary, rename, fsync of the folder."""
        self._put(_checked(sample) + _OFFER, offer, folder=self._folder)

    def exists(self, sample: str) -> bool:
        """True where the file is there."""
        return self._size(_checked(sample)) >= 0

    def delete_many(self, samples: Iterable[str]) -> int:
        """Unlinks; a blob that is gone already does not count."""
        removed = 0
        for sample in samples:
            try:
                removed += self._unlinked(_checked(sample))
                self._unlinked(sample + _OFFER)
            except OSError as error:
                raise StoreUnavailableError(f"blob {self.root}/{sample}: {error.strerror}") from error
        return removed

    def names(self) -> Iterator[str]:
        """Every blob."""
        return (entry.sample for entry in self.entries() if not entry.is_offer)

    def entries(self) -> Iterator[Entry]:
        """One pass over the folder."""
        try:
            for file in os.scandir(self.root):
                found = _NAME.fullmatch(file.name)
                if found is None:
                    continue
                with suppress(FileNotFoundError):
                    state = file.stat()
                    yield Entry(found[1], found[2] is not None, state.st_size, state.st_mtime)
        except OSError as error:
            raise StoreUnavailableError(f"blob folder {self.root}: {error.strerror}") from error

    def note(self, name: str, data: bytes) -> None:
        """Temporary, rename, fsync of the ledger's folder."""
        try:
            folder = os.open(self.root / _LEDGER, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise StoreUnavailableError(f"ledger {self.root / _LEDGER}: {error.strerror}") from error
        try:
            self._put(f"{_LEDGER}/{name}{_OFFER}", data, folder=folder)
        finally:
            os.close(folder)

    def notes(self) -> Iterator[bytes]:
        """Every file of the ledger."""
        try:
            for file in sorted((self.root / _LEDGER).glob(f"*{_OFFER}")):
                yield file.read_bytes()
        except OSError as error:
            raise StoreUnavailableError(f"ledger {self.root / _LEDGER}: {error.strerror}") from error

    def close(self) -> None:
        """Lets go of the folder. Idempotent."""
        folder, self._folder = self._folder, -1
        if folder >= 0:
            os.close(folder)

    def _size(self, name: str) -> int:
        """In bytes; -1 where there is no such file."""
        try:
            return os.stat(name, dir_fd=self._folder).st_size
        except OSError:
            return -1

    def _named(self, blob: Staged) -> bool:
        return all(self._renamed(blob, ending) for ending in (_OFFER, ""))

    def _renamed(self, blob: Staged, ending: str) -> bool:
        name = _checked(blob.sample) + ending
        if blob.temporary is not None:
            try:
                os.rename(blob.temporary + ending, name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
                return True
            except FileNotFoundError:
                pass  # an earlier attempt at this group came as far as this, or the temporary was swept
        return self._size(name) >= 0

    def _read(self, name: str, sample: str, what: str) -> bytes:
        try:
            return (self.root / name).read_bytes()
        except FileNotFoundError as error:
            raise SampleGoneError(f"sample {sample}: no {what} in {self.root}") from error
        except OSError as error:
            raise StoreUnavailableError(f"{what} {self.root}/{name}: {error.strerror}") from error

    def _write(self, name: str, data: bytes) -> None:
        handle = os.open(name, _DURABLY, 0o640, dir_fd=self._folder)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(handle, view) :]
        finally:
            os.close(handle)

    def _put(self, name: str, data: bytes, *, folder: int) -> None:
        temporary = f"{_TMP}/{Path(name).name}.{self._token}{next(self._number)}"
        try:
            self._write(temporary, data)
            os.rename(temporary, name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
            os.fsync(folder)
        except OSError as error:
            with suppress(OSError):
                os.unlink(temporary, dir_fd=self._folder)
            raise StoreUnavailableError(f"blob folder {self.root}: {error.strerror}") from error

    def _unlinked(self, name: str) -> bool:
        try:
            os.unlink(name, dir_fd=self._folder)
        except FileNotFoundError:
            return False
        return True


def _checked(sample: str) -> str:
    """The name, where it can be one."""
    if len(sample) != 64 or not sample.isalnum():
        raise SampleGoneError(f"sample {sample[:64]!r}: this is no SHA-256")
    return sample


def _remove_abandoned(folder: Path) -> None:
    """Temporaries of processes that were killed: an hour old, so that no other writer's is taken away."""
    now = wall_time()
    for left in folder.iterdir():
        with suppress(FileNotFoundError):
            if now - left.stat().st_mtime > _ABANDONED_S:
                left.unlink()


class ObjectBlobs:
    """`prefix/ab/abcdef...` in an object store; a put is durable when it returns."""

    def __init__(self, url: str, *, options: Mapping[str, str]) -> None:
        import obstore
        from obstore.exceptions import BaseError

        self.url, self.options = url, dict(options)
        self._obstore = obstore
        self._error = BaseError
        try:
            self._store: Any = obstore.store.from_url(
                url,
                config=cast(Any, self.options),
                client_options={"timeout": "30s", "connect_timeout": "5s", "allow_http": True},
                retry_config={"max_retries": 3, "retry_timeout": timedelta(seconds=15)},
            )
        except (BaseError, ValueError) as error:
            raise StoreError(f"blob store {url}: {_first_line(error)}") from error

    def stage(self, sample: str, data: bytes, offer: bytes) -> Staged:
        """Two puts at once; what they wrote is durable, and named, when they return."""

        async def put_both() -> None:
            puts = ((_key(sample) + _OFFER, offer), (_key(sample), data))
            await asyncio.gather(*(self._obstore.put_async(self._store, *put) for put in puts))

        with self._translated():
            asyncio.run(put_both())
        return Staged(sample, None)

    def publish(self, staged: Sequence[Staged]) -> list[str]:
        """They have their names."""
        return []

    def get(self, sample: str) -> bytes:
        """Reads the whole object."""
        return self._read(_key(sample), sample, "blob")

    def offer(self, sample: str) -> bytes:
        """Reads the whole object."""
        return self._read(_key(sample) + _OFFER, sample, "offer")

    def keep_offer(self, sample: str, offer: bytes) -> None:
        """One put."""
        self._put(_key(sample) + _OFFER, offer)

    def exists(self, sample: str) -> bool:
        """One HEAD request."""
        return self._there(_key(sample))

    def delete_many(self, samples: Iterable[str]) -> int:
        """Deletes what is there."""
        keys = [key for sample in samples for key in (_key(sample), _key(sample) + _OFFER)]
        there = [key for key in keys if self._there(key)]
        with self._translated():
            if there:
                self._obstore.delete(self._store, there)
        return sum(not key.endswith(_OFFER) for key in there)

    def names(self) -> Iterator[str]:
        """Every blob."""
        return (entry.sample for entry in self.entries() if not entry.is_offer)

    def entries(self) -> Iterator[Entry]:
        """Lists the store in pages."""
        with self._translated():
            for page in self._obstore.list(self._store):
                for item in page:
                    found = _NAME.fullmatch(str(item["path"]).rsplit("/", 1)[-1])
                    if found is not None:
                        modified_at = item["last_modified"].timestamp()
                        yield Entry(found[1], found[2] is not None, int(item["size"]), modified_at)

    def note(self, name: str, data: bytes) -> None:
        """One put."""
        self._put(f"{_LEDGER}/{name}{_OFFER}", data)

    def notes(self) -> Iterator[bytes]:
        """Every object of the ledger."""
        with self._translated():
            pages = self._obstore.list(self._store, prefix=_LEDGER)
            paths = sorted(str(item["path"]) for page in pages for item in page)
            for path in paths:
                yield bytes(self._obstore.get(self._store, path).bytes())

    def close(self) -> None:
        """Connections end with the object."""

    def _put(self, key: str, data: bytes) -> None:
        with self._translated():
            self._obstore.put(self._store, key, data)

    def _there(self, key: str) -> bool:
        with self._translated():
            try:
                self._obstore.head(self._store, key)
            except FileNotFoundError:
                return False
        return True

    def _read(self, key: str, sample: str, what: str) -> bytes:
        with self._translated():
            try:
                return bytes(self._obstore.get(self._store, key).bytes())
            except FileNotFoundError as error:
                raise SampleGoneError(f"sample {sample}: no {what} in {self.url}") from error

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (self._error, OSError) as error:
            raise StoreUnavailableError(f"blob store {self.url}: {_first_line(error)}") from error


def _key(sample: str) -> str:
    return f"{sample[:2]}/{sample}"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
