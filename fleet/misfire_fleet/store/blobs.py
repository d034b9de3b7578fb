"""Blobs by content: the SHA-256 of the bytes is the name, so writing twice is writing once.

Two homes behind one interface: a folder and an object store (S3 and everything else that obstore speaks).
`stage` makes one blob's bytes durable, from as many threads as the caller likes; `publish` gives a group of
them their names. In a folder that is: tmp file and fsync; then renames and one fsync of the folder for the
group. An object store does all of it in one put. A crash leaves whole blobs or none under a final name.

Documents lie beside the blobs: `offers/` has one per commit group, with what is needed to build its rows
again (`store_offers`), `ledger/` has what was deleted and held. They are small, and can be written anew.
"""

from __future__ import annotations

import itertools
import os
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, Protocol, cast

from misfire_fleet.errors import SampleGoneError, StoreError, StoreUnavailableError
from misfire_runtime.clock import wall_time
from misfire_runtime.files import write_through

_TMP = "tmp"
Kind = Literal["offers", "ledger"]
DOCUMENTS: tuple[Kind, ...] = ("offers", "ledger")
_BLOB = re.compile(r"[0-9a-f]{64}")
_DOCUMENT = re.compile(r"[A-Za-z0-9.-]{1,64}")
_ABANDONED_S = 3600.0


@dataclass(frozen=True)
class Staged:
    """A blob whose bytes are durable; `temporary` is where, None where it has its name already."""

    sample: str
    temporary: str | None


@dataclass(frozen=True)
class Document:
    """A small file beside the blobs; `name` has at most 64 characters of [A-Za-z0-9.-]."""

    kind: Kind
    name: str
    data: bytes


@dataclass(frozen=True)
class Entry:
    """A blob as a listing shows it. `modified_at`: seconds since 1970."""

    sample: str
    size: int
    modified_at: float


class Blobs(Protocol):
    """Where the bytes of samples live, and beside them the documents of their fleet."""

    def stage(self, sample: str, data: bytes) -> Staged:
        """Makes bytes durable, not yet under their name. Raises StoreUnavailableError, with nothing left."""

    def publish(self, staged: Sequence[Staged], document: Document | None = None) -> list[str]:
        """Names what was staged; returns the ids whose staged bytes are gone, which must be staged anew.

        `document` is written durably in the same go; it is not seen before the blobs are.
        Raises StoreUnavailableError; may be called again with the same group.
        """

    def get(self, sample: str) -> bytes:
        """Raises SampleGoneError where there is none, StoreUnavailableError where it cannot be read now."""

    def exists(self, sample: str) -> bool:
        """True where the blob is there."""

    def delete_many(self, samples: Iterable[str]) -> int:
        """Removes blobs and counts those that were there."""

    def names(self) -> Iterator[str]:
        """All ids, in no order."""

    def entries(self) -> Iterator[Entry]:
        """All blobs, in no order. Raises StoreUnavailableError."""

    def keep(self, document: Document) -> None:
        """Writes a document durably; one of the same name is replaced. Raises StoreUnavailableError."""

    def document(self, kind: Kind, name: str) -> bytes:
        """Raises SampleGoneError where there is none, StoreUnavailableError where it cannot be read now."""

    def documents(self, kind: Kind) -> Iterator[str]:
        """The names of all documents of a kind, in no order. Raises StoreUnavailableError."""

    def drop(self, kind: Kind, name: str) -> None:
        """Removes a document, where it is there. Raises StoreUnavailableError."""

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
    """`root/<id>`: one file per blob in one flat folder; `root/tmp/` for those being written; documents.

    Flat, because a group of blobs then needs one fsync of one folder; spread over 256 folders the same group
    took six times as long. Where a folder would hold more than some millions of files, use an object store.
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
        """Written through to the disk, under a name that no other writer has."""
        temporary = f"{_TMP}/{sample}.{self._token}{next(self._number)}"
        try:
            write_through(temporary, data, mode=0o640, folder=self._folder)
        except OSError as error:
            with suppress(OSError):
                os.unlink(temporary, dir_fd=self._folder)
            raise StoreUnavailableError(f"blob folder {self.root}: {error.strerror}") from error
        return Staged(sample, temporary)

    def publish(self, staged: Sequence[Staged], document: Document | None = None) -> list[str]:
        """Renames all, then one fsync of each folder."""
        try:
            gone = [blob.sample for blob in staged if not self._named(blob)]
            os.fsync(self._folder)
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

    def exists(self, sample: str) -> bool:
        """True where the file is there."""
        return self._size(sample) >= 0

    def delete_many(self, samples: Iterable[str]) -> int:
        """Unlinks, durably; a blob that is gone already does not count."""
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
        """Every blob."""
        return (name for name in self._listed(self.root) if _BLOB.fullmatch(name))

    def entries(self) -> Iterator[Entry]:
        """One pass over the folder."""
        for name in self.names():
            with suppress(FileNotFoundError):
                state = os.stat(name, dir_fd=self._folder)
                yield Entry(name, state.st_size, state.st_mtime)

    def keep(self, document: Document) -> None:
        """Temporary, rename, fsync of the documents' folder."""
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
        """Every file of the documents' folder."""
        return self._listed(self.root / kind)

    def drop(self, kind: Kind, name: str) -> None:
        """Unlinks, durably: what was deleted must not come back with the next power cut."""
        try:
            with suppress(FileNotFoundError):
                os.unlink(_document_named(name), dir_fd=self._documents[kind])
                os.fsync(self._documents[kind])
        except OSError as error:
            raise StoreUnavailableError(f"{self.root / kind / name}: {error.strerror}") from error

    def close(self) -> None:
        """Lets go of the folders. Idempotent."""
        folders, self._folder = [self._folder, *self._documents.values()], -1
        self._documents = {}
        for folder in folders:
            if folder >= 0:
                os.close(folder)

    def _size(self, sample: str) -> int:
        """In bytes; -1 where there is no such file."""
        try:
            return os.stat(_checked(sample), dir_fd=self._folder).st_size
        except OSError:
            return -1

    def _listed(self, folder: Path) -> Iterator[str]:
        """The names of its files."""
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
                pass  # an earlier attempt at this group came as far as this, or the temporary was swept
        return self.exists(blob.sample)


def _checked(sample: str) -> str:
    """The name, where it can be one."""
    if len(sample) != 64 or not sample.isalnum():
        raise SampleGoneError(f"sample {sample[:64]!r}: this is no SHA-256")
    return sample


def _document_named(name: str) -> str:
    """The name, where it can be one."""
    if _DOCUMENT.fullmatch(name) is None or name.startswith("."):
        raise SampleGoneError(f"{name[:64]!r} is no name of a document")
    return name


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

    def stage(self, sample: str, data: bytes) -> Staged:
        """One put, which is durable, and named, when it returns."""
        try:
            self._obstore.put(self._store, _key(sample), data)
        except (self._error, OSError) as error:
            raise StoreUnavailableError(f"blob store {self.url}: {_first_line(error)}") from error
        return Staged(sample, None)

    def publish(self, staged: Sequence[Staged], document: Document | None = None) -> list[str]:
        """The blobs have their names; one put for the document."""
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
        return (entry.sample for entry in self.entries())

    def entries(self) -> Iterator[Entry]:
        """Lists the store in pages."""
        for item in self._listed(None):
            name = str(item["path"]).rsplit("/", 1)[-1]
            if _BLOB.fullmatch(name):
                yield Entry(name, int(item["size"]), item["last_modified"].timestamp())

    def keep(self, document: Document) -> None:
        """One put."""
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
        """One delete."""
        try:
            with suppress(FileNotFoundError):
                self._obstore.delete(self._store, f"{kind}/{_document_named(name)}")
        except (self._error, OSError) as error:
            raise StoreUnavailableError(f"blob store {self.url}: {_first_line(error)}") from error

    def close(self) -> None:
        """Connections end with the object."""

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
