"""Which score finds the frames whose masks are wrong: free scores of pixel logits against the per-tile head.

    python benchmarks/science/segmentation.py --seeds 0 1 2 --out benchmarks/results/science/segmentation.json

Data: `figure-parts`, body-part masks of articulated figures drawn over real photographs (made, not labelled
by hand); the test half stands on other photographs than the training half. Per seed a small segmenter is
trained, then the per-tile head on images that it never saw, clean and corrupted; the three views of the test
half are described in unit_heads.py. AURC is of the loss; a failure is a loss among the worst fifth of the
clean holdout (its threshold is in the JSON, per seed). --quick: a small part, to see that it runs.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # started by its path: then the checkout's root is not where Python looks
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.record import run
from benchmarks.science.unit_heads import Bench, judge
from misfire_train.scores import names_for

BENCH = Bench(
    dataset="figure-parts",
    task="segmentation",
    data_note="masks of figures drawn over real photographs; not labelled by hand, not photographs of people",
    accuracy="pixel_accuracy",
    references=tuple(names_for("segmentation", free=True)),
)


def main() -> int:
    """Runs it and prints a table, or JSON."""
    return judge(__file__, __doc__, BENCH)


if __name__ == "__main__":
    run(main)
