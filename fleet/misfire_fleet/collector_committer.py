"""From whole transfers to `stored`: verified side by side, committed in groups, answered after the commit.

whole -> decoders: hash, kind, pixels -> committer: blobs durable, rows committed -> `stored`
While a group is being written the next one gathers: groups grow with the load, nobody waits for a timer.
"""

from __future__ import annotations

import itertools
import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from misfire_fleet.collector_metrics import CollectorMetrics
from misfire_fleet.collector_settings import CollectorSettings
from misfire_fleet.collector_transfers import Ask, Transfer, Transfers
from misfire_fleet.collector_verify import HashMismatchError, verify
from misfire_fleet.errors import StoreError, StoreUnavailableError
from misfire_fleet.store import Store
from misfire_fleet.store_records import NewSample, Outcome
from misfire_runtime.errors import ImageError
from misfire_runtime.messages import Declined, Rejected, Stored, Verdict

log = logging.getLogger(__name__)

_MAX_SPOILED = 2
_RETRY_S = (0.2, 0.5, 1.0, 2.0, 5.0)


@dataclass(frozen=True)
class _Whole:
    transfer: Transfer
    sample: NewSample


@dataclass(frozen=True)
class Outlets:
    """Where results go: verdicts (vehicle, verdict, cause), requests, and samples that came to nothing."""

    answer: Callable[[str, Verdict, str], None]
    ask: Callable[[Ask], None]
    given_up: Callable[[str, str], None]


class Committer:
    """Owns the decoders and the thread that commits."""

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
        self._decoders = ThreadPoolExecutor(settings.decoders, thread_name_prefix="decoder")
        self._whole: queue.SimpleQueue[_Whole | None] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="committer", daemon=True)
        self._began: float | None = None
        self.failing = threading.Event()

    def start(self) -> None:
        """Begins to commit."""
        self._thread.start()

    def put(self, transfer: Transfer) -> None:
        """Takes a transfer whose bytes are all here."""
        self._decoders.submit(self._verify, transfer)

    @property
    def alive(self) -> bool:
        """False where the thread died."""
        return self._thread.is_alive()

    def busy_s(self, now: float) -> float:
        """How long the present commit has been running; 0 where none is."""
        began = self._began
        return 0.0 if began is None else now - began

    def close(self) -> None:
        """Verifies and commits what is here, then ends; a store that is down is not waited for."""
        self._stop.set()
        self._decoders.shutdown()
        if self._thread.is_alive():
            self._whole.put(None)
            self._thread.join(30.0)

    def _verify(self, transfer: Transfer) -> None:
        offer = transfer.offer
        data = transfer.take()
        try:
            found = verify(
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
        except Exception:
            log.exception("sample %s: the check failed in an unforeseen way", offer.id)
            self._reject(transfer, "image", "image: the payload cannot be checked")
        else:
            sample = NewSample(offer, data, found.width, found.height, self._name)
            self._whole.put(_Whole(transfer, sample))

    def _run(self) -> None:
        more = True
        while more:
            first = self._whole.get()
            if first is None:
                return
            group, size = [first], first.transfer.offer.size
            while len(group) < self._settings.group_samples and size < self._settings.group_bytes:
                try:
                    following = self._whole.get_nowait()
                except queue.Empty:
                    break
                if following is None:
                    more = False
                    break
                group.append(following)
                size += following.transfer.offer.size
            self._commit(group)

    def _commit(self, group: list[_Whole]) -> None:
        """Tries until the store takes the group, or until the end."""
        for attempt in itertools.count():
            try:
                outcomes = self._add(group)
            except StoreUnavailableError as error:
                self.failing.set()
                self._metrics.store_failures.inc()
                log.warning("%d samples wait for the store: %s", len(group), error)
                if self._stop.wait(_RETRY_S[min(attempt, len(_RETRY_S) - 1)]):
                    self._give_up(group)
                    return
            except StoreError as error:
                self._split(group, error)
                return
            else:
                self.failing.clear()
                self._metrics.group_size.observe(len(group))
                self._finish(group, outcomes)
                return

    def _add(self, group: list[_Whole]) -> list[Outcome]:
        began = self._began = time.monotonic()
        try:
            return self._store.add_many([whole.sample for whole in group])
        finally:
            self._began = None
            self._metrics.commit_seconds.observe(time.monotonic() - began)

    def _split(self, group: list[_Whole], error: StoreError) -> None:
        """One sample that the database does not take must not keep the others out."""
        if len(group) > 1:
            for whole in group:
                self._commit([whole])
            return
        log.error("sample %s cannot be stored: %s", group[0].transfer.offer.id, error)
        self._reject(group[0].transfer, "unstorable", f"cannot be stored: {error}"[:256])

    def _give_up(self, group: list[_Whole]) -> None:
        for whole in group:
            self._transfers.close(whole.transfer.key)
            self._outlets.given_up(*whole.transfer.key)

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

    def _reject(self, transfer: Transfer, cause: str, reason: str) -> None:
        self._transfers.close(transfer.key)
        self._outlets.given_up(*transfer.key)
        self._outlets.answer(
            transfer.offer.vehicle, Rejected(id=transfer.offer.id, reason=reason[:256]), cause
        )
