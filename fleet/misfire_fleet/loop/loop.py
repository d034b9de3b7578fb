"""Runs rounds on a schedule or at new labels, one after another, until it is stopped.

    due? --Round--> snapshot --> retrain --> export --> gate --> candidate, or not
             ^ every finished step is written to WORK/loop.json

A step that fails is tried again after a pause, a few times; then the round is given up, and the next one
comes when it is due. A round that was open when the process ended is finished first.
"""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import func, select

from misfire_fleet.errors import StoreError
from misfire_fleet.loop.rounds import LoopStoppedError, Settings, Steps
from misfire_fleet.loop.state import LoopState, Round, StateFile
from misfire_fleet.store import Store
from misfire_fleet.store.curated import snapshots as snapshot_rows
from misfire_fleet.store.labels import MACHINES
from misfire_fleet.store.schema import labels
from misfire_runtime.bundle import Bundle
from misfire_runtime.clock import wall_time
from misfire_runtime.errors import ConfigError, MisfireError

MAX_PAUSE_S = 3600.0
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


@dataclass(frozen=True)
class Pace:
    """Holds when rounds are due, and how often a step is tried.

    Attributes:
        every_s: seconds from the start of a round to the next one; None: no schedule.
        new_labels: samples labelled since the last round that make one due; None: not by labels.
        poll_s: seconds between two looks at the labels.
        attempts: how often a step is tried before its round is given up.
        pause_s: seconds before the second attempt; doubled for each further one, up to an hour.
        rest_s: seconds after a round that was given up before the next one.
    """

    every_s: float | None = None
    new_labels: int | None = None
    poll_s: float = 60.0
    attempts: int = 3
    pause_s: float = 60.0
    rest_s: float = MAX_PAUSE_S


class Loop:
    """Runs rounds on a store. The caller holds the lock (`only_loop`).

    Args:
        store: the fleet's store.
        settings: what rounds work with.
        pace: when they are due.
        stop: once it is set, the loop ends between or within steps.
        say: receives a line for each event.

    Raises:
        ConfigError: the loop in this folder began with another run, or its state cannot be read.
        StoreError: the exam is no snapshot with a frozen test set.
    """

    def __init__(
        self,
        store: Store,
        settings: Settings,
        *,
        pace: Pace = Pace(),
        stop: threading.Event | None = None,
        say: Callable[[str], None] = lambda _text: None,
    ) -> None:
        self._store = store
        self._settings = settings
        self._pace = pace
        self._stop = stop or threading.Event()
        self._say = say
        self._file = StateFile(settings.folder)
        self._steps = Steps(store, settings, self._stop, say)
        if not snapshot_rows.found(store.database, settings.exam).frozen:
            raise StoreError(
                f"snapshot {settings.exam!r} has no frozen test set: make one with misfire fleet "
                "snapshot NAME --test 0.2 --frozen"
            )
        self.state = self._begun()

    def run(self) -> None:
        """Runs rounds as they are due, until the stop event is set."""
        while not self._stop.is_set():
            if self._open() or self.due():
                self.round()
            else:
                self._stop.wait(self._pace.poll_s)

    def round(self) -> Round:
        """Finishes the open round or runs a new one; returns it, still open if the loop was stopped."""
        state = self._open() or self._new()
        while state.open and not self._stop.is_set():
            state = self._attempt(state)
        return state

    def due(self) -> bool:
        """Returns whether a new round is due. Without any new label, none is."""
        count, last = self.new_labels(), self.state.last
        if not count or (last is not None and self._rests(last)):
            return False
        if self._pace.new_labels is not None and count >= self._pace.new_labels:
            return True
        every = self._pace.every_s
        return every is not None and (last is None or wall_time() - last.started_at >= every)

    def _rests(self, last: Round) -> bool:
        # What made it fail is likely still there; without a rest, the loop would do nothing but fail.
        return last.passed is None and wall_time() - last.ended_at < self._pace.rest_s

    def new_labels(self) -> int:
        """Returns how many samples people labelled since the last round's snapshot."""
        count = func.count(labels.c.sample.distinct())
        since = self.state.labels_up_to
        query = select(count).where(labels.c.recorded_at > since, labels.c.source.not_in(MACHINES))
        with self._store.database.read() as connection:
            return int(connection.scalar(query) or 0)

    def _begun(self) -> LoopState:
        from misfire_train.runs import read_record

        first = read_record(self._settings.run).run_id
        # Both are opened at each round; that they exist is better known before.
        Bundle.open(self._settings.bundle)
        state = self._file.read()
        if state is None:
            return LoopState(began_with=first)
        if state.began_with != first:
            raise ConfigError(
                f"{self._file.path}: this loop began with run {state.began_with}, not {first}; name that "
                "run, or another --work for a new loop"
            )
        return state

    def _open(self) -> Round | None:
        last = self.state.last
        return last if last is not None and last.open else None

    def _new(self) -> Round:
        last = self.state.last
        before = Bundle.open(self._settings.bundle).manifest.version if last is None else last.version
        made = Round(
            number=1 if last is None else last.number + 1,
            parent=self.state.incumbent,
            version=next_version(before),
            started_at=wall_time(),
        )
        return self._keep(made)

    def _attempt(self, state: Round) -> Round:
        """Does the next step; returns the round after it, or with one failure more."""
        try:
            done = self._steps.do(state)
        except LoopStoppedError as stopped:
            self._say(str(stopped))
            return state
        except (MisfireError, OSError, RuntimeError, ValueError, MemoryError) as error:
            return self._failed(state, error)
        if done.step == "done":
            done = done.model_copy(update={"ended_at": wall_time()})
        return self._keep(done)

    def _failed(self, state: Round, error: Exception) -> Round:
        words = str(error).splitlines()[0] if str(error) else type(error).__name__
        failures = state.failures + 1
        state = state.model_copy(update={"failures": failures, "error": words})
        if failures >= self._pace.attempts:
            self._say(f"round {state.number}: {state.step} failed {failures} times, given up: {words}")
            self._remove_unfinished(state)
            return self._keep(state.model_copy(update={"ended_at": wall_time()}))
        pause = min(self._pace.pause_s * 2 ** (failures - 1), MAX_PAUSE_S)
        self._say(f"round {state.number}: {state.step} failed, again in {pause:.0f} s: {words}")
        state = self._keep(state)
        self._stop.wait(pause)
        return state

    def _remove_unfinished(self, state: Round) -> None:
        """Removes what a round that is given up leaves half-made: a training without its record."""
        from misfire_train.runs import RECORD

        run = self._steps.run_of(state.number)
        if not (run / RECORD).is_file():
            shutil.rmtree(run, ignore_errors=True)

    def _keep(self, state: Round) -> Round:
        self.state = self.state.with_round(state)
        self._settings.folder.mkdir(parents=True, exist_ok=True)
        self._file.write(self.state)
        return state


def next_version(version: str) -> str:
    """Returns the next minor version: each round has one of its own, whether its bundle passes or not.

    >>> next_version("1.4.2"), next_version("2.0.0-rc.1")
    ('1.5.0', '2.1.0')
    """
    major, minor = (int(each) for each in version.split(".")[:2])
    return f"{major}.{minor + 1}.0"


def parse_span(text: str) -> float:
    """Returns the seconds of a time such as 24h. Raises ConfigError.

    >>> parse_span("24h"), parse_span("1.5m")
    (86400.0, 90.0)
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text.strip())
    seconds = float(match[1]) * _UNITS[match[2]] if match else 0.0
    if not 1 <= seconds <= 366 * 86_400:
        raise ConfigError(f"{text!r} is no time span: expected a number with s, m, h or d, such as 24h")
    return seconds
