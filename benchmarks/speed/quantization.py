"""What int8 and fp16 do to a trained model's answers and scores, and how much faster int8 is.

    python benchmarks/speed/quantization.py --json [--run RUN] [--dataset fashion-mnist]

Two questions, two networks. Agreement: a run trained here (or --run) is exported at each precision, and the
report of `misfire export` is printed: accuracy, rank correlation of each score with its fp32 self, failure
AUROC. Speed: ResNet-18 at 224x224 in fp32 and in int8 for onnxruntime-x86, one thread, interleaved in one
process; `speed_up` is the ratio of medians of the one thread's processor time.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

if not __package__:  # started by its path: then the checkout's root is not where Python looks
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.record import command_line, finish, run
from benchmarks.speed.score_overhead import CONTRACT, interleave
from misfire_export.graph.trace import trace
from misfire_export.measure.run import open_session
from misfire_export.options import Options
from misfire_export.precision.int8 import quantize
from misfire_export.sources.frames import frames_of_run
from misfire_export.sources.run import export_run
from misfire_train.data import load_dataset
from misfire_train.fit import train_run
from misfire_train.models import build_model
from misfire_train.runs import Run, load_run
from misfire_train.scores import build
from misfire_train.signals import Probe, ScoredModel
from misfire_train.train_config import parse_train_config

SCORES = ("learning_loss_pp", "entropy", "msp", "energy", "egl", "knn_distance", "wrong_prediction_approx")
LEAST_SPEED_UP = 2.5


def main() -> int:
    """Prints JSON; 1 if a goal is missed."""
    parser = command_line(__doc__)
    parser.add_argument("--data", type=Path, default=None, help="folder of the data sets")
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--run", type=Path, default=None, help="a trained run; else one is trained")
    parser.add_argument("--rounds", type=int, help="default 200; 60 with --quick")
    chosen = parser.parse_args()
    rounds, seed = chosen.rounds or (60 if chosen.quick else 200), chosen.seeds[0]
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        trained = load_run(chosen.run) if chosen.run else _train(chosen.dataset, chosen.data, folder, seed)
        agreement = measure_agreement(trained, chosen.data, Path(folder))
    speed = measure_speed(chosen.data, rounds=rounds, seed=seed)
    result = {
        "dataset": trained.record.dataset.name,
        "ratios": {"int8": speed["speed_up"]},
        "agreement": agreement,
        "speed": speed,
    }
    summary = f"int8 is {speed['speed_up']:.2f} times as fast as fp32 (goal {LEAST_SPEED_UP})"
    agreed = all(row["met"] for report in agreement.values() for row in report["scores"].values())
    met = agreed and speed["speed_up"] >= LEAST_SPEED_UP
    return finish(__file__, result, chosen, summary=summary, met=met)


def measure_agreement(run: Run, data: Path | None, folder: Path) -> dict[str, Any]:
    """The exporter's report at each precision and target."""
    frames = frames_of_run(run, load_dataset(run.record.dataset.name, root=data))
    reports = {}
    for name, precision, target in (
        ("fp16", "fp16", "onnxruntime-x86"),
        ("int8-x86", "int8", "onnxruntime-x86"),
    ):
        bundle = export_run(
            run,
            frames,
            out=folder / name,
            options=Options(
                "quantization",
                "1.0.0",
                scores=SCORES,
                precision=precision,  # type: ignore[arg-type]
                target=target,  # type: ignore[arg-type]
            ),
        )
        reports[name] = bundle.manifest.extra["precision"]
    return reports


def measure_speed(data: Path | None, *, rounds: int, seed: int) -> dict[str, Any]:
    """ResNet-18 with output-only scores, fp32 against int8, on real frames."""
    dataset = load_dataset("traffic-lights", root=data)
    torch.manual_seed(seed)
    built = build_model("resnet18", task="classification", outputs=100, channels=3)
    probe = Probe(built.module.eval(), last_layer=built.last_layer)
    scores = build(["entropy", "msp"], task="classification")
    graph = trace(ScoredModel(probe, scores).eval(), contract=CONTRACT)
    frames = dataset.train.take(np.arange(64))
    lowered = quantize(graph, target="onnxruntime-x86", frames=frames, contract=CONTRACT, output="logits")
    sessions = {"fp32": open_session(graph), "int8": open_session(lowered)}
    inputs = [dataset.test.batch([i], CONTRACT).numpy() for i in range(16)]
    times, wall = interleave(sessions, inputs, rounds=rounds, seed=seed)
    medians = {name: 1000 * float(np.median(values)) for name, values in times.items()}
    return {
        "model": "resnet18, 224x224, 100 classes, entropy and msp",
        "rounds": rounds,
        "median_ms": medians,
        "wall_ms": {name: 1000 * float(np.median(values)) for name, values in wall.items()},
        "speed_up": medians["fp32"] / medians["int8"],
    }


def _train(dataset: str, data: Path | None, folder: str, seed: int) -> Run:
    values: dict[str, Any] = {"dataset": dataset, "seed": seed}
    if data is not None:
        values["data"] = str(data)
    return train_run(parse_train_config(values), out=Path(folder) / "run")


if __name__ == "__main__":
    run(main)
