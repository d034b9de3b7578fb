"""Runs a vehicle as a process to be killed: it captures numbered samples, uploads them, and keeps a journal.

The journal holds `i N ID` before a sample is given to the spool, `d N ID` after the spool took it, `b N ID`
for a sample that the fleet must refuse, `w VERSION` where a wish of the fleet came into force, `f WHAT` for a
fault that the process made itself.
What stands under `d` must reach the fleet or be explained; what stands under `w` never falls.
"""

from __future__ import annotations

import errno
import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

from misfire_runtime import clock
from misfire_runtime.config.tables import VehicleConfig
from misfire_runtime.errors import DiskFullError
from misfire_runtime.messages import Clock, Desired, Reported, Telemetry
from misfire_runtime.mqtt.client import BrokerConfig
from misfire_runtime.spool import Spool
from misfire_runtime.spool import files as spool_files
from misfire_runtime.testing import make_offer
from misfire_runtime.uplink import Uplink
from misfire_runtime.uplink.bandwidth import Bandwidth
from misfire_runtime.uplink.settings import UplinkSettings
from misfire_runtime.vehicle.live_config import LiveConfig
from misfire_runtime.vehicle.probation import Probation, Vitals
from proving_ground.faults.collector_process import set_clock
from proving_ground.faults.samples import make_payload, make_trick

TEN_YEARS_S = 10 * 365.25 * 86400


class Journal:
    """Appends lines to a file; what the kernel took survives a kill -9."""

    def __init__(self, path: Path) -> None:
        self.next_number = 0
        if path.exists():
            lines = path.read_text().splitlines()
            begun = [int(line.split()[1]) for line in lines if line.startswith("i ")]
            done = {int(line.split()[1]) for line in lines if line.startswith("d ")}
            self.next_number = max(begun, default=-1) + 1
            # Killed in between: the spool may or may not have it, so the same number comes once more.
            if begun and begun[-1] not in done:
                self.next_number = begun[-1]
        self._handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, line: str) -> None:
        os.write(self._handle, f"{line}\n".encode())


def run_vehicle(config: dict[str, Any]) -> None:
    """Keys: folder, vehicle, broker; count, rate, size, ...; spool, uplink, bandwidth: their options.

    heartbeat_s: sends telemetry, and takes the fleet's wishes. tricks: sample number to a kind of make_trick.
    at_fault: the fleet must refuse every sample.
    """
    folder, vehicle = Path(config["folder"]), str(config["vehicle"])
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    rng = random.Random(os.getpid())
    set_clock(config)
    spool = Spool(folder / "spool", **config.get("spool", {}))
    counters = spool.counters()
    if counters.captured != counters.accounted:
        (folder / "violation").write_text(f"counters after start: {counters}\n")
    journal = Journal(folder / "journal")
    wishes = _Wishes(folder, journal)
    uplink = Uplink(
        spool,
        fleet=str(config.get("fleet", "faults")),
        vehicle=vehicle,
        broker=BrokerConfig.model_validate(config["broker"]),
        stop=stop,
        settings=UplinkSettings.model_validate(config.get("uplink", {})),
        bandwidth=Bandwidth.model_validate(config.get("bandwidth", {})),
        on_desired=wishes.take,
    )
    uplink.start()
    if config.get("heartbeat_s"):
        beat = (uplink, spool, float(config["heartbeat_s"]), stop)
        threading.Thread(target=_beat, args=beat, daemon=True).start()
    _capture(spool, journal, config, rng, stop)
    stop.wait()
    uplink.close()
    spool.close()


class _Wishes:
    """Applies the real rules for the fleet's wishes to a vehicle that has only a configuration."""

    def __init__(self, folder: Path, journal: Journal) -> None:
        self._journal = journal
        at_once = Probation(seconds=0, frames=0)  # a vehicle here dies more often than a trial lasts
        self._live = LiveConfig(
            _Bare(),  # type: ignore[arg-type]
            config=VehicleConfig(),
            state_dir=folder,
            probation=at_once,
        )
        self._live.restore()

    def take(self, desired: Desired) -> Reported:
        reported = self._live.take_desired(desired)
        if reported.accepted:
            self._journal.write(f"w {reported.version}")
        return reported


class _Bare:
    """Provides what LiveConfig asks of a vehicle if no bundle is desired."""

    class scorer:  # noqa: N801
        label = "lights@1.0.0"

    def apply(self, config: VehicleConfig) -> None:
        assert config.random.rate >= 0

    def vitals(self) -> Vitals:
        return Vitals(frames=0, unscored_s=0.0, memory_bytes=0)


def _beat(uplink: Uplink, spool: Spool, period_s: float, stop: threading.Event) -> None:
    while not stop.wait(period_s):
        at = Clock(wall=clock.wall_time(), monotonic=time.monotonic(), boot_id=clock.boot_id())
        uplink.publish_telemetry(Telemetry(at=at, bundle=_Bare.scorer.label, counters=spool.counters()))


def _capture(
    spool: Spool, journal: Journal, config: dict[str, Any], rng: random.Random, stop: threading.Event
) -> None:
    vehicle, sizes = str(config["vehicle"]), config.get("size", [3000, 12000])
    number = journal.next_number
    while number < int(config["count"]) and not stop.is_set():
        # Decided by the number: after a kill, the same number must give the same bytes.
        size = random.Random(number).randint(*sizes)
        payload = make_payload(vehicle, number, size=size)
        if config.get("broken") and number % int(config["broken"]) == 0:
            payload = b"no picture " + payload[11:]
        payload, fields = make_trick(config.get("tricks", {}).get(str(number)), payload)
        now = Clock(wall=clock.wall_time(), monotonic=5.0, boot_id=clock.boot_id())
        given = {"vehicle": vehicle, "priority": number % 10, "captured_at": now, **fields}
        offer = make_offer(payload, number=number, **given)
        if _is_at_fault(number, config):
            journal.write(f"b {number} {offer.id}")
        journal.write(f"i {number} {offer.id}")
        _jump(journal, config, rng)
        pretended = rng.random() < float(config.get("full", 0.0))
        try:
            with _Full(journal, pretended):
                spool.add(payload, offer)
        except DiskFullError:
            if not pretended:
                journal.write("f no room on the disk")
                stop.wait(0.05)
            continue
        journal.write(f"d {number} {offer.id}")
        number += 1
        stop.wait(rng.expovariate(float(config.get("rate", 50.0))))


def _is_at_fault(number: int, config: dict[str, Any]) -> bool:
    every = int(config.get("broken") or 0)
    tricked = str(number) in config.get("tricks", {})
    return bool(config.get("at_fault")) or tricked or (every > 0 and number % every == 0)


def _jump(journal: Journal, config: dict[str, Any], rng: random.Random) -> None:
    """Moves the wall clock ten years forth or back."""
    if rng.random() < float(config.get("jump", 0.0)):
        journal.write("f clock jump")
        offset = rng.choice((-TEN_YEARS_S, TEN_YEARS_S))
        clock.wall_time = lambda: time.time() + offset


class _Full:
    """Makes the disk full after some bytes, for one write."""

    def __init__(self, journal: Journal, active: bool) -> None:
        self._journal, self._active = journal, active

    def __enter__(self) -> None:
        if self._active:
            self._journal.write("f disk full")
            spool_files.os = _FullDisk()  # type: ignore[attr-defined]

    def __exit__(self, *_: object) -> None:
        spool_files.os = os  # type: ignore[attr-defined]


class _FullDisk:
    """Stands in for the module `os`, with a disk that takes 1000 bytes more."""

    def __init__(self) -> None:
        self._left = 1000

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def write(self, handle: int, data: memoryview) -> int:
        if self._left <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = os.write(handle, data[: self._left])
        self._left -= written
        return written
