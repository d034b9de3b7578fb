"""The processes in which this one decodes, and signals that reach them at work."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from proving_ground.foreign_bytes import many_scans

_AT_WORK_TICKS = 35
"""Hundredths of a second of processor time: such a process has imported its libraries and decodes."""


@cache
def costly() -> bytes:
    """An upload within all limits that takes about half a second."""
    return many_scans(20, side=6000)


def processes() -> list[int]:
    """The decoding processes of this one."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            if parent == os.getpid() and b"decoding.worker" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


@contextmanager
def signalled(sent: signal.Signals, *, spare: set[int]) -> Iterator[list[int]]:
    """Sends a signal once to every process that is at work on something costly, but for those in `spare`."""
    hit: list[int] = []
    ended = threading.Event()

    def send() -> None:
        while not ended.wait(0.005):
            for pid in set(processes()) - spare - set(hit):
                with suppress(OSError):  # it ended meanwhile; others are still to be signalled
                    ticks = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11]
                    if int(ticks) > _AT_WORK_TICKS:
                        hit.append(pid)
                        os.kill(pid, sent)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield hit
    finally:
        ended.set()
        thread.join()
