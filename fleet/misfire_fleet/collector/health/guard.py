"""Keeps a thread of the collector alive through an unforeseen error, which is logged and counted."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from misfire_fleet.collector.health.metrics import CollectorMetrics

log = logging.getLogger(__name__)


@contextmanager
def guarded(part: str, metrics: CollectorMetrics) -> Iterator[None]:
    """Ends the block, not the thread, at an unforeseen error."""
    try:
        yield
    except Exception:
        metrics.failures.labels(part).inc()
        log.exception("%s: unforeseen error; this thread goes on", part)
