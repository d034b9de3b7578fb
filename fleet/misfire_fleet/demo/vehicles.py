"""Runs the demo's vehicles: each is a process that runs `misfire run`, as in a car."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from misfire_fleet.demo.broker import Broker
from misfire_runtime.errors import MisfireError

_END_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Assignment:
    """Configures one vehicle: the bundle it loads, the frames it reads and the spool it writes.

    triggers: a configuration file with its triggers; None triggers on the bundle's own score.
    """

    name: str
    bundle: Path
    source: Path
    spool: Path
    rate: float
    seed: int
    triggers: Path | None = None


class RunningVehicle:
    """Controls one process of `misfire run`. Its log is next to its spool."""

    def __init__(self, assignment: Assignment, broker: Broker, *, fleet: str) -> None:
        self.assignment = assignment
        self._log = assignment.spool.with_suffix(".log")
        command = [sys.executable, "-m", "misfire_runtime.cli", "run", "--json", "--until-empty"]
        options: dict[str, object] = {
            "--bundle": assignment.bundle,
            "--source": assignment.source,
            "--spool": assignment.spool,
            "--broker": broker.url,
            "--protocol": broker.protocol,
            "--fleet": fleet,
            "--vehicle": assignment.name,
            "--seed": assignment.seed,
        }
        if assignment.triggers is None:
            options["--rate"] = assignment.rate
        else:
            options["--config"] = assignment.triggers
        for option, value in options.items():
            command += [option, str(value)]
        # A file, not a pipe: nobody reads a pipe during the drive, and a full one would block the vehicle.
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, stdin=subprocess.DEVNULL
            )

    def result(self, *, timeout_s: float) -> dict[str, Any]:
        """Waits for the process and returns the JSON object that it printed.

        Raises:
            MisfireError: it failed, or did not end in time; the message ends with the end of its log.
        """
        name = self.assignment.name
        try:
            printed, _ = self.process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired as error:
            raise MisfireError(
                f"{name} did not end within {timeout_s:.0f} s: {self._last_words()}"
            ) from error
        if self.process.returncode != 0:
            raise MisfireError(f"{name} ended with {self.process.returncode}: {self._last_words()}")
        result: dict[str, Any] = json.loads(printed)
        return result

    def end(self) -> None:
        """Stops the process if it still runs."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(_END_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(_END_TIMEOUT_S)
        if self.process.stdout is not None:
            self.process.stdout.close()

    def _last_words(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")[-600:].strip()


@contextmanager
def running_vehicles(
    assignments: Sequence[Assignment], broker: Broker, *, fleet: str
) -> Iterator[list[RunningVehicle]]:
    """Starts all vehicles, and stops those that still run when the block ends."""
    started: list[RunningVehicle] = []
    try:
        for assignment in assignments:
            started.append(RunningVehicle(assignment, broker, fleet=fleet))
        yield started
    finally:
        for vehicle in started:
            vehicle.end()
