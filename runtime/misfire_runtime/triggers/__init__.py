"""Triggers: which frames are worth a human's time.

observation --every trigger looks--> firings --novelty, budget--> Choice;  beside them the random stream.

`Chooser` is what the pipeline holds; `build_triggers` makes its triggers from the tables of a configuration.
"""

from __future__ import annotations

from misfire_runtime.triggers.build import build_triggers
from misfire_runtime.triggers.chooser import Choice, Chooser
from misfire_runtime.triggers.observation import Firing, Observation, Trigger

__all__ = ["Choice", "Chooser", "Firing", "Observation", "Trigger", "build_triggers"]
