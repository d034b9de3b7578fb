"""How many held-out errors the release gate needs before it ships the default head on Fashion-MNIST.

    python benchmarks/science/gate_power.py --json --out benchmarks/results/science/gate_power.json

Takes the scores that detectors.py kept in --work (the head, and its refits without each corruption family),
and gives the gate random parts of the test half: clean frames, and the same under four held-out families. For
each size: how often the head passed, and the gain on clean frames with its interval. Nothing is trained here.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

if not __package__:  # started by its path: then the checkout's root is not where Python looks
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.record import finish, run
from benchmarks.science.detection_table import Observed
from benchmarks.science.detectors import judge_default, options_of, settle
from misfire_train.data import load_dataset
from misfire_train.judge import choose_score
from misfire_train.judge.evidence import Evidence
from misfire_train.judge.gate import GateResult, GateRules

SHIFTS = ("fog", "rain", "noise", "glare")
FREE = ("msp", "entropy", "egl_unweighted")
LEARNED = ("egl", "learning_loss_pp")
HEAD = "learning_loss_pp"


def gate(judged: dict[str, Observed], frames: np.ndarray, *, replicates: int) -> GateResult:
    """The gate's word on these test images, clean and under each shift."""
    views = ["clean", *(f"library {shift}" for shift in SHIFTS)]
    scores = {
        name: np.concatenate([judged[view].scores[name][frames] for view in views])
        for name in (*FREE, *LEARNED)
    }
    refitted = {}
    for number, shift in enumerate(SHIFTS, start=1):
        whole = scores[HEAD].copy()
        here = slice(number * len(frames), (number + 1) * len(frames))
        whole[here] = judged[f"left out {shift}"].scores[HEAD][frames]
        refitted[shift] = {HEAD: whole}
    evidence = Evidence.of(
        scores,
        failed=np.concatenate([judged[view].failed[frames] for view in views]),
        frames=np.tile(frames, len(views)),
        shifts=np.repeat(np.array(["clean", *SHIFTS]), len(frames)),
    )
    return choose_score(evidence, GateRules(FREE, refitted=refitted, replicates=replicates))


def row(results: Sequence[tuple[int, GateResult]], frames: int) -> dict[str, Any]:
    """One size. results: (clean failures, the gate's word) of each seed and draw."""
    clean = [view.pooled[0] for _, result in results for view in result.views if view.kind == "groups"]
    shifted = [view.pooled[0] for _, result in results for view in result.views if view.kind == "corruptions"]
    return {
        "frames": frames,
        "clean_failures": float(np.mean([failures for failures, _ in results])),
        "passed": sum(result.passed for _, result in results),
        "of": len(results),
        "clean_gain": float(np.mean([c.difference for c in clean])),
        "clean_low": float(np.mean([c.low for c in clean])),
        "clean_high": float(np.mean([c.high for c in clean])),
        "shifted_gain": float(np.mean([c.difference for c in shifted])),
        "shifted_low": float(np.mean([c.low for c in shifted])),
    }


def main() -> int:
    """Runs it and prints a table, or JSON."""
    parser = options_of(__doc__)
    parser.add_argument("--frames", type=int, nargs="+", default=[300, 500, 1000, 2000, 5000, 10_000])
    parser.add_argument("--draws", type=int, default=2, help="Random parts per seed and size.")
    parser.set_defaults(replicates=200)
    options = parser.parse_args()
    settle(options, seeds=(0, 1, 2))
    dataset = load_dataset("fashion-mnist", root=options.data)
    test = dataset.test.take(range(300)) if options.quick else dataset.test
    sizes = [150, 300] if options.quick else options.frames
    results: dict[int, list[tuple[int, GateResult]]] = {}
    for seed in options.seeds:
        _, judged = judge_default(options, seed=seed, dataset=dataset, test=test)
        for frames in sizes:
            draws = options.draws if frames < len(test) else 1
            for draw in range(draws):
                rng = np.random.default_rng([seed, frames, draw])
                chosen = np.sort(rng.permutation(len(test))[:frames])
                failures = int(judged["clean"].failed[chosen].sum())
                results.setdefault(frames, []).append(
                    (failures, gate(judged, chosen, replicates=options.replicates))
                )
    rows = [row(found, frames) for frames, found in sorted(results.items())]
    report = {"shifts": SHIFTS, "draws": options.draws, "replicates": options.replicates, "rows": rows}
    return finish(__file__, report, options, summary=markdown(rows))


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Points of AUROC above the best free score, mean of draws and of the ends of their intervals."""
    lines = [
        "| test frames | clean errors | passed | clean gain | held-out shifts, gain |",
        "|---|---|---|---|---|",
    ]
    for one in rows:
        clean, low, high, shifted = (
            100 * one[key] for key in ("clean_gain", "clean_low", "clean_high", "shifted_gain")
        )
        lines.append(
            f"| {one['frames']:,} | {one['clean_failures']:.0f} | {one['passed']} of {one['of']} "
            f"| {clean:+.1f} ({low:+.1f} .. {high:+.1f}) | {shifted:+.1f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    run(main)
