"""Forks processes to be killed by the thousand: one parent imports everything, children are its forks.

Zygote.spawn(kind, config) -> Child;  Child.kill() is kill -9.  Run as a program it is the parent: JSON lines
in (kind, config), process ids out. It has one thread, so that forking is sound.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).resolve().parents[3]


@dataclass
class Child:
    """Holds a forked process."""

    pid: int
    kind: str
    config: dict[str, Any]

    @property
    def alive(self) -> bool:
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        return True

    def kill(self) -> None:
        """Sends SIGKILL, and waits until it is gone."""
        self._end(signal.SIGKILL, 10.0)

    def stop(self, *, timeout_s: float = 30.0) -> None:
        """Sends SIGTERM and waits; sends SIGKILL if that does not help."""
        if not self._end(signal.SIGTERM, timeout_s):
            self.kill()

    def _end(self, number: int, timeout_s: float) -> bool:
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            return True
        until = time.monotonic() + timeout_s
        while self.alive and time.monotonic() < until:
            time.sleep(0.002)
        return not self.alive


class Zygote:
    """Controls the parent process from the test. Children that are left are killed at the end."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self._children: list[Child] = []

    def __enter__(self) -> Zygote:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "proving_ground.faults.zygote"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=ROOT,
                env=environment,
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for child in self._children:
            if child.alive:
                child.kill()
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
        self._process.stdout.close()

    def spawn(self, kind: str, config: dict[str, Any]) -> Child:
        """Forks a "vehicle" or a "collector"."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps([kind, config]).encode() + b"\n")
        self._process.stdin.flush()
        child = Child(int(self._process.stdout.readline()), kind, config)
        self._children = [c for c in self._children if c.alive] + [child]
        return child


def _serve() -> None:
    from proving_ground.faults.collector_process import run_collector
    from proving_ground.faults.vehicle_process import run_vehicle

    kinds: dict[str, Callable[[dict[str, Any]], None]] = {"vehicle": run_vehicle, "collector": run_collector}
    # The kernel then removes dead children: zombies would look alive to `Child.alive`.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    # What children print must not get between the answers.
    os.dup2(2, 1)
    while line := sys.stdin.buffer.readline():
        kind, config = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _live(kinds[kind], config)
        answers.write(f"{pid}\n".encode())


def _live(run: Callable[[dict[str, Any]], None], config: dict[str, Any]) -> None:
    status = 0
    try:
        # The child may start processes of its own and wait for them.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        run(config)
    except BaseException:  # noqa: BLE001  (whatever it was, the child must not become a second parent)
        traceback.print_exc()
        status = 1
    finally:
        sys.stderr.flush()
        # Without the parent's exit handlers.
        os._exit(status)


if __name__ == "__main__":
    _serve()
