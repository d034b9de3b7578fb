"""Collects samples: answers vehicles' offers, receives uploads, and sends `stored` once they are durable."""

from __future__ import annotations

from typing import TYPE_CHECKING

from misfire_runtime.front_door import front_door

if TYPE_CHECKING:
    from misfire_fleet.collector.collector import Collector
else:
    __getattr__, __dir__ = front_door(__name__, {"Collector": "misfire_fleet.collector.collector"})

__all__ = ["Collector"]
