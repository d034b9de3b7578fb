"""Runs one job in a thread until it is stopped; an unforeseen error does not end the thread silently.

start -> work(stop) --returns--> end
            ^  |
            |__| an unforeseen exception: logged, counted, and the work starts again after a pause
`guard` does the same for one item of the work, so that the next item follows at once.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_LOG = logging.getLogger(__name__)
_PAUSE_S = 1.0
"""Seconds between two attempts: work that always fails at once must not use a whole processor."""


@contextmanager
def guarded(name: str, on_failure: Callable[[], object]) -> Iterator[None]:
    """Ends the block, not the thread, at an unforeseen error: it is logged, and `on_failure` counts it."""
    try:
        yield
    except Exception:  # noqa: BLE001  (whatever it is, the thread's next item is not at fault)
        on_failure()
        _LOG.exception("worker_failed", extra={"fields": {"worker": name}})


class Worker:
    """Owns one daemon thread; its owner starts and closes it.

    Args:
        name: name of the thread, also used in the log.
        work: is called with the stop event, and returns soon after it is set.
        stop: an event that several threads share; by default the worker has its own.
        wake: called by `close` after the event is set, for work that waits for something else;
            may be called more than once.
        on_failure: called at each unforeseen error, to count it where it is shown.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[threading.Event], object],
        *,
        stop: threading.Event | None = None,
        wake: Callable[[], object] = lambda: None,
        on_failure: Callable[[], object] = lambda: None,
    ) -> None:
        self.name = name
        self.failures = 0
        """Number of unforeseen errors."""
        self._work, self._wake, self._on_failure = work, wake, on_failure
        self._stop = stop or threading.Event()
        # A daemon: a worker that is stuck must not keep the process from ending.
        self._thread = threading.Thread(target=self.run, name=name, daemon=True)

    @property
    def alive(self) -> bool:
        """Returns True from `start` until the work has ended."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def run(self) -> None:
        """Runs the work in the caller's thread, until it returns or the event is set."""
        ended = False
        while not ended:
            with self.guard():
                self._work(self._stop)
                ended = True
            # Waits on the event, so that a stop ends the pause.
            ended = ended or self._stop.wait(_PAUSE_S)

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Ends the block, not the thread, at an unforeseen error."""
        with guarded(self.name, self._failed):
            yield

    def _failed(self) -> None:
        self.failures += 1
        self._on_failure()

    def close(self, *, timeout_s: float | None = 10.0) -> bool:
        """Sets the stop event and waits for the thread. Idempotent.

        Args:
            timeout_s: maximum wait in seconds; None has no limit.

        Returns:
            False if the thread still runs.
        """
        # The event before `wake`: the work looks at the event when it wakes.
        self._stop.set()
        # `wake` only if it runs: it may put something into a queue that nobody reads any more.
        if self._thread.is_alive():
            self._wake()
            self._thread.join(None if timeout_s is None else max(0.0, timeout_s))
        return not self._thread.is_alive()
