"""Puts all campaigns that mean a vehicle into its one desired configuration, in the same way every time.

base (what `misfire fleet configure` set) + campaigns by priority, then name --merge--> config, left out: why

A campaign that would make the vehicle refuse the whole document is left out for this vehicle, and the reason
is kept: another bundle's scores, no room, a privacy stage that the vehicle does not have.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from misfire_fleet.campaigns.ledger import Campaign
from misfire_fleet.campaigns.spec import Cut, tables
from misfire_fleet.campaigns.vehicles import VehicleFacts, means
from misfire_runtime.config.desired import with_desired
from misfire_runtime.config.tables import VehicleConfig
from misfire_runtime.errors import ConfigError
from misfire_runtime.messages import MAX_JSON_BYTES
from misfire_runtime.triggers.campaigns import MAX_CAMPAIGN_TRIGGERS

KEY = "campaigns"
"""The table of the desired configuration that belongs to campaigns; all others are the operator's."""
_ROOM = MAX_JSON_BYTES - 4096
"""Of a message, less what is around the configuration."""


@dataclass(frozen=True)
class Prepared:
    """Holds a running campaign with what its triggers need: the embedding it is near, and thresholds.

    near: embedding and bundle.  thresholds: by vehicle, if the budget sets them; None: it does not.
    """

    campaign: Campaign
    near: tuple[str, str] | None = None
    thresholds: Mapping[str, Cut] | None = None


@dataclass(frozen=True)
class Merged:
    """Holds the campaigns that are in a vehicle's configuration, their triggers, and why others are not."""

    included: tuple[str, ...] = ()
    triggers: dict[str, dict[str, Any]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    shadowed: dict[str, str] = field(default_factory=dict)
    """Campaigns that get no frame of their own here, because another one wants the same frames first."""

    def config(self, base: Mapping[str, Any]) -> dict[str, Any]:
        """Returns a desired configuration: the operator's tables, and these campaigns."""
        own = {name: value for name, value in base.items() if name != KEY}
        return {**own, KEY: self.triggers} if self.triggers else own


def merge(
    vehicle: VehicleFacts,
    running: Sequence[Prepared],
    *,
    base: Mapping[str, Any],
    refused: Mapping[str, str] | None = None,
) -> Merged:
    """Returns what a vehicle shall run.

    Args:
        vehicle: what is known of it.
        running: campaigns by priority, then name.
        base: the desired configuration without campaigns.
        refused: campaigns that this vehicle has refused, and why.
    """
    included: list[str] = []
    triggers: dict[str, dict[str, Any]] = {}
    left_out: dict[str, str] = {}
    shadowed: dict[str, str] = {}
    wanted: dict[str, str] = {}
    for each in running:
        spec = each.campaign.spec
        if not means(spec.who, vehicle):
            continue
        problem = (refused or {}).get(spec.name, "") or _why_not(each, vehicle)
        threshold = None if each.thresholds is None else each.thresholds.get(vehicle.name)
        own = {} if problem else tables(spec, near=each.near, threshold=threshold)
        problem = problem or _why_no_room({**triggers, **own}, base)
        if problem:
            left_out[spec.name] = problem
            continue
        frames = json.dumps(spec.what.model_dump(mode="json"), sort_keys=True)
        if frames in wanted:
            shadowed[spec.name] = f"wants the same frames as {wanted[frames]}, which comes first"
        wanted.setdefault(frames, spec.name)
        included.append(spec.name)
        triggers |= own
    return Merged(tuple(included), triggers, left_out, shadowed)


def _why_not(each: Prepared, vehicle: VehicleFacts) -> str:
    """Returns why a vehicle that a campaign means would refuse it, or could send nothing for it."""
    spec = each.campaign.spec
    score = spec.what.score
    if score is not None and vehicle.scores and score not in vehicle.scores:
        known = ", ".join(sorted(vehicle.scores))[:100]
        return f"its bundle {vehicle.bundle} has no score {score}; it has {known}"
    if each.near is not None and vehicle.bundle and vehicle.bundle != each.near[1]:
        return f"it runs {vehicle.bundle}; the sample's embedding is of {each.near[1]}"
    missing = [] if vehicle.privacy is None else sorted(set(spec.privacy) - vehicle.privacy)
    if missing:
        return f"privacy: its newest sample is without {', '.join(missing)}"
    if spec.what.budget and (each.thresholds is None or vehicle.name not in each.thresholds):
        return "the fleet's budget sets no threshold for it: none is set, or its heartbeats have no sketch"
    return ""


def _why_no_room(triggers: Mapping[str, Any], base: Mapping[str, Any]) -> str:
    if len(triggers) > MAX_CAMPAIGN_TRIGGERS:
        return f"no room: a vehicle runs at most {MAX_CAMPAIGN_TRIGGERS} triggers of campaigns"
    config = {**base, KEY: triggers}
    if len(json.dumps(config).encode()) > _ROOM:
        return f"no room: a desired configuration has at most {_ROOM} bytes"
    try:
        # The vehicle's own check: what is wrong in itself is found before it is sent.
        with_desired(VehicleConfig(), {KEY: dict(triggers)})
    except ConfigError as error:
        return str(error)[:300]
    return ""
