"""Stores blobs by content: the SHA-256 of the bytes is the name, so a second write changes nothing.

There are two implementations: a folder, and an object store (S3 and the others that obstore supports).
`stage` makes one blob's bytes durable, from any number of threads; `publish` gives a group of blobs their
names. In a folder, staging writes and fsyncs a temporary file, and publishing renames all files and fsyncs
the folder once. An object store does everything in one put. After a crash, a final name has a complete blob
or none.

Documents are small files next to the blobs: `offers/` has one per commit group, from which its rows can be
built again (`offers.py`), `labels/` has those of each import of labels (`labels.py`), `verdicts/` has one
per act of a person (`verdicts.py`), `snapshots/` has one per snapshot, `ledger/` has deletions, holds, new
classes and what was published, `cursors/` has how far labels were fetched from each label tool, `bundles/`
has the archive of each published bundle. Documents can be replaced.
"""

from __future__ import annotations

import itertools
import os
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, Protocol, cast

from misfire_fleet.errors import SampleGoneError, StoreError, StoreUnavailableError
from misfire_runtime.clock import wall_time
from misfire_runtime.files import write_through

_TMP = "tmp"
Kind = Literal["offers", "ledger", "labels", "verdicts", "snapshots", "cursors", "bundles"]
DOCUMENTS: tuple[Kind, ...] = ("offers", "ledger", "labels", "verdicts", "snapshots", "cursors", "bundles")
_BLOB = re.compile(r"[0-9a-f]{64}")
_DOCUMENT = re.compile(r"[A-Za-z0-9._-]{1,72}")
"""Long enough for a SHA-256 with an ending."""
_SIGNED_FOR = timedelta(days=7)
"""The longest that S3 allows."""
_PUTS = 16
"""Objects that are put at the same time by an import."""
_ABANDONED_S = 3600.0
"""Age of temporary files that are removed at start; a living writer renames its own within seconds."""


@dataclass(frozen=True)
class Staged:
    """Describes a blob with durable bytes: `temporary` is their path, None if it has its name already."""

    sample: str
    temporary: str | None


@dataclass(frozen=True)
class Document:
    """Holds a file next to the blobs. `name` has at most 72 characters of [A-Za-z0-9._-]."""

    kind: Kind
    name: str
    data: bytes


@dataclass(frozen=True)
class Entry:
    """Describes a blob in a listing. `modified_at`: seconds since 1970."""

    sample: str
    size: int
    modified_at: float


class Blobs(Protocol):
    """Stores the bytes of samples and, next to them, the fleet's documents.

    Every method raises StoreUnavailableError if the blob store does not work now.
    """

    def stage(self, sample: str, data: bytes) -> Staged:
        """Makes bytes durable, not yet under their final name; leaves nothing behind if it fails."""

    def stage_many(self, blobs: Mapping[str, bytes]) -> list[Staged]:
        """Makes many blobs durable at once: faster than one by one, for imports."""

    def publish(self, staged: Sequence[Staged], document: Document | None = None) -> list[str]:
        """Gives staged blobs their names. After a failure it may be called again with the same group.

        Args:
            staged: the blobs of a group.
            document: written durably afterwards, so it never appears before the blobs.

        Returns:
            The ids whose staged bytes are gone; they must be staged again.
        """

    def get(self, sample: str) -> bytes:
        """Returns a blob. Raises SampleGoneError if there is none."""

    def signed_url(self, sample: str) -> str:
        """Returns an address at which anybody can read the blob for a week. Raises StoreError."""

    def exists(self, sample: str) -> bool:
        """Returns True if the blob exists."""

    def delete_many(self, samples: Iterable[str]) -> int:
        """Removes blobs; returns the number of those that existed."""

    def names(self) -> Iterator[str]:
        """Yields the ids of all blobs, in any order."""

    def entries(self) -> Iterator[Entry]:
        """Yields all blobs, in any order."""

    def keep(self, document: Document) -> None:
        """Writes a document durably, and replaces one of the same name."""

    def document(self, kind: Kind, name: str) -> bytes:
        """Returns a document. Raises SampleGoneError if there is none."""

    def documents(self, kind: Kind) -> Iterator[str]:
        """Yields the names of all documents of a kind, in any order."""

    def drop(self, kind: Kind, name: str) -> None:
        """Removes a document if it exists."""

    def close(self) -> None:
        """Frees threads and connections."""


def open_blobs(where: str | Path, *, options: Mapping[str, str] | None = None) -> Blobs:
    """Opens a blob store.

    Args:
        where: a path or file:// URL of a folder, or an s3://, gs:// or az:// URL of an object store.
        options: passed to the object store (endpoint, region, keys). obstore also reads the environment
            variables of each provider, such as AWS_*.

    Raises:
        StoreError: the folder cannot be used, or the URL or an option is invalid.
    """
    text = str(where)
    if "://" not in text:
        return FolderBlobs(Path(text))
    if text.startswith("file://"):
        return FolderBlobs(Path(text.removeprefix("file://")))
    return ObjectBlobs(text, options=options or {})


class FolderBlobs:
    """Stores blobs in a folder: `root/<id>`, with temporary files in `root/tmp/`, and documents.

    The folder is flat, because a group of blobs then needs one fsync of one folder. Spread over 256 folders,
    the same group took six times as long. For more than some millions of blobs, use an object store.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._token, self._number = secrets.token_hex(8), itertools.count()
        try:
            for folder in (_TMP, *DOCUMENTS):
                (root / folder).mkdir(parents=True, exist_ok=True)
            _remove_abandoned(root / _TMP)
            self._folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
            self._documents = {kind: os.open(root / kind, os.O_RDONLY | os.O_DIRECTORY) for kind in DOCUMENTS}
        except OSError as error:
            raise StoreError(f"blob folder {root}: {error.strerror}") from error

    def stage(self, sample: str, data: bytes) -> Staged:
        """Writes and fsyncs a temporary file whose name no other writer uses."""
        temporary = f"{_TMP}/{sample}.{self._token}{next(self._number)}"
        try:
            write_through(temporary, data, mode=0o640, folder=self._folder)
        except OSError as error:
            with suppress(OSError):
                os.unlink(temporary, dir_fd=self._folder)
            raise StoreUnavailableError(f"blob folder {self.root}: {error.strerror}") from error
        return Staged(sample, temporary)

    def stage_many(self, blobs: Mapping[str, bytes]) -> list[Staged]:
        """Writes all files, then makes them durable with one sync instead of an fsync each."""
        staged = []
        try:
            for sample, data in blobs.items():
                temporary = f"{_TMP}/{sample}.{self._token}{next(self._number)}"
                staged.append(Staged(sample, temporary))
                write_through(temporary, data, mode=0o640, folder=self._folder, durable=False)
            os.sync()
        except OSError as error:
            for blob in staged:
                with suppress(OSError):
                    os.unlink(str(blob.temporary), dir_fd=self._folder)
            raise StoreUnavailableError(f"blob folder {self.root}: {error.strerror}") from error
        return staged

    def publish(self, staged: Sequence[Staged], document: Document | None = None) -> list[str]:
        """Renames all files, then fsyncs each folder once: only then the names survive a power cut."""
        try:
            gone = [blob.sample for blob in staged if not self._named(blob)]
            os.fsync(self._folder)
            # After the blobs' names are durable: no document may name a blob that a power cut took.
            if document is not None:
                self._keep(document)
        except OSError as error:
            raise StoreUnavailableError(f"blob folder {self.root}: {error.strerror}") from error
        return gone

    def get(self, sample: str) -> bytes:
        """Reads the whole file."""
        try:
            return (self.root / _checked(sample)).read_bytes()
        except FileNotFoundError as error:
            raise SampleGoneError(f"sample {sample}: no blob in {self.root}") from error
        except OSError as error:
            raise StoreUnavailableError(f"blob {self.root}/{sample}: {error.strerror}") from error

    def signed_url(self, sample: str) -> str:
        """Raises StoreError: a folder has no addresses."""
        raise StoreError(f"blob folder {self.root}: has no signed links; only an object store has them")

    def exists(self, sample: str) -> bool:
        """Returns True if the file exists."""
        return self._size(sample) >= 0

    def delete_many(self, samples: Iterable[str]) -> int:
        """Unlinks files durably; a blob that is already gone is not counted."""
        removed = 0
        try:
            for sample in samples:
                with suppress(FileNotFoundError):
                    os.unlink(_checked(sample), dir_fd=self._folder)
                    removed += 1
            os.fsync(self._folder)
        except OSError as error:
            raise StoreUnavailableError(f"blob folder {self.root}: {error.strerror}") from error
        return removed

    def names(self) -> Iterator[str]:
        """Yields every file whose name is an id."""
        return (name for name in self._listed(self.root) if _BLOB.fullmatch(name))

    def entries(self) -> Iterator[Entry]:
        """Lists the folder once; blobs that are deleted meanwhile are left out."""
        for name in self.names():
            with suppress(FileNotFoundError):
                state = os.stat(name, dir_fd=self._folder)
                yield Entry(name, state.st_size, state.st_mtime)

    def keep(self, document: Document) -> None:
        """Writes a temporary file, renames it, and fsyncs the documents' folder."""
        try:
            self._keep(document)
        except OSError as error:
            raise StoreUnavailableError(f"blob folder {self.root}: {error.strerror}") from error

    def document(self, kind: Kind, name: str) -> bytes:
        """Reads the whole file."""
        path = self.root / kind / _document_named(name)
        try:
            return path.read_bytes()
        except FileNotFoundError as error:
            raise SampleGoneError(f"{path}: there is no such file") from error
        except OSError as error:
            raise StoreUnavailableError(f"{path}: {error.strerror}") from error

    def documents(self, kind: Kind) -> Iterator[str]:
        """Yields every file of the documents' folder."""
        return self._listed(self.root / kind)

    def drop(self, kind: Kind, name: str) -> None:
        """Unlinks a document durably: deleted records must not come back after a power cut."""
        try:
            with suppress(FileNotFoundError):
                os.unlink(_document_named(name), dir_fd=self._documents[kind])
                os.fsync(self._documents[kind])
        except OSError as error:
            raise StoreUnavailableError(f"{self.root / kind / name}: {error.strerror}") from error

    def close(self) -> None:
        """Closes the folders' descriptors. Idempotent."""
        folders, self._folder = [self._folder, *self._documents.values()], -1
        self._documents = {}
        for folder in folders:
            if folder >= 0:
                os.close(folder)

    def _size(self, sample: str) -> int:
        """Returns a blob's size in bytes; -1 if it does not exist."""
        try:
            return os.stat(_checked(sample), dir_fd=self._folder).st_size
        except OSError:
            return -1

    def _listed(self, folder: Path) -> Iterator[str]:
        """Yields the names of a folder's files."""
        try:
            with os.scandir(folder) as entries:
                yield from (entry.name for entry in entries if entry.is_file())
        except OSError as error:
            raise StoreUnavailableError(f"blob folder {folder}: {error.strerror}") from error

    def _keep(self, document: Document) -> None:
        folder, name = self._documents[document.kind], _document_named(document.name)
        temporary = f"{_TMP}/{name}.{self._token}{next(self._number)}"
        try:
            write_through(temporary, document.data, mode=0o640, folder=self._folder)
            os.rename(temporary, name, src_dir_fd=self._folder, dst_dir_fd=folder)
            os.fsync(folder)
        except OSError:
            with suppress(OSError):
                os.unlink(temporary, dir_fd=self._folder)
            raise

    def _named(self, blob: Staged) -> bool:
        if blob.temporary is not None:
            try:
                os.rename(
                    blob.temporary, _checked(blob.sample), src_dir_fd=self._folder, dst_dir_fd=self._folder
                )
                return True
            except FileNotFoundError:
                pass  # an earlier attempt at this group renamed it already, or it was removed as abandoned
        return self.exists(blob.sample)


def _checked(sample: str) -> str:
    """Returns an id that is safe as a file name. Raises SampleGoneError for any other text."""
    # Letters and digits only: without a separator or a dot, no name leads out of the folder.
    if len(sample) != 64 or not sample.isalnum():
        raise SampleGoneError(f"sample {sample[:64]!r}: this is no SHA-256")
    return sample


def _document_named(name: str) -> str:
    """Returns a name that is safe as a file name. Raises SampleGoneError for any other text."""
    if _DOCUMENT.fullmatch(name) is None or name.startswith("."):
        raise SampleGoneError(f"{name[:64]!r} is no name of a document")
    return name


def _remove_abandoned(folder: Path) -> None:
    """Removes temporary files of killed processes: those older than an hour, which no writer still uses."""
    now = wall_time()
    for left in folder.iterdir():
        with suppress(FileNotFoundError):
            if now - left.stat().st_mtime > _ABANDONED_S:
                left.unlink()


class ObjectBlobs:
    """Stores blobs in an object store as `prefix/ab/abcdef...`. A put is durable when it returns."""

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
                # Short: a worker must not hang for minutes; the collector retries on its own, and vehicles
                # keep their samples meanwhile. Plain HTTP is for S3 servers in the local network.
                client_options={"timeout": "30s", "connect_timeout": "5s", "allow_http": True},
                retry_config={"max_retries": 3, "retry_timeout": timedelta(seconds=15)},
            )
        except (BaseError, ValueError) as error:
            raise StoreError(f"blob store {url}: {_first_line(error)}") from error

    def stage(self, sample: str, data: bytes) -> Staged:
        """Puts the object under its final name."""
        try:
            self._obstore.put(self._store, _key(sample), data)
        except (self._error, OSError) as error:
            raise StoreUnavailableError(f"blob store {self.url}: {_first_line(error)}") from error
        return Staged(sample, None)

    def stage_many(self, blobs: Mapping[str, bytes]) -> list[Staged]:
        """Puts the objects, several at a time."""
        with ThreadPoolExecutor(_PUTS) as threads:
            return list(threads.map(self.stage, blobs, blobs.values()))

    def publish(self, staged: Sequence[Staged], document: Document | None = None) -> list[str]:
        """Puts the document; the blobs have their names already."""
        if document is not None:
            self.keep(document)
        return []

    def get(self, sample: str) -> bytes:
        """Reads the whole object."""
        try:
            return bytes(self._obstore.get(self._store, _key(sample)).bytes())
        except FileNotFoundError as error:
            raise SampleGoneError(f"sample {sample}: no blob in {self.url}") from error
        except (self._error, OSError) as error:
            raise StoreUnavailableError(f"blob store {self.url}: {_first_line(error)}") from error

    def signed_url(self, sample: str) -> str:
        """Signs a GET with the store's own keys; nothing is sent."""
        try:
            return str(self._obstore.sign(cast(Any, self._store), "GET", _key(sample), _SIGNED_FOR))
        except (self._error, OSError, ValueError) as error:
            raise StoreError(f"blob store {self.url}: cannot sign links ({_first_line(error)})") from error

    def exists(self, sample: str) -> bool:
        """Sends one HEAD request."""
        try:
            self._obstore.head(self._store, _key(sample))
        except FileNotFoundError:
            return False
        except (self._error, OSError) as error:
            raise StoreUnavailableError(f"blob store {self.url}: {_first_line(error)}") from error
        return True

    def delete_many(self, samples: Iterable[str]) -> int:
        """Deletes the existing blobs in one request."""
        # S3 reports success for a missing object, too, so the existing ones are counted first.
        there = [sample for sample in samples if self.exists(sample)]
        try:
            if there:
                self._obstore.delete(self._store, [_key(sample) for sample in there])
        except (self._error, OSError) as error:
            raise StoreUnavailableError(f"blob store {self.url}: {_first_line(error)}") from error
        return len(there)

    def names(self) -> Iterator[str]:
        """Lists the store in pages."""
        return (entry.sample for entry in self.entries())

    def entries(self) -> Iterator[Entry]:
        """Lists the store in pages."""
        for item in self._listed(None):
            name = str(item["path"]).rsplit("/", 1)[-1]
            if _BLOB.fullmatch(name):
                yield Entry(name, int(item["size"]), item["last_modified"].timestamp())

    def keep(self, document: Document) -> None:
        """Puts the document."""
        key = f"{document.kind}/{_document_named(document.name)}"
        try:
            self._obstore.put(self._store, key, document.data)
        except (self._error, OSError) as error:
            raise StoreUnavailableError(f"blob store {self.url}: {_first_line(error)}") from error

    def document(self, kind: Kind, name: str) -> bytes:
        """Reads the whole object."""
        key = f"{kind}/{_document_named(name)}"
        try:
            return bytes(self._obstore.get(self._store, key).bytes())
        except FileNotFoundError as error:
            raise SampleGoneError(f"{self.url}/{key}: there is no such object") from error
        except (self._error, OSError) as error:
            raise StoreUnavailableError(f"blob store {self.url}: {_first_line(error)}") from error

    def documents(self, kind: Kind) -> Iterator[str]:
        """Lists the store in pages."""
        return (str(item["path"]).rsplit("/", 1)[-1] for item in self._listed(kind))

    def drop(self, kind: Kind, name: str) -> None:
        """Deletes the object."""
        try:
            with suppress(FileNotFoundError):
                self._obstore.delete(self._store, f"{kind}/{_document_named(name)}")
        except (self._error, OSError) as error:
            raise StoreUnavailableError(f"blob store {self.url}: {_first_line(error)}") from error

    def close(self) -> None:
        """Does nothing: connections end with the object."""

    def _listed(self, prefix: str | None) -> Iterator[Any]:
        try:
            for page in self._obstore.list(self._store, prefix=prefix):
                yield from page
        except (self._error, OSError) as error:
            raise StoreUnavailableError(f"blob store {self.url}: {_first_line(error)}") from error


def _key(sample: str) -> str:
    return f"{sample[:2]}/{sample}"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
