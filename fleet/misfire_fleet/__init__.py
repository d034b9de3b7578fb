"""Collects uploads from a fleet, shows them, and retrains on them.

Store.open_folder("fleet")       opens the store: rows, pictures, retention
Collector(store, broker=...)     receives uploads from vehicles
create_app(store)                returns the console as an ASGI application
retrain_from_store(run, store)   makes the next run from uploads and labels
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from misfire_runtime.front_door import front_door

if TYPE_CHECKING:
    from misfire_fleet.collector.collector import Collector
    from misfire_fleet.collector.settings import CollectorSettings
    from misfire_fleet.console.app import create_app
    from misfire_fleet.retrain.command import retrain_from_store
    from misfire_fleet.store.store import Store
else:
    __getattr__, __dir__ = front_door(
        __name__,
        {
            "Collector": "misfire_fleet.collector.collector",
            "CollectorSettings": "misfire_fleet.collector.settings",
            "Store": "misfire_fleet.store.store",
            "create_app": "misfire_fleet.console.app",
            "retrain_from_store": "misfire_fleet.retrain.command",
        },
    )

__all__ = ["Collector", "CollectorSettings", "Store", "create_app", "retrain_from_store"]
