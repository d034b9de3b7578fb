"""Carries what is in the spool to the fleet until the fleet says that it has it."""

from misfire_runtime.uplink.uplink import Uplink

__all__ = ["Uplink"]
