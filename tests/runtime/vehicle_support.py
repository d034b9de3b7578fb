"""A vehicle on a real bundle and a store in memory, for the tests of its parts."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from misfire_runtime.bundle import Bundle
from misfire_runtime.config.tables import parse_config
from misfire_runtime.engines.scoring import Scorer
from misfire_runtime.sources import open_source
from misfire_runtime.vehicle.pipeline import Vehicle

EVERY = '[triggers.all]\nkind = "threshold"\nabove = -1e9\n'
NONE = '[triggers.none]\nkind = "threshold"\nabove = 1e9\n[random]\nrate = 0.0\n'


def make(bundle: Bundle, store: Any, folder: Path, source: Any, text: str = EVERY, **options: Any) -> Vehicle:
    config = parse_config(text)
    sources = [open_source(str(source))] if isinstance(source, Path) else list(source)
    return Vehicle(
        config,
        scorer=Scorer.load(bundle),
        store=store,
        sources=sources,
        state_dir=folder / "state",
        **options,
    )


def run(vehicle: Vehicle, stop: threading.Event | None = None) -> Any:
    report = vehicle.run(stop or threading.Event())
    vehicle.close()
    return report
