"""The fleet's memory: rows in a database, bytes in a blob store, behind one class."""

from misfire_fleet.store.store import Store

__all__ = ["Store"]
