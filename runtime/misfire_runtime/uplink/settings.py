"""Defines windows and timers of the uplink; the defaults suit a cellular link."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from misfire_runtime.mqtt.client import MAX_HANDED

Seconds = Annotated[float, Field(gt=0, le=86400)]


class UplinkSettings(BaseModel):
    """All durations are of the monotonic clock."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_samples: Annotated[int, Field(ge=1, le=1024)] = 64
    """Maximum number of samples that are offered, being sent, or waiting for `stored`."""
    max_bytes: Annotated[int, Field(ge=1)] = 16 * 1024 * 1024
    """Maximum bytes of samples being sent or waiting for `stored`; one sample is always allowed."""
    max_handed: Annotated[int, Field(ge=1, le=64)] = MAX_HANDED
    """Maximum number of unacknowledged messages in the MQTT client."""
    reoffer_s: Seconds = 10.0
    """Time without an answer until an offer is repeated; then with full jitter up to `reoffer_max_s`."""
    reoffer_max_s: Seconds = 300.0
    first_reoffer_s: Seconds = 2.0
    """Time after the broker's acknowledgement until an offer is repeated early: one to two times this value,
    and once more after twice that, if few other offers wait. A broker with a full queue drops messages that
    it has acknowledged."""
    ack_timeout_s: Seconds = 30.0
    """Time without any acknowledgement until the uplink reconnects."""
    stale_s: Seconds = 30.0
    """Time without progress until a transfer starts again with an offer."""
    window_s: Seconds = 20.0
    """On a limited link, the window holds as many bytes as the link carries in this time."""
    reconnect_s: Seconds = 1.0
    """Wait before the first reconnect; then with full jitter up to `reconnect_max_s`."""
    reconnect_max_s: Seconds = 120.0
    cloud_events: bool = False
    """Offers carry their CloudEvents attributes as MQTT 5 user properties, for readers other than misfire."""
