"""Log lines of a vehicle: one JSON object per line for machines, or plain text for people.

An event is a name and fields: `log.warning("source_lost", extra={"fields": {"source": "front"}})`.
"""

from __future__ import annotations

import json
import logging
from typing import IO, Any, Literal

from misfire_runtime.clock import utc_text


class JsonLines(logging.Formatter):
    """at, level, event, logger and the event's fields."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, whatever the fields hold."""
        line: dict[str, Any] = {
            "at": utc_text(record.created),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            "logger": record.name,
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


class PlainLines(logging.Formatter):
    """time level event field=value ..."""

    def format(self, record: logging.LogRecord) -> str:
        """One line for a person."""
        fields = " ".join(f"{key}={value}" for key, value in getattr(record, "fields", {}).items())
        text = (
            f"{utc_text(record.created)} {record.levelname.lower():7} {record.getMessage()} {fields}".rstrip()
        )
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


def set_up_logs(
    stream: IO[str], *, form: Literal["json", "plain"], level: int = logging.INFO
) -> logging.Handler:
    """Sends misfire's logs to `stream`; returns the handler, so that the caller can take it away again."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines() if form == "json" else PlainLines())
    logger = logging.getLogger("misfire_runtime")
    logger.addHandler(handler)
    logger.setLevel(level)
    logger.propagate = False
    return handler
