"""Keeps a spool to one process: a file in tmp/ could be a sample that another process is writing."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from misfire_runtime.errors import SpoolError, SpoolInUseError


def lock_folder(folder: Path) -> int:
    """Locks a spool's folder; the kernel releases the lock however the process ends.

    Args:
        folder: the folder; created if needed.

    Returns:
        The descriptor that holds the lock until it is closed.

    Raises:
        SpoolInUseError: another process has the lock.
        SpoolError: the folder cannot be used.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise SpoolError(f"spool {folder}: {error.strerror}") from error
    try:
        # LOCK_NB: to wait for another vehicle to end would look like a hang.
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        text = f"spool {folder} is in use by another process; give each vehicle its own, or stop that one"
        raise SpoolInUseError(text) from error
    return handle
