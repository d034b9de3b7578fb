"""Selection and judging beside other people's: how many times faster, how they grow, how much memory.

    pip install 'misfire[peers]' -c constraints.txt
    python benchmarks/speed/peers.py --quick --json

Both sides run in one process, in turn, on the same float32 pool and one thread; a ratio is the median
processor time of scikit-activeml over that of misfire (`aurc`: misfire's AURC of a million over one argsort).
scikit-activeml's BADGE asks a classifier for probabilities; it is given one that looks them up, so that its
time is that of the selection alone. Without the extra only misfire itself is measured.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

if not __package__:  # started by its path: then the checkout's root is not where Python looks
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.record import command_line, finish, run
from misfire_train.metrics import aurc
from misfire_train.selection import select

POOL, WIDTH, BUDGET, CLASSES = 20_000, 128, 200, 10


def interleave(calls: dict[str, Callable[[], object]], *, rounds: int) -> dict[str, list[float]]:
    """Processor seconds of each call, all of them once per round, in turn.

    Not wall time: on a machine that others use too, that would measure the others.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.process_time()
            call()
            seconds[name].append(time.process_time() - start)
    return seconds


def make_pool(count: int, *, seed: int) -> tuple[Any, Any]:
    """(embeddings [N,128] float32 in 50 loose clusters, probabilities [N,10])."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(50, WIDTH))
    pool = (centres[rng.integers(0, 50, count)] + rng.normal(size=(count, WIDTH))).astype(np.float32)
    logits = pool @ rng.normal(size=(WIDTH, CLASSES)) / 4
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    return pool, exponents / exponents.sum(axis=1, keepdims=True)


def peer_calls(pool: Any, probabilities: Any) -> dict[str, Callable[[], Any]]:
    """scikit-activeml's queries for the same pool, or nothing where it is not installed."""
    try:
        from skactiveml.base import SkactivemlClassifier
        from skactiveml.pool import Badge, CoreSet
    except ModuleNotFoundError:
        return {}

    class Lookup(SkactivemlClassifier):  # type: ignore[misc]
        """Answers with the probabilities of the rows it is asked for, which are always the whole pool."""

        def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
            return self

        def predict_proba(self, X: Any) -> Any:
            return probabilities

    unlabelled = np.full(len(pool), np.nan)
    classifier = Lookup(classes=list(range(CLASSES)))
    return {
        "k_center": lambda: CoreSet(random_state=0).query(pool, unlabelled, batch_size=BUDGET),
        "badge": lambda: Badge(random_state=0).query(
            pool, unlabelled, clf=classifier, fit_clf=False, batch_size=BUDGET
        ),
    }


def own_calls(pool: Any, probabilities: Any, *, k: int) -> dict[str, Callable[[], Any]]:
    """misfire's selection of k from that pool."""
    return {
        "k_center": lambda: select(pool, method="k-center", k=k),
        "badge": lambda: select(pool, method="badge", k=k, probabilities=probabilities),
    }


def cover_radius(pool: Any, chosen: Any) -> float:
    """The largest distance of any point to its nearest chosen one: what k-center minimises."""
    nearest = np.full(len(pool), np.inf)
    for index in np.asarray(chosen):
        nearest = np.minimum(nearest, ((pool - pool[index]) ** 2).sum(axis=1))
    return float(np.sqrt(nearest.max()))


def measure_peers(*, rounds: int, seed: int) -> dict[str, Any]:
    """Ratios against scikit-activeml, and whether both found equally good covers."""
    pool, probabilities = make_pool(POOL, seed=seed)
    own, peers = own_calls(pool, probabilities, k=BUDGET), peer_calls(pool, probabilities)
    if not peers:
        return {"ratios": {}, "missing": "scikit-activeml is not installed: pip install 'misfire[peers]'"}
    calls = {f"misfire {name}": call for name, call in own.items()}
    calls |= {f"scikit-activeml {name}": call for name, call in peers.items()}
    seconds = interleave(calls, rounds=rounds)
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    return {
        "ratios": {name: medians[f"scikit-activeml {name}"] / medians[f"misfire {name}"] for name in own},
        "medians_s": medians,
        "rounds_s": seconds,
        "cover_radius": {
            "misfire": cover_radius(pool, own["k_center"]()),
            "scikit-activeml": cover_radius(pool, peers["k_center"]()),
        },
    }


def measure_aurc(*, rounds: int, seed: int) -> dict[str, Any]:
    """AURC of a million float64 scores over one np.argsort of them."""
    rng = np.random.default_rng(seed)
    score, loss = rng.normal(size=1_000_000), rng.random(1_000_000)
    tied = np.round(score, 3)
    seconds = interleave(
        {
            "argsort": lambda: np.argsort(score),
            "aurc": lambda: aurc(score, loss),
            "tied": lambda: aurc(tied, loss),
        },
        rounds=rounds,
    )
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    return {"ratio": medians["aurc"] / medians["argsort"], "medians_s": medians}


def measure_growth(*, rounds: int, seed: int) -> dict[str, Any]:
    """Median seconds over N at k=200 and over k at N=20,000; the exponent is the slope in log-log."""
    result: dict[str, Any] = {}
    by_n = {n: make_pool(n, seed=seed) for n in (10_000, 20_000, 40_000, 80_000)}
    for method in ("k_center", "badge"):
        over_n = {str(n): own_calls(*pool, k=BUDGET)[method] for n, pool in by_n.items()}
        over_k = {str(k): own_calls(*by_n[20_000], k=k)[method] for k in (50, 100, 200, 400)}
        result[method] = {
            axis: _growth(interleave(calls, rounds=rounds)) for axis, calls in (("n", over_n), ("k", over_k))
        }
    return result


def _growth(seconds: dict[str, list[float]]) -> dict[str, Any]:
    medians = {size: float(np.median(values)) for size, values in seconds.items()}
    slope = np.polyfit(np.log([float(size) for size in medians]), np.log(list(medians.values())), 1)[0]
    return {"median_s": medians, "exponent": float(slope)}


_MEMORY_CHILD = """
import json, sys, time
from pathlib import Path
import numpy as np
from threadpoolctl import threadpool_limits
from misfire_train.selection import select
threadpool_limits(1)
def peak():
    # Not getrusage: its peak starts at that of the parent.
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024
rows, k = int(sys.argv[1]), int(sys.argv[2])
select(np.zeros((8, 128), np.float32) + np.arange(8, dtype=np.float32)[:, None], method="k-center", k=2)
base = peak()
pool = np.empty((rows, 128), np.float32)
rng = np.random.default_rng(0)
for start in range(0, rows, 10_000):
    pool[start:start + 10_000] = rng.standard_normal((min(10_000, rows - start), 128), np.float32)
start = time.perf_counter()
chosen = select(pool, method="k-center", k=k)
seconds = time.perf_counter() - start
assert len(set(chosen.tolist())) == k
print(json.dumps({"rows": rows, "k": k, "seconds": seconds, "input_bytes": pool.nbytes,
                  "peak_bytes_above_start": peak() - base, "ratio": (peak() - base) / pool.nbytes}))
"""


def measure_memory(*, k: int) -> dict[str, Any]:
    """Peak resident memory of k-center on 1,000,000 x 128, input included, over the input's size."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "child.py"
        script.write_text(_MEMORY_CHILD, encoding="utf-8")
        answer = subprocess.run(
            [sys.executable, str(script), "1000000", str(k)], check=True, capture_output=True, text=True
        )
    return dict(json.loads(answer.stdout))


def main() -> int:
    """Measures, records and prints."""
    options = command_line(__doc__).parse_args()
    # Limits hold for what is loaded: scikit-learn brings the OpenMP that scikit-activeml computes with.
    importlib.import_module("sklearn.metrics")
    threadpool_limits(1)
    rounds, seed = 3 if options.quick else 7, options.seeds[0]
    peers = measure_peers(rounds=rounds, seed=seed)
    judged = measure_aurc(rounds=3 * rounds, seed=seed)
    # 20 picks from the million show the growth of memory as 200 do.
    memory = measure_memory(k=20 if options.quick else 200)
    result = {
        "peer_versions": versions(),
        "setting": {"pool": POOL, "width": WIDTH, "k": BUDGET, "classes": CLASSES, "rounds": rounds},
        "ratios": {**peers.pop("ratios"), "aurc": judged["ratio"]},
        "peers": peers,
        "aurc": judged,
        "growth": measure_growth(rounds=rounds, seed=seed),
        "million_row_k_center": memory,
    }
    lines = [f"{name:10} {ratio:8.2f}" for name, ratio in result["ratios"].items()]
    size = f"{memory['ratio']:.2f} x the input"
    lines.append(f"k-center of a million rows: peak {size}, {memory['seconds']:.1f} s")
    return finish(__file__, result, options, summary="\n".join(lines))


def versions() -> dict[str, str]:
    """Versions of everything that takes part."""
    found = {}
    for name in ("scikit-learn", "scipy", "scikit-activeml"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


if __name__ == "__main__":
    run(main)
