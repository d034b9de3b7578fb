"""Runs a collector as a process to be killed, at random or at a named step of its own work.

die_at names one of STEPS: the process kills itself with SIGKILL there, when it has passed `die_after` times.
"""

from __future__ import annotations

import itertools
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import event

from misfire_fleet.collector import Collector
from misfire_fleet.collector.health import setbacks as collector_setbacks
from misfire_fleet.collector.settings import CollectorSettings
from misfire_fleet.errors import StoreUnavailableError
from misfire_fleet.store import Store
from misfire_runtime.mqtt.client import BrokerConfig
from misfire_runtime.service.logs import set_up_logs

STEPS = ("stage.before", "stage.after", "blobs.after", "rows.after", "verdict.before", "verdict.after")


def run_collector(config: dict[str, Any]) -> None:
    """Keys: home (see homes.Home.config), broker, settings, name, die_at, die_after, trouble, ready.

    setback_s: how long a sample that it failed with waits at first.
    clock_offset_s: by how much the wall clock is wrong.
    """
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    home = config["home"]
    set_up_logs(sys.stderr, form="plain", level=logging.WARNING)
    set_clock(config)
    collector_setbacks._FIRST_S = float(config.get("setback_s", 0.5))
    store = Store.open(home["database"], home["blobs"], blob_options=home.get("blob_options"))
    if home.get("busy_timeout_ms") is not None:
        _hurry(store, int(home["busy_timeout_ms"]))
    settings = CollectorSettings.model_validate({"drain_s": 1.0, **config.get("settings", {})})
    collector = Collector(
        store,
        broker=BrokerConfig.model_validate(config["broker"]),
        fleet=str(config.get("fleet", "faults")),
        name=config.get("name"),
        settings=settings,
    )
    if config.get("die_at"):
        _arm(collector, store, str(config["die_at"]), int(config.get("die_after", 0)))
    if config.get("trouble"):
        _disturb(store, **config["trouble"])
    collector.start(wait_s=20.0)
    if config.get("ready"):
        Path(config["ready"]).touch()
    stop.wait()
    collector.close()
    store.close()


def set_clock(config: dict[str, Any]) -> None:
    """Makes the wall clock of this process wrong by `clock_offset_s`."""
    offset, right = float(config.get("clock_offset_s", 0.0)), time.time
    time.time = lambda: right() + offset


def _hurry(store: Store, milliseconds: int) -> None:
    """Limits how long SQLite waits for another writer."""
    engine = store.database.engine
    pragma = f"PRAGMA busy_timeout={milliseconds}"
    event.listen(engine, "connect", lambda connection, _record: connection.execute(pragma).close())
    # Connections from before keep the old setting.
    engine.dispose()


def _disturb(store: Store, *, part: str, what: str, seconds: float) -> None:
    """Makes the blob store or the database fail, or slow, for some seconds from the first write on.

    "full" fails every second blob, or after half of a group's rows, as a disk without room does; "down" as a
    server that is away.
    """
    holder: Any = store.blobs if part == "blobs" else store.database
    name = "stage" if part == "blobs" else "insert_new"
    call = getattr(holder, name)
    until: list[float] = []
    turns = itertools.count()

    def run(*arguments: Any, **keywords: Any) -> Any:
        if not until:
            until.append(time.monotonic() + seconds)
        if time.monotonic() < until[0]:
            if what == "slow":
                time.sleep(0.5)
            elif what == "down":
                raise StoreUnavailableError("connection refused")
            elif part == "rows":
                call(*arguments[:-1], arguments[-1][: len(arguments[-1]) // 2], **keywords)
                raise StoreUnavailableError("no space left on device")
            elif next(turns) % 2 == 0:
                raise StoreUnavailableError("no space left on device")
        return call(*arguments, **keywords)

    setattr(holder, name, run)


def _arm(collector: Collector, store: Store, step: str, passes: int) -> None:
    left = [passes]

    def die() -> None:
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def wrapped(call: Callable[..., Any], when: str) -> Callable[..., Any]:
        def run(*arguments: Any, **keywords: Any) -> Any:
            if when == "before":
                die()
            result = call(*arguments, **keywords)
            if when == "after":
                die()
            return result

        return run

    where, when = step.split(".")
    holder, name = {
        "stage": (store.blobs, "stage"),
        "blobs": (store.blobs, "publish"),
        "rows": (store, "add_many"),
        "verdict": (collector.link, "publish"),
    }[where]
    setattr(holder, name, wrapped(getattr(holder, name), when))
