"""Keeps selected samples until the fleet has stored them. No crash leaves a sample half in the spool.

add -> file durable, then row committed -> next_offers, read -> settle(verdict) -> row gone, then file gone
many rejections in a row -> hold: nothing is offered, further rejections do not count, until `resume`

The counters are part of the same transactions: captured = stored + pending + declined + rejected + evicted is
true after every commit, and so after every crash. The bytes are bounded. A full spool evicts the lowest
priority first, then the lowest percentile, then the oldest; the account has the number and the reason. Only
one process may open a spool at a time; its threads may share it.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from pydantic import Field

from misfire_runtime.clock import wall_time
from misfire_runtime.errors import DiskFullError, SpoolError
from misfire_runtime.messages import Counters, Declined, Offer, Rejected, Stored, encode
from misfire_runtime.service.logs import Throttle
from misfire_runtime.spool.ballast import Ballast
from misfire_runtime.spool.changes import Changes
from misfire_runtime.spool.files import SampleFiles
from misfire_runtime.spool.ledger import Hold, Ledger, Row
from misfire_runtime.spool.ownership import lock_folder
from misfire_runtime.spool.schema import DamagedDatabaseError, connect, explained
from misfire_runtime.spool.unwritten import UnwrittenCounters
from misfire_runtime.tables import RelativePath, Table

_LOG = logging.getLogger(__name__)
MIB = 1024 * 1024
RESUME = "resume"
"""Name of a file in the spool's folder that requests `resume` from the process that uses the spool."""
T = TypeVar("T")

Terminal = Stored | Declined | Rejected


class SpoolTable(Table):
    """Configures the spool: its folder and its bounds."""

    path: RelativePath = Path("spool")
    max_bytes: int = Field(default=2 * 1024**3, gt=0)
    reserve_bytes: int = Field(default=64 * 1024**2, ge=0)
    queue: int = Field(default=32, ge=1, le=4096, description="chosen frames that may wait for the disk")


@dataclass(frozen=True)
class Pending:
    """Describes a sample that waits for a verdict. `offer` is the JSON to be sent."""

    id: str
    size: int
    priority: int
    offer: bytes


@dataclass(frozen=True)
class AccountLine:
    """Counts the samples and bytes with the same final verdict and reason."""

    verdict: str
    reason: str
    samples: int
    bytes: int


class Spool:
    """Manages a folder of samples and their database. Thread-safe.

    Args:
        path: the folder; created if needed.
        max_bytes: maximum size of all pending files.
        reserve_bytes: bytes of the disk that must stay free for other programs.

    Raises:
        SpoolInUseError: another process has the spool open.
        SpoolError: the folder cannot be used.
    """

    def __init__(self, path: Path, *, max_bytes: int = 2048 * MIB, reserve_bytes: int = 64 * MIB) -> None:
        self.path = Path(path)
        self.max_bytes = max_bytes
        self.reserve_bytes = reserve_bytes
        self._lock = threading.RLock()
        self._often = Throttle(_LOG)
        self._unwritten = UnwrittenCounters()
        self._hold: Hold | None = None
        self._ballast = Ballast(self.path / "ballast")
        self._writing = 0
        self._closed = False
        self._changes = Changes()
        # Before anything else: opening the files removes what is half written.
        self._owner = lock_folder(self.path)
        try:
            self._files = SampleFiles(self.path)
            try:
                self._open()
            except BaseException:
                self._files.close()
                raise
        except BaseException:
            os.close(self._owner)
            raise

    def add(self, payload: bytes, offer: Offer, *, priority: int | None = None) -> bool:
        """Adds a sample durably.

        Args:
            payload: the bytes whose SHA-256 is the offer's id.
            offer: describes the sample.
            priority: 0..9; None uses the offer's.

        Returns:
            False if the sample is pending or settled already. True if it was captured and counted; if
            everything in a full spool is worth more, the new sample itself is evicted.

        Raises:
            DiskFullError: the disk is full; nothing was kept or counted.
            SpoolError: payload and offer do not match, or the spool cannot be written.
        """
        # Checked outside of the lock: the hash of a large sample takes milliseconds.
        if len(payload) != offer.size or hashlib.sha256(payload).hexdigest() != offer.id:
            raise SpoolError(f"sample {offer.id}: the payload's size or hash is not the offer's")
        text = encode(offer)
        rank = offer.priority if priority is None else priority
        # 8 is the size of the file's trailer.
        need = len(payload) + len(text) + 8
        with self._lock:
            self._usable()
            if self._ledger.knows(offer.id):
                return False
            room = self._make_room(offer, need, rank)
            if not room:
                return True
            # Reserves the bytes, so that other threads count them while the file is written without the lock.
            self._writing += need
        try:
            # The file before the row: a file without a row is removed at the next start, while a row without
            # a file would be a lost sample.
            disk = self._files.write(offer.id, payload, text)
            with self._lock, self._commit():
                added = self._ledger.insert(offer, disk=disk, priority=rank, value=_worth(offer), text=text)
        except SpoolError:
            self._take_back(offer.id)
            raise
        finally:
            with self._lock:
                self._writing -= need
        if added:
            self._changes.announce()
        return added

    def next_offers(self, limit: int, *, skip: Collection[str] = (), min_priority: int = 0) -> list[Pending]:
        """Returns the samples to offer next, by priority with ageing (see Ledger).

        Args:
            limit: maximum number of samples.
            skip: ids to leave out.
            min_priority: lowest priority, 0..9.
        """
        with self._lock:
            self._usable()
            return [
                Pending(row.id, row.size, row.priority, row.offer)
                for row in self._ledger.first(limit, skip=skip, min_priority=min_priority)
            ]

    def read(self, sample: str, offset: int, size: int, *, total: int | None = None) -> bytes | None:
        """Returns bytes of a pending sample; None if it is not pending, or its file is damaged.

        A sample with a damaged file is quarantined, counted as rejected, and no longer pending.

        Args:
            sample: id of the sample.
            offset: first byte.
            size: maximum number of bytes.
            total: the sample's size, if the caller knows it (see Pending). Then the call does not take the
                lock, and so does not wait for a commit that is being synced.

        Raises:
            SpoolError: the file cannot be read.
        """
        if total is not None:
            data = self._files.read(sample, offset, size, total=total)
            if data is not None:
                return data
        with self._lock:
            self._usable()
            total = self._ledger.size_of(sample)
            if total is None:
                return None
            data = self._files.read(sample, offset, size, total=total)
            if data is None:
                self._isolate(sample, "damaged in the spool")
            return data

    def settle(self, sample: str, verdict: Terminal) -> bool:
        """Records a final verdict and removes the sample; returns False if nothing changed."""
        if verdict.id != sample:
            raise SpoolError(f"verdict of sample {verdict.id} given for {sample}")
        return bool(self.settle_many([verdict]))

    def settle_many(self, verdicts: Sequence[Terminal]) -> list[Terminal]:
        """Records final verdicts in one commit and removes their samples.

        Returns:
            The verdicts that changed something.

        Raises:
            DiskFullError: the disk is full; no verdict was recorded.
            SpoolError: the database cannot be written; no verdict was recorded.
        """
        with self._lock:
            self._usable()
            news = self._commit_freeing(lambda: self._ledger.settle_many(verdicts))
            self._hold = self._ledger.hold()
        # Without the lock: a settled sample is not captured again, so no other thread uses these files.
        for verdict in news:
            self._discard(verdict.id, rejected=isinstance(verdict, Rejected))
        with self._lock:
            self._ballast.fill(reserve_bytes=self.reserve_bytes)
        self._changes.announce()
        return news

    @property
    def hold(self) -> Hold | None:
        """Returns why nothing is offered since many rejections in a row; None while samples are offered."""
        return self._hold

    def resume(self) -> int:
        """Ends the hold, and makes rejected samples pending again if their files are kept.

        Samples that do not fit into `max_bytes` stay rejected.

        Returns:
            The number of samples that are pending again.

        Raises:
            SpoolError: the files or the database cannot be written.
        """
        with self._lock:
            self._usable()
            room = self.max_bytes - self._ledger.disk_bytes - self._writing
            taken = self._files.take_back(room)
            try:
                again = self._commit_freeing(lambda: self._lift(taken))
            except SpoolError:
                for sample in taken:
                    self._discard(sample, rejected=True)
                raise
            self._hold = None
            for sample in taken.keys() - again:  # their verdicts are older than those that are remembered
                self._discard(sample)
        _LOG.warning("uploads_resumed", extra={"fields": {"offered_again": len(again)}})
        self._changes.announce()
        return len(again)

    def _lift(self, taken: Mapping[str, tuple[Offer, int]]) -> set[str]:
        """Ends the hold in the database; returns the ids that are pending again."""
        self._ledger.lift()
        return {
            sample
            for sample, (offer, disk) in taken.items()
            if self._ledger.offer_again(offer, disk=disk, value=_worth(offer), text=encode(offer))
        }

    def resume_if_asked(self) -> bool:
        """Resumes if another process requested it (see RESUME); returns True if so. Raises SpoolError."""
        request = self.path / RESUME
        if not request.exists():
            return False
        self.resume()
        try:
            request.unlink(missing_ok=True)
        except OSError as error:
            raise SpoolError(f"{request}: {error.strerror}; remove it, or every hold ends at once") from error
        return True

    def lose(self, reason: str, samples: int = 1) -> None:
        """Counts selected frames that never became samples; written to disk like the counters of `count`."""
        with self._lock:
            self._unwritten.lose(reason, samples)
            self._flush_sometimes()

    def count(self, **increments: int) -> None:
        """Adds to the counters in FREE_COUNTERS: frames, frames_dropped, bytes_sent, ...

        They are written to disk with the next commit, or within seconds.

        Raises:
            SpoolError: a name is not in FREE_COUNTERS.
        """
        with self._lock:
            self._unwritten.count(increments)
            self._flush_sometimes()

    def backlog(self) -> tuple[int, float]:
        """Returns the bytes of all pending samples, and the age of the oldest in seconds; 0 if none waits."""
        with self._lock:
            self._usable()
            size, captured_at = self._ledger.backlog()
        # By the wall clock, which survives a restart of the machine; it may have been set meanwhile.
        age_s = 0.0 if captured_at is None else wall_time() - captured_at
        return size, min(max(0.0, age_s), 1e9)

    def counters(self) -> Counters:
        """Returns all counters; `pending` is the number of rows."""
        with self._lock:
            self._usable()
            values = self._unwritten.added_to(self._ledger.counters())
            return Counters(**values, lost=self._unwritten.lost)

    def account(self) -> list[AccountLine]:
        """Returns number and bytes of declined, rejected and evicted samples, by reason."""
        with self._lock:
            self._usable()
            return [AccountLine(*line) for line in self._ledger.account()]

    def pending_bytes(self) -> int:
        """Returns the size in bytes of all pending files."""
        with self._lock:
            self._usable()
            return self._ledger.disk_bytes

    @property
    def version(self) -> int:
        """Returns a number that increases with every sample added or settled."""
        return self._changes.version

    def listen(self, callback: Callable[[], None]) -> None:
        """Registers a function to call, on any thread, after a change; it must return at once."""
        self._changes.listen(callback)

    def wait_empty(self, timeout_s: float) -> bool:
        """Waits until nothing is pending; returns False after `timeout_s`."""
        return self._changes.wait_until(self._empty, timeout_s)

    def _empty(self) -> bool:
        with self._lock:
            self._usable()
            return self._ledger.empty()

    @property
    def session(self) -> int:
        """Returns how often this spool has been opened."""
        return self._session

    def close(self) -> None:
        """Writes the counters, closes all files and releases the lock. Idempotent."""
        with self._lock:
            if self._closed:
                return
            self._flush()
            self._closed = True
            self._files.close()
            self._ledger.close()
            os.close(self._owner)

    def __enter__(self) -> Spool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> None:
        """Opens the database, rebuilds it if it is damaged, and makes rows and files consistent."""
        database = self.path / "spool.sqlite"
        try:
            self._ledger = self._with_ballast(lambda: Ledger(connect(database)))
            rebuilt = False
        except DamagedDatabaseError as error:
            _LOG.error("%s; it goes to quarantine and is rebuilt from the samples", error)
            # With its side files: a new database must not find the log of the damaged one.
            for part in (database, *(database.with_name(database.name + end) for end in ("-wal", "-shm"))):
                if part.exists():
                    part.rename(self._files.quarantine / f"{part.name}.{os.urandom(4).hex()}")
            self._ledger = self._with_ballast(lambda: Ledger(connect(database)))
            rebuilt = True
            self._files.take_back(self.max_bytes)  # the record of their rejection is lost
        try:
            self._repair(adopt=rebuilt)
            self._session = self._commit_freeing(self._ledger.begin_session)
            self._hold = self._ledger.hold()
            self._unwritten.restore_lost(self._ledger.lost())
            self._ballast.fill(reserve_bytes=self.reserve_bytes)
            with suppress(SpoolError):  # no room for it now: repeated while the uplink runs
                self.resume_if_asked()
        except BaseException:
            self._ledger.close()
            raise

    def _repair(self, *, adopt: bool) -> None:
        """Makes rows and files consistent.

        Rows without a complete file are counted as rejected. Files without a row were never counted: they are
        removed, or added (`adopt`) if the database is new.
        """
        rows = dict(self._ledger.lengths())
        files = set(self._files.names())
        for sample, disk in rows.items():
            if sample not in files or self._files.length(sample) != disk:
                self._isolate(sample, "file missing or cut short")
        for name in files - set(rows):
            offer = self._files.recover(name) if adopt else None
            if offer is not None:
                with self._commit():
                    self._ledger.insert(
                        offer,
                        disk=self._files.length(name),
                        priority=offer.priority,
                        value=_worth(offer),
                        text=encode(offer),
                    )
            elif adopt:
                self._files.isolate(name)
            elif self._ledger.verdict_of(name) == "rejected":
                self._files.reject(name)
            else:
                self._files.remove(name)

    def _isolate(self, sample: str, reason: str) -> None:
        _LOG.error("sample %s: %s; quarantined", sample, reason)
        self._commit_freeing(lambda: self._ledger.drop(sample, verdict="damaged", reason=reason))
        self._files.isolate(sample)

    def _make_room(self, offer: Offer, need: int, priority: int) -> bool:
        """Evicts less valuable samples until `need` bytes fit; returns False if the new one was evicted."""
        over = self._ledger.disk_bytes + self._writing + need - self.max_bytes
        short = need + self.reserve_bytes - self._free_bytes()
        # On a full disk the files of rejected samples go first: the fleet does not want them.
        while short > 0 and (oldest := self._files.oldest_rejected) is not None:
            short -= self._files.forget_rejected(oldest)
        if over <= 0 and short <= 0:
            return True
        victims = self._ledger.worth_less(max(over, short), priority=priority, value=_worth(offer))
        # Before `refuse`: on a full disk nothing is counted, and the caller counts the frame as lost.
        if victims is None and short > 0:
            raise DiskFullError(
                f"no room for sample {offer.id}: {need} bytes beside a reserve of {self.reserve_bytes} "
                f"are needed on the disk of {self.path}"
            )
        if victims is None:
            reason = "larger than the spool" if need > self.max_bytes else "spool full, worth least"
            self._commit_freeing(lambda: self._ledger.refuse(offer, reason=reason))
            return False
        self._commit_freeing(lambda: self._evict(victims))
        for victim in victims:
            self._discard(victim.id)
        return True

    def _evict(self, victims: Sequence[Row]) -> None:
        for victim in victims:
            self._ledger.drop(victim.id, verdict="evicted", reason=_eviction_reason(victim))

    def _take_back(self, sample: str) -> None:
        """Removes a file whose row could not be written, unless another thread has added the same sample."""
        with self._lock:
            if self._ledger.size_of(sample) is None:
                self._discard(sample)

    def _discard(self, sample: str, *, rejected: bool = False) -> None:
        """Removes the file of a sample that is no longer pending; a rejected one is kept for a while."""
        try:
            if rejected:
                self._files.reject(sample)
                return
            self._files.remove(sample)
            self._files.forget_rejected(sample)  # of one that the fleet has after all
        except OSError as error:
            _LOG.error("spool file of sample %s: %s; removed at the next start", sample, error)

    def _free_bytes(self) -> int:
        disk = os.statvfs(self.path)
        return disk.f_bavail * disk.f_frsize

    def _commit_freeing(self, work: Callable[[], T]) -> T:
        """Commits `work`, which frees room. On a full disk, reuses the WAL file, then frees the ballast."""

        def commit() -> T:
            with self._commit():
                return work()

        try:
            return commit()
        except DiskFullError:
            self._ledger.reuse_log()
        return self._with_ballast(commit)

    def _with_ballast(self, work: Callable[[], T]) -> T:
        """Repeats `work` while the disk is full, freeing a step of the ballast each time."""
        while True:
            try:
                return work()
            except DiskFullError:
                if not self._ballast.give():
                    raise

    @contextmanager
    def _commit(self) -> Iterator[None]:
        """Opens a transaction that also writes the counters in memory."""
        try:
            with self._ledger.transaction():
                yield
                self._unwritten.write(self._ledger)
            self._unwritten.written()
        except sqlite3.OperationalError as error:
            raise explained(error, self.path / "spool.sqlite") from error
        except sqlite3.DatabaseError as error:
            raise SpoolError(f"spool {self.path}: {error}; restart to repair it") from error

    def _flush_sometimes(self) -> None:
        if self._unwritten.due and not self._closed:
            self._flush()

    def _flush(self) -> None:
        self._unwritten.tried()
        if self._unwritten.any:
            try:
                with self._commit():
                    pass
            except SpoolError as error:
                self._often.log(logging.ERROR, "counters_not_written", {"problem": str(error)})

    def _usable(self) -> None:
        if self._closed:
            raise SpoolError(f"spool {self.path} is closed")


def _worth(offer: Offer) -> float:
    """Returns the worth of a sample for eviction, 0..1: its highest percentile.

    A random sample has 1, because evicting random samples by score would bias the random stream.
    """
    if offer.trigger.random:
        return 1.0
    # Without percentiles nothing is known, so the sample is of middle worth.
    return max(offer.percentiles.values(), default=0.5)


def _eviction_reason(row: Row) -> str:
    return f"spool full, priority {row.priority}"
