"""What the score `temporal` costs per frame, against the frame time of the vehicle's pipeline.

    python benchmarks/speed/temporal.py --json --out benchmarks/results/speed/temporal.json

boxes    Lane.see with 10, 50 and 100 moving boxes on pictures of 1280x720: tracks, events, and the search for
         cuts; also without pictures, the tracker alone.
masks    the same with logits [1,19,256,512].  classes: with logits [1,1000].
pipeline milliseconds per frame of Vehicle.run on the dash-cam clip (runtime_fps.py), with a network that is
         hardly one: a real detector takes longer, and makes the ratio smaller.

Processor time, which other programs disturb less. `ratios.boxes_50` is what 50 boxes add to that frame.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

if not __package__:  # started by its path: then the checkout's root is not where Python looks
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.record import command_line, finish, run
from benchmarks.speed.runtime_fps import misfire_round
from misfire_runtime.preprocess import InputContract
from misfire_runtime.temporal import BoxComparison, ClassComparison, MaskComparison
from misfire_runtime.temporal.base import AnswerFormat, Comparison
from misfire_runtime.temporal.lane import Lane
from proving_ground.bundles import write_bundle
from proving_ground.services import data_root

WIDTH, HEIGHT, RATE = 640, 384, 25.0
FORM = AnswerFormat(InputContract(height=HEIGHT, width=WIDTH), ("car",), 0.3)
GOAL = 0.1
Answers = Callable[[int], NDArray[Any]]


def main() -> int:
    """Measures, prints and records."""
    parser = command_line(__doc__)
    parser.add_argument("--frames", type=int, help="of each measurement; default 400, 100 with --quick")
    options = parser.parse_args()
    frames = options.frames or (100 if options.quick else 400)
    rng = np.random.default_rng(options.seeds[0])
    picture = rng.integers(0, 256, (720, 1280, 3), np.uint8)
    logits = rng.normal(size=(2, 1, 19, 256, 512)).astype(np.float32)
    votes = rng.normal(size=(2, 1, 1000)).astype(np.float32)
    ms = {
        f"boxes_{count}": measure(BoxComparison(FORM), moving(count, rng), picture, frames)
        for count in (10, 50, 100)
    }
    ms["boxes_50_tracker"] = measure_tracker(moving(50, rng), frames)
    ms["masks"] = measure(MaskComparison(FORM), lambda number: logits[number % 2], picture, frames)
    ms["classes"] = measure(ClassComparison(FORM), lambda number: votes[number % 2], picture, frames)
    rounds = 1 if options.quick else 3
    ms["pipeline"] = statistics.median(pipeline_ms(seed=options.seeds[0]) for _ in range(rounds))
    ratios = {name: round(ms[name] / ms["pipeline"], 4) for name in ("boxes_50", "masks", "classes")}
    result = {"ratios": ratios, "ms": {name: round(value, 4) for name, value in ms.items()}, "goal": GOAL}
    summary = "\n".join(f"{name:>18}  {value:8.3f} ms" for name, value in ms.items())
    summary += f"\n50 boxes: {ratios['boxes_50']:.1%} of a frame"
    return finish(__file__, result, options, summary=summary, met=ratios["boxes_50"] <= GOAL)


def moving(count: int, rng: np.random.Generator) -> Answers:
    """Returns a function from a frame's number to detections [1,100,6] of boxes that drift and jitter."""
    places, sides = rng.uniform(20, (WIDTH - 80, HEIGHT - 80), (count, 2)), rng.uniform(12, 60, (count, 2))
    speeds = rng.normal(0, 15, (count, 2))

    def answer(number: int) -> NDArray[np.float32]:
        low = places + speeds * (number % 100) / RATE + rng.normal(0, 1, (count, 2))
        found = np.zeros((1, 100, 6), np.float32)
        found[0, :count, :4] = np.concatenate([low, low + sides], 1)
        found[0, :count, 4] = 0.9
        return found

    return answer


def measure(comparison: Comparison[Any], answers: Answers, picture: NDArray[np.uint8], frames: int) -> float:
    """Returns the median processor time of a frame in milliseconds, of everything the vehicle adds to it."""
    lane, spent = Lane(comparison), []
    for number in range(frames):
        answer = answers(number)
        began = time.process_time()
        lane.see(answer, picture, number / RATE)
        spent.append(time.process_time() - began)
    return statistics.median(spent) * 1000


def measure_tracker(answers: Answers, frames: int) -> float:
    """Returns the same of the tracker alone."""
    comparison, spent = BoxComparison(FORM), []
    for number in range(frames):
        answer = answers(number)
        began = time.process_time()
        comparison.compare(comparison.read(answer), elapsed_s=1 / RATE)
        spent.append(time.process_time() - began)
    return statistics.median(spent) * 1000


def pipeline_ms(*, seed: int) -> float:
    """Returns the processor time of one frame of the whole vehicle in milliseconds."""
    clip = data_root() / "dashcam" / "solidWhiteRight.mp4"
    with tempfile.TemporaryDirectory(prefix="misfire-temporal-") as folder:
        bundle = write_bundle(Path(folder) / "b", size=224)
        _fps, cpu_ms = misfire_round(Path(folder) / "spool", bundle=bundle, clip=clip, seed=seed)
    return cpu_ms


if __name__ == "__main__":
    run(main)
