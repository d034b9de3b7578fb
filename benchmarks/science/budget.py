"""Measures how well one budget for a fleet is held under drift, silence, wrong clocks and held-back samples.

    python benchmarks/science/budget.py --json

Prints arrived bytes over the budget, from the fourth day on, for each seed and kind of trouble, and the worst
seven days in a row from the second week on. Goal: within 10 %.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace

from proving_ground.simulated.budget import Plan, simulate, summary

TROUBLES = {
    "calm": {"drift": 0.0, "silence": 0.0, "clock_days": 0.0, "held_back": 0.0},
    "drift": {"silence": 0.0, "held_back": 0.0},
    "silence": {"drift": 0.0, "held_back": 0.0},
    "held back": {"drift": 0.0, "silence": 0.0},
    "all": {},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--vehicles", type=int, default=60)
    parser.add_argument("--days", type=int, default=28)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    asked = parser.parse_args()
    found = {}
    for name, trouble in TROUBLES.items():
        plan = replace(Plan(vehicles=asked.vehicles, days=asked.days), **trouble)
        runs = [replace(plan, seed=seed) for seed in range(asked.seeds)]
        found[name] = [summary(run, simulate(run)) for run in runs]
    worst = max(abs(run["share"] - 1) for runs in found.values() for run in runs)
    result = {"troubles": found, "worst_deviation": round(worst, 4), "goal": 0.1}
    print(json.dumps(result, indent=None if asked.json else 2))


if __name__ == "__main__":
    main()
