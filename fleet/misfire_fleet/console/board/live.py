"""Sends changes of the fleet to open pages as server-sent events: one reader of the store for all clients.

rows --every 2 s, while somebody listens--> what changed --> a bounded queue per client --> text/event-stream

An event's id is RUN-NUMBER. A client that reconnects with the last id that it saw gets what it missed; if
that is no longer kept, or the server is another, it gets `reset` and reads the page's data again.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any

from misfire_runtime.errors import MisfireError

log = logging.getLogger(__name__)

PERIOD_S = 2.0
MAX_CLIENTS = 64
"""More are refused: each holds a connection."""
_KEPT = 64
"""Events that a client can have missed."""
_QUEUE = 16
"""Events that wait for a slow client; it is then disconnected, and comes back with its last id."""
COMMENT_S = 15.0
"""A comment keeps proxies from closing a quiet connection."""
_RETRY_MS = 3000
_LIFE_S = 900.0
"""A stream ends after this time, and the page connects again: that checks the session again."""


class TooManyClientsError(Exception):
    """Says that the maximum number of listeners is reached."""


class Broadcaster:
    """Reads the fleet while somebody listens, and tells every listener what changed.

    Args:
        read: returns the rows' cells by vehicle; called in a thread.
        period_s: seconds between two reads.
    """

    def __init__(self, read: Callable[[], dict[str, dict[str, Any]]], *, period_s: float = PERIOD_S) -> None:
        self._read, self._period_s = read, period_s
        self._run = secrets.token_hex(4)
        self._number = 0
        self._kept: deque[tuple[int, str]] = deque(maxlen=_KEPT)
        self._clients: set[asyncio.Queue[str | None]] = set()
        self._task: asyncio.Task[None] | None = None
        self._seen: dict[str, dict[str, Any]] | None = None

    @property
    def clients(self) -> int:
        """Returns the number of listeners."""
        return len(self._clients)

    def listen(self, last_id: str = "") -> AsyncIterator[str]:
        """Returns the lines for one client. Raises TooManyClientsError.

        Args:
            last_id: the id that the client saw last; "" for a new one.
        """
        if len(self._clients) >= MAX_CLIENTS:
            raise TooManyClientsError
        return self._lines(last_id)

    def close(self) -> None:
        """Ends all streams."""
        if self._task is not None:
            self._task.cancel()
        for queue in list(self._clients):
            self._drop(queue)

    def _missed(self, last_id: str) -> list[str]:
        run, _, number = last_id.partition("-")
        if not last_id:
            return []
        if run != self._run or not number.isdecimal() or len(number) > 15:
            return [_event("reset", {}, self._id)]
        missed = self._number - int(number)
        if missed > len(self._kept) or missed < 0:
            return [_event("reset", {}, self._id)]
        return [text for at, text in self._kept if at > int(number)]

    async def _lines(self, last_id: str) -> AsyncIterator[str]:
        # Here, not in `listen`: a client that leaves before its first line must not stay in the set.
        queue: asyncio.Queue[str | None] = asyncio.Queue(_QUEUE)
        self._clients.add(queue)
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._watch())
        first = self._missed(last_id)
        try:
            yield f"retry: {_RETRY_MS}\n\n"
            # A client that has nothing yet learns where it stands.
            yield f"id: {self._id}\nevent: hello\ndata: {{}}\n\n" if not first else "".join(first)
            until = time.monotonic() + _LIFE_S
            while time.monotonic() < until:
                try:
                    text = await asyncio.wait_for(queue.get(), COMMENT_S)
                except asyncio.TimeoutError:  # another class than TimeoutError before Python 3.11
                    yield ": still here\n\n"
                    continue
                if text is None:
                    return
                yield text
        finally:
            self._clients.discard(queue)

    async def _watch(self) -> None:
        while self._clients:
            try:
                rows = await asyncio.to_thread(self._read)
            except MisfireError as error:
                log.warning("fleet_not_read", extra={"fields": {"problem": str(error)}})
            except Exception:
                log.exception("fleet_not_read")
            else:
                self._tell(rows)
            await asyncio.sleep(self._period_s)
        # Without a listener the next one begins with its own page, and needs no comparison with old rows.
        self._seen = None

    def _tell(self, rows: dict[str, dict[str, Any]]) -> None:
        before, self._seen = self._seen, rows
        if before is None:
            return
        changed = {name: cells for name, cells in rows.items() if before.get(name) != cells}
        gone = sorted(set(before) - set(rows))
        if not changed and not gone:
            return
        self._number += 1
        text = _event("rows", {"rows": changed, "gone": gone}, self._id)
        self._kept.append((self._number, text))
        for queue in list(self._clients):
            try:
                queue.put_nowait(text)
            except asyncio.QueueFull:
                self._drop(queue)

    def _drop(self, queue: asyncio.Queue[str | None]) -> None:
        self._clients.discard(queue)
        while not queue.empty():
            queue.get_nowait()
        queue.put_nowait(None)

    @property
    def _id(self) -> str:
        return f"{self._run}-{self._number}"


def _event(kind: str, data: dict[str, Any], at: str) -> str:
    return f"id: {at}\nevent: {kind}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n"
