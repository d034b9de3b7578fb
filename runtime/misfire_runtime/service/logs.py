"""Formats a service's log: one JSON object per line for machines, or plain text for people.

An event is a name and fields: `log.warning("source_lost", extra={"fields": {"source": "front"}})`.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any, Literal

from misfire_runtime.clock import utc_text

_UNITS = ("misfire_runtime", "misfire_fleet")
"""Packages that run as services; training and export print to a terminal instead."""


class JsonLines(logging.Formatter):
    """Formats a record as JSON with at, level, event, logger and the event's fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns one line, whatever the fields contain."""
        line: dict[str, Any] = {
            "at": utc_text(record.created),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            "logger": record.name,
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        # default=str: a log line must never fail, whatever is in its fields.
        return json.dumps(line, default=str, ensure_ascii=False)


class PlainLines(logging.Formatter):
    """Formats a record as `time level event field=value ...`."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns one line, followed by the traceback if there is one."""
        fields = " ".join(f"{key}={value}" for key, value in getattr(record, "fields", {}).items())
        text = (
            f"{utc_text(record.created)} {record.levelname.lower():7} {record.getMessage()} {fields}".rstrip()
        )
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


class Throttle:
    """Limits the log lines of frequent events: at most `burst` per key and period. Thread-safe.

    The first line of the next period has the number of omitted ones in the field `left_out`.
    """

    # Keys may come from outside (reasons, topics), so their number is bounded.
    _MAX_KEYS = 256

    def __init__(self, logger: logging.Logger, *, burst: int = 1, period_s: float = 60.0) -> None:
        self._logger, self._burst, self._period_s = logger, burst, period_s
        self._lock = threading.Lock()
        self._seen: OrderedDict[tuple[str, str], tuple[float, int]] = OrderedDict()

    def log(self, level: int, event: str, fields: Mapping[str, Any], *, key: str = "") -> None:
        """Logs an event, unless its key has used up its lines.

        Args:
            level: log level.
            event: name of the event.
            fields: its fields.
            key: distinguishes events of one name, such as the reason. Not a sample's id: every sample would
                get a line.
        """
        now = time.monotonic()
        with self._lock:
            began, count = self._seen.pop((event, key), (now, 0))
            left_out = 0
            if now - began >= self._period_s:
                left_out, began, count = max(0, count - self._burst), now, 0
            # Popped and set again: the order is by last use, and the oldest goes first.
            self._seen[event, key] = (began, count + 1)
            while len(self._seen) > self._MAX_KEYS:
                self._seen.popitem(last=False)
        # Outside of the lock: a handler may block, and only the count needs it.
        if count < self._burst:
            more = {"left_out": left_out} if left_out else {}
            self._logger.log(level, event, extra={"fields": {**fields, **more}})


def set_up_logs(
    stream: IO[str], *, form: Literal["json", "plain"], level: int = logging.INFO
) -> logging.Handler:
    """Sends misfire's logs to `stream`; returns the handler to pass to `take_down_logs`."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines() if form == "json" else PlainLines())
    for logger in map(logging.getLogger, _UNITS):
        logger.addHandler(handler)
        logger.setLevel(level)
        logger.propagate = False  # otherwise a handler of the root logger would print every line again
    return handler


def take_down_logs(handler: logging.Handler) -> None:
    """Undoes `set_up_logs`."""
    for logger in map(logging.getLogger, _UNITS):
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
        logger.propagate = True


@contextmanager
def logs_to(
    stream: IO[str], *, form: Literal["json", "plain"] = "plain", level: int = logging.INFO
) -> Iterator[None]:
    """Sends misfire's logs to `stream` while the block runs."""
    handler = set_up_logs(stream, form=form, level=level)
    try:
        yield
    finally:
        take_down_logs(handler)
