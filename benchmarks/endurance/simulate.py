"""500 simulated vehicles on one collector at 20 samples/s: how long from the first offer to `stored`?

    python benchmarks/endurance/simulate.py --json --out benchmarks/results/endurance/simulate.json

Real Mosquitto, one collector process on SQLite and a folder, samples of about 100 KB (frames of the dash-cam
clip); everything runs on this one machine. `--bundle` draws the scores from a real bundle's calibration.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

if not __package__:  # started by its path: then the checkout's root is not where Python looks
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.endurance.fleet_bench import broker, clip_pictures, collector
from benchmarks.record import command_line, finish, run
from misfire_fleet.commands.simulate import report
from misfire_fleet.simulate.samples import SampleFactory
from misfire_fleet.simulate.simulator import FleetSimulator
from misfire_fleet.simulate.vehicle import Plan
from misfire_fleet.store import Store
from misfire_runtime.bundle import read_manifest
from misfire_runtime.mqtt.client import BrokerConfig

FLEET = "bench"


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One run; the store is read afterwards, to see that it holds what vehicles were told is stored."""
    pictures = clip_pictures(width=960, height=540, quality=96)
    manifest = None if options.bundle is None else read_manifest(options.bundle)
    plan = Plan(
        fleet=FLEET,
        vehicles=options.vehicles,
        rate=options.rate,
        duration_s=options.seconds,
        seed=options.seeds[0],
    )
    with broker(folder) as running, collector(running, folder, fleet=FLEET):
        simulator = FleetSimulator(
            BrokerConfig(port=running.port),
            plan,
            samples=SampleFactory(pictures, manifest=manifest, seed=options.seeds[0]),
        )
        simulator.run(threading.Event())
    with Store.open_folder(folder / "fleet") as store:
        in_store = store.totals().samples
    counted = report(simulator)
    lost = counted["stored"] - in_store
    mean_bytes = sum(len(picture.data) for picture in pictures) / len(pictures)
    return {
        "seconds": options.seconds,
        "rate_per_s": options.rate,
        "sample_bytes": round(mean_bytes),
        "scores": "uniform percentiles" if manifest is None else manifest.label,
        **counted,
        "rows_in_store": in_store,
        "lost": lost,
        "p99_below_2_s": counted["p99_s"] is not None and counted["p99_s"] < 2.0,
    }


def main() -> int:
    """Parses options, measures, records; 1 if the goal is missed or a sample is lost."""
    parser = command_line(__doc__)
    parser.add_argument("--vehicles", type=int, help="default 500; 50 with --quick")
    parser.add_argument("--rate", type=float, default=20.0, help="samples per second, all vehicles together")
    parser.add_argument("--seconds", type=float, help="default 120; 10 with --quick")
    parser.add_argument("--bundle", type=Path)
    options = parser.parse_args()
    options.vehicles = options.vehicles or (50 if options.quick else 500)
    options.seconds = options.seconds or (10.0 if options.quick else 120.0)
    with tempfile.TemporaryDirectory(prefix="misfire-simulate-") as folder:
        result = measure(Path(folder), options)
    return finish(__file__, result, options, met=result["p99_below_2_s"] and result["lost"] == 0)


if __name__ == "__main__":
    run(main)
