"""`make bench`: the short form of every benchmark that claims a speed, one table of ratios.

Each script measures us and a peer or a physical limit interleaved in one process and prints `ratios` of
medians; nothing is written to benchmarks/results. The long runs are listed in benchmarks/README.md.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SHORT = {
    "score_overhead": ["--rounds", "60"],
    "throughput": ["--quick"],
    "quantization": ["--rounds", "60"],
    "peers": ["--quick", "--out", "/dev/null"],
}
GOALS = {
    "score_overhead": "output_only, wrong_prediction_approx <= 1.01; learning_loss_pp <= 1.02; "
    "egl_pp <= 1.03; all <= 1.05",
    "throughput": "upload >= 0.6; wire <= 1.03; runtime_fps >= 0.95",
    "quantization": "int8 speed-up >= 2.5",
    "peers": "k_center >= 10; badge >= 20; aurc <= 1.2",
}


def main() -> int:
    """Runs all; the exit status is the number of scripts that failed."""
    failed = 0
    for name, options in SHORT.items():
        if name == "peers" and importlib.util.find_spec("skactiveml") is None:
            print("peers: left out; pip install -c constraints.txt 'misfire[peers]'")
            continue
        command = [sys.executable, "-m", f"benchmarks.{name}", "--json", *options]
        done = subprocess.run(command, cwd=HERE.parent, check=False, capture_output=True, text=True)
        if done.returncode != 0:
            failed += 1
            print(f"{name}: failed\n{done.stderr[-2000:]}")
            continue
        result: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])
        ratios = result.get("ratios") or {"int8 speed-up": result["speed"]["speed_up"]}
        print(f"{name}: " + ", ".join(f"{key} {value:.3f}" for key, value in ratios.items()))
        print(f"{'':{len(name)}}  goals: {GOALS[name]}")
    return failed


if __name__ == "__main__":
    sys.exit(main())
