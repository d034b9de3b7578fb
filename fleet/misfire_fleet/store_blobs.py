"""Blobs by content: the SHA-256 of the bytes is the name, so writing twice is writing once.

Two homes behind one interface: a folder (tmp file, fsync, rename, fsync of the folder) and an object store
(S3 and everything else that obstore speaks). `put_many` returns only when all of a group is durable; a crash
in the middle leaves whole blobs or none, never a part under a final name.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol, cast

from misfire_fleet.errors import SampleGoneError, StoreError, StoreUnavailableError
from misfire_runtime.clock import wall_time

_TMP = "tmp"
_ABANDONED_S = 3600.0


class Blobs(Protocol):
    """Where the bytes of samples live."""

    def put_many(self, blobs: Sequence[tuple[str, bytes]]) -> None:
        """Makes (id, bytes) durable. Raises StoreUnavailableError; a part of the group may then be there."""

    def get(self, sample: str) -> bytes:
        """Raises SampleGoneError where there is none, StoreUnavailableError where it cannot be read now."""

    def exists(self, sample: str) -> bool:
        """True where the blob is there."""

    def delete_many(self, samples: Iterable[str]) -> int:
        """Removes blobs and counts those that were there."""

    def names(self) -> Iterator[str]:
        """All ids, in no order."""

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
    """`root/<id>`: one file per blob in one flat folder, and `root/tmp/` for those being written.

    Flat, because a group of blobs then needs one fsync of one folder; spread over 256 folders the same group
    took six times as long. Where a folder would hold more than some millions of files, use an object store.
    """

    def __init__(self, root: Path, *, writers: int = 8) -> None:
        self.root = root
        self._tmp = root / _TMP
        self._pool = ThreadPoolExecutor(writers, thread_name_prefix="blob")
        try:
            (root / _TMP).mkdir(parents=True, exist_ok=True)
            _remove_abandoned(root / _TMP)
        except OSError as error:
            raise StoreError(f"blob folder {root}: {error.strerror}") from error

    def put_many(self, blobs: Sequence[tuple[str, bytes]]) -> None:
        """Files are synced side by side (the disk merges them), then named, then the folder is synced."""
        fresh = [blob for blob in blobs if not self._whole(blob[0], len(blob[1]))]
        try:
            written = self._pool.map(self._write, fresh) if len(fresh) > 1 else map(self._write, fresh)
            for temporary, (sample, _) in zip(list(written), fresh, strict=True):
                temporary.rename(self.root / sample)
            _sync_folder(self.root)
        except OSError as error:
            raise StoreUnavailableError(f"blob folder {self.root}: {error.strerror}") from error

    def get(self, sample: str) -> bytes:
        """Reads the whole file."""
        try:
            return self._path(sample).read_bytes()
        except FileNotFoundError as error:
            raise SampleGoneError(f"sample {sample}: no blob in {self.root}") from error
        except OSError as error:
            raise StoreUnavailableError(f"blob {self.root}/{sample}: {error.strerror}") from error

    def exists(self, sample: str) -> bool:
        """True where the file is there."""
        return self._path(sample).is_file()

    def delete_many(self, samples: Iterable[str]) -> int:
        """Unlinks; a blob that is gone already does not count."""
        removed = 0
        for sample in samples:
            try:
                self._path(sample).unlink()
                removed += 1
            except FileNotFoundError:
                continue
            except OSError as error:
                raise StoreUnavailableError(f"blob {self.root}/{sample}: {error.strerror}") from error
        return removed

    def names(self) -> Iterator[str]:
        """Every blob."""
        return (entry.name for entry in os.scandir(self.root) if entry.is_file())

    def close(self) -> None:
        """Ends the writers."""
        self._pool.shutdown()

    def _whole(self, sample: str, size: int) -> bool:
        try:
            return self._path(sample).stat().st_size == size
        except OSError:
            return False

    def _path(self, sample: str) -> Path:
        if len(sample) != 64 or not sample.isalnum():
            raise SampleGoneError(f"sample {sample[:64]!r}: this is no SHA-256")
        return self.root / sample

    def _write(self, blob: tuple[str, bytes]) -> Path:
        sample, data = blob
        temporary = self._tmp / f"{sample}.{secrets.token_hex(4)}"
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(handle, view) :]
            os.fsync(handle)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        finally:
            os.close(handle)
        return temporary


def _remove_abandoned(folder: Path) -> None:
    """Temporaries of processes that were killed: an hour old, so that no other writer's is taken away."""
    now = wall_time()
    for left in folder.iterdir():
        with suppress(FileNotFoundError):
            if now - left.stat().st_mtime > _ABANDONED_S:
                left.unlink()


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class ObjectBlobs:
    """`prefix/ab/abcdef...` in an object store; a put is durable when it returns."""

    def __init__(self, url: str, *, options: Mapping[str, str], writers: int = 16) -> None:
        import obstore
        from obstore.exceptions import BaseError

        self.url, self.options = url, dict(options)
        self._obstore = obstore
        self._error = BaseError
        self._pool = ThreadPoolExecutor(writers, thread_name_prefix="blob")
        try:
            self._store: Any = obstore.store.from_url(
                url,
                config=cast(Any, self.options),
                client_options={"timeout": "30s", "connect_timeout": "5s", "allow_http": True},
                retry_config={"max_retries": 3, "retry_timeout": timedelta(seconds=15)},
            )
        except (BaseError, ValueError) as error:
            raise StoreError(f"blob store {url}: {_first_line(error)}") from error

    def put_many(self, blobs: Sequence[tuple[str, bytes]]) -> None:
        """Side by side; the first failure is raised after the others ended."""
        try:
            list(self._pool.map(lambda blob: self._obstore.put(self._store, _key(blob[0]), blob[1]), blobs))
        except (self._error, OSError) as error:
            raise StoreUnavailableError(f"blob store {self.url}: {_first_line(error)}") from error

    def get(self, sample: str) -> bytes:
        """Reads the whole object."""
        try:
            return bytes(self._obstore.get(self._store, _key(sample)).bytes())
        except FileNotFoundError as error:
            raise SampleGoneError(f"sample {sample}: no blob in {self.url}") from error
        except (self._error, OSError) as error:
            raise StoreUnavailableError(f"blob store {self.url}: {_first_line(error)}") from error

    def exists(self, sample: str) -> bool:
        """One HEAD request."""
        try:
            self._obstore.head(self._store, _key(sample))
        except FileNotFoundError:
            return False
        except (self._error, OSError) as error:
            raise StoreUnavailableError(f"blob store {self.url}: {_first_line(error)}") from error
        return True

    def delete_many(self, samples: Iterable[str]) -> int:
        """Deletes what is there."""
        there = [sample for sample in samples if self.exists(sample)]
        try:
            if there:
                self._obstore.delete(self._store, [_key(sample) for sample in there])
        except (self._error, OSError) as error:
            raise StoreUnavailableError(f"blob store {self.url}: {_first_line(error)}") from error
        return len(there)

    def names(self) -> Iterator[str]:
        """Lists the store in pages."""
        for page in self._obstore.list(self._store):
            yield from (str(entry["path"]).rsplit("/", 1)[-1] for entry in page)

    def close(self) -> None:
        """Ends the writers."""
        self._pool.shutdown()


def _key(sample: str) -> str:
    return f"{sample[:2]}/{sample}"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
