"""Exports a trained model as one verified, calibrated bundle that a vehicle can trust.

    export_run(run, frames, out=..., options=Options(name, version))   a run of `misfire train`
    export_module_bundle(model, frames, facts, ...)                    any torch module
    export_onnx(path, frames, facts, ...)                              a foreign ONNX graph

`frames` are labelled examples (`Frames`), `facts` what a foreign model does not show (`ModelFacts`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from misfire_runtime.front_door import front_door

if TYPE_CHECKING:
    from misfire_export.errors import ExportError
    from misfire_export.options import Options
    from misfire_export.sources.facts import ModelFacts
    from misfire_export.sources.frames import Frames
    from misfire_export.sources.module import export_module_bundle
    from misfire_export.sources.onnx.exporting import export_onnx
    from misfire_export.sources.run import export_run
else:
    __getattr__, __dir__ = front_door(
        __name__,
        {
            "ExportError": "misfire_export.errors",
            "Frames": "misfire_export.sources.frames",
            "ModelFacts": "misfire_export.sources.facts",
            "Options": "misfire_export.options",
            "export_module_bundle": "misfire_export.sources.module",
            "export_onnx": "misfire_export.sources.onnx.exporting",
            "export_run": "misfire_export.sources.run",
        },
    )

__all__ = [
    "ExportError",
    "Frames",
    "ModelFacts",
    "Options",
    "export_module_bundle",
    "export_onnx",
    "export_run",
]
