"""How much CPU do `misfire --help`, every `COMMAND --help` and `misfire data list` take?

    python benchmarks/speed/start_up.py --json [--rounds 3]

Each command runs in a process of its own, as a user starts it. Measured are its user and system seconds
(getrusage of the child), the median of the rounds. The exit status is 1 if one takes more than 0.5 s.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

if not __package__:  # started by its path: then the checkout's root is not where Python looks
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.record import command_line, finish, run
from misfire_runtime import cli

LIMIT_S = 0.5
"""CPU seconds that a person at a terminal still takes for "at once"."""


def main() -> int:
    """Measures, prints and records; 1 if a command is too slow."""
    parser = command_line(__doc__)
    parser.add_argument("--rounds", type=int, help="default 3; 1 with --quick")
    options = parser.parse_args()
    seconds = measure(options.rounds or (1 if options.quick else 3))
    too_slow = [name for name, value in seconds.items() if value > LIMIT_S]
    slowest = max(seconds, key=seconds.__getitem__)
    result = {"limit_s": LIMIT_S, "slowest": slowest, "too_slow": too_slow, "cpu_s": seconds}
    summary = "\n".join(f"{value:6.3f} s  {name}" for name, value in seconds.items())
    return finish(__file__, result, options, summary=summary, met=not too_slow)


def commands() -> list[list[str]]:
    """Returns the arguments of every command to measure: all pages of help, those of sub-commands, too."""
    found = [["--help"]]
    for name in cli.COMMANDS:
        parts = getattr(cli.load(name), "commands", {})
        found += [[name, "--help"], *([name, part, "--help"] for part in parts)]
    return [*found, ["data", "list"]]


def measure(rounds: int) -> dict[str, Any]:
    """Returns the median CPU seconds of each command, after one run that fills the disk's cache."""
    cpu_seconds(["--help"])
    return {
        " ".join(["misfire", *arguments]): round(
            statistics.median(cpu_seconds(arguments) for _ in range(rounds)), 3
        )
        for arguments in commands()
    }


def cpu_seconds(arguments: list[str]) -> float:
    """Returns user and system seconds of one run of the command in a process of its own."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-m", "misfire_runtime.cli", *arguments],
        check=True,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    run(main)
