"""Defines the triggers of the fleet's campaigns, which run beside the vehicle's own.

campaign.NAME --------------------------------> the offer's trigger: the fleet counts by it
campaign.NAME.1, campaign.NAME.2 --all of them--> campaign.NAME

Their names begin with `campaign.`, and their groups name only each other, so that a campaign can neither
replace nor silence a trigger of the vehicle's own.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from misfire_runtime.messages import Name
from misfire_runtime.triggers.registry import AnyTriggerTable

PREFIX = "campaign."
MAX_CAMPAIGN_TRIGGERS = 32
"""With the parts of groups. Every one looks at every frame."""
MAX_PRIORITY = 5
"""Of a campaign, and of the vehicle's own triggers by default; the random stream, evicted last, has 6."""


def _apart(tables: dict[str, AnyTriggerTable]) -> dict[str, AnyTriggerTable]:
    for name, table in tables.items():
        if not name.startswith(PREFIX) or name == PREFIX:
            raise ValueError(f"{name}: the name of a campaign's trigger begins with {PREFIX!r}")
        foreign = [part for part in table.part_names if part not in tables]
        if foreign:
            raise ValueError(f"{name}: {foreign[0]!r} is no trigger of a campaign")
        if table.priority > MAX_PRIORITY:
            raise ValueError(f"{name}: priority {table.priority} is above {MAX_PRIORITY}")
    return tables


CampaignTables = Annotated[
    dict[Name, AnyTriggerTable], Field(max_length=MAX_CAMPAIGN_TRIGGERS), AfterValidator(_apart)
]
"""The triggers of campaigns by name."""
