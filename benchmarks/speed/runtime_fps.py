"""Frames per second of the whole vehicle pipeline, over a bare loop of decode, preprocess and session.run.

    python benchmarks/speed/runtime_fps.py --json [--bundle BUNDLE] [--rounds 9]

misfire  Vehicle.run on the dash-cam clip: decode, preprocess, engine, triggers (2 % by score, and a random
         stream of 3 %), sketches, JPEG and a durable spool; timed until every chosen frame is on the disk.
bare     PyAV decodes the same clip, the same preprocessing, session.run with the same options; nothing else.

Rounds alternate in one process; the ratio is that of the medians. `cpu` is the same ratio in processor time,
which other programs on the machine disturb less.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import av
import cv2
import onnxruntime as ort

if not __package__:  # started by its path: then the checkout's root is not where Python looks
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.record import command_line, finish, run
from misfire_runtime.bundle import Bundle
from misfire_runtime.config.tables import parse_config
from misfire_runtime.engines.scoring import Scorer
from misfire_runtime.preprocess import to_tensor
from misfire_runtime.sources import open_source
from misfire_runtime.spool import Spool
from misfire_runtime.vehicle.pipeline import Vehicle
from proving_ground.bundles import write_bundle
from proving_ground.services import data_root


def main() -> int:
    """Measures, prints and records."""
    parser = command_line(__doc__, seeds=(1,))
    parser.add_argument("--bundle", type=Path, help="a real bundle; else a small convolution at 224x224")
    parser.add_argument("--rounds", type=int, help="default 9; 2 with --quick")
    options = parser.parse_args()
    count = options.rounds or (2 if options.quick else 9)
    with tempfile.TemporaryDirectory(prefix="misfire-fps-") as folder:
        bundle = Bundle.open(options.bundle) if options.bundle else write_bundle(Path(folder) / "b", size=224)
        rounds = run_rounds(Path(folder), bundle=bundle, rounds=count, seed=options.seeds[0])
    result = {"ratios": ratios(rounds), "rounds": rounds, "bundle": bundle.manifest.label}
    fps, cpu = result["ratios"]["fps"], result["ratios"]["cpu"]
    summary = (
        f"misfire / bare: {fps:.3f} in frames per second, "
        f"{cpu:.3f} in processor time per frame (bare / misfire)"
    )
    return finish(__file__, result, options, summary=summary)


def run_rounds(folder: Path, *, bundle: Bundle, rounds: int, seed: int) -> dict[str, dict[str, list[float]]]:
    """Frames per second and processor milliseconds per frame of each round, after one that warms up."""
    cv2.setNumThreads(1)
    clip = data_root() / "dashcam" / "solidWhiteRight.mp4"
    found: dict[str, dict[str, list[float]]] = {
        name: {"fps": [], "cpu_ms": []} for name in ("misfire", "bare")
    }
    for number in range(rounds + 1):
        measured = {
            "misfire": misfire_round(folder / f"spool-{number}", bundle=bundle, clip=clip, seed=seed),
            "bare": bare_round(bundle=bundle, clip=clip),
        }
        for name, (fps, cpu_ms) in measured.items() if number else ():
            found[name]["fps"].append(round(fps, 2))
            found[name]["cpu_ms"].append(round(cpu_ms, 3))
    return found


def ratios(rounds: dict[str, dict[str, list[float]]]) -> dict[str, float]:
    """Above 1 the vehicle is the faster, in both."""
    fps = {name: statistics.median(values["fps"]) for name, values in rounds.items()}
    cpu = {name: statistics.median(values["cpu_ms"]) for name, values in rounds.items()}
    return {"fps": round(fps["misfire"] / fps["bare"], 4), "cpu": round(cpu["bare"] / cpu["misfire"], 4)}


def misfire_round(spool_dir: Path, *, bundle: Bundle, clip: Path, seed: int) -> tuple[float, float]:
    """Frames per second, and processor milliseconds per frame, of a vehicle on a fresh spool."""
    config = parse_config(f"[random]\nrate = 0.03\nseed = {seed}\n")
    with Spool(spool_dir) as spool:
        vehicle = Vehicle(
            config,
            scorer=Scorer.load(bundle),
            store=spool,
            sources=[open_source(str(clip))],
            state_dir=spool_dir / "vehicle",
        )
        began, cpu = time.perf_counter(), time.process_time()
        report = vehicle.run(threading.Event())
        elapsed, used = time.perf_counter() - began, time.process_time() - cpu
        vehicle.close()
    assert report.frames == 221 and report.spooled > 0, report
    return report.frames / elapsed, used / report.frames * 1000


def bare_round(*, bundle: Bundle, clip: Path) -> tuple[float, float]:
    """The same of the loop that anybody would write."""
    options: Any = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(bundle.model_path), options, providers=["CPUExecutionProvider"])
    contract, frames = bundle.manifest.input, 0
    began, cpu = time.perf_counter(), time.process_time()
    with av.open(str(clip)) as container:
        for picture in container.decode(container.streams.video[0]):
            session.run(None, {contract.name: to_tensor(picture.to_ndarray(format="rgb24"), contract)})
            frames += 1
    elapsed, used = time.perf_counter() - began, time.process_time() - cpu
    return frames / elapsed, used / frames * 1000


if __name__ == "__main__":
    run(main)
