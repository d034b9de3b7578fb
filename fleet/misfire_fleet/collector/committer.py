"""Stores complete transfers: workers verify and write them concurrently, a committer commits them in groups.

whole -> workers: hash, kind, pixels, bytes durable -> committer: names and rows durable -> `stored`
One worker does all steps of a sample, so a sample changes threads only once. While a group is committed, the
next one forms: groups grow with the load, and no sample waits for a timer.

A sample is rejected only on proof about the sample itself: its bytes, or a row that the database refuses
while it accepts others. Every other failure is a problem of this collector: the vehicle gets `busy` and keeps
the sample.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from misfire_fleet.collector.health.breaker import Breaker
from misfire_fleet.collector.health.metrics import CollectorMetrics
from misfire_fleet.collector.health.setbacks import Setbacks
from misfire_fleet.collector.replies import Replies
from misfire_fleet.collector.settings import CollectorSettings
from misfire_fleet.collector.transfers import Key, Transfer, Transfers
from misfire_fleet.collector.turns import Turns
from misfire_fleet.collector.verify import HashMismatchError, verify
from misfire_fleet.decoding.decoder import Verified
from misfire_fleet.errors import RowRefusedError, StoreUnavailableError
from misfire_fleet.store import Store
from misfire_fleet.store.blobs import Staged
from misfire_fleet.store.offers import capture_time
from misfire_fleet.store.records import NewSample, Outcome
from misfire_runtime.clock import wall_time
from misfire_runtime.errors import ImageError
from misfire_runtime.messages import Busy, Declined, Rejected, Stored
from misfire_runtime.service.worker import Worker, guarded

log = logging.getLogger(__name__)

_MAX_SPOILED = 2
"""Attempts with a wrong hash before the third one decides: equal bytes each time are the vehicle's own."""
_RETRIES_ALONE = 4
"""After this many retries the collector tests whether the store accepts other samples."""
_RETRY_S = (0.2, 0.5, 1.0, 2.0, 5.0)
"""Seconds before each retry; the last one repeats. Short first: most failures are a lock or a reconnect."""
_END_S = 30.0
"""Time that all workers together, and then the last commit, may take when the collector ends."""

Stage = Literal["check", "blobs", "rows"]


@dataclass(frozen=True)
class _Whole:
    transfer: Transfer
    sample: NewSample
    staged: Staged


class Committer:
    """Runs the workers and the thread that commits.

    Args:
        store: receives the samples.
        name: name of the collector, stored with each sample.
        settings: number of workers, group sizes and the decoder's limits.
        transfers: closes a sample's transfer when its fate is decided.
        breaker: counts failures and successes of the store and the checks.
        setbacks: counts failures per sample.
        metrics: counts and measures.
        replies: sends the verdicts.
    """

    def __init__(
        self,
        store: Store,
        *,
        name: str,
        settings: CollectorSettings,
        transfers: Transfers,
        breaker: Breaker,
        setbacks: Setbacks,
        metrics: CollectorMetrics,
        replies: Replies,
    ) -> None:
        self._store, self._name, self._settings = store, name, settings
        self._transfers, self._metrics, self._replies = transfers, metrics, replies
        self._decoder = settings.decoder()
        self._breaker, self._setbacks = breaker, setbacks
        self._whole: Turns[Transfer] = Turns()
        self._large: Turns[tuple[Transfer, bytes]] = Turns()
        self._durable: queue.SimpleQueue[_Whole | None] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._count_failure = metrics.failures.labels("worker").inc
        self._workers = [
            self._worker(f"worker-{n}", self._work, wake=self._whole.close) for n in range(settings.workers)
        ]
        # As many as the decoder accepts costly samples at once, so no worker waits for a place in its lane.
        self._large_workers = [
            self._worker(f"large-worker-{n}", self._work_large, wake=self._large.close)
            for n in range(self._decoder.workers - 1)
        ]
        self._last = Worker(
            "committer",
            self._commit,
            stop=self._stop,
            wake=lambda: self._durable.put(None),
            on_failure=metrics.failures.labels("committer").inc,
        )
        self._began: dict[int, tuple[Stage, float]] = {}
        self._done_at = time.monotonic()
        self._seconds = {stage: metrics.commit_seconds.labels(stage) for stage in ("blobs", "rows")}

    def start(self) -> None:
        """Starts all threads, here and not on demand: later there may be no memory for another one."""
        for worker in (*self._workers, *self._large_workers, self._last):
            worker.start()

    def put(self, transfer: Transfer) -> None:
        """Queues a complete transfer."""
        self._whole.put(transfer.offer.vehicle, transfer)

    @property
    def alive(self) -> bool:
        """Returns False if a thread has died."""
        return all(worker.alive for worker in (*self._workers, *self._large_workers, self._last))

    def busy_s(self, stage: Stage, now: float) -> float:
        """Returns for how long the longest running work of a stage has been running; 0 if there is none."""
        running = [now - began for of, began in list(self._began.values()) if of == stage]
        return max(running, default=0.0)

    def stuck_s(self, now: float) -> float:
        """Returns for how long complete samples have waited without one being stored or rejected."""
        return min(self._transfers.oldest_whole_s(now), now - self._done_at)

    def close(self) -> None:
        """Verifies and commits the queued samples and ends. It does not wait for a store that is down."""
        until = time.monotonic() + _END_S
        # The workers first: they pass samples that turn out to be costly to the large workers.
        for worker in (*self._workers, *self._large_workers):
            worker.close(timeout_s=until - time.monotonic())
        # After the workers, which still decode; the committer does not need it.
        self._decoder.close()
        self._last.close(timeout_s=_END_S)

    def _worker(
        self, name: str, work: Callable[[threading.Event], None], *, wake: Callable[[], None]
    ) -> Worker:
        return Worker(name, work, stop=self._stop, wake=wake, on_failure=self._count_failure)

    # ---- workers

    def _work(self, _stop: threading.Event) -> None:
        while (transfer := self._whole.take()) is not None:
            with guarded("worker", self._count_failure):
                self._keep(transfer)

    def _work_large(self, _stop: threading.Event) -> None:
        while (large := self._large.take()) is not None:
            with guarded("worker", self._count_failure):
                self._keep(*large)

    def _keep(self, transfer: Transfer, large: bytes | None = None) -> None:
        """Checks a sample, makes its bytes durable, and passes it to the committer.

        Args:
            transfer: the complete transfer.
            large: the bytes of a costly sample, whose hash was checked before.
        """
        try:
            data = large or transfer.take()
            found = self._verified(transfer, data, large=large is not None)
            whole = None if found is None else self._staged(transfer, data, found)
        except Exception as error:
            log.exception("sample_not_kept", extra={"fields": {"sample": transfer.offer.id}})
            self._failed("blobs", transfer, error)
        else:
            if whole is not None:
                self._durable.put(whole)

    def _staged(self, transfer: Transfer, data: bytes, found: Verified) -> _Whole | None:
        """Makes the bytes durable; returns None if the collector ended first."""
        sample = NewSample(transfer.offer, data, found.width, found.height, self._name)
        staged: list[Staged] = []
        stage = self._store.blobs.stage
        if not self._persist("blobs", [transfer], lambda: staged.append(stage(sample.offer.id, data))):
            return None
        return _Whole(transfer, sample, staged[0])

    def _verified(self, transfer: Transfer, data: bytes, *, large: bool) -> Verified | None:
        """Returns the size in pixels; None if the sample was answered, or waits for a large worker."""
        offer = transfer.offer
        me = threading.get_ident()
        self._began[me] = ("check", time.monotonic())
        try:
            if large:
                found: Verified | None = self._decoder.check(data, offer.media_type)
            else:
                found = verify(data, sample=offer.id, media_type=offer.media_type, decoder=self._decoder)
        except HashMismatchError as error:
            self._spoiled(transfer, data, error)
            return None
        except ImageError as error:
            # A damaged upload, too, proves that the checks work.
            self._breaker.succeeded("check")
            self._reject(transfer, "image", f"image: {error}")
            return None
        except Exception as error:
            log.exception("sample_not_checked", extra={"fields": {"sample": offer.id}})
            self._failed("check", transfer, error)
            return None
        finally:
            del self._began[me]
        if found is None:
            self._large.put(offer.vehicle, (transfer, data))
        else:
            self._breaker.succeeded("check")
        return found

    def _spoiled(self, transfer: Transfer, data: bytes, error: HashMismatchError) -> None:
        """Handles a wrong hash: requests the sample again, twice.

        If all attempts have the same hash, the vehicle has other bytes than it offered: reject. If they
        differ, the bytes are damaged in transit: put off.
        """
        digest = hashlib.sha256(data).hexdigest()
        if len(transfer.spoiled) < _MAX_SPOILED:
            self._metrics.spoiled.inc()
            self._replies.ask_again(self._transfers.restart(transfer, digest, time.monotonic()))
        elif set(transfer.spoiled) == {digest}:
            more = "; more bytes came than the offer said" if transfer.excess else ""
            self._reject(transfer, "sha256", f"sha256: {error}, each time in the same way{more}")
        else:
            self.put_off(transfer.key, "spoiled", "the bytes arrive damaged, each time in another way")

    # ---- the thread that commits

    def _commit(self, _stop: threading.Event) -> None:
        """Commits group after group and answers."""
        for group in self._groups():
            with self._last.guard():
                self._commit_group(group)
            for whole in group:
                if self._transfers.holds(whole.transfer):  # only after an unforeseen error
                    self.put_off(whole.transfer.key, "failed", "this collector could not store the sample")

    def _commit_group(self, group: list[_Whole], *, again: bool = False) -> None:
        """Commits a group and answers. If it fails, commits one by one: one sample must not block others."""
        outcomes: list[Outcome] = []

        def add() -> None:
            samples = [whole.sample for whole in group]
            outcomes.extend(self._store.add_many(samples, staged=[whole.staged for whole in group]))

        try:
            if self._persist("rows", [whole.transfer for whole in group], add):
                self._metrics.group_size.observe(len(group))
                self._finish(group, outcomes)
        except RowRefusedError as error:
            if len(group) > 1:
                self._commit_each(group, error)
            else:
                self._refused(group[0], error, again=again)
        except Exception as error:
            log.exception("group_not_committed", extra={"fields": {"samples": len(group)}})
            if len(group) > 1:
                self._commit_each(group, error)
            else:
                self._failed("rows", group[0].transfer, error)

    def _commit_each(self, group: list[_Whole], error: Exception) -> None:
        fields = {"samples": len(group), "problem": str(error)}
        log.warning("group_committed_one_by_one", extra={"fields": fields})
        for whole in group:
            self._commit_group([whole])

    def _refused(self, whole: _Whole, error: RowRefusedError, *, again: bool) -> None:
        """Rejects a sample whose row is at fault: refused twice, while the database accepts a plain row."""
        if again:
            fields = {"sample": whole.transfer.offer.id, "problem": str(error)}
            log.error("row_refused", extra={"fields": fields})
            self._reject(whole.transfer, "unstorable", f"cannot be stored: {error}")
        elif self._takes_rows():
            self._commit_group([whole], again=True)
        else:
            self._breaker.failed("rows", error)
            self.put_off(whole.transfer.key, "failed", "the store takes no samples now")

    def _takes_rows(self) -> bool:
        try:
            return self._store.takes_rows()
        except StoreUnavailableError:
            return False

    def _takes_others(self, stage: Literal["blobs", "rows"]) -> bool:
        """Returns True if the store works now for other samples than those of the current group."""
        if stage == "blobs":
            return not self._breaker.is_open  # other workers' successes close it
        if self._takes_rows():
            self._breaker.succeeded(stage)
            return True
        return False

    def _groups(self) -> Iterator[list[_Whole]]:
        """Yields groups: everything that waits, up to a group's limits. None in the queue ends it."""
        source = self._durable
        following: _Whole | None = source.get()
        while following is not None:
            group, size = [following], following.transfer.offer.size
            following = None
            while len(group) < self._settings.group_samples and size < self._settings.group_bytes:
                try:
                    # Without waiting: a group is what came while the previous one was committed.
                    following = source.get_nowait()
                except queue.Empty:
                    following = None
                    break
                if following is None:
                    yield group
                    return
                group.append(following)
                size += following.transfer.offer.size
            yield group
            following = source.get()

    def _persist(
        self, stage: Literal["blobs", "rows"], group: list[Transfer], work: Callable[[], None]
    ) -> bool:
        """Repeats `work` until the store accepts the group; returns False if the collector ends first.

        Raises:
            StoreUnavailableError: the store accepts others meanwhile, so this group is at fault; without
                this, one sample could block all.
            Exception: any other error of `work`.
        """
        me = threading.get_ident()
        for attempt in itertools.count():
            began = time.monotonic()
            self._began[me] = (stage, began)
            try:
                work()
            except StoreUnavailableError as error:
                self._breaker.failed(stage, error)
                self._metrics.store_failures.inc()
                fields = {"samples": len(group), "problem": str(error)}
                log.warning("store_unavailable", extra={"fields": fields})
                if attempt >= _RETRIES_ALONE and self._takes_others(stage):
                    raise
            else:
                self._breaker.succeeded(stage)
                self._seconds[stage].observe(time.monotonic() - began)
                return True
            finally:
                del self._began[me]
            if self._stop.wait(_RETRY_S[min(attempt, len(_RETRY_S) - 1)]):
                break
        for transfer in group:
            self._close(transfer.key)
        return False

    def _finish(self, group: list[_Whole], outcomes: list[Outcome]) -> None:
        now = self._done_at = time.monotonic()
        for whole, outcome in zip(group, outcomes, strict=True):
            offer = whole.transfer.offer
            self._transfers.close(whole.transfer.key)
            self._setbacks.forget(whole.transfer.key)
            self._metrics.seconds_to_stored.observe(now - whole.transfer.opened_at)
            self._metrics.stored_bytes.inc(offer.size if outcome == "stored" else 0)
            if outcome == "deleted":
                declined = Declined(id=offer.id, reason="deleted: the fleet deleted this sample")
                self._replies.answer(offer.vehicle, declined, "deleted")
                self._replies.given_up(*whole.transfer.key)
            else:
                self._metrics.last_stored.set(wall_time())
                self._metrics.implausible_clocks.inc(not _clock_is_plausible(whole.sample))
                self._replies.stored(*whole.transfer.key)
                self._replies.answer(offer.vehicle, Stored(id=offer.id), outcome)

    # ---- what comes to nothing

    def _failed(self, stage: Stage, transfer: Transfer, error: Exception) -> None:
        """Puts off a sample after a failure that proves nothing about it."""
        self._metrics.failures.labels(stage).inc()
        self._breaker.failed(stage, error, vehicle=transfer.offer.vehicle)
        what = "check" if stage == "check" else "store"
        self.put_off(transfer.key, "failed", f"this collector could not {what} the sample")

    def put_off(self, key: Key, cause: str, reason: str) -> None:
        """Ends a transfer with `busy`; the wait until the next offer doubles each time."""
        self._close(key)
        vehicle, sample = key
        wait = self._setbacks.add(key, time.monotonic())
        self._replies.answer(vehicle, Busy(id=sample, retry_after_s=wait, reason=reason), cause)

    def _reject(self, transfer: Transfer, cause: str, reason: str) -> None:
        self._done_at = time.monotonic()
        self._close(transfer.key)
        self._setbacks.forget(transfer.key)
        self._replies.answer(
            transfer.offer.vehicle, Rejected(id=transfer.offer.id, reason=reason[:256]), cause
        )

    def _close(self, key: Key) -> None:
        self._transfers.close(key)
        self._replies.given_up(*key)


def _clock_is_plausible(sample: NewSample) -> bool:
    """Returns True if the vehicle's clock is plausible, or is not needed (a recording has its own time)."""
    offer = sample.offer
    believed = capture_time(offer, stored_at=sample.stored_at) == offer.captured_at.wall
    return believed or offer.recorded_at is not None
