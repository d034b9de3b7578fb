"""A vehicle on a real bundle and a store in memory, for the tests of its parts."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path
from typing import Any

import numpy as np

from misfire_runtime.bundle import Bundle
from misfire_runtime.config.tables import parse_config
from misfire_runtime.engines.scoring import Scorer
from misfire_runtime.preprocess import Image
from misfire_runtime.sources import Frame, open_source
from misfire_runtime.testing import ListSource
from misfire_runtime.triggers import Choice, ScoredFrame
from misfire_runtime.vehicle.pipeline import Vehicle

EVERY = '[triggers.all]\nkind = "threshold"\nabove = -1e9\n'
NONE = '[triggers.none]\nkind = "threshold"\nabove = 1e9\n[random]\nrate = 0.0\n'


def scored_frame(
    scored: Any,
    *,
    image: Image = np.zeros((1, 1, 3), np.uint8),  # noqa: B008  (never written to)
    context: Any = None,
    source: str = "front",
    time_s: float = 0.0,
    count: int = 0,
    choice: Choice | None = None,
) -> ScoredFrame:
    """A frame as triggers see it. scored: what it is to answer in place of the engine's outputs."""
    frame = Frame(image, source, count, "frame", pts_s=time_s)
    return ScoredFrame(frame, scored, "bundle@1", context or {}, count, choice)


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


def camera(frames: int | None = None, *, period_s: float, side: int = 32) -> ListSource:
    """Returns a live source of random pictures; None: without an end."""
    rng = np.random.default_rng(0)
    numbers = itertools.count() if frames is None else range(frames)
    images = (rng.integers(0, 256, (side, side, 3)).astype(np.uint8) for _ in numbers)
    return ListSource(images, live=True, period_s=period_s)
