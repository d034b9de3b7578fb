"""What triggers have learned, kept on disk, so that a restarted vehicle need not learn it again.

Chooser.learned --TriggerMemory.save (tmp + rename)--> triggers.json --load, at the next start--> relearn

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

_LOG = logging.getLogger(__name__)
_VERSION = 1

Learned = Mapping[str, Mapping[str, Any]]
"""Trigger's name to what it wants to know again, in JSON's types."""


class TriggerMemory:
    """One JSON file beside the budgets."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self, bundle: str) -> Learned:
        """What was learned with this bundle; nothing where there is none."""
        try:
            state = json.loads(self._path.read_text(encoding="utf-8"))
            if state["version"] != _VERSION or state["bundle"] != bundle:
                return {}
            return {str(name): dict(learned) for name, learned in state["triggers"].items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            self._complain("triggers_unreadable", error)
            return {}

    def save(self, bundle: str, learned: Learned) -> None:
        """Replaces the file; a failure costs what was learned since the last time, at the next start."""
        temporary = self._path.with_suffix(".tmp")
        state = {"version": _VERSION, "bundle": bundle, "triggers": learned}
        try:
            temporary.write_text(json.dumps(state), encoding="utf-8")
            temporary.replace(self._path)
        except OSError as error:
            self._complain("triggers_unwritable", error)

    def forget(self) -> None:
        """Removes the file."""
        try:
            self._path.unlink(missing_ok=True)
        except OSError as error:
            self._complain("triggers_unwritable", error)

    def _complain(self, event: str, error: Exception) -> None:
        problem = f"{type(error).__name__}: {error}"
        _LOG.warning(event, extra={"fields": {"file": str(self._path), "problem": problem}})
