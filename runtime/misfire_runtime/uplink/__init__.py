"""Uploads the samples in the spool until the fleet confirms that they are stored."""

from misfire_runtime.uplink.uplink import Uplink

__all__ = ["Uplink"]
