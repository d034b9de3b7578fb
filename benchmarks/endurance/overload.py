"""Three times more samples than a collector can take, for half an hour: does its memory stay flat?

    python benchmarks/endurance/overload.py --minutes 30 --out benchmarks/results/endurance/overload.json

First the capacity is measured (every vehicle always has something to offer), then samples arrive at three
times that. Vehicles keep a bounded number and evict, the collector says `busy`, a retention rule deletes the
oldest. The resident memory of the collector's process is read every few seconds; growth is the median of the
last tenth of the run over the median of the second tenth (the first is warm-up).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import psutil

if not __package__:  # started by its path: then the checkout's root is not where Python looks
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.endurance.fleet_bench import broker, clip_pictures, collector
from benchmarks.record import command_line, finish, run
from misfire_fleet.commands.simulate import report
from misfire_fleet.simulate.samples import Picture, SampleFactory
from misfire_fleet.simulate.simulator import FleetSimulator
from misfire_fleet.simulate.vehicle import Plan
from misfire_fleet.store import Store
from misfire_runtime.errors import MisfireError
from misfire_runtime.mqtt.client import BrokerConfig

FLEET = "bench"
_SAMPLE_S = 5.0
_RETENTION_S = 20.0


class Memory:
    """Reads the resident memory of a process until it is closed."""

    def __init__(self, pid: int, *, every_s: float) -> None:
        self._process = psutil.Process(pid)
        self._every_s = every_s
        self._stop = threading.Event()
        self.mib: list[float] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(self._every_s):
            self.mib.append(self._process.memory_info().rss / 2**20)

    def close(self) -> None:
        """Ends the readings."""
        self._stop.set()
        self._thread.join()


class Retention:
    """Keeps the store at `max_bytes`, as an operator's timer would."""

    def __init__(self, store: Store, *, max_bytes: int) -> None:
        self._store, self._max_bytes = store, max_bytes
        self._stop = threading.Event()
        self.deleted = 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(_RETENTION_S):
            try:
                self.deleted += self._store.deletion.apply_retention(max_bytes=self._max_bytes).deleted
            except MisfireError as error:
                print(f"retention is put off: {error}", file=sys.stderr)

    def close(self) -> None:
        """Ends the timer."""
        self._stop.set()
        self._thread.join()


def simulator(
    port: int, pictures: list[Picture], options: argparse.Namespace, *, rate: float, seconds: float, seed: int
) -> FleetSimulator:
    """Vehicles that offer `rate` samples per second for `seconds`."""
    plan = Plan(
        fleet=FLEET,
        vehicles=options.vehicles,
        rate=rate,
        duration_s=seconds,
        max_pending=16,
        drain_s=5.0,
        seed=seed,
    )
    return FleetSimulator(
        BrokerConfig(port=port), plan, samples=SampleFactory(pictures, manifest=None, seed=seed)
    )


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Capacity, then the long run."""
    pictures = clip_pictures(width=640, height=360, quality=70)
    seconds = options.minutes * 60
    with broker(folder) as running, collector(running, folder, fleet=FLEET) as process:
        seed = options.seeds[0]
        probe = simulator(running.port, pictures, options, rate=2000.0, seconds=options.probe, seed=seed)
        probe.run(threading.Event())
        capacity = probe.counts.stored / options.probe
        with Store.open_folder(folder / "fleet") as store:
            retention = Retention(store, max_bytes=options.keep_mb * 1_000_000)
            memory = Memory(process.pid, every_s=min(_SAMPLE_S, seconds / 30))
            flood = simulator(
                running.port, pictures, options, rate=3 * capacity, seconds=seconds, seed=seed + 1
            )
            flood.run(threading.Event())
            memory.close()
            retention.close()
            totals = store.totals()
    told = probe.counts.stored + flood.counts.stored
    return {"minutes": options.minutes, **_judged(memory.mib, flood, capacity=capacity, seconds=seconds)} | {
        "deleted_by_retention": retention.deleted,
        "lost": max(0, told - totals.samples - retention.deleted),
    }


def _judged(mib: list[float], flood: FleetSimulator, *, capacity: float, seconds: float) -> dict[str, Any]:
    tenth = max(1, len(mib) // 10)
    early, late = statistics.median(mib[tenth : 2 * tenth]), statistics.median(mib[-tenth:])
    growth = late / early - 1
    return {
        "capacity_per_s": round(capacity, 1),
        "arrivals_per_s": round(flood.counts.captured / seconds, 1),
        "stored_per_s": round(flood.counts.stored / seconds, 1),
        "overload": round(flood.counts.captured / max(1, flood.counts.stored), 2),
        **report(flood),
        "rss_early_mib": round(early, 2),
        "rss_late_mib": round(late, 2),
        "rss_growth_percent": round(100 * growth, 2),
        "rss_below_2_percent": growth < 0.02,
        "rss_mib": [round(value, 1) for value in mib[:: max(1, len(mib) // 60)]],
    }


def main() -> int:
    """Parses options, measures, records; 1 if memory grew or a sample was lost.

    Memory is not judged with --quick: half a minute is all warm-up.
    """
    parser = command_line(__doc__)
    parser.add_argument("--minutes", type=float, help="default 30; half a minute with --quick")
    parser.add_argument("--probe", type=float, help="seconds for measuring the capacity; 30, 5 if quick")
    parser.add_argument("--vehicles", type=int, default=200)
    parser.add_argument("--keep-mb", type=int, default=300, help="the store is kept at this size")
    options = parser.parse_args()
    options.minutes = options.minutes or (0.5 if options.quick else 30.0)
    options.probe = options.probe or (5.0 if options.quick else 30.0)
    with tempfile.TemporaryDirectory(prefix="misfire-overload-") as folder:
        result = measure(Path(folder), options)
    steady = options.quick or result["rss_below_2_percent"]
    return finish(__file__, result, options, met=steady and result["lost"] == 0)


if __name__ == "__main__":
    run(main)
