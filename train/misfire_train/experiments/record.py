"""Records how an experiment's result was made: command, versions, seeds, date; reads and writes the file."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from misfire_runtime.clock import utc_text, wall_time
from misfire_runtime.errors import ConfigError


def provenance(command: str, *, seeds: Sequence[int], dataset: str) -> dict[str, Any]:
    """Returns command line, library versions, seeds, data set and date."""
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


def same_setting(earlier: dict[str, Any], record: dict[str, Any], protocol: dict[str, Any]) -> bool:
    """Returns whether an earlier result has the same protocol, seeds, data set and library versions."""
    now = {**{key: record[key] for key in ("dataset", "seeds", "versions")}, "protocol": protocol}
    return all(earlier.get(key) == value for key, value in now.items())


def read_json(path: Path) -> dict[str, Any]:
    """Returns an earlier result, empty if there is none. Raises ConfigError if the file is no JSON object."""
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not a result of an experiment ({error}); move it away") from error
    return found if isinstance(found, dict) else {}


def write_json(result: dict[str, Any], path: Path) -> None:
    """Writes the result, making the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
