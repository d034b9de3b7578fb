"""Keeps a desired configuration on trial: before it is applied, until the vehicle has run with it.

begin (trial.json) --applied, frames go on for a while--> confirm (desired.json)
      |--the process ends otherwise than in order, again and again--> refused at the next start
      |--memory grows, or frames come and none is scored--> refused at once

What is refused is remembered with its reason, because the broker delivers it again at every connection. The
last confirmed one is used instead, so a vehicle is not harmed again at every start.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from misfire_runtime.files import remove_durably
from misfire_runtime.messages import Desired
from misfire_runtime.state.small_files import read_state, write_state

MAX_VERSION = 2**53 - 1
"""What a JSON number holds exactly in every language."""
_STATM = Path("/proc/self/statm")


@dataclass(frozen=True)
class Probation:
    """Sets the limits of a trial: its length, growth of memory, silence, and starts that ended badly."""

    seconds: float = 300.0
    frames: int = 100
    growth_bytes: int = 512 * 1024**2
    unscored_s: float = 20.0
    starts: int = 2
    """One may be somebody switching the vehicle off."""


@dataclass(frozen=True)
class Vitals:
    """Holds a vehicle's vital signs: frames handled, seconds of frames without one scored, and memory."""

    frames: int
    unscored_s: float
    memory_bytes: int


@dataclass(frozen=True)
class Trial:
    """Holds a desired configuration that is not confirmed.

    starts: of the process with it, that have not ended in order.  refused: why it is not tried any more.
    """

    desired: Desired
    starts: int
    refused: str = ""


class DesiredStore:
    """Keeps the last confirmed configuration, and the one on trial or refused after it. Not thread-safe."""

    def __init__(self, folder: Path) -> None:
        self._confirmed_file = folder / "desired.json"
        self._trial_file = folder / "trial.json"
        self.confirmed = _read(
            self._confirmed_file, _desired, assume="the vehicle runs on its own configuration"
        )
        trial = _read(self._trial_file, _trial, assume="the last confirmed one is in force")
        self.trial = trial if trial is not None and trial.desired.version > self._floor() else None

    @property
    def version(self) -> int:
        """Returns the highest version that was taken; -1 before any."""
        return self.trial.desired.version if self.trial is not None else self._floor()

    def begin(self, desired: Desired) -> None:
        """Puts one on trial in place of an earlier one.

        Raises:
            OSError: it cannot be kept, so it must not be applied.
        """
        self._write(Trial(desired, starts=1))

    def start_again(self) -> None:
        """Counts a start with the one on trial, before it is applied. Raises OSError."""
        assert self.trial is not None
        self._write(Trial(self.trial.desired, starts=self.trial.starts + 1))

    def ended_in_order(self) -> None:
        """Notes that the process ends in order, which is not held against the trial. Raises OSError."""
        if self.trial is not None and not self.trial.refused:
            self._write(Trial(self.trial.desired, starts=0))

    def refuse(self, reason: str) -> None:
        """Marks the one on trial as refused: it is not tried again. Raises OSError."""
        assert self.trial is not None
        self._write(Trial(self.trial.desired, starts=self.trial.starts, refused=reason))

    def withdraw(self, earlier: Trial | None = None) -> None:
        """Forgets a trial that could not be applied, for the one before it. Raises OSError."""
        self.trial = earlier
        if earlier is None:
            remove_durably(self._trial_file)
        else:
            self._write(earlier)

    def confirm(self) -> None:
        """Makes the one on trial the last confirmed one. Raises OSError."""
        assert self.trial is not None
        # Confirmed first: a crash before the trial's end leaves both, and `_floor` then drops the trial.
        write_state(self._confirmed_file, self.trial.desired.model_dump_json().encode())
        self.confirmed = self.trial.desired
        self.withdraw()

    def _floor(self) -> int:
        return -1 if self.confirmed is None else self.confirmed.version

    def _write(self, trial: Trial) -> None:
        desired = trial.desired.model_dump(mode="json")
        state = {"desired": desired, "starts": trial.starts, "refused": trial.refused}
        write_state(self._trial_file, json.dumps(state).encode())
        self.trial = trial


def memory_bytes() -> int:
    """Returns the resident memory of this process; 0 if the system does not say."""
    try:
        # The second number is the resident set, in pages (proc(5)).
        pages = int(_STATM.read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def harm(now: Vitals, before: Vitals, limits: Probation) -> str:
    """Returns what harm came to the vehicle since `before`, in words; "" if none."""
    growth = now.memory_bytes - before.memory_bytes
    if growth > limits.growth_bytes:
        return f"memory grew by {growth >> 20} MiB with it; at most {limits.growth_bytes >> 20} MiB"
    # Frames that were not scored before it either are not its doing.
    if now.unscored_s > limits.unscored_s > 2 * before.unscored_s:
        return f"frames came with it and none was scored for {now.unscored_s:.0f} s"
    return ""


def _read(path: Path, parse: Any, *, assume: str) -> Any:
    return read_state(path, parse, missing=None, damaged=None, assume=assume)


def _desired(state: Any) -> Desired:
    desired = Desired.model_validate(state)
    if desired.version > MAX_VERSION:
        raise ValueError(f"version {desired.version} is above {MAX_VERSION}")
    return desired


def _trial(state: Any) -> Trial:
    return Trial(_desired(state["desired"]), int(state["starts"]), str(state["refused"]))
