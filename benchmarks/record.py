"""Gives every benchmark the same command line and every result the same record.

command_line(__doc__) -> options -> the benchmark's own work -> finish(__file__, result, options)

A result holds the command, commit, versions, seeds and date with which it can be repeated. A benchmark that
needs something which is not installed here ends with the status LEFT_OUT.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from misfire_runtime.errors import MisfireError
from proving_ground.services import MissingServiceError

ROOT = Path(__file__).resolve().parents[1]
LEFT_OUT = 77
"""Exit status of a benchmark that cannot run here; 77 is what automake and meson use for a skipped test."""
_PACKAGES = ("misfire", "numpy", "torch", "onnxruntime", "paho-mqtt", "sqlalchemy", "av", "pydantic")


def command_line(description: str, *, seeds: Sequence[int] = (0,)) -> argparse.ArgumentParser:
    """Returns a parser with the options that all benchmarks take: --quick, --json, --out and --seed.

    Args:
        description: The module's docstring; its first line is the help text.
        seeds: Default of --seed. A benchmark that runs once per seed takes several.
    """
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a short run that shows that it works")
    parser.add_argument("--json", action="store_true", help="print the whole result as JSON")
    parser.add_argument("--out", type=Path, help="also write the result to this file")
    parser.add_argument(
        "--seed", "--seeds", dest="seeds", type=int, nargs="+", default=list(seeds), help="random seeds"
    )
    return parser


def record(file: str, result: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Returns the result with what is needed to repeat it.

    Args:
        file: `__file__` of the benchmark.
        result: What it measured.
        options: Its parsed command line.
    """
    path = Path(file).resolve().relative_to(ROOT)
    return {
        "benchmark": f"{path.parent.name}/{path.stem}",
        "command": " ".join(["python", path.as_posix(), *_repeatable(sys.argv[1:])]),
        "commit": _commit(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seeds": options.seeds,
        "quick": options.quick,
        "machine": {"cpus": os.cpu_count(), "processor": platform.machine(), "system": platform.system()},
        "versions": _versions(),
        **result,
    }


def write(result: dict[str, Any], out: Path | None) -> None:
    """Writes the record to `out`, if there is one; long benchmarks do so after every part."""
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(plain(result), indent=1) + "\n", encoding="utf-8")


def finish(
    file: str,
    result: dict[str, Any],
    options: argparse.Namespace,
    *,
    summary: str | None = None,
    met: bool = True,
) -> int:
    """Records, writes and prints a result.

    Args:
        file: `__file__` of the benchmark.
        result: What it measured.
        options: Its parsed command line.
        summary: What is printed without --json; else the result's numbers, one a line.
        met: Whether the benchmark's goals were reached.

    Returns:
        The exit status: 0, or 1 if a goal was missed.
    """
    whole = record(file, result, options)
    write(whole, options.out)
    if options.json:
        print(json.dumps(plain(whole)))
    else:
        print(_numbers(result) if summary is None else summary)
    return 0 if met else 1


def run(main: Callable[[], int]) -> None:
    """Runs a benchmark's `main` and exits with its status."""
    try:
        sys.exit(main())
    except (MissingServiceError, MisfireError) as error:
        # Data sets are no services, but those that are not here are left out in the same way.
        absent = isinstance(error, MissingServiceError) or type(error).__name__ == "DatasetError"
        print(f"{'left out' if absent else 'error'}: {error}", file=sys.stderr)
        sys.exit(LEFT_OUT if absent else 1)


def work_folder(options: argparse.Namespace) -> Path:
    """Returns --work, or a folder that goes at the end if --quick is given without it.

    A short run must neither use nor leave the networks of a long one.
    """
    if options.work is not None:
        folder: Path = options.work
    elif options.quick:
        options.holder = tempfile.TemporaryDirectory(prefix="misfire-bench-")
        folder = Path(options.holder.name)
    else:
        folder = Path("detectors-work")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def plain(value: Any) -> Any:
    """Returns the value as JSON has it: dictionaries, lists, numbers, text; null for NaN and infinity."""
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain(one) for one in value]
    if isinstance(value, (np.floating, float)):
        return float(value) if np.isfinite(value) else None
    if isinstance(value, np.integer):
        return int(value)
    return bool(value) if isinstance(value, np.bool_) else value


def _numbers(result: dict[str, Any]) -> str:
    flat = {**result, **result.get("ratios", {})}
    return "\n".join(
        f"{key:>26}  {value}" for key, value in flat.items() if not isinstance(value, (dict, list))
    )


def _repeatable(arguments: Sequence[str]) -> list[str]:
    """The arguments without --out, which does not change the result, and without folders of this machine."""
    kept: list[str] = []
    words = iter(arguments)
    for word in words:
        if word == "--out":
            next(words, None)
        elif not word.startswith("--out="):
            kept.append(Path(word).name if Path(word).is_absolute() else word)
    return kept


def _commit() -> str:
    """The commit that ran, with "+" if tracked files differ from it; "" outside a checkout."""
    git = ["git", "-C", str(ROOT)]
    try:
        name = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD"], check=False).returncode
    return name.stdout.strip() + ("+" if changed else "")


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
