"""Which score finds the frames whose joints are wrong: free scores of heatmaps against the per-joint head.

    python -m benchmarks.keypoints --seeds 0 1 2 --json --out benchmarks/results/keypoints.json

Data: `figures`, articulated figures drawn over real photographs (made, not photographed); the test half
stands on other photographs than the training half. Per seed a small heatmap network is trained, then the
per-joint head on images that it never saw, clean and corrupted; the three views of the test half are
described in unit_heads.py. AURC is of the loss; a failure is a loss among the worst fifth of the clean
holdout (its threshold is in the JSON, per seed). --quick: a small part, to see that it runs.
"""

from __future__ import annotations

from benchmarks.unit_heads import Bench, main

BENCH = Bench(
    script="keypoints.py",
    dataset="figures",
    task="keypoints",
    data_note="figures drawn over real photographs; not photographs of people",
    accuracy="pck_at_0.1",
    references=("mean_peak", "self_residual", "multi_peak_entropy"),
)

if __name__ == "__main__":
    main(BENCH, (__doc__ or "").splitlines()[0])
