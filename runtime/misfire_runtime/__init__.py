"""Runs misfire on the vehicle: scores live frames, keeps the informative ones, and uploads them.

    run_vehicle(config, stop=...)       the whole vehicle, as `misfire run`
    read_config("vehicle.toml")         its configuration
    Scorer.load(Bundle.open(folder))    a bundle's task and scores for your own loop of frames
    open_source("rtsp://...")           frames from a file, a camera or a stream

The contracts that every unit shares are here, too (`bundle`, `messages`,
`preprocess`). Nothing in this package imports torch or another misfire unit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from misfire_runtime.front_door import front_door

if TYPE_CHECKING:
    from misfire_runtime.bundle import Bundle
    from misfire_runtime.config.tables import VehicleConfig, read_config
    from misfire_runtime.engines.load import load_engine
    from misfire_runtime.engines.scoring import Scorer
    from misfire_runtime.errors import MisfireError
    from misfire_runtime.sources import open_source
    from misfire_runtime.vehicle.session import run_vehicle
else:
    __getattr__, __dir__ = front_door(
        __name__,
        {
            "Bundle": "misfire_runtime.bundle",
            "MisfireError": "misfire_runtime.errors",
            "Scorer": "misfire_runtime.engines.scoring",
            "VehicleConfig": "misfire_runtime.config.tables",
            "load_engine": "misfire_runtime.engines.load",
            "open_source": "misfire_runtime.sources",
            "read_config": "misfire_runtime.config.tables",
            "run_vehicle": "misfire_runtime.vehicle.session",
        },
    )

__version__ = "0.2.0.dev0"
__all__ = [
    "Bundle",
    "MisfireError",
    "Scorer",
    "VehicleConfig",
    "load_engine",
    "open_source",
    "read_config",
    "run_vehicle",
]
