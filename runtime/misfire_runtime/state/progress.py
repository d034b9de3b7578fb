"""Stores the position in recorded sources, so that an interrupted run continues where it stopped.

A position is written only after every sample before it is durable. A recording that was read to its end has
no position, and is read from the start the next time.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from misfire_runtime.state.small_files import read_state, write_state

_LOG = logging.getLogger(__name__)


class Progress:
    """Keeps the next frame index by source identity, in a small JSON file next to the spool.

    Args:
        path: the file. A damaged one counts as empty, so frames are read again.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._next: dict[str, int] = read_state(
            path, _positions, missing={}, damaged={}, assume="interrupted recordings are read from the start"
        )

    def start(self, identity: str) -> int:
        """Returns the index of the frame to begin with."""
        return self._next.get(identity, 0)

    def save(self, positions: dict[str, int]) -> None:
        """Updates the positions and writes them; 0 removes a source.

        A failed write is only logged: at worst, some frames are read again.
        """
        before = dict(self._next)
        self._next.update(positions)
        self._next = {key: value for key, value in self._next.items() if value > 0}
        # Without a change no write: this is called every second.
        if self._next == before:
            return
        try:
            write_state(self._path, json.dumps(self._next).encode())
        except OSError as error:
            _LOG.warning(
                "progress_unwritable", extra={"fields": {"file": str(self._path), "problem": str(error)}}
            )


def _positions(loaded: Any) -> dict[str, int]:
    return {str(key): int(value) for key, value in loaded.items() if int(value) > 0}
