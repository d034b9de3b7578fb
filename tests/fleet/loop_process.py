"""Runs a loop's round in processes that are killed at a point, one after another; prints how each ended.

    python -m tests.fleet.loop_process '{"settings": {...}, "fleet": ..., "points": [...]}'

One process imports everything and forks the others, which are killed with SIGKILL by themselves: nothing of
theirs runs after it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from misfire_export import assemble
from misfire_fleet.candidates import gate
from misfire_fleet.candidates.rules import Rules
from misfire_fleet.loop.lock import only_loop
from misfire_fleet.loop.loop import Loop, Pace
from misfire_fleet.loop.rounds import Settings
from misfire_fleet.loop.state import LoopState, StateFile
from misfire_fleet.store import Store
from misfire_fleet.store.curated import snapshots
from misfire_train.fitting import backbone
from misfire_train.retraining import Schedule

RULES = Rules(tolerance=0.9, score_tolerance=0.9, min_frames=5, replicates=100, latency=False)


def die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def before_step(step: str) -> None:
    """Dies when the work of a step is done, before the state says that `step` is next."""
    write = StateFile.write

    def write_or_die(self: StateFile, state: LoopState) -> None:
        if state.last is not None and state.last.step == step:
            die()
        write(self, state)

    StateFile.write = write_or_die  # type: ignore[method-assign]


def after_checkpoint() -> None:
    save = backbone._save

    def save_and_die(*given: Any, **named: Any) -> None:
        save(*given, **named)
        die()

    backbone._save = save_and_die


def in_export() -> None:
    # The folder's content is complete, and has not got its name.
    assemble.whole_folder.__wrapped__.__globals__["sync"] = die  # type: ignore[attr-defined]


POINTS: dict[str, Callable[[], None]] = {
    "manifest written, rows missing": lambda: setattr(snapshots, "insert", die),
    "snapshot made": lambda: before_step("retrain"),
    "first epoch saved": after_checkpoint,
    "run written": lambda: before_step("export"),
    "bundle half written": in_export,
    "bundle written": lambda: before_step("gate"),
    "verdict not recorded": lambda: setattr(gate, "record_verdict", die),
    "verdict recorded": lambda: before_step("done"),
    "": lambda: None,
}


def play(given: dict[str, Any], point: str) -> None:
    folders = {name: Path(given["settings"][name]) for name in ("run", "bundle", "folder")}
    settings = Settings(exam="exam", rules=RULES, schedule=Schedule(epochs=2), **folders)
    with Store.open_folder(Path(given["fleet"])) as store, only_loop(store.database):
        loop = Loop(store, settings, pace=Pace(attempts=1))
        POINTS[point]()
        loop.round()


def main() -> None:
    given = json.loads(sys.argv[1])
    ends = []
    for point in given["points"]:
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                play(given, point)
                status = 0
            except BaseException:  # noqa: BLE001  (whatever it was, the child must not go on as the parent)
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        end = os.waitpid(pid, 0)[1]
        state = Path(given["settings"]["folder"]) / "loop.json"
        step = json.loads(state.read_text())["rounds"][-1]["step"] if state.exists() else ""
        ends.append([os.waitstatus_to_exitcode(end), step])
    sys.stdout.write(json.dumps(ends) + "\n")


if __name__ == "__main__":
    main()
