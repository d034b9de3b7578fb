"""Records verdicts in the spool in a separate thread, because a synced commit must not stop the uplink.

uplink --verdicts--> VerdictWriter (one commit for all that wait) --results, wake--> uplink
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from misfire_runtime.errors import SpoolError
from misfire_runtime.service.logs import Throttle
from misfire_runtime.service.worker import Worker
from misfire_runtime.spool import Spool, Terminal

_LOG = logging.getLogger(__name__)
_MAX_GROUP = 256
"""Verdicts per commit; bounds the time until the first of them is reported back."""


@dataclass(frozen=True)
class Recorded:
    """Reports recorded verdicts. `news`: those that changed something; None if the spool failed."""

    verdicts: tuple[Terminal, ...]
    news: tuple[Terminal, ...] | None


@dataclass(frozen=True)
class _Order:
    verdicts: tuple[Terminal, ...]
    bytes_sent: int


class VerdictWriter:
    """Records verdicts. Its thread starts at once, and calls `wake` when there are results."""

    def __init__(self, spool: Spool, wake: Callable[[], None]) -> None:
        self._spool, self._wake = spool, wake
        self._often = Throttle(_LOG)
        self._orders: queue.SimpleQueue[_Order | None] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[Recorded] = queue.SimpleQueue()
        self._worker = Worker("verdicts", self._run, wake=lambda: self._orders.put(None))
        self._worker.start()

    def put(self, verdicts: Sequence[Terminal], *, bytes_sent: int = 0) -> None:
        """Queues verdicts, and a number of sent bytes, to be recorded."""
        self._orders.put(_Order(tuple(verdicts), bytes_sent))

    def results(self) -> list[Recorded]:
        """Returns the results since the last call."""
        found = []
        while not self._results.empty():
            found.append(self._results.get())
        return found

    def close(self, *, timeout_s: float = 30.0) -> None:
        """Records what is queued, then ends the thread. Idempotent."""
        self._worker.close(timeout_s=timeout_s)

    def _run(self, _stop: threading.Event) -> None:
        while True:
            order = self._orders.get()
            verdicts: list[Terminal] = []
            sent = 0
            while order is not None:
                verdicts.extend(order.verdicts)
                sent += order.bytes_sent
                # Everything that waits shares one sync of the disk.
                if self._orders.empty() or len(verdicts) >= _MAX_GROUP:
                    break
                order = self._orders.get()
            if verdicts:
                self._record(tuple(verdicts), sent)
            # After the commit: what was queued before the end is recorded.
            if order is None:
                return

    def _record(self, verdicts: tuple[Terminal, ...], sent: int) -> None:
        try:
            # Before the commit of the verdicts, which writes this count along.
            self._spool.count(bytes_sent=sent)
            news = self._spool.settle_many(verdicts)
        except SpoolError as error:
            fields = {"count": len(verdicts), "problem": str(error)}
            self._often.log(logging.ERROR, "verdicts_not_booked", fields, key=type(error).__name__)
            self._results.put(Recorded(verdicts, None))
        except Exception:  # noqa: BLE001  (a dead thread would leave every later verdict unrecorded)
            _LOG.exception("verdicts_not_booked", extra={"fields": {"count": len(verdicts)}})
            self._results.put(Recorded(verdicts, None))
        else:
            self._results.put(Recorded(verdicts, tuple(news)))
        # After the results are queued, so that the uplink finds them when it wakes.
        self._wake()
