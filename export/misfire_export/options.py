"""Holds how a bundle is made, stated once by the caller and passed to every step that needs it.

command line or Python --Options--> export_run | export_module_bundle | export_onnx --> assemble
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from misfire_export.choices import Target
from misfire_export.errors import ExportError
from misfire_export.measure.parity import TOLERANCE
from misfire_export.measure.trigger import Shifts
from misfire_runtime.choices import Precision

ScoreOptions = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Options:
    """Holds how to bundle a model from any source.

    Args:
        name: Name of the bundle.
        version: Its semantic version.
        scores: Names of the failure scores, or "all". None takes the learned head and the free scores.
        score_options: Options of scores by name, such as {"egl_pp": {"size": 512}}.
        precision: Precision of the network; scores stay fp32.
        target: Engine for which a reduced precision is made.
        tolerance: Largest absolute difference from torch.
        default_score: Forces the trigger score. None lets the gate choose, holding out `shifts`.
        upload_rate: Share of frames that vehicles upload; the gate then judges the top of the list. None
            declares none.
        failure_threshold: Loss above which a frame fails. None takes that of the task or the run.
        shifts: Corruptions that the gate holds out.
        snapshot_id: Data set snapshot that the run was trained on, for the lineage.
        seed: Random seed.
        refittable: Computes the correction of a head of strength 0, too: a head-only round can give it one.
    """

    name: str
    version: str
    scores: Sequence[str] | None = None
    score_options: ScoreOptions = field(default_factory=dict)
    precision: Precision = "fp32"
    target: Target = "onnxruntime-x86"
    tolerance: float = TOLERANCE
    default_score: str | None = None
    upload_rate: float | None = None
    failure_threshold: float | None = None
    shifts: Shifts = field(default_factory=Shifts)
    snapshot_id: str | None = None
    seed: int = 0
    refittable: bool = False


def require_options(options: Options, names: Sequence[str]) -> None:
    """Raises ExportError on an unknown corruption, or a default score that is not among `names`."""
    options.shifts.require_known()
    if options.default_score is not None and options.default_score not in names:
        raise ExportError(
            f"default score {options.default_score!r} is not in the bundle; it has {', '.join(names)}"
        )
