"""What an attack is played on: the shipped broker, two collectors, the console, and one honest vehicle.

Stage: mosquitto with TLS <-- misfire fleet collect (2) --> SQLite and a folder <-- misfire fleet serve
Honest: spool -> uplink over TLS, one picture at a time, each timed from the spool to `stored`
Watch: resident memory of each process with its children, sampled while the attack runs
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from misfire_fleet.store import Store
from misfire_runtime.messages import pack_embedding
from misfire_runtime.spool import Spool
from misfire_runtime.testing import make_offer
from misfire_runtime.uplink import Uplink
from proving_ground import pictures
from proving_ground.foreign_bytes import numbered
from proving_ground.hardened import PASSWORDS, Hardened, hardened
from proving_ground.services import free_port, stop_process

FLEET = "default"
HONEST = "car-1"
SECRET = "known-to-collectors-only"
STOLEN = ("evil", *(f"evil-{number}" for number in range(8)), "collector", "operator", "_canary")
"""Common names of the stolen certificates."""
_PERIOD_S = 0.2
_FLEET_DIR = Path(__file__).resolve().parents[2] / "fleet"
SCENES = 4096


def scene(number: int) -> str:
    """Embedding of the honest vehicle's picture of this number: none is like another, all can be foreseen."""
    values = np.random.default_rng(number % SCENES).standard_normal(64)
    return pack_embedding(values / np.linalg.norm(values))


@dataclass
class Stage:
    """All processes of the fleet."""

    folder: Path
    broker: Hardened
    processes: dict[str, list[psutil.Process]]
    metrics: list[str]
    console: str

    def store(self) -> Store:
        """The fleet's store, opened beside the running processes."""
        return Store.open_folder(self.folder / "fleet")

    def memory(self) -> dict[str, float]:
        """MiB resident by part, children included; collectors are two, so the larger one counts."""
        found: dict[str, float] = {}
        for part, processes in self.processes.items():
            found[part] = max(_resident(process) for process in processes) / 2**20
        return found

    def health(self) -> list[str]:
        """What the collectors' /healthz say other than ok."""
        return [text for text in (_get(f"{url}/healthz")[1].strip() for url in self.metrics) if text != "ok"]

    def udp_ports(self) -> int:
        """UDP sockets that a collector or the console holds."""
        count = 0
        for part in ("collector", "console"):
            for process in self.processes[part]:
                for each in (process, *process.children(recursive=True)):
                    try:
                        count += len(each.net_connections("udp"))
                    except psutil.Error:
                        continue
        return count

    def pages_down(self) -> int:
        """How many of the console's pages answer with an error."""
        pages = ("/", "/vehicles", f"/vehicles/{HONEST}", "/vehicles/evil", "/api/samples")
        return sum(_get(self.console + page)[0] >= 500 for page in pages)


def _resident(process: psutil.Process) -> int:
    total = 0
    try:
        for each in (process, *process.children(recursive=True)):
            total += each.memory_info().rss
    except psutil.NoSuchProcess:
        pass
    return total


def _get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=20) as answer:
            return answer.status, answer.read(2_000).decode(errors="replace")
    except urllib.error.HTTPError as error:
        return error.code, error.read(2_000).decode(errors="replace")
    except OSError as error:
        return 599, str(error)


@contextmanager
def stage(folder: Path, *, settings: str = "") -> Iterator[Stage]:
    """Starts everything, with the shipped settings and `settings` after them, and waits until it works."""
    with ExitStack() as stack:
        broker = stack.enter_context(hardened(folder / "mosquitto", fleet=FLEET))
        for name in STOLEN:
            broker.authority.issue(name)
        config = folder / "collector.toml"
        config.write_text((_FLEET_DIR / "collector.toml").read_text() + settings)
        Store.open_folder(folder / "fleet").close()
        collectors, ports = [], []
        for number in range(2):
            ports.append(free_port())
            collectors.append(stack.enter_context(_collector(folder, broker, config, number, ports[-1])))
        port = free_port()
        options = ["serve", "--open", "--fleet-dir", str(folder / "fleet"), "--port", str(port)]
        console = stack.enter_context(_program(folder / "console.log", *options))
        processes = {"broker": [broker.process], "collector": collectors, "console": [console]}
        made = Stage(
            folder,
            broker,
            {part: [psutil.Process(each.pid) for each in group] for part, group in processes.items()},
            [f"http://127.0.0.1:{each}" for each in ports],
            f"http://127.0.0.1:{port}",
        )
        for url in (*(f"{each}/healthz" for each in made.metrics), f"{made.console}/"):
            _wait_until_well(url)
        yield made


@contextmanager
def _collector(
    folder: Path, broker: Hardened, config: Path, number: int, port: int
) -> Iterator[subprocess.Popen[bytes]]:
    url = f"mqtt://collector@127.0.0.1:{broker.inside_port}"
    password = folder / "password.txt"
    password.write_text(PASSWORDS["collector"])
    options = ["--broker", url, "--password-file", str(password), "--fleet", FLEET, "--group", SECRET]
    options += ["--fleet-dir", str(folder / "fleet"), "--config", str(config), "--metrics-port", str(port)]
    with _program(folder / f"collector-{number}.log", "collect", *options) as process:
        yield process


@contextmanager
def _program(log: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "misfire_runtime.cli", "fleet", *arguments]
    with log.open("wb") as opened:
        process = subprocess.Popen(
            command, stdout=opened, stderr=opened, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
    try:
        yield process
    finally:
        stop_process(process, timeout_s=30.0)


def _wait_until_well(url: str) -> None:
    until = time.monotonic() + 120
    while time.monotonic() < until:
        if _get(url)[0] == 200:
            return
        time.sleep(0.2)
    sys.exit(f"{url} did not become well in two minutes")


@dataclass
class Timed:
    """One honest sample: when it was put into the spool, and seconds to `stored` so far."""

    id: str
    at: float
    seconds: float
    settled: bool = False


class Honest:
    """A vehicle with the real spool and uplink, on a thread of its own; `since` gives its times."""

    def __init__(self, at: Stage) -> None:
        self.samples: list[Timed] = []
        self._picture = pictures.jpeg()
        self._spool = Spool(at.folder / "spool", reserve_bytes=0)
        self._uplink = Uplink(self._spool, fleet=FLEET, vehicle=HONEST, broker=at.broker.vehicle(HONEST))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="honest", daemon=True)

    def __enter__(self) -> Honest:
        self._uplink.start()
        if not self._uplink.wait_online(30):
            sys.exit("the honest vehicle does not reach the broker")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)
        self._uplink.close()
        self._spool.close()

    def since(self, start: float, until: float) -> list[float]:
        """Seconds to `stored` of the samples spooled in this time; of one that still waits, until now."""
        return [each.seconds for each in self.samples if start <= each.at < until]

    def counters(self) -> dict[str, Any]:
        """The vehicle's books."""
        return self._spool.counters().model_dump()

    def _run(self) -> None:
        number = 0
        while not self._stop.is_set():
            data = numbered(self._picture, number)
            offer = make_offer(data, vehicle=HONEST, embedding=scene(number), frame=number)
            self._spool.add(data, offer)
            timed = Timed(offer.id, time.monotonic(), 0.0)
            self.samples.append(timed)
            while not timed.settled and not self._stop.is_set():
                timed.settled = self._spool.wait_empty(0.02)
                timed.seconds = time.monotonic() - timed.at
            number += 1
            self._stop.wait(_PERIOD_S)


@dataclass
class Watch:
    """Samples memory four times a second until the end of its context."""

    at: Stage
    peak: dict[str, float] = field(default_factory=dict)

    def __enter__(self) -> Watch:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)

    def _run(self) -> None:
        while not self._stop.wait(0.25):
            for part, size in self.at.memory().items():
                self.peak[part] = max(self.peak.get(part, 0.0), size)
