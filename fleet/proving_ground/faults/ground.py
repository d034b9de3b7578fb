"""Runs a fleet to be mistreated: a real broker; collectors and vehicles, each a process behind its own proxy.

add_collector, add_vehicle -> kill, revive, cut, restart_broker, troubles of links -> settle -> audit
"""

from __future__ import annotations

import random
import sqlite3
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from types import TracebackType
from typing import Any

from misfire_fleet.store import Store
from proving_ground.faults.audit import Audit, audit
from proving_ground.faults.chaos_proxy import ChaosProxy, Trouble
from proving_ground.faults.homes import FolderHome, Home
from proving_ground.faults.wishes import Wishes
from proving_ground.faults.zygote import Child, Zygote
from proving_ground.services import Mosquitto, mosquitto

IMPATIENT = {
    "reoffer_s": 0.5,
    "reoffer_max_s": 4.0,
    "ack_timeout_s": 3.0,
    "stale_s": 2.0,
    "reconnect_s": 0.1,
    "reconnect_max_s": 0.5,
}
"""Timers of the uplink for tests: the same logic in a shorter time."""
BRISK = {
    "stall_s": 1.0,
    "abandon_s": 6.0,
    "canary_s": 1.0,
    "watchdog_s": 3.0,
    "drain_s": 1.0,
    "restate_s": 2.0,
}
"""Timers of the collector for tests."""
BROKER_OPTIONS = "max_queued_messages 0\nmax_inflight_messages 0"


@dataclass
class Member:
    """Holds a vehicle or collector: how to start it, its link, and the process while there is one."""

    kind: str
    config: dict[str, Any]
    proxy: ChaosProxy
    child: Child | None = None

    @property
    def folder(self) -> Path:
        return Path(self.config["folder"])

    @property
    def alive(self) -> bool:
        return self.child is not None and self.child.alive


@dataclass
class ProvingGround:
    """Runs broker, collectors and vehicles as a context; everything that was started ends with it."""

    folder: Path
    seed: int = 0
    broker_options: str = BROKER_OPTIONS
    home: Home | None = None
    """Where the fleet's store is; None: SQLite and blobs in a folder of the ground's own."""
    faults: Counter[str] = field(default_factory=Counter)
    vehicles: list[Member] = field(default_factory=list)
    collectors: list[Member] = field(default_factory=list)

    def __enter__(self) -> ProvingGround:
        self._stack = ExitStack()
        self.rng = random.Random(self.seed)
        self.broker: Mosquitto = self._stack.enter_context(
            mosquitto(self.folder / "broker", options=self.broker_options)
        )
        self.wishes = self._stack.enter_context(Wishes(self.broker.port))
        self._zygote = self._stack.enter_context(Zygote(self.folder / "processes.log"))
        self.home = self.home or FolderHome(self.folder / "fleet")
        self.home.open().close()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for member in [*self.vehicles, *self.collectors]:
            if member.child is not None:
                member.child.kill()
        self._stack.close()

    def add_collector(self, *, protocol: str = "5", **config: Any) -> Member:
        """Starts one more collector on the shared store and waits until it is ready."""
        number = len(self.collectors)
        ready = self.folder / f"collector-{number}.ready"
        assert self.home is not None
        member = self._member("collector", protocol, {"home": self.home.config, **config})
        member.config["settings"] = {**BRISK, **config.get("settings", {})}
        member.config["ready"] = str(ready)
        self.collectors.append(member)
        self.revive(member)
        return member

    def add_vehicle(self, *, protocol: str = "5", link: Trouble | None = None, **config: Any) -> Member:
        """Starts one more vehicle, with `link` from the first byte on; `config`: see vehicle_process."""
        name = f"car-{len(self.vehicles)}"
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        member = self._member("vehicle", protocol, {"folder": str(folder), "vehicle": name, **config})
        member.proxy.trouble = link or Trouble()
        member.config["uplink"] = {**IMPATIENT, **config.get("uplink", {})}
        member.config.setdefault("spool", {"reserve_bytes": 0})
        self.vehicles.append(member)
        self.revive(member)
        return member

    def revive(self, member: Member, **changes: Any) -> None:
        """Starts the process again, with changes to its configuration."""
        member.config.update(changes)
        ready = member.config.get("ready")
        if ready:
            Path(ready).unlink(missing_ok=True)
        member.child = self._zygote.spawn(member.kind, member.config)
        until = time.monotonic() + 20
        while ready and not Path(ready).exists() and member.alive and time.monotonic() < until:
            time.sleep(0.01)

    def kill(self, member: Member) -> None:
        """Sends SIGKILL."""
        assert member.child is not None
        self.faults[f"{member.kind} killed"] += member.alive
        member.child.kill()

    def cut(self, member: Member) -> None:
        """Resets the member's connection."""
        self.faults["link cut"] += member.proxy.cut() > 0

    def abandon_link(self, member: Member) -> None:
        """Sends SIGKILL with the link half-open: the broker is not told. The next start uses another link."""
        member.proxy.trouble = Trouble(half_open=True)
        self.kill(member)
        # The old link must stay half-open: a restarted process needs another one.
        fresh = self._stack.enter_context(ChaosProxy(self.broker.port, seed=self.rng.randrange(1 << 20)))
        fresh.faults += member.proxy.faults
        member.proxy, member.config["broker"]["port"] = fresh, fresh.port

    def restart_broker(self, *, down_s: float = 0.0) -> None:
        """Kills and restarts the broker: sessions, queues and retained messages are gone."""
        self.broker.kill()
        time.sleep(down_s)
        self.broker.start()
        self.faults["broker killed"] += 1

    def message_faults(self) -> Counter[str]:
        """Returns what the proxies did to messages, counted."""
        total: Counter[str] = Counter()
        for member in [*self.vehicles, *self.collectors]:
            total += member.proxy.faults
        del total["cut"]
        return total

    def calm(self) -> None:
        """Ends the trouble on all links."""
        for member in [*self.vehicles, *self.collectors]:
            member.proxy.trouble = Trouble()

    def pending(self, member: Member) -> int:
        """Returns the number of samples in the vehicle's spool, read beside its process."""
        database = member.folder / "spool" / "spool.sqlite"
        if not database.exists():
            return -1
        connection = sqlite3.connect(database, timeout=10)
        try:
            return int(connection.execute("SELECT count(*) FROM samples").fetchone()[0])
        except sqlite3.OperationalError:
            return -1
        finally:
            connection.close()

    def reasons(self, member: Member) -> list[str]:
        """Returns why samples were refused, from the vehicle's account."""
        connection = sqlite3.connect(member.folder / "spool" / "spool.sqlite", timeout=10)
        try:
            query = "SELECT reason FROM account WHERE verdict IN ('declined', 'rejected')"
            return [row[0] for row in connection.execute(query)]
        finally:
            connection.close()

    def captured(self, member: Member) -> int:
        """Returns the number of samples that the vehicle has captured, from its journal."""
        journal = member.folder / "journal"
        return (
            sum(line.startswith("d ") for line in journal.read_text().splitlines()) if journal.exists() else 0
        )

    def wait(self, holds: Callable[[], bool], *, timeout_s: float = 120.0) -> bool:
        """Waits for something that must come, however slow the machine is; False if it never does."""
        until = time.monotonic() + timeout_s
        while not holds():
            if time.monotonic() > until:
                return False
            time.sleep(0.05)
        return True

    def at_rest(self, member: Member) -> bool:
        """Returns True if the vehicle has captured all its samples and nothing is pending."""
        return self.captured(member) >= int(member.config["count"]) and self.pending(member) == 0

    def settle(self, *, timeout_s: float = 120.0) -> bool:
        """Waits until every vehicle is at rest; False where one never is, or has died."""
        return all(
            self.wait(partial(self._ended, member), timeout_s=timeout_s) and self.at_rest(member)
            for member in self.vehicles
        )

    def _ended(self, member: Member) -> bool:
        return self.at_rest(member) or not member.alive

    def store(self) -> Store:
        """Returns the fleet's store, opened once more."""
        assert self.home is not None
        return self.home.open()

    def online(self, member: Member) -> bool:
        """Returns True if the fleet believes the vehicle to be online."""
        return any(
            found.online for found in self.console.vehicles.summaries() if found.name == member.folder.name
        )

    @cached_property
    def console(self) -> Store:
        """Returns the fleet's store, open as long as the ground is."""
        return self._stack.enter_context(self.store())

    def audit(self) -> Audit:
        """Stops everybody in order, then compares."""
        for member in [*self.vehicles, *self.collectors]:
            if member.child is not None:
                member.child.stop()
        with self.store() as store:
            return audit(store, [member.folder for member in self.vehicles])

    def _member(self, kind: str, protocol: str, config: dict[str, Any]) -> Member:
        seed = self.seed * 1000 + len(self.vehicles) * 10 + len(self.collectors)
        proxy = self._stack.enter_context(ChaosProxy(self.broker.port, seed=seed))
        config["broker"] = {
            "port": proxy.port,
            "protocol": protocol,
            "connect_timeout_s": 2.0,
            "keepalive_s": config.get("keepalive_s", 5),
        }
        return Member(kind, config, proxy)
