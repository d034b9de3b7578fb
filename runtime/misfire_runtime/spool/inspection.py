"""Looks into a spool without changing it, while a vehicle runs on it as well as on a broken machine.

The books are read from a copy of the database in memory; samples are read from their files, each of which
carries its offer. So `export` needs neither a sound database nor a disk that can be written.
"""

from __future__ import annotations

import hashlib
import mimetypes
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from misfire_runtime.errors import SpoolError
from misfire_runtime.messages import Counters, Offer, encode
from misfire_runtime.spool.files import kept_offers
from misfire_runtime.spool.ledger import Hold, Ledger, PendingGroup
from misfire_runtime.spool.schema import snapshot

_BLOCK = 1024 * 1024


@dataclass(frozen=True)
class Inspection:
    """The books of a spool at one moment."""

    counters: Counters
    pending: list[PendingGroup]
    account: list[tuple[str, str, int, int]]
    """(verdict, reason, samples, bytes) of what ended, and of frames that were lost."""
    hold: Hold | None


def inspect(folder: Path) -> Inspection:
    """The books of the spool in `folder`. Raises SpoolError where there is none, or it is damaged."""
    with _ledger(folder) as ledger:
        counters = Counters(**ledger.counters(), lost=ledger.lost())
        return Inspection(counters, ledger.pending(), ledger.account(), ledger.hold())


def verify(folder: Path) -> tuple[int, list[str]]:
    """How many pending samples are whole, and what is wrong with the others, or with the books.

    Raises SpoolError where there is no spool. What a running vehicle uploads meanwhile is no problem.
    """
    with _ledger(folder) as ledger:
        books, pending = Counters(**ledger.counters()), ledger.sizes()
    problems = []
    ended = books.stored + books.pending + books.declined + books.rejected + books.evicted
    if books.captured != ended:
        problems.append(f"the books do not add up: {books.captured} captured, but {ended} accounted for")
    suspects = [sample for sample, size in pending if not _is_whole(folder / "samples" / sample, size)]
    if suspects:
        with _ledger(folder) as ledger:
            left = {sample for sample, _size in ledger.sizes()}
        for sample in left.intersection(suspects):
            problems.append(f"sample {sample}: its file is missing, cut short, or not what was captured")
    return len(pending) - len(suspects), problems


def rejected(folder: Path) -> list[dict[str, Any]]:
    """Rejected samples whose files are kept, the oldest first: id, bytes, trigger, reason."""
    with _ledger(folder) as ledger:
        return [
            {"id": o.id, "bytes": o.size, "trigger": o.trigger.name, "reason": ledger.reason_of(o.id)}
            for o in kept_offers(folder / "rejected")
        ]


def export(folder: Path, out: Path, *, with_rejected: bool) -> tuple[int, list[str]]:
    """Copies samples as OUT/ID.SUFFIX with their offers as OUT/ID.json; how many, and those that are damaged.

    Raises SpoolError where there are no samples to look at, or `out` cannot be written.
    """
    folders = [folder / "samples", *([folder / "rejected"] if with_rejected else [])]
    if not folders[0].is_dir():
        raise SpoolError(f"{folder} is no spool: it has no folder `samples`")
    copied, damaged = 0, []
    try:
        out.mkdir(parents=True, exist_ok=True)
        for files in folders:
            for offer in kept_offers(files):
                if _copy(files / offer.id, offer, out):
                    copied += 1
                else:
                    damaged.append(offer.id)
    except OSError as error:
        raise SpoolError(f"{out}: {error.strerror}") from error
    return copied, damaged


@contextmanager
def _ledger(folder: Path) -> Iterator[Ledger]:
    """A copy of the books of the spool in `folder`."""
    with closing(snapshot(folder / "spool.sqlite")) as copy:
        yield Ledger(copy)


def _is_whole(file: Path, size: int) -> bool:
    digest = hashlib.sha256()
    try:
        for block in _blocks(file, size):
            digest.update(block)
    except OSError:
        return False
    return digest.hexdigest() == file.name


def _copy(file: Path, offer: Offer, out: Path) -> bool:
    """False, and nothing is left, where the file's bytes are not the offer's."""
    if not _is_whole(file, offer.size):
        return False
    suffix = mimetypes.guess_extension(offer.media_type) or ".bin"
    with (out / f"{offer.id}{suffix}").open("wb") as target:
        for block in _blocks(file, offer.size):
            target.write(block)
    (out / f"{offer.id}.json").write_bytes(encode(offer))
    return True


def _blocks(file: Path, size: int) -> Iterator[bytes]:
    with file.open("rb") as source:
        while size > 0 and (block := source.read(min(_BLOCK, size))):
            size -= len(block)
            yield block
