"""Stores samples: rows in a database and bytes in a blob store, behind one class."""

from __future__ import annotations

from typing import TYPE_CHECKING

from misfire_runtime.front_door import front_door

if TYPE_CHECKING:
    from misfire_fleet.store.store import Store
else:
    __getattr__, __dir__ = front_door(__name__, {"Store": "misfire_fleet.store.store"})

__all__ = ["Store"]
