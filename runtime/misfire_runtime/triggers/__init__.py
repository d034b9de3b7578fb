"""Provides triggers: they choose the frames that are worth a human's time.

scored frame --every trigger looks--> events --novelty, budget--> Choice;  beside them the random stream.

`Selector` is what the pipeline holds; `build_triggers` makes its triggers from the tables of a configuration.
The modules of this package register the kinds that come with the runtime.
"""

from __future__ import annotations

from misfire_runtime.triggers.base import Trigger, TriggerEvent
from misfire_runtime.triggers.build import build_triggers
from misfire_runtime.triggers.compose import AllOf, AnyOf
from misfire_runtime.triggers.expression import Rule
from misfire_runtime.triggers.near import Near
from misfire_runtime.triggers.rates import Percentile, TargetRate, Threshold
from misfire_runtime.triggers.scored_frame import Choice, ScoredFrame
from misfire_runtime.triggers.selector import Selector

__all__ = [
    "AllOf",
    "AnyOf",
    "Choice",
    "Near",
    "Percentile",
    "Rule",
    "ScoredFrame",
    "Selector",
    "TargetRate",
    "Threshold",
    "Trigger",
    "TriggerEvent",
    "build_triggers",
]
