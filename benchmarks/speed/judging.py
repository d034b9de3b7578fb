"""Judging a table of scores: processor seconds of the whole, and of resampled AUROCs by scikit-learn's.

    python benchmarks/speed/judging.py --quick --json

The table has 50,000 frames of 100 drives, three scores, failures and counts, as Parquet and as CSV; the time
is that of `misfire evaluate --scores` without starting Python. The ratio is that of 1,000 resampled AUROCs by
`sklearn.metrics.roc_auc_score` over the judge's, on the same resamples of whole drives.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from threadpoolctl import threadpool_limits

if not __package__:  # started by its path: then the checkout's root is not where Python looks
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.record import command_line, finish, run
from misfire_train.judge.report.page import render
from misfire_train.judge.tables import TableJudging, judge_table
from misfire_train.metrics.bootstrap import replicate, resample_weights

FRAMES, DRIVES = 50_000, 100
GOAL = 5
"""Times faster than scikit-learn's AUROC on the same resamples."""


def make_table(*, seed: int) -> dict[str, NDArray[Any]]:
    """Columns of a table: the head knows more of the loss than the two free scores."""
    rng = np.random.default_rng(seed)
    loss = rng.exponential(size=FRAMES)
    noise = {"msp": 1.5, "entropy": 1.6, "head": 1.2}
    return {
        "id": np.array([f"frame-{row:06d}" for row in range(FRAMES)]),
        "failed": loss > 2.5,
        "group": np.array([f"drive-{row % DRIVES:03d}" for row in range(FRAMES)]),
        "missed": rng.poisson(0.3 * loss),
        **{name: np.log(loss) + size * rng.normal(size=FRAMES) for name, size in noise.items()},
    }


def seconds(call: Callable[[], object]) -> float:
    """Processor seconds of a call: on a machine that others use too, wall time would measure the others."""
    start = time.process_time()
    call()
    return time.process_time() - start


def judged(path: Path) -> str:
    """The page of `misfire evaluate --scores`."""
    return render(*judge_table(path, TableJudging(free=("msp", "entropy"))))


def by_sklearn(table: dict[str, NDArray[Any]], *, resamples: int, seed: int) -> list[float]:
    """AUROC of each resample, as one would write it."""
    found = []
    for block in resample_weights(table["group"], replicates=resamples, seed=seed):
        found += [float(roc_auc_score(table["failed"], table["head"], sample_weight=row)) for row in block]
    return found


def main() -> int:
    """Measures, records and prints."""
    options = command_line(__doc__).parse_args()
    threadpool_limits(1)
    seed, resamples = options.seeds[0], 100 if options.quick else 1_000
    table = make_table(seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        columns = pa.table(table)
        pyarrow.parquet.write_table(columns, Path(folder) / "scores.parquet")
        pyarrow.csv.write_csv(columns, Path(folder) / "scores.csv")
        # The first call imports; it is not measured.
        judged(Path(folder) / "scores.parquet")
        whole = {
            form: seconds(partial(judged, Path(folder) / f"scores.{form}")) for form in ("parquet", "csv")
        }
    ours: dict[str, Any] = {}

    def resampled() -> None:
        ours.update(
            replicate(
                {"head": table["head"]},
                failed=table["failed"],
                groups=table["group"],
                metrics=("auroc",),
                replicates=resamples,
                seed=seed,
            )
        )

    own = seconds(resampled)
    theirs: list[float] = []
    other = seconds(lambda: theirs.extend(by_sklearn(table, resamples=resamples, seed=seed)))
    difference = float(np.abs(ours["head"]["auroc"] - np.array(theirs)).max())
    result = {
        "setting": {"frames": FRAMES, "drives": DRIVES, "scores": 3, "resamples": resamples},
        "judging_cpu_s": whole,
        "auroc_of_resamples": {"misfire_cpu_s": own, "sklearn_cpu_s": other, "ratio": other / own},
        "largest_difference": difference,
    }
    lines = [f"judging a {form} table: {value:.1f} s of processor" for form, value in whole.items()]
    lines.append(
        f"{resamples} resampled AUROCs: {own:.2f} s, scikit-learn {other:.2f} s ({other / own:.0f} x)"
    )
    return finish(
        __file__, result, options, summary="\n".join(lines), met=difference < 1e-12 and other / own >= GOAL
    )


if __name__ == "__main__":
    run(main)
