"""What the rest of the vehicle, and the fleet's side of the link, import to speak to the broker."""

from __future__ import annotations

from misfire_runtime.uplink_client import BrokerConfig, make_client

__all__ = ["BrokerConfig", "make_client"]
