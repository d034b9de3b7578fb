"""Mounts a file system of a few MiB that can really be full: a tmpfs, if this process may mount one."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

# The size of tmpfs's pages, in which the kernel gives out its room.
_BLOCK = 4096


@dataclass
class SmallDisk:
    """Holds a mounted one; `fill` leaves not a byte, `free` takes the filler away again."""

    mount: Path

    @property
    def _filler(self) -> Path:
        return self.mount / "filler"

    def fill(self) -> None:
        """Writes until the kernel says that there is no space left."""
        # Unbuffered: a buffer would keep the last bytes and raise only at the close.
        with contextlib.suppress(OSError), self._filler.open("ab", buffering=0) as filler:
            while True:
                filler.write(b"\0" * _BLOCK)

    def free(self) -> None:
        """Makes room."""
        self._filler.unlink(missing_ok=True)


@contextmanager
def small_disk(mount: Path, *, mib: int) -> Iterator[SmallDisk | None]:
    """Mounts one on an empty or new folder; yields None if that needs rights that this process has not."""
    mount.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={mib}m,mode=0755", "misfire-test", str(mount)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        yield None
        return
    try:
        yield SmallDisk(mount)
    finally:
        # Lazily: a process that was killed may not be gone in this instant.
        subprocess.run(["umount", "-l", str(mount)], check=True)
