"""Says which vehicles a campaign means: by name, bundle, the operator's tags, and their newest context.

vehicles, tags, newest samples --facts--> VehicleFacts --means--> who collects
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from sqlalchemy import delete, func, select

from misfire_fleet.campaigns.spec import Who
from misfire_fleet.store import Store
from misfire_fleet.store.audit.record import Change, record
from misfire_fleet.store.rows import message_of
from misfire_fleet.store.schema import samples, vehicle_tags, vehicles
from misfire_runtime.errors import ConfigError
from misfire_runtime.messages import MAX_KEY, State, Telemetry

_MAX_TAGS = 16
_MAX_VALUE = 64
_SLICE = 500


@dataclass(frozen=True)
class VehicleFacts:
    """Holds what is known of a vehicle.

    Attributes:
        name: in topics.
        bundle: that it runs, "" if it never said.
        tags: that the operator gave it.
        context: of its newest sample.
        privacy: changes made to its newest sample; None if it has sent none.
        scores: names in its last heartbeat; empty if unknown.
        online: by its last state.
    """

    name: str
    bundle: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    context: Mapping[str, Any] = field(default_factory=dict)
    privacy: frozenset[str] | None = None
    scores: frozenset[str] = frozenset()
    online: bool = False


def means(who: Who, vehicle: VehicleFacts) -> bool:
    """Returns True if a campaign means this vehicle."""
    return (
        _any_of(who.vehicles, vehicle.name)
        and _any_of(who.bundles, vehicle.bundle)
        and all(vehicle.tags.get(key) == value for key, value in who.tags.items())
        and all(vehicle.context.get(key) == value for key, value in who.context.items())
    )


def facts(store: Store) -> list[VehicleFacts]:
    """Returns what is known of every vehicle, by name."""
    with store.database.read() as connection:
        known = {row.name: row for row in connection.execute(select(vehicles))}
        tagged = connection.execute(select(vehicle_tags)).all()
        newest = select(func.max(samples.c.seq)).group_by(samples.c.vehicle)
        seqs = list(connection.scalars(newest))
        offers: dict[str, dict[str, Any]] = {}
        for at in range(0, len(seqs), _SLICE):
            query = select(samples.c.vehicle, samples.c.offer).where(
                samples.c.seq.in_(seqs[at : at + _SLICE])
            )
            offers |= {row.vehicle: _parsed(row.offer) for row in connection.execute(query)}
    tags: dict[str, dict[str, str]] = {}
    for row in tagged:
        tags.setdefault(row.vehicle, {})[row.key] = row.value
    names = sorted({name for name in (*known, *offers) if isinstance(name, str)})
    return [_facts(name, known.get(name), tags.get(name, {}), offers.get(name)) for name in names]


def tags_of(store: Store) -> dict[str, dict[str, str]]:
    """Returns the tags of all vehicles that have any."""
    with store.database.read() as connection:
        rows = connection.execute(select(vehicle_tags).order_by(vehicle_tags.c.vehicle, vehicle_tags.c.key))
        found: dict[str, dict[str, str]] = {}
        for row in rows:
            found.setdefault(row.vehicle, {})[row.key] = row.value
    return found


def tag(store: Store, vehicle: str, changes: Mapping[str, str | None], *, actor: str) -> dict[str, str]:
    """Sets or removes (None) tags of a vehicle; returns all of them.

    Raises:
        ConfigError: a key or value is empty or too long, or there would be too many.
    """
    for key, value in changes.items():
        if (
            not 0 < len(key) <= MAX_KEY
            or "\0" in f"{key}{value}"
            or (value is not None and not 0 < len(value) <= _MAX_VALUE)
        ):
            raise ConfigError(
                f"tag {key[:40]!r}: expected KEY=VALUE of at most {MAX_KEY} and {_MAX_VALUE} characters"
            )
    before = tags_of(store).get(vehicle, {})
    after = {key: value for key, value in {**before, **changes}.items() if value is not None}
    if len(after) > _MAX_TAGS:
        raise ConfigError(f"vehicle {vehicle}: {len(after)} tags; at most {_MAX_TAGS}")
    with store.database.write() as connection:
        connection.execute(delete(vehicle_tags).where(vehicle_tags.c.vehicle == vehicle))
        rows = [{"vehicle": vehicle, "key": key, "value": value} for key, value in sorted(after.items())]
        if rows:
            connection.execute(vehicle_tags.insert(), rows)
        line = Change(
            actor[:64], "vehicle-tags", f"vehicle:{vehicle}", before, after, detail={"vehicle": vehicle}
        )
        record(connection, line, ledger=store.deletion.ledger)
    return after


def _any_of(patterns: Sequence[str], name: str) -> bool:
    return not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)


def _facts(name: str, row: Any, tags: Mapping[str, str], offer: dict[str, Any] | None) -> VehicleFacts:
    state, _bad = message_of(State, None if row is None else row.state, f"vehicle {name}")
    beat, _bad = message_of(Telemetry, None if row is None else row.telemetry, f"vehicle {name}")
    # The newest of the three is the offer's only if a vehicle never sent a state.
    bundle = (state.bundle if state else "") or (beat.bundle if beat else "")
    made = offer or {}
    return VehicleFacts(
        name=name,
        bundle=bundle or str(made.get("bundle", "")),
        tags=tags,
        context=made.get("context") or {},
        privacy=None if offer is None else frozenset(map(str, made.get("privacy") or ())),
        scores=frozenset(beat.sketches) if beat else frozenset(),
        online=bool(row.online) if row is not None else False,
    )


def _parsed(text: Any) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
