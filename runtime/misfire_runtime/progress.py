"""How far recorded sources were read, so that an interrupted run goes on where it was stopped.

A position is written only after every sample before it is durable; a recording that was read to its end has
no position, and is read from the start the next time.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

_LOG = logging.getLogger(__name__)


class Progress:
    """Next frame index by source identity, in a small JSON file beside the spool."""

    def __init__(self, path: Path) -> None:
        """path: its file; one that cannot be understood counts as none (frames are then read again)."""
        self._path = path
        self._next: dict[str, int] = {}
        try:
            loaded = json.loads(path.read_text(encoding="utf-8"))
            self._next = {str(key): int(value) for key, value in loaded.items() if int(value) > 0}
        except FileNotFoundError:
            pass
        except (OSError, ValueError, AttributeError, TypeError) as error:
            _LOG.warning("progress_unreadable", extra={"fields": {"file": str(path), "problem": str(error)}})

    def start(self, identity: str) -> int:
        """Where to begin."""
        return self._next.get(identity, 0)

    def save(self, positions: dict[str, int]) -> None:
        """Updates and writes; 0 forgets a source. A failure to write costs a repetition, nothing else."""
        before = dict(self._next)
        self._next.update(positions)
        self._next = {key: value for key, value in self._next.items() if value > 0}
        if self._next == before:
            return
        temporary = self._path.with_suffix(".tmp")
        try:
            temporary.write_text(json.dumps(self._next), encoding="utf-8")
            temporary.replace(self._path)
        except OSError as error:
            _LOG.warning(
                "progress_unwritable", extra={"fields": {"file": str(self._path), "problem": str(error)}}
            )
