"""From whole transfers to `stored`: verified and written side by side, named and committed in groups.

whole -> workers: hash, kind, pixels, bytes durable -> committer: names and rows durable -> `stored`
One worker does all that is done to one sample, so that it passes between threads once. While a group is
committed the next one gathers: groups grow with the load, and nobody waits for a timer.
"""

from __future__ import annotations

import itertools
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from misfire_fleet.collector_metrics import CollectorMetrics
from misfire_fleet.collector_settings import CollectorSettings
from misfire_fleet.collector_transfers import Ask, Transfer, Transfers
from misfire_fleet.collector_verify import HashMismatchError, Verified, verify
from misfire_fleet.errors import StoreError, StoreUnavailableError
from misfire_fleet.store import Store
from misfire_fleet.store_blobs import Staged
from misfire_fleet.store_records import NewSample, Outcome
from misfire_runtime.errors import ImageError
from misfire_runtime.messages import Busy, Declined, Rejected, Stored, Verdict

log = logging.getLogger(__name__)

_MAX_SPOILED = 2
_PUT_OFF_S = 30.0
_RETRY_S = (0.2, 0.5, 1.0, 2.0, 5.0)


@dataclass(frozen=True)
class _Whole:
    transfer: Transfer
    sample: NewSample
    staged: Staged


@dataclass(frozen=True)
class Outlets:
    """Where results go: verdicts (vehicle, verdict, cause), requests, and samples that came to nothing."""

    answer: Callable[[str, Verdict, str], None]
    ask: Callable[[Ask], None]
    given_up: Callable[[str, str], None]


class Committer:
    """Owns the workers and the thread that commits."""

    def __init__(
        self,
        store: Store,
        *,
        name: str,
        settings: CollectorSettings,
        transfers: Transfers,
        metrics: CollectorMetrics,
        outlets: Outlets,
    ) -> None:
        self._store, self._name, self._settings = store, name, settings
        self._transfers, self._metrics, self._outlets = transfers, metrics, outlets
        self._workers = ThreadPoolExecutor(settings.workers, thread_name_prefix="worker")
        self._durable: queue.SimpleQueue[_Whole | None] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._commit, name="committer", daemon=True)
        self._began: dict[int, float] = {}
        self._seconds = {stage: metrics.commit_seconds.labels(stage) for stage in ("blobs", "rows")}
        self.failing = threading.Event()

    def start(self) -> None:
        """Begins to commit."""
        self._thread.start()

    def put(self, transfer: Transfer) -> None:
        """Takes a transfer whose bytes are all here."""
        self._workers.submit(self._keep, transfer)

    @property
    def alive(self) -> bool:
        """False where the committing thread died."""
        return self._thread.is_alive()

    def busy_s(self, now: float) -> float:
        """How long the longest of the present writes and commits has been running; 0 where none is."""
        return max((now - began for began in list(self._began.values())), default=0.0)

    def close(self) -> None:
        """Verifies and commits what is here, then ends; a store that is down is not waited for."""
        self._stop.set()
        self._workers.shutdown()
        if self._thread.is_alive():
            self._durable.put(None)
            self._thread.join(30.0)

    def _keep(self, transfer: Transfer) -> None:
        """Checks a sample, makes its bytes durable, and hands it to the committer."""
        data = transfer.take()
        found = self._verified(transfer, data)
        if found is None:
            return
        staged: list[Staged] = []
        sample = NewSample(transfer.offer, data, found.width, found.height, self._name)
        try:
            if self._persist("blobs", [transfer], lambda: staged.append(self._store.stage(sample))):
                self._durable.put(_Whole(transfer, sample, staged[0]))
        except StoreError as error:
            self._reject(transfer, "unstorable", f"cannot be stored: {error}")
        except Exception:  # nothing is wrong with the sample: its vehicle keeps it and offers it again
            log.exception("sample %s: cannot be kept, for an unforeseen reason", transfer.offer.id)
            self._put_off(transfer)

    def _verified(self, transfer: Transfer, data: bytes) -> Verified | None:
        """What was found, or None after the vehicle was told what is wrong."""
        offer = transfer.offer
        try:
            return verify(
                data, sample=offer.id, media_type=offer.media_type, max_pixels=self._settings.max_pixels
            )
        except HashMismatchError as error:
            if transfer.spoiled < _MAX_SPOILED:
                self._metrics.spoiled.inc()
                self._outlets.ask(self._transfers.restart(transfer, time.monotonic()))
            else:
                self._reject(transfer, "sha256", f"sha256: {error}")
        except ImageError as error:
            self._reject(transfer, "image", f"image: {error}")
        except MemoryError:  # this collector's want, not the sample's fault
            log.exception("sample %s: no memory to check it", offer.id)
            self._put_off(transfer)
        except Exception:
            log.exception("sample %s: the check failed in an unforeseen way", offer.id)
            self._reject(transfer, "image", "image: the payload cannot be checked")
        return None

    def _commit(self) -> None:
        """Commits group after group and answers."""
        for group in self._groups():
            self._commit_group(group)

    def _commit_group(self, group: list[_Whole]) -> None:
        outcomes: list[Outcome] = []

        def add() -> None:
            samples = [whole.sample for whole in group]
            outcomes.extend(self._store.add_many(samples, staged=[whole.staged for whole in group]))

        try:
            if self._persist("rows", [whole.transfer for whole in group], add):
                self._metrics.group_size.observe(len(group))
                self._finish(group, outcomes)
        except StoreError as error:
            self._split(group, error)

    def _groups(self) -> Iterator[list[_Whole]]:
        """All that waits, at most a group's worth; ends with None."""
        source = self._durable
        following: _Whole | None = source.get()
        while following is not None:
            group, size = [following], following.transfer.offer.size
            following = None
            while len(group) < self._settings.group_samples and size < self._settings.group_bytes:
                try:
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

    def _persist(self, stage: str, group: list[Transfer], work: Callable[[], None]) -> bool:
        """Tries until the store takes the group; False where the end came first. StoreError passes."""
        me = threading.get_ident()
        for attempt in itertools.count():
            began = self._began[me] = time.monotonic()
            try:
                work()
            except StoreUnavailableError as error:
                self.failing.set()
                self._metrics.store_failures.inc()
                log.warning("%d samples wait for the store: %s", len(group), error)
            else:
                self.failing.clear()
                self._seconds[stage].observe(time.monotonic() - began)
                return True
            finally:
                del self._began[me]
            if self._stop.wait(_RETRY_S[min(attempt, len(_RETRY_S) - 1)]):
                break
        for transfer in group:
            self._transfers.close(transfer.key)
            self._outlets.given_up(*transfer.key)
        return False

    def _split(self, group: list[_Whole], error: StoreError) -> None:
        """One sample that the database does not take must not keep the others out."""
        if len(group) > 1:
            for whole in group:
                self._commit_group([whole])
            return
        log.error("sample %s cannot be stored: %s", group[0].transfer.offer.id, error)
        self._reject(group[0].transfer, "unstorable", f"cannot be stored: {error}"[:256])

    def _finish(self, group: list[_Whole], outcomes: list[Outcome]) -> None:
        now = time.monotonic()
        for whole, outcome in zip(group, outcomes, strict=True):
            offer = whole.transfer.offer
            self._transfers.close(whole.transfer.key)
            self._metrics.seconds_to_stored.observe(now - whole.transfer.opened_at)
            self._metrics.stored_bytes.inc(offer.size if outcome == "stored" else 0)
            if outcome == "deleted":
                declined = Declined(id=offer.id, reason="deleted: the fleet deleted this sample")
                self._outlets.answer(offer.vehicle, declined, "deleted")
                self._outlets.given_up(*whole.transfer.key)
            else:
                self._outlets.answer(offer.vehicle, Stored(id=offer.id), outcome)

    def _put_off(self, transfer: Transfer) -> None:
        self._transfers.close(transfer.key)
        self._outlets.given_up(*transfer.key)
        busy = Busy(id=transfer.offer.id, retry_after_s=_PUT_OFF_S, reason="this collector failed")
        self._outlets.answer(transfer.offer.vehicle, busy, "failed")

    def _reject(self, transfer: Transfer, cause: str, reason: str) -> None:
        self._transfers.close(transfer.key)
        self._outlets.given_up(*transfer.key)
        self._outlets.answer(
            transfer.offer.vehicle, Rejected(id=transfer.offer.id, reason=reason[:256]), cause
        )
