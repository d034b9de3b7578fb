"""Keeps what the loop has done, in one file that is always whole: WORK/loop.json.

A step is recorded when its work is durable. A process that was killed in between does the step again, and
every step finds and keeps what it made before.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from misfire_runtime.errors import ConfigError
from misfire_runtime.files import read_bounded, write_durably

Step = Literal["snapshot", "retrain", "export", "gate", "done"]
"""The step that a round is at: what is to be done next."""
STATE = "loop.json"
SCHEMA_VERSION = 1
_KEPT = 200
"""Rounds in the file; older ones are in the audit log and in their folders."""
_MAX_BYTES = 16 * 1024 * 1024


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Round(_Part):
    """Says how far a round is. Times are seconds since 1970.

    Attributes:
        number: from 1.
        step: what is to be done next.
        parent: number of the round whose run and bundle it continues; 0: those that the loop began with.
        version: of its bundle.
        started_at, ended_at: its times; 0: not ended.
        snapshot, snapshot_sha256, labels_up_to: its snapshot and the time of its newest label; "" before.
        run_id, bundle: its run, and NAME@VERSION of its bundle; "" before.
        passed: what the gate said; None: nothing yet.
        reasons: why it did not pass.
        failures: attempts at the present step that failed.
        error: of the last one.
    """

    number: int
    step: Step = "snapshot"
    parent: int
    version: str
    started_at: float
    ended_at: float = 0.0
    snapshot: str = ""
    snapshot_sha256: str = ""
    labels_up_to: float = 0.0
    run_id: str = ""
    bundle: str = ""
    passed: bool | None = None
    reasons: tuple[str, ...] = ()
    failures: int = 0
    error: str = ""

    @property
    def open(self) -> bool:
        """Returns whether something is left to do."""
        return not self.ended_at


class LoopState(_Part):
    """Is the content of the file.

    Attributes:
        began_with: id of the run that the loop began with.
        incumbent: number of the round whose bundle passed last; 0: none did.
        rounds: oldest first.
    """

    schema_version: int = SCHEMA_VERSION
    began_with: str
    incumbent: int = 0
    rounds: tuple[Round, ...] = ()

    @property
    def last(self) -> Round | None:
        """Returns the newest round; None before the first one."""
        return self.rounds[-1] if self.rounds else None

    @property
    def labels_up_to(self) -> float:
        """Returns the time of the newest label that a finished round has used; 0 if none has."""
        # A round that was given up has used nothing: its labels make the next one due.
        return max((each.labels_up_to for each in self.rounds if each.passed is not None), default=0.0)

    def with_round(self, changed: Round) -> LoopState:
        """Returns the state with this round instead of the one with its number, or after all others."""
        others = tuple(each for each in self.rounds if each.number != changed.number)
        # A round that passed decides what the next one continues.
        incumbent = changed.number if changed.passed and not changed.open else self.incumbent
        return self.model_copy(update={"rounds": (*others, changed)[-_KEPT:], "incumbent": incumbent})


class StateFile:
    """Reads and writes the state of a loop in its folder."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / STATE

    def read(self) -> LoopState | None:
        """Returns the state; None if the loop never began. Raises ConfigError if the file is unusable."""
        try:
            found = LoopState.model_validate_json(read_bounded(self.path, max_bytes=_MAX_BYTES))
        except FileNotFoundError:
            return None
        except (OSError, ValidationError, ValueError) as error:
            raise ConfigError(
                f"{self.path} is not a loop's state: {str(error).splitlines()[0]}; move it away to begin anew"
            ) from error
        if found.schema_version != SCHEMA_VERSION:
            raise ConfigError(f"{self.path} has schema {found.schema_version}; this version reads 1")
        return found

    def write(self, state: LoopState) -> None:
        """Writes the state durably, whole or not at all. Raises OSError."""
        temporary = self.path.with_name(f".{STATE}.tmp")
        write_durably(self.path, (state.model_dump_json(indent=1) + "\n").encode(), temporary=temporary)
