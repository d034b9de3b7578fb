"""Lists the layouts: one import for each file that registers some, in the order in which they are shown."""

from __future__ import annotations

from misfire_export.sources.detectors import (  # noqa: F401  (they register themselves)
    chosen,
    distributions,
    pairs,
    ultralytics,
    yolov5,
    yolox,
)
from misfire_export.sources.detectors.base import LAYOUTS, Layout
from misfire_runtime.errors import ConfigError


def layout_named(name: str) -> Layout:
    """Returns a layout. Raises ConfigError that lists all."""
    if name not in LAYOUTS:
        raise ConfigError(f"there is no layout {name!r}; there are {', '.join(LAYOUTS)}")
    return LAYOUTS[name]
