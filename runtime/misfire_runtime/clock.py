"""Provides time: wall clock for people, and the boot id, which monotonic times are relative to.

Everything that waits or measures uses `time.monotonic`; wall time is only recorded.
"""

from __future__ import annotations

import time
import uuid
from datetime import datetime, timezone
from functools import cache
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def wall_time() -> float:
    """Returns seconds since 1970 by the wall clock, which may be wrong and may jump."""
    return time.time()  # noqa: TID251  (the one place)


def utc_text(seconds: float) -> str:
    """Returns a time (seconds since 1970) as ISO 8601 in UTC with milliseconds."""
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="milliseconds")


# Read once: it cannot change while the process runs.
@cache
def boot_id() -> str:
    """Returns an id of this boot of the machine, or of this process if the kernel has none."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return str(uuid.uuid4())
