"""Windows and timers of the uplink; the defaults suit a cellular link and a collector nearby or far."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from misfire_runtime.mqtt.client import MAX_HANDED

Seconds = Annotated[float, Field(gt=0, le=86400)]


class UplinkSettings(BaseModel):
    """All durations are of the monotonic clock."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_samples: Annotated[int, Field(ge=1, le=1024)] = 64
    """Samples offered, being sent, or waiting for `stored` at once."""
    max_bytes: Annotated[int, Field(ge=1)] = 16 * 1024 * 1024
    """Bytes of samples being sent or waiting for `stored` at once; one sample may always go."""
    max_handed: Annotated[int, Field(ge=1, le=64)] = MAX_HANDED
    """Messages in the MQTT client's hands at once."""
    reoffer_s: Seconds = 10.0
    """Offer again after this long without an answer, then with full jitter up to `reoffer_max_s`."""
    reoffer_max_s: Seconds = 300.0
    first_reoffer_s: Seconds = 2.0
    """Offer again this long to twice as long after the broker's acknowledgement, then once more after the
    double, if few other offers wait: a broker with a full queue drops what it acknowledged."""
    ack_timeout_s: Seconds = 30.0
    """A connection that acknowledges nothing for this long is made anew."""
    stale_s: Seconds = 30.0
    """A transfer that stood still for this long starts with an offer again."""
    window_s: Seconds = 20.0
    """On a limited link, ask for no more than it carries in this time."""
    reconnect_s: Seconds = 1.0
    """First wait before a new connection, then with full jitter up to `reconnect_max_s`."""
    reconnect_max_s: Seconds = 120.0
    cloud_events: bool = False
    """Offers carry their CloudEvents attributes as MQTT 5 user properties, for readers other than misfire."""
