"""How much CPU do `misfire --help`, every `COMMAND --help` and `misfire data list` take?

    python benchmarks/start_up.py --json --out benchmarks/results/start_up.json

Each command runs in a process of its own, as a user starts it; counted are its user and system seconds
(getrusage of the child), the median of three. Exit status 1 if one takes more than 0.5 s.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.fleet_bench import publish, record

LIMIT_S = 0.5
"""CPU seconds of a command: what a person at a terminal takes for at once."""


def commands() -> list[list[str]]:
    """Returns the arguments of every command to measure: all pages of help, sub-commands' too."""
    from misfire_runtime import cli

    found = [["--help"]]
    for name in cli.COMMANDS:
        parts = getattr(cli.load(name), "commands", {})
        found += [[name, "--help"], *([name, part, "--help"] for part in parts)]
    return [*found, ["data", "list"]]


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


def measure(rounds: int) -> dict[str, Any]:
    """Returns CPU seconds per command, the median of `rounds`, after one run that fills the disk's cache."""
    cpu_seconds(["--help"])
    seconds = {
        " ".join(["misfire", *arguments]): statistics.median(cpu_seconds(arguments) for _ in range(rounds))
        for arguments in commands()
    }
    slowest = max(seconds, key=seconds.__getitem__)
    return {
        "rounds": rounds,
        "limit_s": LIMIT_S,
        "slowest": slowest,
        "slowest_s": round(seconds[slowest], 3),
        "commands": len(seconds),
        "too_slow": [name for name, value in seconds.items() if value > LIMIT_S],
        "cpu_s": {name: round(value, 3) for name, value in seconds.items()},
    }


def main() -> None:
    """Parses options, measures, publishes; exit status 1 if a command is too slow."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one round")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    result = measure(1 if options.quick else options.rounds)
    argv = [arg for arg in sys.argv[1:] if not Path(arg).is_absolute()]
    publish(record("start_up", result, seed=0, argv=argv), as_json=options.json, out=options.out)
    sys.exit(1 if result["too_slow"] else 0)


if __name__ == "__main__":
    main()
