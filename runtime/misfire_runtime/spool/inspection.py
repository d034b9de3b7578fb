"""Reads a spool without changing it, also while a vehicle uses it, and on a damaged machine.

The counters are read from a copy of the database in memory, the samples from their files, each of which
contains its offer. So `export` needs neither a sound database nor a writable disk.
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

# Bounds the memory: `export` copies videos on machines with little of it.
_BLOCK = 1024 * 1024


@dataclass(frozen=True)
class Inspection:
    """Holds the content of a spool's database at one moment."""

    counters: Counters
    pending: list[PendingGroup]
    account: list[tuple[str, str, int, int]]
    """(verdict, reason, samples, bytes) of samples that are no longer pending, and of lost frames."""
    hold: Hold | None


def inspect(folder: Path) -> Inspection:
    """Reads the database of a spool.

    Args:
        folder: folder of the spool.

    Raises:
        SpoolError: there is no spool, or its database is damaged.
    """
    with _ledger(folder) as ledger:
        counters = Counters(**ledger.counters(), lost=ledger.lost())
        return Inspection(counters, ledger.pending(), ledger.account(), ledger.hold())


def verify(folder: Path) -> tuple[int, list[str]]:
    """Checks the files of all pending samples, and whether the counters add up.

    Samples that a running vehicle uploads during the check are not reported.

    Args:
        folder: folder of the spool.

    Returns:
        The number of intact samples, and a sentence per problem.

    Raises:
        SpoolError: there is no spool, or its database is damaged.
    """
    with _ledger(folder) as ledger:
        counters, pending = Counters(**ledger.counters()), ledger.sizes()
    problems = []
    if counters.captured != counters.accounted:
        found = f"{counters.captured} captured, but {counters.accounted} accounted for"
        problems.append(f"the counters do not add up: {found}")
    suspects = [sample for sample, size in pending if not _is_whole(folder / "samples" / sample, size)]
    if suspects:
        # A second copy: a suspect that is no longer pending was uploaded, and its file removed, meanwhile.
        with _ledger(folder) as ledger:
            left = {sample for sample, _size in ledger.sizes()}
        for sample in left.intersection(suspects):
            problems.append(f"sample {sample}: its file is missing, cut short, or not what was captured")
    return len(pending) - len(suspects), problems


def rejected(folder: Path) -> list[dict[str, Any]]:
    """Returns id, bytes, trigger and reason of the rejected samples with a file, the oldest first."""
    with _ledger(folder) as ledger:
        return [
            {"id": o.id, "bytes": o.size, "trigger": o.trigger.name, "reason": ledger.reason_of(o.id)}
            for o in kept_offers(folder / "rejected")
        ]


def export(folder: Path, out: Path, *, with_rejected: bool) -> tuple[int, list[str]]:
    """Copies samples to OUT/ID.SUFFIX and their offers to OUT/ID.json.

    Args:
        folder: folder of the spool.
        out: folder to write to; created if needed.
        with_rejected: copies rejected samples, too.

    Returns:
        The number of copied samples, and the ids of damaged ones.

    Raises:
        SpoolError: there is no spool, or `out` cannot be written.
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
    """Opens a copy of a spool's database."""
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
    """Copies one sample; returns False, and copies nothing, if its bytes are not those of the offer."""
    # The hash comes first: a damaged sample must not leave a half copy behind.
    if not _is_whole(file, offer.size):
        return False
    # A media type without a known suffix is still worth exporting.
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
