"""Records where a run comes from: command line, commit, and versions of what influences its numbers."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

_VERSIONED = ("misfire", "torch", "numpy", "accelerate", "safetensors", "opencv-python-headless")


def versions() -> dict[str, str]:
    """Returns the versions of Python, the system and the libraries that influence numbers."""
    found = {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    for name in _VERSIONED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    """Returns the commit of the working tree that contains this package, None outside one."""
    git = shutil.which("git")
    if git is None:
        return None
    here = Path(__file__).resolve().parent
    result = subprocess.run(
        [git, "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return result.stdout.strip() or None if result.returncode == 0 else None


def command_line() -> str:
    """Returns the command as it was typed."""
    return " ".join(["misfire", *sys.argv[1:]])
