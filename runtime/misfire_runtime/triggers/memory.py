"""Keeps on disk what triggers have learned, so that a restarted vehicle need not learn it again.

Selector.learned --TriggerMemory.save (durably)--> triggers.json --load, at the next start--> relearn

The file is about one bundle: scores of another are other scores. A file that cannot be understood costs what
it held and a log line, nothing else. A recording that was read to its end leaves none: read again, it is
chosen from as the first time.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from misfire_runtime.state.small_files import read_state, write_state

_LOG = logging.getLogger(__name__)
_VERSION = 1

Learned = Mapping[str, Mapping[str, Any]]
"""Trigger's name to what it wants to know again, in JSON's types."""


class TriggerMemory:
    """Manages one JSON file beside the budgets."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self, bundle: str) -> Learned:
        """Returns what was learned with this bundle; nothing if there is none."""
        return read_state(
            self._path,
            lambda state: _learned(state, bundle),
            missing={},
            damaged={},
            assume="triggers learn anew",
        )

    def save(self, bundle: str, learned: Learned) -> None:
        """Replaces the file; a failure is logged, and costs what was learned since the last time."""
        state = {"version": _VERSION, "bundle": bundle, "triggers": learned}
        try:
            write_state(self._path, json.dumps(state).encode())
        except OSError as error:
            self._complain(error)

    def forget(self) -> None:
        """Removes the file."""
        try:
            self._path.unlink(missing_ok=True)
        except OSError as error:
            self._complain(error)

    def _complain(self, error: OSError) -> None:
        _LOG.warning(
            "triggers_unwritable", extra={"fields": {"file": str(self._path), "problem": str(error)}}
        )


def _learned(state: Any, bundle: str) -> Learned:
    if state["version"] != _VERSION or state["bundle"] != bundle:
        return {}
    return {str(name): dict(learned) for name, learned in state["triggers"].items()}
