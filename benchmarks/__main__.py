"""Lists the benchmarks, or runs the short form of each.

    python -m benchmarks                       name and question of each
    python -m benchmarks --quick [NAME ...]    runs each with --quick; one table of what passed (`make bench`)

A name is `speed/throughput`, or a folder. Nothing is written to benchmarks/results: the short form shows that
a benchmark works, and its numbers are too noisy to keep. So a goal that a short run misses is shown, and only
a benchmark that breaks makes the exit status 1.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.record import LEFT_OUT, ROOT

FOLDERS = ("science", "speed", "endurance")
LIMIT_S = 600
"""More than a short run may take on a busy machine: what takes longer hangs."""


@dataclass(frozen=True)
class Outcome:
    """What became of one short run."""

    verdict: str
    seconds: float
    note: str


def names() -> list[str]:
    """Returns the names of all benchmarks: the files that can be started by their path."""
    started = "if not __package__:"
    return [
        f"{folder}/{file.stem}"
        for folder in FOLDERS
        for file in sorted((ROOT / "benchmarks" / folder).glob("*.py"))
        if started in file.read_text(encoding="utf-8")
    ]


def question(name: str) -> str:
    """Returns the first line of a benchmark's docstring."""
    text = (ROOT / "benchmarks" / f"{name}.py").read_text(encoding="utf-8")
    return text.split("\n", 1)[0].strip('"')


def run_quick(name: str) -> Outcome:
    """Runs one benchmark with --quick in a process of its own."""
    command = [sys.executable, f"benchmarks/{name}.py", "--quick", "--json"]
    began = time.monotonic()
    try:
        done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True, timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        return Outcome("failed", time.monotonic() - began, f"not finished after {LIMIT_S} s")
    took = time.monotonic() - began
    last = (done.stderr.strip() or "no message").rsplit("\n", 1)[-1]
    if done.returncode == LEFT_OUT:
        return Outcome("left out", took, last.removeprefix("left out: "))
    try:
        result: dict[str, Any] = json.loads(done.stdout)
    except json.JSONDecodeError:
        return Outcome("failed", took, last)
    ratios = ", ".join(f"{key} {value:.3f}" for key, value in result.get("ratios", {}).items())
    return Outcome("passed" if done.returncode == 0 else "goal missed", took, ratios)


def main() -> int:
    """Lists or runs; 1 if a benchmark broke."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these benchmarks or folders")
    parser.add_argument("--quick", action="store_true", help="run them")
    options = parser.parse_args()
    chosen = [
        name
        for name in names()
        if not options.names or name in options.names or Path(name).parent.name in options.names
    ]
    if not chosen:
        parser.error(f"no such benchmark; there are {', '.join(names())}")
    width = max(map(len, chosen))
    if not options.quick:
        print("\n".join(f"{name:{width}}  {question(name)}" for name in chosen))
        return 0
    broken = 0
    for name in chosen:
        outcome = run_quick(name)
        broken += outcome.verdict == "failed"
        print(f"{name:{width}}  {outcome.verdict:11}  {outcome.seconds:5.0f} s  {outcome.note}", flush=True)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
