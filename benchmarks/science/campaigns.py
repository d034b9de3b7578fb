"""Measures whether a campaign costs what its dry run said: coverage of the 95 % intervals, and their width.

    python benchmarks/science/campaigns.py --json

A fleet is simulated for 14 days, of which 10 are recorded (hourly sketches, a random stream of 2 %, labels
for a third of it). Each campaign is estimated from them for the last 4 days, on which the vehicles' own
triggers then run on every frame. Every seed is another fleet, with other weather.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from misfire_fleet.campaigns.dry_run import Horizon, estimate
from misfire_fleet.campaigns.spec import parse_spec
from misfire_fleet.store import Store
from proving_ground.simulated.field import Field, before, collect, make_field, record, since

BACK, AHEAD = 10, 4
CAMPAIGNS: dict[str, dict[str, Any]] = {
    "above": {"score": "entropy", "above": 2.5},
    "top": {"score": "entropy", "top": 0.01},
    "slice": {"slice": {"weather": "fog"}},
    "slice and score": {"slice": {"weather": "fog"}, "score": "entropy", "above": 2.0},
    "rule": {"when": "entropy > 2 and context.weather != 'fog'"},
}


def one(field: Field, what: dict[str, Any], store: Store, folder: Path) -> dict[str, Any]:
    """Returns estimates and truths of one campaign on one fleet."""
    spec = parse_spec({"name": "c", "what": what})
    found = estimate(store, spec, Horizon(days=AHEAD, back_days=BACK, now=before(field, BACK).now))
    later = since(field, BACK)
    taken = collect(later, spec, folder)
    truths = {
        "samples": float(taken.sum()),
        "bytes": float(later.size[taken].sum()),
        "failures": float(later.failed[taken].sum()),
    }
    rows = {}
    for name, truth in truths.items():
        interval = getattr(found, name)
        if interval is not None:
            rows[name] = {
                "truth": truth,
                "value": interval.value,
                "inside": bool(interval.low <= truth <= interval.high),
                "width": (interval.high - interval.low) / max(truth, 1.0),
            }
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--vehicles", type=int, default=12)
    parser.add_argument("--frames", type=int, default=600, help="of each vehicle and day")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    asked = parser.parse_args()
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in CAMPAIGNS}
    for seed in range(asked.seeds):
        field = make_field(vehicles=asked.vehicles, days=BACK + AHEAD, frames=asked.frames, seed=seed)
        with tempfile.TemporaryDirectory() as folder, Store.open_folder(Path(folder) / "fleet") as store:
            record(store, before(field, BACK), share=0.02, labelled=0.33, seed=seed)
            for number, (name, what) in enumerate(CAMPAIGNS.items()):
                rows[name].append(one(field, what, store, Path(folder) / f"bundle-{number}"))
    result: dict[str, Any] = {"seeds": asked.seeds, "vehicles": asked.vehicles, "campaigns": {}}
    for name, found in rows.items():
        result["campaigns"][name] = {
            key: {
                "runs": len(some),
                "inside": round(float(np.mean([row["inside"] for row in some])), 3),
                "bias": round(float(np.mean([row["value"] / max(row["truth"], 1.0) for row in some])), 3),
                "width": round(float(np.median([row["width"] for row in some])), 2),
            }
            for key in ("samples", "bytes", "failures")
            if (some := [run[key] for run in found if key in run])
        }
    everything = [row for found in rows.values() for run in found for row in run.values()]
    result["inside"] = round(float(np.mean([row["inside"] for row in everything])), 3)
    print(json.dumps(result, indent=None if asked.json else 2))


if __name__ == "__main__":
    main()
