"""What every experiment's result says of itself: command, versions, seeds, date; and where it is written."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from misfire_runtime.clock import utc_text, wall_time


def provenance(command: str, *, seeds: Sequence[int], dataset: str) -> dict[str, Any]:
    """Command line, library versions, seeds, data set and date."""
    return {
        "command": command,
        "date": utc_text(wall_time()),
        "dataset": dataset,
        "seeds": list(seeds),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("numpy", "torch")},
        },
    }


def write_json(result: dict[str, Any], path: Path) -> None:
    """Writes the result, making the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
