"""Graphs that others made, exported whole: what is found in them, and how closely their bundles answer.

    python benchmarks/science/foreign_models.py --json [--models resnet50] [--parts models,layouts,wheels]

The parts `layouts` and `wheels` are detectors: see foreign_detectors.py.

The networks are the onnx package's own files of the model zoo; they come with placeholder weights, which are
drawn here (seeded), so nothing is shown about how well scores find failures. The frames are real: crops of
scikit-learn's two sample photographs. `parity` is the largest difference over all outputs between the bundle
and the file as it was given, on 50 frames; `spread` is the deviation of the logits over the frames, which
says that the network answers at all.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
import torch

if not __package__:  # started by its path: then the checkout's root is not where Python looks
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.record import command_line, finish, run
from benchmarks.science.foreign_detectors import measure_layouts, measure_wheels
from misfire_export.options import Options
from misfire_export.sources.facts import ModelFacts
from misfire_export.sources.frames import Frames
from misfire_export.sources.onnx.exporting import export_onnx
from proving_ground.model_zoo import CONTRACT, draw_weights, photographs

MODELS = ("resnet50", "densenet121", "inception_v1", "inception_v2", "shufflenet", "squeezenet")
PARTS = ("models", "layouts", "wheels")
FRAMES, HELD_OUT = 50, 12
LIMIT = 1e-4


def main() -> int:
    """Prints JSON or a table; 1 if a parity is above 1e-4 or the logits do not vary."""
    parser = command_line(__doc__)
    parser.add_argument("--models", help=f"comma-separated; default {','.join(MODELS)}")
    parser.add_argument("--parts", default=",".join(PARTS), help="comma-separated; default all")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    names = chosen.models.split(",") if chosen.models else MODELS[-1:] if chosen.quick else MODELS
    parts = chosen.parts.split(",")
    with tempfile.TemporaryDirectory() as folder:
        models = {name: measure(name, Path(folder)) for name in names} if "models" in parts else {}
        layouts = measure_layouts(Path(folder), quick=chosen.quick) if "layouts" in parts else {}
        # A short run downloads nothing.
        wheels = measure_wheels(Path(folder)) if "wheels" in parts and not chosen.quick else {}
    result = {
        "frames": FRAMES,
        "onnx": onnx.__version__,
        "models": models,
        "layouts": layouts,
        "wheels": wheels,
    }
    detectors = {name: row for name, row in {**layouts, **wheels}.items() if "left_out" not in row}
    table = "\n".join(
        [
            *(f"{name:20} {row['parity']:.1e}" for name, row in models.items()),
            *(
                f"{name:20} {row['layout']:16} score {row['gap']:.1e}, box {row['box_gap']:.1e}"
                for name, row in detectors.items()
            ),
        ]
    )
    met = all(row["parity"] <= LIMIT and row["spread"] > 0 for row in models.values()) and all(
        row["as_expected"] and row["boxes_missing"] == 0 and row["gap"] <= LIMIT for row in detectors.values()
    )
    return finish(__file__, result, chosen, summary=table, met=met)


def measure(name: str, folder: Path) -> dict[str, Any]:
    """Exports one network and reports on its bundle."""
    held_out = photographs(HELD_OUT, seed=1)
    bundle = export_onnx(
        draw_weights(name, folder / f"{name}.onnx"),
        Frames(photographs(FRAMES, seed=0), holdout=held_out),
        ModelFacts(CONTRACT),
        out=folder / name,
        options=Options(name=name.replace("_", "-"), version="1.0.0"),
    )
    session = ort.InferenceSession(bundle.model_path, providers=["CPUExecutionProvider"])
    logits = session.run(["logits"], {"image": held_out.batch(range(4), CONTRACT).numpy()})[0]
    manifest = bundle.manifest
    assert manifest.parity is not None
    return {
        "scores": [score.name for score in manifest.scores],
        "notes": manifest.extra["notes"],
        "parity": max(manifest.parity.max_abs.values()),
        "spread": float(logits.std(axis=0).mean()),
        "nodes": len(onnx.load(bundle.model_path).graph.node),
    }


if __name__ == "__main__":
    run(main)
