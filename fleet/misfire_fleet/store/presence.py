"""Decides which vehicles are online: those that reported it and whose heartbeats arrive in time.

A broker that crashes loses the vehicles' last wills, so the flag could be "online" for ever. A vehicle is
silent when three of its heartbeats are missing. No message contains the interval of heartbeats, so it is
measured: the shorter of the last two intervals, because the other one may contain a pause.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, and_, case, func, or_, select

from misfire_fleet.store.schema import telemetry, vehicles

HEARTBEAT_S = 60.0
"""The default of a vehicle's `heartbeat_s`; silence is never measured with a shorter interval."""
MISSED = 3
"""Missing heartbeats until a vehicle is silent; one or two may be lost in a bad network."""


def present(now: float) -> ColumnElement[bool]:
    """Returns the condition on a row of `vehicles` that it is online. `now`: seconds since 1970."""
    sign = vehicles.c.telemetry_at
    heard = case((vehicles.c.state_at > sign, vehicles.c.state_at), else_=func.coalesce(sign, _born(), 0.0))
    last, gap = _beat(0) - _beat(1), _beat(1) - _beat(2)
    interval = func.coalesce(case((gap < last, gap), else_=last), HEARTBEAT_S)
    # The first comparison decides for most vehicles without a query of the heartbeats' table.
    return and_(
        vehicles.c.online,
        or_(heard >= now - MISSED * HEARTBEAT_S, heard >= now - MISSED * interval),
    )


def _born() -> ColumnElement[float]:
    return func.coalesce(vehicles.c.state_at, vehicles.c.first_seen)


def _beat(back: int) -> Any:
    """Returns a subquery for the arrival time of the heartbeat that is `back` before the last one."""
    return (
        select(telemetry.c.received_at)
        .where(telemetry.c.vehicle == vehicles.c.name)
        .order_by(telemetry.c.received_at.desc())
        .limit(1)
        .offset(back)
        .scalar_subquery()
    )
