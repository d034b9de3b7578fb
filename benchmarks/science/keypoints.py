"""Which score finds the frames whose joints are wrong: free scores of heatmaps against the per-joint head.

    python benchmarks/science/keypoints.py --seeds 0 1 2 --out benchmarks/results/science/keypoints.json

Data: `figures`, articulated figures drawn over real photographs (made, not photographed); the test half
stands on other photographs than the training half. Per seed a small heatmap network is trained, then the
per-joint head on images that it never saw, clean and corrupted; the three views of the test half are
described in unit_heads.py. AURC is of the loss; a failure is a loss among the worst fifth of the clean
holdout (its threshold is in the JSON, per seed). --quick: a small part, to see that it runs.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # started by its path: then the checkout's root is not where Python looks
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.record import run
from benchmarks.science.unit_heads import Bench, judge

BENCH = Bench(
    dataset="figures",
    task="keypoints",
    data_note="figures drawn over real photographs; not photographs of people",
    accuracy="pck_at_0.1",
    references=("mean_peak", "self_residual", "multi_peak_entropy"),
)


def main() -> int:
    """Runs it and prints a table, or JSON."""
    return judge(__file__, __doc__, BENCH)


if __name__ == "__main__":
    run(main)
