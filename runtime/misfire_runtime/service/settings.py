"""Defines a vehicle's monitoring: metrics port, heartbeat, and time until a source is stalled."""

from __future__ import annotations

from pydantic import Field

from misfire_runtime.tables import Table


class TelemetryTable(Table):
    """Configures metrics, heartbeat and stall detection."""

    port: int | None = Field(default=None, ge=0, le=65535)
    host: str = "127.0.0.1"
    heartbeat_s: float = Field(default=60.0, gt=0)
    stall_s: float = Field(default=10.0, gt=0)
