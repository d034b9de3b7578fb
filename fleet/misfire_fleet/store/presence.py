"""Which vehicles are online: those that said so, and of whom a sign of life came in time.

A broker that goes down takes the Wills with it, so the flag alone may say "online" for ever. A vehicle is
silent after three of its heartbeats are missing. The interval is that of its last heartbeats, because no
message says it; the shorter of the last two, so that a pause is not taken for it.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, and_, case, func, or_, select

from misfire_fleet.store.schema import telemetry, vehicles

HEARTBEAT_S = 60.0
"""The default of a vehicle's `heartbeat_s`, and the shortest that silence is measured by."""
MISSED = 3


def present(now: float) -> ColumnElement[bool]:
    """Returns a condition on a row of `vehicles`. `now`: seconds since 1970."""
    sign = vehicles.c.telemetry_at
    heard = case((vehicles.c.state_at > sign, vehicles.c.state_at), else_=func.coalesce(sign, _born(), 0.0))
    last, gap = _beat(0) - _beat(1), _beat(1) - _beat(2)
    interval = func.coalesce(case((gap < last, gap), else_=last), HEARTBEAT_S)
    # Most are told apart without a look into the log of heartbeats.
    return and_(
        vehicles.c.online,
        or_(heard >= now - MISSED * HEARTBEAT_S, heard >= now - MISSED * interval),
    )


def _born() -> ColumnElement[float]:
    return func.coalesce(vehicles.c.state_at, vehicles.c.first_seen)


def _beat(back: int) -> Any:
    """When the heartbeat came that is so many before the last."""
    return (
        select(telemetry.c.received_at)
        .where(telemetry.c.vehicle == vehicles.c.name)
        .order_by(telemetry.c.received_at.desc())
        .limit(1)
        .offset(back)
        .scalar_subquery()
    )
