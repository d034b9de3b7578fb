"""From a trained model to one verified, calibrated bundle that a vehicle can trust.

    export_run(run, ...)              a run of `misfire train`
    export_module_bundle(model, ...)  any torch module
    export_onnx(path, ...)            a foreign ONNX graph

Each takes `Options` (name, precision, tolerance, ...) and writes what `misfire export` writes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from misfire_runtime.front_door import front_door

if TYPE_CHECKING:
    from misfire_export.assemble import Options
    from misfire_export.errors import ExportError
    from misfire_export.sources.module import export_module_bundle
    from misfire_export.sources.onnx import export_onnx
    from misfire_export.sources.run import export_run
else:
    __getattr__, __dir__ = front_door(
        __name__,
        {
            "ExportError": "misfire_export.errors",
            "Options": "misfire_export.assemble",
            "export_module_bundle": "misfire_export.sources.module",
            "export_onnx": "misfire_export.sources.onnx",
            "export_run": "misfire_export.sources.run",
        },
    )

__all__ = ["ExportError", "Options", "export_module_bundle", "export_onnx", "export_run"]
